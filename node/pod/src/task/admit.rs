//! A pod that is new here is taken, or ends before it begins. In the kubelet's order: what is against the pod as
//! such, what it asks for, what the scheduler would have looked at.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Handle;
use crate::admission::{self, Rejection};
use crate::allocation::{Amounts, Lack};
use crate::host_ports;
use crate::preemption::{self, Subject};
use crate::state::PodState;

impl Handle {
    /// One that `was_here` keeps what it has, whatever became of the node meanwhile.
    pub(super) async fn admit(self: &Arc<Self>, was_here: bool) {
        let (over, fresh) = self.look(|state| {
            (state.orphan || state.ended.is_some(), !was_here && state.begins_here())
        });
        if over {
            return;
        }
        if let Err(Rejection { reason, message }) = self.take(was_here, fresh).await {
            self.node.host_ports.release(&self.uid);
            self.node.allocations.release(&self.uid);
            self.apply(|state, now| state.reject(&reason, &message, now));
        }
    }

    async fn take(self: &Arc<Self>, was_here: bool, fresh: bool) -> Result<(), Rejection> {
        let (pod, granted) = self.look(|state| (state.pod.clone(), state.granted_pod()));
        let node = &self.node;
        if fresh {
            admission::check(&pod, &node.config.this_node.pressures())?;
        }
        let wanted = granted.spec.as_ref().map(Amounts::of).unwrap_or_default();
        let lack = node.allocations.take(&self.uid, wanted, node.capacity(), was_here).err();
        let critical = admission::is_critical(&pod);
        if let Some(lack) = lack.filter(|_| !critical) {
            return Err(out_of(&lack));
        }
        if fresh {
            self.check_place(&pod).await?;
        }
        let ports = pod.spec.as_ref().map(host_ports::of).unwrap_or_default();
        if !node.host_ports.take(&self.uid, ports, was_here) {
            let why = "node(s) didn't have free ports for the requested pod ports";
            return Err(Rejection::predicate("NodePorts", why));
        }
        if fresh {
            admission::taints(&pod, &node.config.this_node.node())?;
        }
        match lack {
            Some(lack) => self.make_room(&pod, wanted, &lack).await,
            None => Ok(()),
        }
    }

    /// Labels may have changed a moment before the pod was bound, so a node that does not match is looked at again.
    async fn check_place(&self, pod: &Pod) -> Result<(), Rejection> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        let this_node = &self.node.config.this_node;
        match admission::affinity(spec, &this_node.node()) {
            Ok(()) => Ok(()),
            Err(_) => admission::affinity(spec, &*this_node.node_now().await),
        }
    }

    /// Ends others so that a critical pod fits, and waits until they have gone.
    async fn make_room(&self, pod: &Pod, wanted: Amounts, lack: &Lack) -> Result<(), Rejection> {
        let (allocations, capacity) = (&self.node.allocations, self.node.capacity());
        let mut freed = allocations.freed();
        let needed = allocations.missing(&self.uid, wanted, capacity);
        let others = self.node.others(&self.uid);
        let subject = |handle: &Arc<Handle>| {
            let has = allocations.of(&handle.uid);
            handle.look(|state| {
                let runs = state.ended.is_none() && state.ending.is_none() && !state.orphan;
                runs.then(|| Subject::of(&handle.uid, &state.pod, has, pod)).flatten()
            })
        };
        let subjects: Vec<Subject> = others.iter().filter_map(subject).collect();
        let Some(chosen) = preemption::choose(&subjects, needed) else {
            let why = format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: {}",
                lack.refusal()
            );
            return Err(Rejection::new("UnexpectedAdmissionError", why));
        };
        for other in others.iter().filter(|other| chosen.contains(&other.uid)) {
            tracing::warn!(pod = %other.key, critical = %self.key, "a pod makes room for a critical one");
            other.apply(PodState::preempt);
        }
        let going = || chosen.iter().any(|uid| allocations.of(uid) != Amounts::default());
        let unwanted =
            |state: &PodState| state.removed || state.pod.metadata.deletion_timestamp.is_some();
        while going() && !self.look(unwanted) {
            tokio::select! {
                _ = freed.changed() => {}
                () = self.wake.notified() => {}
                () = self.node.shutdown.cancelled() => break,
            }
        }
        let _it_may_have = allocations.take(&self.uid, wanted, capacity, true);
        Ok(())
    }
}

fn out_of(lack: &Lack) -> Rejection {
    Rejection::new(format!("OutOf{}", lack.resource), lack.refusal())
}
