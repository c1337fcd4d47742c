//! What all pods may take together, and what those of a QoS class weigh against the others: a BestEffort pod gets
//! what is left, however many they are.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>

use std::collections::HashMap;
use std::io;

use parking_lot::Mutex;
use rimward_node_pod::runtime::{ContainerSpec, QosClass};

use super::Cgroups;
use super::shares::weight_of_pod;

#[derive(Default)]
pub(super) struct Classes(Mutex<State>);

#[derive(Default)]
struct State {
    /// What each Burstable pod asks for.
    burstable: HashMap<String, u64>,
    /// What was last written.
    written: Option<Written>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Written {
    /// Thousandths of a core, of all Burstable pods.
    burstable_millis: u64,
    pids_max: u64,
}

impl Cgroups {
    /// A run's pod counts among those of its class. Its cgroup, and those above it, are there.
    pub(super) fn enter_class(&self, spec: &ContainerSpec, pids_max: u64) -> io::Result<()> {
        let mut state = self.classes.0.lock();
        if spec.linux.qos == QosClass::Burstable {
            let asked = spec.linux.pod.cpu_request_millis;
            state.burstable.insert(spec.id.pod_uid.clone(), asked);
        }
        self.write_classes(&mut state, pids_max)
    }

    /// A pod's request changed, or it was there before this agent. What cannot be written now is with the next
    /// container's start.
    pub fn count_in_class(&self, spec: &ContainerSpec) {
        if spec.linux.qos != QosClass::Burstable {
            return;
        }
        let mut state = self.classes.0.lock();
        let asked = spec.linux.pod.cpu_request_millis;
        state.burstable.insert(spec.id.pod_uid.clone(), asked);
        self.write_again(&mut state);
    }

    pub(super) fn leave_class(&self, pod_uid: &str) {
        let mut state = self.classes.0.lock();
        if state.burstable.remove(pod_uid).is_some() {
            self.write_again(&mut state);
        }
    }

    fn write_again(&self, state: &mut State) {
        let Some(Written { pids_max, .. }) = state.written else { return };
        if let Err(error) = self.write_classes(state, pids_max) {
            tracing::warn!(%error, "cannot weigh the classes of pods against each other");
        }
    }

    fn write_classes(&self, state: &mut State, pids_max: u64) -> io::Result<()> {
        let burstable_millis = state.burstable.values().sum();
        let now = Written { burstable_millis, pids_max };
        if state.written == Some(now) {
            return Ok(());
        }
        let (pods, all) = (self.qos(QosClass::Guaranteed), self.roots());
        for class in [QosClass::Burstable, QosClass::BestEffort] {
            let dir = self.qos(class);
            for root in &all {
                std::fs::create_dir_all(root.join(&dir))?;
            }
            let millis = if class == QosClass::Burstable { burstable_millis } else { 0 };
            self.set_shares(&dir, millis, weight_of_pod)?;
        }
        // Against what else the machine runs: as much as it has.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        for dir in [&self.base, &pods] {
            self.set_shares(dir, cores * 1000, weight_of_pod)?;
        }
        self.set("pids", &pods, "pids.max", "pids.max", pids_max.to_string())?;
        state.written = Some(now);
        Ok(())
    }
}
