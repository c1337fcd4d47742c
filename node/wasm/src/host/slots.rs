//! Places for instances: how many there are, who may have how many, who waits for one.
//!
//! An instance takes one of the engine's pooled slots. When none is free a request waits, for a while and
//! in a queue that is bounded; then it is refused with 503 rather than left to time out somewhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests of one container that wait for a slot, and how long.
const QUEUE_MAX: usize = 4096;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Slots for instances, shared by all of a host.
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    /// How many of them one container may hold.
    quota: usize,
}

impl Slots {
    /// `alone`: the host is one pod's. Else a container gets half of them at most, so that one whose
    /// requests do not end leaves room for its neighbours.
    pub fn new(count: u32, alone: bool) -> Self {
        let count = count as usize;
        let quota = if alone { count } else { (count / 2).max(1) };
        Self { free: Arc::new(Semaphore::new(count)), quota }
    }

    /// A slot at once, or none: for a task, which keeps it.
    pub fn now(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }
}

/// A container's part in the slots of its host, and its queue for them.
pub(crate) struct Turns {
    slots: Arc<Slots>,
    own: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// An instance's place; dropped, it is the next one's.
pub(crate) struct Slot {
    // The host's first: who waits for this container's turn then finds one.
    _shared: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Turns {
    pub fn new(slots: Arc<Slots>) -> Self {
        let own = Arc::new(Semaphore::new(slots.quota));
        Self { slots, own, waiting: AtomicUsize::new(0) }
    }

    /// A slot, after a wait that is bounded in length and in company. The queue is the container's own:
    /// a crowd at one door keeps nobody from another.
    pub async fn soon(&self) -> Option<Slot> {
        if let Ok(own) = self.own.clone().try_acquire_owned()
            && let Some(shared) = self.slots.now()
        {
            return Some(Slot { _shared: shared, _own: own });
        }
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= QUEUE_MAX {
            return None;
        }
        let both = async {
            let own = self.own.clone().acquire_owned().await.ok()?;
            let shared = self.slots.free.clone().acquire_owned().await.ok()?;
            Some(Slot { _shared: shared, _own: own })
        };
        tokio::time::timeout(QUEUE_TIMEOUT, both).await.ok()?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(slots: &Arc<Slots>) -> Turns {
        Turns::new(slots.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn one_container_leaves_slots_to_others() {
        let slots = Arc::new(Slots::new(8, false));
        let (greedy, modest) = (turns(&slots), turns(&slots));
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(greedy.soon().await.expect("half of the slots are there for one"));
        }
        let asked = tokio::time::Instant::now();
        assert!(greedy.soon().await.is_none(), "the other half is not");
        let told = asked.elapsed();
        assert!((QUEUE_TIMEOUT..QUEUE_TIMEOUT * 2).contains(&told), "{told:?}");
        assert!(modest.soon().await.is_some());
        // The next in the queue gets what is given back, without the timeout.
        let (next, _) = tokio::join!(greedy.soon(), async { drop(held.pop()) });
        assert!(next.is_some());
        assert_eq!(asked.elapsed(), told);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_bounded_and_its_own() {
        let slots = Arc::new(Slots::new(2, false));
        let (busy, other) = (Arc::new(turns(&slots)), turns(&slots));
        let _held = busy.soon().await.expect("a slot");
        let waiting: Vec<_> = (0..QUEUE_MAX)
            .map(|_| {
                let busy = busy.clone();
                tokio::spawn(async move { busy.soon().await.is_some() })
            })
            .collect();
        while busy.waiting.load(Ordering::Relaxed) < QUEUE_MAX {
            tokio::task::yield_now().await;
        }
        let asked = tokio::time::Instant::now();
        assert!(busy.soon().await.is_none());
        assert_eq!(asked.elapsed(), Duration::ZERO, "a full queue refuses at once");
        assert!(other.soon().await.is_some());
        for waiter in waiting {
            assert!(!waiter.await.unwrap());
        }
        assert_eq!(busy.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_pod_alone_has_them_all() {
        let turns = turns(&Arc::new(Slots::new(2, true)));
        let _both = (turns.soon().await.unwrap(), turns.soon().await.unwrap());
    }
}
