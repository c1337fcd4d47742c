//! Pods that wait for a node. Pure: takes the time, knows no clock.
//!
//! A pod is ready to be tried, or waits out its back-off, or is parked until something happens that
//! may help it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::filter::Happened;
use crate::pod::{PodInfo, Uid};

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A parked pod is tried again after this even if nothing that should matter happened.
const PARKED_MAX: Duration = Duration::from_secs(300);

#[derive(Default)]
pub struct Queue {
    pods: HashMap<Uid, Waiting>,
    /// May hold entries that are no longer true; [`Queue::pop`] skips them.
    ready: BinaryHeap<(i32, Reverse<u64>, Uid)>,
    /// By time: the ends of back-offs and of parking.
    later: BTreeSet<(Instant, Uid)>,
    /// Pods that back off although something happened that may help them: tried early if there is
    /// nothing else to do.
    hopeful: BTreeSet<(Instant, Uid)>,
    /// Those that are parked: few of many, and asked about at every pod that is placed.
    parked: HashSet<Uid>,
    tickets: u64,
}

struct Waiting {
    pod: Arc<PodInfo>,
    state: State,
    attempts: u32,
    /// When its back-off ends.
    rested: Option<Instant>,
}

enum State {
    Ready {
        ticket: u64,
    },
    /// Will be ready then.
    BackingOff {
        until: Instant,
        hopeful: bool,
    },
    Parked {
        until: Instant,
        healed_by: Happened,
    },
}

impl Queue {
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// A pod wants a node. One that is known already is looked at anew only if `changed`.
    pub fn add(&mut self, pod: Arc<PodInfo>, changed: bool) {
        let uid = pod.uid.clone();
        match self.pods.get_mut(&uid) {
            Some(known) => {
                known.pod = pod;
                if changed && !matches!(known.state, State::Ready { .. }) {
                    self.make_ready(&uid);
                }
            }
            None => {
                let state = State::Ready { ticket: 0 };
                self.pods.insert(uid.clone(), Waiting { pod, state, attempts: 0, rested: None });
                self.make_ready(&uid);
            }
        }
    }

    pub fn remove(&mut self, uid: &str) {
        if let Some((uid, waiting)) = self.pods.remove_entry(uid) {
            self.unschedule(&uid, &waiting.state);
        }
    }

    fn unschedule(&mut self, uid: &Uid, state: &State) {
        match state {
            State::Ready { .. } => {}
            State::BackingOff { until, hopeful } => {
                self.later.remove(&(*until, uid.clone()));
                if *hopeful {
                    self.hopeful.remove(&(*until, uid.clone()));
                }
            }
            State::Parked { until, .. } => {
                self.later.remove(&(*until, uid.clone()));
                self.parked.remove(uid);
            }
        }
    }

    fn change(&mut self, uid: &Uid, state: State) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        let old = std::mem::replace(&mut waiting.state, state);
        self.unschedule(uid, &old);
    }

    fn make_ready(&mut self, uid: &Uid) {
        self.tickets += 1;
        let ticket = self.tickets;
        self.change(uid, State::Ready { ticket });
        if let Some(waiting) = self.pods.get(uid) {
            self.ready.push((waiting.pod.priority, Reverse(ticket), uid.clone()));
        }
    }

    /// The most important pod, of equal ones the one that waits longest. It leaves the queue; what
    /// was tried and failed comes back by [`Queue::park`] or [`Queue::retry`].
    pub fn pop(&mut self, now: Instant) -> Option<Tried> {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let (_, uid) = self.later.first().cloned()?;
            self.make_ready(&uid);
        }
        if let Some(tried) = self.pop_ready() {
            return Some(tried);
        }
        let (_, uid) = self.hopeful.first().cloned()?;
        self.make_ready(&uid);
        self.pop_ready()
    }

    fn pop_ready(&mut self) -> Option<Tried> {
        while let Some((_, Reverse(ticket), uid)) = self.ready.pop() {
            let current = self.pods.get(&uid).map(|w| &w.state);
            if matches!(current, Some(State::Ready { ticket: t }) if *t == ticket) {
                let waiting = self.pods.remove(&uid)?;
                return Some(Tried { pod: waiting.pod, attempts: waiting.attempts + 1 });
            }
        }
        None
    }

    /// No node would do: waits until something happens that may heal it.
    pub fn park(&mut self, tried: Tried, healed_by: Happened, now: Instant) {
        let (until, rested) = (now + PARKED_MAX, Some(now + tried.backoff()));
        self.insert(tried, State::Parked { until, healed_by }, until, rested);
    }

    /// It failed for no reason of its own: waits out its back-off.
    pub fn retry(&mut self, tried: Tried, now: Instant) {
        let until = now + tried.backoff();
        self.insert(tried, State::BackingOff { until, hopeful: false }, until, Some(until));
    }

    fn insert(&mut self, mut tried: Tried, state: State, until: Instant, rested: Option<Instant>) {
        let uid = tried.pod.uid.clone();
        // It may have come back by itself meanwhile, changed.
        if let Some(known) = self.pods.get(&uid) {
            tried.pod = known.pod.clone();
        }
        self.remove(&uid);
        self.later.insert((until, uid.clone()));
        if matches!(state, State::Parked { .. }) {
            self.parked.insert(uid.clone());
        }
        self.pods.insert(uid, Waiting { pod: tried.pod, state, attempts: tried.attempts, rested });
    }

    /// Something happened: those that it may help are tried again when they have rested; answers
    /// whether there are any.
    pub fn happened(&mut self, what: Happened, now: Instant) -> bool {
        let helped = |w: &Waiting| matches!(w.state, State::Parked { healed_by, .. } if healed_by & what != 0);
        let parked = self.parked.iter().filter_map(|uid| self.pods.get_key_value(uid));
        let woken: Vec<(Uid, Option<Instant>)> =
            parked.filter(|(_, w)| helped(w)).map(|(uid, w)| (uid.clone(), w.rested)).collect();
        let any = !woken.is_empty();
        for (uid, rested) in woken {
            match rested.filter(|at| *at > now) {
                Some(until) => {
                    self.change(&uid, State::BackingOff { until, hopeful: true });
                    self.later.insert((until, uid.clone()));
                    self.hopeful.insert((until, uid));
                }
                None => self.make_ready(&uid),
            }
        }
        any
    }

    /// When [`Queue::pop`] may have something that it has not now.
    pub fn next(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }
}

/// A pod taken from the queue.
#[derive(Debug)]
pub struct Tried {
    pub pod: Arc<PodInfo>,
    attempts: u32,
}

impl Tried {
    fn backoff(&self) -> Duration {
        let doublings = self.attempts.saturating_sub(1).min(16);
        BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX)
    }
}

#[cfg(test)]
mod tests {
    use rimward_control_lean::Pod;
    use serde_json::json;

    use super::*;
    use crate::filter::{NODE_ADDED, POD_REMOVED};

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": uid, "name": uid}, "spec": {"containers": [], "priority": priority}})).expect("a pod");
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn popped(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now)).map(|t| t.pod.uid.to_string()).collect()
    }

    #[test]
    fn priority_then_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (uid, priority) in [("a", 0), ("b", 5), ("c", 5), ("d", 0), ("e", 9)] {
            queue.add(pod(uid, priority), false);
        }
        queue.remove("e");
        queue.add(pod("a", 0), true);
        assert_eq!(popped(&mut queue, now), ["b", "c", "a", "d"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn parked_until_healed() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("a", 0), false);
        let tried = queue.pop(now).expect("a");
        queue.park(tried, NODE_ADDED, now);
        assert!(!queue.happened(POD_REMOVED, now));
        assert!(queue.pop(now).is_none());
        assert!(queue.happened(NODE_ADDED, now));
        assert_eq!(popped(&mut queue, now), ["a"], "tried early, there is nothing else to do");
    }

    #[test]
    fn rest_before_others_only() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("a", 0), false);
        let tried = queue.pop(now).expect("a");
        queue.park(tried, NODE_ADDED, now);
        queue.happened(NODE_ADDED, now);
        queue.add(pod("b", -1), false);
        assert_eq!(popped(&mut queue, now), ["b", "a"]);
    }

    #[test]
    fn errors_wait_longer_each_time() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        queue.add(pod("a", 0), false);
        for seconds in [1, 2, 4, 8, 10, 10] {
            let tried = queue.pop(now).expect("its time has come");
            queue.retry(tried, now);
            assert!(
                queue.pop(now + Duration::from_secs(seconds) - Duration::from_millis(1)).is_none()
            );
            now = queue.next().expect("it waits");
        }
        queue.remove("a");
        assert!(queue.next().is_none() && queue.hopeful.is_empty() && queue.is_empty());
    }

    #[test]
    fn parked_ones_are_not_forgotten() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("a", 0), false);
        let tried = queue.pop(now).expect("a");
        queue.park(tried, NODE_ADDED, now);
        assert_eq!(popped(&mut queue, now + PARKED_MAX), ["a"]);
    }
}
