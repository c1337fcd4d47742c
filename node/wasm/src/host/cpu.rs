//! CPU time: who used how much, who has to wait, and the clock that makes guests yield.
//!
//! Each poll of a guest is timed and charged. A container with a limit draws on a bucket that fills
//! at its rate and holds one period (100 ms, as the kernel's own bandwidth control has); when it is
//! empty the guest is not polled until it holds some again. Epochs bound a poll to about a
//! millisecond, so no guest keeps a thread, limit or not.
//!
//! A poll takes an epoch's worth from the bucket before it begins and settles when it ends, so that a
//! crowd of requests that run at once cannot all spend the same time; what a poll took beyond that is a
//! debt, paid before anyone of the container runs again. Those who wait are let in one by one as the
//! bucket fills. Nothing is forgiven and nothing is lost short of a whole period's rest: over any time
//! longer than a few periods a container that wants to gets its limit, and no more.

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

    /// Leave to poll the guest now, or how long to wait before asking again. `waiting` is whether the
    /// caller was told to wait before.
    fn admit(&self, waiting: bool) -> Result<(), Duration> {
        match &self.bucket {
            Some(bucket) => bucket.lock().admit(Instant::now(), waiting),
            None => Ok(()),
        }
    }

    /// One who waited wants to run no more.
    fn gave_up(&self) {
        if let Some(bucket) = &self.bucket {
            bucket.lock().waiting -= 1;
        }
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
            bucket.lock().settle(nanos);
        }
    }
}

/// Fills at `millis` thousandths of real time, holds a period's worth, and may be in debt.
struct Bucket {
    millis: u64,
    nanos: i64,
    /// What of the filling was less than a nanosecond, in thousandths: small limits fill slowly.
    remainder: u64,
    filled_at: Instant,
    /// Polls that were told to wait and have not run since.
    waiting: u32,
}

/// What a poll takes in advance: an epoch ends it.
const ADVANCE: i64 = EPOCH.as_nanos() as i64;

impl Bucket {
    fn new(millis: u64, now: Instant) -> Self {
        let nanos = Self::capacity(millis);
        Self { millis, nanos, remainder: 0, filled_at: now, waiting: 0 }
    }

    fn capacity(millis: u64) -> i64 {
        (PERIOD.as_nanos() as u64 * millis / 1000) as i64
    }

    fn fill(&mut self, now: Instant) {
        // A debt is paid over any time; what is beyond a period of rest would not fit in any case.
        let real = now.saturating_duration_since(self.filled_at).as_nanos();
        let thousandths = real * u128::from(self.millis) + u128::from(self.remainder);
        self.filled_at = now;
        self.remainder = (thousandths % 1000) as u64;
        let filled = i64::try_from(thousandths / 1000).unwrap_or(i64::MAX);
        self.nanos = self.nanos.saturating_add(filled).min(Self::capacity(self.millis));
    }

    fn admit(&mut self, now: Instant, waiting: bool) -> Result<(), Duration> {
        self.fill(now);
        self.waiting -= u32::from(waiting);
        if self.nanos > 0 {
            self.nanos -= ADVANCE;
            return Ok(());
        }
        self.waiting += 1;
        // A few epochs' worth, so that a throttled guest does not wake every millisecond for little;
        // and behind those who wait already, so that a crowd does not wake for one place. Who comes
        // back and finds it taken keeps its turn.
        let slice = (Self::capacity(self.millis) / 4).clamp(1, 4 * ADVANCE);
        let ahead = if waiting { 0 } else { i64::from(self.waiting - 1) * ADVANCE };
        let missing = slice.saturating_add(ahead).saturating_sub(self.nanos);
        Err(Duration::from_nanos((missing as u64).saturating_mul(1000) / self.millis))
    }

    /// A poll that was admitted took `nanos`.
    fn settle(&mut self, nanos: u64) {
        self.nanos += ADVANCE - nanos as i64;
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
            }
            match this.cpu.admit(this.throttled.take().is_some()) {
                Ok(()) => break,
                Err(wait) => this.throttled = Some(Box::pin(tokio::time::sleep(wait))),
            }
        }
        let _running = this.ticker.enter();
        let before = this.cpu.now();
        let polled = this.inner.as_mut().poll(cx);
        this.cpu.charge(this.cpu.now().saturating_sub(before));
        polled
    }
}

impl<T> Drop for Metered<T> {
    fn drop(&mut self) {
        if self.throttled.is_some() {
            self.cpu.gave_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `guests` that always want to run, on as many cores, in polls of `slice`, woken `late`, for `total`.
    #[derive(Clone, Copy)]
    struct Load {
        guests: usize,
        slice: Duration,
        late: Duration,
        total: Duration,
    }

    const ALONE: Load =
        Load { guests: 1, slice: EPOCH, late: Duration::ZERO, total: Duration::from_secs(20) };

    /// The share of one core that the guests get together.
    fn share(millis: u64, load: Load) -> f64 {
        #[derive(Clone, Copy)]
        enum Guest {
            Waits,
            Runs,
        }
        let start = Instant::now();
        let (mut used, mut bucket) = (Duration::ZERO, Bucket::new(millis, start));
        let mut guests = vec![(start, None); load.guests];
        loop {
            let next = guests.iter_mut().min_by_key(|(at, _)| *at).expect("there are guests");
            let (now, guest) = *next;
            if now > start + load.total {
                return used.as_secs_f64() / load.total.as_secs_f64();
            }
            if matches!(guest, Some(Guest::Runs)) {
                bucket.settle(load.slice.as_nanos() as u64);
                used += load.slice;
            }
            *next = match bucket.admit(now, matches!(guest, Some(Guest::Waits))) {
                Ok(()) => (now + load.slice, Some(Guest::Runs)),
                Err(wait) => (now + wait + load.late, Some(Guest::Waits)),
            };
        }
    }

    #[track_caller]
    fn check_share(millis: u64, load: Load) {
        let (got, expected) = (share(millis, load), millis as f64 / 1000.0);
        // One period's worth may be had at once, and a poll's end is not exact.
        let exact = 0.005 * expected.max(0.2) + 0.1 * expected / load.total.as_secs_f64();
        assert!((got - expected).abs() <= exact, "{millis}: {got}");
    }

    #[test]
    fn a_limit_is_a_share_of_real_time() {
        for millis in [1, 50, 200, 1000] {
            check_share(millis, ALONE);
            check_share(millis, Load { slice: EPOCH / 7, ..ALONE });
        }
        // Polls that are longer than an epoch, a machine that is late to wake.
        check_share(200, Load { slice: EPOCH * 3, ..ALONE });
        check_share(200, Load { late: Duration::from_millis(30), ..ALONE });
    }

    #[test]
    fn a_crowd_shares_one_limit() {
        for guests in [2, 16, 300] {
            check_share(200, Load { guests, ..ALONE });
            check_share(200, Load { guests, slice: EPOCH / 3, ..ALONE });
        }
        check_share(2500, Load { guests: 8, ..ALONE });
    }

    #[test]
    fn rest_saves_up_one_period_at_most() {
        let start = Instant::now();
        let mut bucket = Bucket::new(500, start);
        assert_eq!(bucket.admit(start + Duration::from_secs(60), false), Ok(()));
        bucket.settle(0);
        assert_eq!(bucket.nanos, 50_000_000);
    }

    #[test]
    fn a_debt_is_paid_in_full() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, start);
        assert_eq!(bucket.admit(start, false), Ok(()));
        bucket.settle(Duration::from_secs(10).as_nanos() as u64);
        // 10 s at a tenth of a core: nearly 100 s.
        let wait = bucket.admit(start, false).unwrap_err();
        assert!((98..=101).contains(&wait.as_secs()), "{wait:?}");
        assert!(bucket.admit(start + Duration::from_secs(90), true).is_err());
        assert_eq!(bucket.admit(start + Duration::from_secs(101), true), Ok(()));
        assert_eq!(bucket.waiting, 0);
    }
}
