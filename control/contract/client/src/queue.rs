//! Keys to work on: each at most once at a time, each at most once waiting.
//!
//! Its size is bounded by the number of distinct keys. A key that is added while somebody works on
//! it waits until that work is done, so no two workers ever hold the same key.

mod figures;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::reflector::backoff;

use figures::Times;
pub use figures::{Figures, Queues, Told};

const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A rate-limited, deduplicating work queue; share it in an `Arc`.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Must be worked on, since when: those in `ready`, and those added again while in `working`.
    dirty: HashMap<T, Instant>,
    /// Worked on, since when.
    working: HashMap<T, Instant>,
    /// By time; `due` holds the same entries by key.
    later: BTreeSet<(Instant, T)>,
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
    closed: bool,
    adds: u64,
    retries: u64,
    waited: Times,
    worked: Times,
}

impl<T: Clone + Eq + Hash + Ord> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            working: HashMap::new(),
            later: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            closed: false,
            adds: 0,
            retries: 0,
            waited: Times::default(),
            worked: Times::default(),
        };
        Self { state: Mutex::new(state), wake: Notify::new() }
    }

    /// Work on this now.
    pub fn add(&self, item: T) {
        if self.state.lock().add(item) {
            self.wake.notify_one();
        }
    }

    /// Work on this after a delay; of several, the earliest counts.
    pub fn add_after(&self, item: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(item);
        }
        let at = Instant::now() + delay;
        let mut state = self.state.lock();
        state.retries += 1;
        if state.due.get(&item).is_some_and(|known| *known <= at) {
            return;
        }
        if let Some(known) = state.due.insert(item.clone(), at) {
            state.later.remove(&(known, item.clone()));
        }
        state.later.insert((at, item));
        drop(state);
        // A worker that sleeps until a later deadline must look again.
        self.wake.notify_one();
    }

    /// Work on this again, later each time it fails.
    pub fn retry(&self, item: T) {
        let failures = {
            let mut state = self.state.lock();
            let count = state.failures.entry(item.clone()).or_default();
            *count += 1;
            *count - 1
        };
        self.add_after(item, backoff(failures, BACKOFF_MIN, BACKOFF_MAX));
    }

    /// It went well: the next failure is the first again.
    pub fn forget(&self, item: &T) {
        self.state.lock().failures.remove(item);
    }

    /// Waits for work; None once the queue is closed. Each item got must be given to
    /// [`Queue::done`]. Cancel-safe.
    pub async fn get(&self) -> Option<T> {
        loop {
            let next = {
                let mut state = self.state.lock();
                let now = Instant::now();
                state.promote(now);
                if state.closed {
                    // Each woken worker wakes the next, until all know.
                    self.wake.notify_one();
                    return None;
                }
                if let Some(item) = state.ready.pop_front() {
                    if let Some(added) = state.dirty.remove(&item) {
                        state.waited.observe(now - added);
                    }
                    state.working.insert(item.clone(), now);
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return Some(item);
                }
                state.later.first().map(|(at, _)| *at)
            };
            match next {
                Some(at) => {
                    let _either = tokio::time::timeout_at(at, self.wake.notified()).await;
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// The work on an item is over; if it was added meanwhile, it comes again.
    pub fn done(&self, item: &T) {
        let mut state = self.state.lock();
        if let Some(began) = state.working.remove(item) {
            state.worked.observe(began.elapsed());
        }
        if state.dirty.contains_key(item) {
            state.ready.push_back(item.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Ends every [`Queue::get`].
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// How many items wait, delayed ones included.
    pub fn len(&self) -> usize {
        let state = self.state.lock();
        state.dirty.len() + state.later.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Send + Eq + Hash> Told for Queue<T> {
    fn figures(&self) -> Figures {
        let (state, now) = (self.state.lock(), Instant::now());
        let running = state.working.values().map(|began| now - *began);
        Figures {
            depth: state.ready.len(),
            adds: state.adds,
            retries: state.retries,
            waited: state.waited,
            worked: state.worked,
            unfinished: running.clone().sum(),
            longest: running.max().unwrap_or_default(),
        }
    }
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    /// Answers whether a worker may take it.
    fn add(&mut self, item: T) -> bool {
        if self.closed || self.dirty.contains_key(&item) {
            return false;
        }
        self.adds += 1;
        self.dirty.insert(item.clone(), Instant::now());
        if self.working.contains_key(&item) {
            return false;
        }
        self.ready.push_back(item);
        true
    }

    fn promote(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let (_, item) = self.later.pop_first().expect("there is a first");
            self.due.remove(&item);
            self.add(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_key_is_never_worked_on_twice_at_once() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.get().await, Some("b"));
        assert_eq!(queue.len(), 1, "a waits for itself");
        queue.done(&"b");
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_tells_of_itself() {
        let (queues, queue) = (Queues::default(), Arc::new(Queue::new()));
        queues.add("things", &queue);
        queue.add("a");
        queue.add("a");
        queue.add("b");
        tokio::time::advance(Duration::from_millis(50)).await;
        queue.get().await;
        tokio::time::advance(Duration::from_secs(2)).await;
        let told = |line: &str| {
            let mut text = String::new();
            queues.encode(&mut text);
            assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
        };
        told("workqueue_depth{name=\"things\"} 1");
        told("workqueue_adds_total{name=\"things\"} 2");
        told("workqueue_longest_running_processor_seconds{name=\"things\"} 2");
        told("workqueue_queue_duration_seconds_bucket{name=\"things\",le=\"0.01\"} 0");
        told("workqueue_queue_duration_seconds_bucket{name=\"things\",le=\"0.1\"} 1");
        queue.done(&"a");
        queue.retry("a");
        told("workqueue_unfinished_work_seconds{name=\"things\"} 0");
        told("workqueue_work_duration_seconds_sum{name=\"things\"} 2");
        told("workqueue_work_duration_seconds_bucket{name=\"things\",le=\"+Inf\"} 1");
        told("workqueue_retries_total{name=\"things\"} 1");
        drop(queue);
        let mut text = String::new();
        queues.encode(&mut text);
        assert!(!text.contains("things"), "{text}");
    }

    #[tokio::test]
    async fn the_earliest_delay_counts() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(90));
        queue.add_after("a", Duration::from_millis(30));
        queue.add_after("a", Duration::from_secs(60));
        assert_eq!(queue.get().await, Some("a"));
        assert!((30..30_000).contains(&start.elapsed().as_millis()));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn failures_back_off_until_forgotten() {
        let queue = Queue::new();
        let mut waits = Vec::new();
        for round in 0..8 {
            if round == 6 {
                queue.forget(&"a");
            }
            let start = Instant::now();
            queue.retry("a");
            queue.get().await;
            queue.done(&"a");
            waits.push(start.elapsed());
        }
        assert!(waits[5] >= Duration::from_millis(80), "{waits:?}");
        assert!(waits[6] < waits[5], "{waits:?}");
    }

    #[tokio::test]
    async fn close_ends_every_worker() {
        let queue = Arc::new(Queue::<u8>::new());
        let workers: Vec<_> = (0..3)
            .map(|_| {
                tokio::spawn({
                    let q = queue.clone();
                    async move { q.get().await }
                })
            })
            .collect();
        queue.close();
        for worker in workers {
            assert_eq!(worker.await.expect("no panic"), None);
        }
    }
}
