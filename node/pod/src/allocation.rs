//! What the pods of this node were promised together, by which a new pod or a larger one fits or does not.
//!
//! The scheduler counts too, but a pod may be bound past it, and a resize is the node's to grant. The words
//! are the kubelet's.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::PodSpec;
use parking_lot::Mutex;

use crate::container_spec::pod_requests;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

impl Amounts {
    /// What the pod asks for. A quantity that cannot be read is refused elsewhere.
    pub fn of(spec: &PodSpec) -> Self {
        pod_requests(spec).unwrap_or_default()
    }

    fn named(self) -> [(&'static str, u64); 2] {
        [("cpu", self.cpu_millis), ("memory", self.memory_bytes)]
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
        let used = others.fold(Amounts::default(), |sum, (_, pod)| Amounts {
            cpu_millis: sum.cpu_millis + pod.cpu_millis,
            memory_bytes: sum.memory_bytes + pod.memory_bytes,
        });
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
        self.0.lock().by_pod.remove(uid);
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
        let capacity = Amounts { cpu_millis: 2000, memory_bytes: 1000 };
        let amounts = |cpu_millis, memory_bytes| Amounts { cpu_millis, memory_bytes };
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
        allocations.release("a");
        assert_eq!(take("c", amounts(1400, 900), false), Ok(()));
    }
}
