//! Amounts of what a pod asks for and a node has.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use rimward_api::Quantity;
use rimward_control_lean::{Amounts, Container, PodSpec};

/// CPU in thousandths, the rest in whole units (bytes for memory).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu: i64,
    pub memory: i64,
    pub ephemeral: i64,
    /// Devices, huge pages: whatever else is named.
    pub other: BTreeMap<String, i64>,
}

impl Resources {
    /// An amount that does not parse counts as nothing; the API server refuses such.
    pub fn from_amounts<'a>(amounts: impl Iterator<Item = (&'a str, &'a Written)>) -> Self {
        let mut resources = Self::default();
        for (name, written) in amounts {
            let Ok(quantity) = Quantity::parse(&written.0) else { continue };
            match name {
                "cpu" => resources.cpu = quantity.millis(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.ephemeral = quantity.value(),
                // A number of pods, which is counted apart.
                "pods" => {}
                _ => drop(resources.other.insert(name.to_owned(), quantity.value())),
            }
        }
        resources
    }

    pub fn add(&mut self, more: &Self) {
        self.cpu += more.cpu;
        self.memory += more.memory;
        self.ephemeral += more.ephemeral;
        for (name, amount) in &more.other {
            *self.other.entry(name.clone()).or_default() += amount;
        }
    }

    pub fn subtract(&mut self, less: &Self) {
        self.cpu -= less.cpu;
        self.memory -= less.memory;
        self.ephemeral -= less.ephemeral;
        for (name, amount) in &less.other {
            if let Some(have) = self.other.get_mut(name) {
                *have -= amount;
            }
        }
    }

    /// The larger of both, each for itself.
    fn raise_to(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.other {
            let have = self.other.entry(name.clone()).or_default();
            *have = (*have).max(*amount);
        }
    }
}

fn requests(container: &Container) -> Resources {
    let said = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    Resources::from_amounts(said.into_iter().flat_map(Amounts::iter))
}

/// What a pod takes of its node: its containers and sidecars together, or the largest moment of its
/// init phase if that is more, and its overhead.
/// <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers>
pub fn pod_requests(spec: &PodSpec) -> Resources {
    let mut running = Resources::default();
    spec.containers.iter().for_each(|c| running.add(&requests(c)));
    let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let mut moment = requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&moment);
            moment = sidecars.clone();
        } else {
            moment.add(&sidecars);
        }
        starting.raise_to(&moment);
    }
    running.add(&sidecars);
    running.raise_to(&starting);
    // Requests of the pod as a whole stand instead of the sum of its containers'.
    if let Some(amounts) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let whole = Resources::from_amounts(amounts.iter());
        let given = |name: &str| amounts.get(name).is_some();
        if given("cpu") {
            running.cpu = whole.cpu;
        }
        if given("memory") {
            running.memory = whole.memory;
        }
        running.other.extend(whole.other);
    }
    running.add(&Resources::from_amounts(spec.overhead.iter().flat_map(Amounts::iter)));
    running
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pod_totals() {
        #[track_caller]
        fn check(spec: Value, cpu: i64, memory: i64) {
            let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
            let total = pod_requests(&spec);
            assert_eq!((total.cpu, total.memory), (cpu, memory));
        }
        let container = |cpu: &str, memory: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        check(json!({"containers": [{"name": "c"}]}), 0, 0);
        check(
            json!({"containers": [container("1", "1Mi"), container("500m", "1Mi")]}),
            1500,
            2 << 20,
        );
        check(
            json!({"containers": [container("1", "1Mi")], "initContainers": [container("2", "0")]}),
            2000,
            1 << 20,
        );
        check(
            json!({"containers": [container("1", "0")], "initContainers": [sidecar("1"), container("2", "0")]}),
            3000,
            0,
        );
        check(
            json!({"containers": [container("1", "0")], "initContainers": [container("1", "0"), sidecar("1")]}),
            2000,
            0,
        );
        check(json!({"containers": [container("1", "0")], "overhead": {"cpu": "250m"}}), 1250, 0);
        check(
            json!({"containers": [container("1", "1Mi")], "resources": {"requests": {"cpu": "3"}}}),
            3000,
            1 << 20,
        );
    }
}
