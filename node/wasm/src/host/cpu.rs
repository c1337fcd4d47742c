//! CPU time: who used how much, who has to wait, and the clock that makes guests yield.
//!
//! Each poll of a guest is timed and charged. A container with a limit draws on a bucket that fills
//! at its rate and holds one period (100 ms, as the kernel's own bandwidth control has); when it is
//! empty the guest is not polled until it holds some again. Epochs bound a poll to about a
//! millisecond, so no guest keeps a thread, limit or not.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::Sleep;
use wasmtime::Engine;

const PERIOD: Duration = Duration::from_millis(100);
const EPOCH: Duration = Duration::from_millis(1);
/// Epochs without a running guest until the ticker sleeps.
const IDLE_EPOCHS: u32 = 20;

/// Advances the engine's epoch while guests run, and sleeps while none does.
pub(crate) struct Ticker {
    running: AtomicUsize,
    asleep: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Ticker {
    pub fn start(engine: Engine) -> std::io::Result<Arc<Self>> {
        let ticker =
            Arc::new(Self { running: 0.into(), asleep: false.into(), thread: Default::default() });
        let this = ticker.clone();
        let thread = std::thread::Builder::new()
            .name("epochs".into())
            .stack_size(64 << 10)
            .spawn(move || this.run(&engine))?;
        let _ = ticker.thread.set(thread.thread().clone());
        Ok(ticker)
    }

    fn run(&self, engine: &Engine) {
        let mut idle = 0;
        loop {
            if self.running.load(Ordering::Relaxed) == 0 {
                idle += 1;
            } else {
                idle = 0;
            }
            if idle > IDLE_EPOCHS {
                self.asleep.store(true, Ordering::SeqCst);
                // A guest that started between the two looks has seen `asleep` or is seen here.
                while self.running.load(Ordering::SeqCst) == 0 && self.asleep.load(Ordering::SeqCst)
                {
                    std::thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
                idle = 0;
            }
            std::thread::sleep(EPOCH);
            engine.increment_epoch();
        }
    }

    fn enter(&self) -> Running<'_> {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst)
            && self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Running(self)
    }
}

struct Running<'a>(&'a Ticker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A container's CPU time.
pub(crate) struct Cpu {
    used_nanos: AtomicU64,
    bucket: Option<Mutex<Bucket>>,
}

impl Cpu {
    pub fn new(limit_millis: Option<u64>) -> Self {
        let bucket =
            limit_millis.map(|millis| Mutex::new(Bucket::new(millis.max(1), Instant::now())));
        Self { used_nanos: 0.into(), bucket }
    }

    pub fn used_nanos(&self) -> u64 {
        self.used_nanos.load(Ordering::Relaxed)
    }

    fn wait(&self) -> Option<Duration> {
        self.bucket.as_ref()?.lock().wait(Instant::now())
    }

    /// Threads' CPU clock is a system call; it is worth it only where time is a limit. Elsewhere the
    /// wall clock is close, since a poll does not block.
    fn now(&self) -> Duration {
        let clock = match self.bucket {
            Some(_) => rustix::time::ClockId::ThreadCPUTime,
            None => rustix::time::ClockId::Monotonic,
        };
        let now = rustix::time::clock_gettime(clock);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn charge(&self, spent: Duration) {
        let nanos = spent.as_nanos() as u64;
        self.used_nanos.fetch_add(nanos, Ordering::Relaxed);
        if let Some(bucket) = &self.bucket {
            bucket.lock().nanos -= nanos as i64;
        }
    }
}

/// Fills at `millis` thousandths of real time, holds a period's worth, and may be in debt.
struct Bucket {
    millis: u64,
    nanos: i64,
    filled_at: Instant,
}

impl Bucket {
    fn new(millis: u64, now: Instant) -> Self {
        Self { millis, nanos: Self::capacity(millis), filled_at: now }
    }

    fn capacity(millis: u64) -> i64 {
        (PERIOD.as_nanos() as u64 * millis / 1000) as i64
    }

    /// None: go ahead. Else how long until there is a slice of time to spend.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let real = now.saturating_duration_since(self.filled_at).min(PERIOD * 100);
        self.filled_at = now;
        self.nanos = (self.nanos + (real.as_nanos() as u64 * self.millis / 1000) as i64)
            .min(Self::capacity(self.millis));
        if self.nanos > 0 {
            return None;
        }
        // A few epochs' worth, so that a throttled guest does not wake every millisecond for little.
        let slice = (Self::capacity(self.millis) / 4).min(4 * EPOCH.as_nanos() as i64).max(1);
        Some(Duration::from_nanos((slice - self.nanos) as u64 * 1000 / self.millis))
    }
}

/// A guest's future, timed, throttled, and seen by the ticker.
pub(crate) struct Metered<T> {
    inner: Pin<Box<dyn Future<Output = T> + Send>>,
    cpu: Arc<Cpu>,
    ticker: Arc<Ticker>,
    throttled: Option<Pin<Box<Sleep>>>,
}

impl<T> Metered<T> {
    pub fn new(
        inner: impl Future<Output = T> + Send + 'static,
        cpu: Arc<Cpu>,
        ticker: Arc<Ticker>,
    ) -> Self {
        Self { inner: Box::pin(inner), cpu, ticker, throttled: None }
    }
}

impl<T> Future for Metered<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        loop {
            if let Some(sleep) = &mut this.throttled {
                std::task::ready!(sleep.as_mut().poll(cx));
                this.throttled = None;
            }
            let Some(wait) = this.cpu.wait() else { break };
            this.throttled = Some(Box::pin(tokio::time::sleep(wait)));
        }
        let _running = this.ticker.enter();
        let before = this.cpu.now();
        let polled = this.inner.as_mut().poll(cx);
        this.cpu.charge(this.cpu.now().saturating_sub(before));
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that always wants to run, in slices of `slice`, for `total` of real time.
    fn share(millis: u64, slice: Duration, total: Duration) -> f64 {
        let start = Instant::now();
        let (mut now, mut used) = (start, Duration::ZERO);
        let mut bucket = Bucket::new(millis, start);
        while now < start + total {
            match bucket.wait(now) {
                Some(wait) => now += wait,
                None => {
                    now += slice;
                    used += slice;
                    bucket.nanos -= slice.as_nanos() as i64;
                }
            }
        }
        used.as_secs_f64() / total.as_secs_f64()
    }

    #[test]
    fn a_limit_is_a_share_of_real_time() {
        for (millis, expected) in [(200, 0.2), (50, 0.05), (1000, 1.0), (1, 0.001)] {
            let got = share(millis, EPOCH, Duration::from_secs(20));
            assert!((got - expected).abs() < 0.01 * expected.max(0.2), "{millis}: {got}");
        }
    }

    #[test]
    fn rest_saves_up_one_period_at_most() {
        let start = Instant::now();
        let mut bucket = Bucket::new(500, start);
        assert_eq!(bucket.wait(start + Duration::from_secs(60)), None);
        assert_eq!(bucket.nanos, 50_000_000);
    }
}
