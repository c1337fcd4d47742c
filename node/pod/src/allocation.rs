//! What the pods of this node were promised together, by which a new pod or a larger one fits or does not.
//!
//! The scheduler counts too, but a pod may be bound past it, and a resize is the node's to grant. The words
//! are the kubelet's.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::PodSpec;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::container_spec::pod_requests;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// 1 of a pod.
    pub pods: u64,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// Of the node's disk: `ephemeral-storage`.
    pub storage_bytes: u64,
}

impl Amounts {
    /// What the pod asks for. A quantity that cannot be read is refused elsewhere.
    pub fn of(spec: &PodSpec) -> Self {
        pod_requests(spec).unwrap_or_default()
    }

    fn named(self) -> [(&'static str, u64); 4] {
        [
            ("pods", self.pods),
            ("cpu", self.cpu_millis),
            ("memory", self.memory_bytes),
            ("ephemeral-storage", self.storage_bytes),
        ]
    }

    fn zip(self, other: Self, of: fn(u64, u64) -> u64) -> Self {
        Self {
            pods: of(self.pods, other.pods),
            cpu_millis: of(self.cpu_millis, other.cpu_millis),
            memory_bytes: of(self.memory_bytes, other.memory_bytes),
            storage_bytes: of(self.storage_bytes, other.storage_bytes),
        }
    }

    pub fn and(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// What of it is left when so much was had.
    pub fn without(self, had: Self) -> Self {
        self.zip(had, u64::saturating_sub)
    }

    pub fn at_least(self, other: Self) -> Self {
        self.zip(other, u64::max)
    }

    /// How much of what is needed is left by so much: of each resource the share, squared.
    pub fn share_left_by(self, had: Self) -> f64 {
        let (needed, left) = (self.named(), self.without(had).named());
        let shares = needed.iter().zip(left).filter(|((_, needed), _)| *needed > 0);
        shares.map(|((_, needed), (_, left))| (left as f64 / *needed as f64).powi(2)).sum()
    }
}

/// What a pod is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    pub resource: &'static str,
    pub requested: u64,
    pub used: u64,
    pub capacity: u64,
}

impl Lack {
    /// Not even an empty node would have it.
    pub fn is_for_good(&self) -> bool {
        self.requested > self.capacity
    }

    /// Why a new pod is turned away.
    pub fn refusal(&self) -> String {
        let Self { resource, requested, used, capacity } = self;
        format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }

    /// Why a pod does not become larger.
    pub fn of_resize(&self) -> String {
        let Self { resource, requested, capacity, .. } = self;
        match self.is_for_good() {
            true => format!(
                "Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}"
            ),
            false => self.refusal(),
        }
    }
}

#[derive(Default)]
pub(crate) struct Allocations(Mutex<State>);

#[derive(Default)]
struct State {
    by_pod: HashMap<Arc<str>, Amounts>,
    /// Pods that wait for others to need less.
    waiting: HashSet<Arc<str>>,
    /// Counts what was given back.
    freed: watch::Sender<u64>,
}

impl Allocations {
    /// Promises a pod its amounts instead of what it had. With `keeps` in any case: it runs with them.
    pub fn take(
        &self,
        uid: &Arc<str>,
        wanted: Amounts,
        capacity: Amounts,
        keeps: bool,
    ) -> Result<(), Lack> {
        let mut state = self.0.lock();
        let had = state.by_pod.get(uid).copied().unwrap_or_default();
        let others = state.by_pod.iter().filter(|(other, _)| *other != uid);
        let used = others.fold(Amounts::default(), |sum, (_, pod)| sum.and(*pod));
        let all =
            wanted.named().into_iter().zip(had.named()).zip(used.named()).zip(capacity.named());
        for ((((resource, requested), (_, had)), (_, used)), (_, capacity)) in all {
            // Nobody is refused for what does not grow.
            if !keeps && requested > had && used + requested > capacity {
                return Err(Lack { resource, requested, used, capacity });
            }
        }
        state.by_pod.insert(uid.clone(), wanted);
        Ok(())
    }

    /// The pod is to be told when others need less.
    pub fn wait(&self, uid: &Arc<str>) {
        self.0.lock().waiting.insert(uid.clone());
    }

    /// The pod is over.
    pub fn release(&self, uid: &str) {
        let mut state = self.0.lock();
        if state.by_pod.remove(uid).is_some() {
            state.freed.send_modify(|count| *count += 1);
        }
    }

    /// Wakes when something was given back.
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.0.lock().freed.subscribe()
    }

    /// What a pod was promised.
    pub fn of(&self, uid: &str) -> Amounts {
        self.0.lock().by_pod.get(uid).copied().unwrap_or_default()
    }

    /// What is to come free before all of it fits.
    pub fn missing(&self, uid: &str, wanted: Amounts, capacity: Amounts) -> Amounts {
        let state = self.0.lock();
        let others = state.by_pod.iter().filter(|(other, _)| ***other != *uid);
        let used = others.fold(Amounts::default(), |sum, (_, pod)| sum.and(*pod));
        let missing = wanted.and(used).without(capacity);
        // What it does not ask for it does not miss.
        wanted.zip(missing, |wanted, missing| if wanted > 0 { missing } else { 0 })
    }

    /// Those that waited: something was given back.
    pub fn take_waiting(&self) -> HashSet<Arc<str>> {
        std::mem::take(&mut self.0.lock().waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits() {
        let allocations = Allocations::default();
        let amounts = |cpu_millis, memory_bytes| Amounts {
            pods: 1,
            cpu_millis,
            memory_bytes,
            storage_bytes: 0,
        };
        let capacity = Amounts { pods: 3, ..amounts(2000, 1000) };
        let take =
            |uid: &str, wanted, keeps| allocations.take(&uid.into(), wanted, capacity, keeps);
        assert_eq!(take("a", amounts(1500, 100), false), Ok(()));
        let lack = take("b", amounts(600, 100), false).unwrap_err();
        assert_eq!(
            lack.refusal(),
            "Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000"
        );
        assert!(!lack.is_for_good());
        assert_eq!(take("b", amounts(600, 100), true), Ok(()), "it runs already");
        assert_eq!(take("a", amounts(1500, 200), false), Ok(()), "it is only memory that grows");
        let lack = take("a", amounts(1500, 2000), false).unwrap_err();
        assert_eq!(
            lack.of_resize(),
            "Node didn't have enough capacity: memory, requested: 2000, capacity: 1000"
        );
        let freed = allocations.freed();
        allocations.release("a");
        assert!(freed.has_changed().unwrap());
        assert_eq!(take("c", amounts(1400, 900), false), Ok(()));
        assert_eq!(take("d", amounts(0, 0), false), Ok(()), "it asks for nothing");
        let lack = take("e", amounts(10, 0), false).unwrap_err();
        assert_eq!(
            lack.refusal(),
            "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"
        );
        let missing = allocations.missing("e", amounts(10, 0), capacity);
        assert_eq!(missing, Amounts { pods: 1, cpu_millis: 10, ..Amounts::default() });
    }
}
