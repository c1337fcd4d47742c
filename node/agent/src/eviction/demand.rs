//! What a pod asks for of memory and disk, and how much it may write.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};
use rimward_api::Quantity;
use rimward_node_pod::PodDisk;

/// `system-cluster-critical` and above are never evicted, nor are static pods.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
const STORAGE: &str = "ephemeral-storage";

/// What counts of a pod's spec.
#[derive(Clone, Debug, Default)]
pub(super) struct Demand {
    /// `namespace/name`
    pub name: String,
    pub priority: i32,
    pub critical: bool,
    /// By container: memory and ephemeral storage.
    requests: BTreeMap<String, BTreeMap<&'static str, Quantity>>,
    /// Ephemeral storage by container.
    limits: BTreeMap<String, Quantity>,
    /// emptyDirs on disk or in memory.
    size_limits: BTreeMap<String, Quantity>,
    /// Volumes that take memory, not disk.
    in_memory: BTreeSet<String>,
}

impl Demand {
    pub fn of(pod: &Pod) -> Self {
        let (meta, mut demand) = (&pod.metadata, Self::default());
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        demand.name = format!("{}/{}", text(&meta.namespace), text(&meta.name));
        let Some(spec) = &pod.spec else { return demand };
        demand.priority = spec.priority.unwrap_or(0);
        let notes = meta.annotations.as_ref();
        let source = notes.and_then(|notes| notes.get("kubernetes.io/config.source"));
        demand.critical = demand.priority >= CRITICAL_PRIORITY
            || source.is_some_and(|source| source != "api")
            || notes.is_some_and(|notes| notes.contains_key("kubernetes.io/config.mirror"));
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
        for container in spec.containers.iter().chain(sidecars) {
            demand.add(container);
        }
        for volume in spec.volumes.iter().flatten() {
            let Some(dir) = &volume.empty_dir else { continue };
            let limit = dir.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok());
            if let Some(limit) = limit.filter(|limit| limit.value() > 0) {
                demand.size_limits.insert(volume.name.clone(), limit);
            }
            if dir.medium.as_deref().is_some_and(|medium| !medium.is_empty()) {
                demand.in_memory.insert(volume.name.clone());
            }
        }
        demand
    }

    fn add(&mut self, container: &Container) {
        let Some(resources) = &container.resources else { return };
        let name = &container.name;
        for resource in ["memory", STORAGE] {
            let asked = resources.requests.as_ref().and_then(|r| r.get(resource));
            if let Some(asked) = asked.and_then(|q| Quantity::parse(&q.0).ok()) {
                self.requests.entry(name.clone()).or_default().insert(resource, asked);
            }
        }
        let limit = resources.limits.as_ref().and_then(|r| r.get(STORAGE));
        if let Some(limit) = limit.and_then(|q| Quantity::parse(&q.0).ok()).filter(|q| !q.is_zero())
        {
            self.limits.insert(name.clone(), limit);
        }
    }

    /// What a container asks for of a resource.
    pub fn request(&self, container: &str, resource: &str) -> Quantity {
        let asked = self.requests.get(container).and_then(|r| r.get(resource));
        asked.copied().unwrap_or(Quantity::ZERO)
    }

    /// What all of its containers ask for, in bytes.
    pub fn requested(&self, resource: &str) -> u64 {
        let asked = self.requests.values().filter_map(|r| r.get(resource));
        asked.map(|q| u64::try_from(q.value()).unwrap_or(0)).sum()
    }

    pub fn is_limited(&self) -> bool {
        !self.limits.is_empty() || !self.size_limits.is_empty()
    }

    /// What of the node's disk the pod takes.
    pub fn ephemeral(&self, disk: &PodDisk) -> u64 {
        let in_memory = disk.volumes.iter().filter(|(name, _)| self.in_memory.contains(*name));
        disk.total().bytes - in_memory.map(|(_, used)| used.bytes).sum::<u64>()
    }

    /// Why the pod is to end if it has written more than it may, in the kubelet's words.
    pub fn over_limit(&self, disk: &PodDisk) -> Option<String> {
        let over = |used: u64, limit: &Quantity| i128::from(used) > i128::from(limit.value());
        for (volume, limit) in &self.size_limits {
            if disk.volumes.get(volume).is_some_and(|used| over(used.bytes, limit)) {
                return Some(format!(
                    "Usage of EmptyDir volume {volume:?} exceeds the limit \"{limit}\". "
                ));
            }
        }
        let all = self.limits.values().copied().reduce(|a, b| a + b)?;
        if over(self.ephemeral(disk), &all) {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {all}. "
            ));
        }
        let written = written(disk);
        let over = |(container, limit): &(&String, &Quantity)| {
            written.get(*container).is_some_and(|used| over(*used, limit))
        };
        self.limits.iter().find(over).map(|(container, limit)| {
            format!(
                "Container {container} exceeded its local ephemeral storage limit \"{limit}\". "
            )
        })
    }
}

/// What containers have written beside volumes: logs and their root file systems.
pub(super) fn written(disk: &PodDisk) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (container, used) in disk.logs.iter().chain(&disk.rootfs) {
        *all.entry(container.clone()).or_default() += used.bytes;
    }
    all
}

#[cfg(test)]
mod tests {
    use rimward_node_pod::DiskUsage;
    use serde_json::{Value, json};

    use super::*;

    fn demand(spec: Value) -> Demand {
        let pod = json!({ "metadata": { "name": "p", "namespace": "n" }, "spec": spec });
        Demand::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn limits_of_what_is_written() {
        let limit = |q: &str| json!({ "limits": { "ephemeral-storage": q } });
        let container =
            |name: &str, resources: Value| json!({ "name": name, "resources": resources });
        let mib = |n: u64| DiskUsage { bytes: n << 20, inodes: 1 };
        let disk = |logs: u64, rootfs: u64, volume: u64| PodDisk {
            uid: "u".into(),
            logs: BTreeMap::from([("c".to_owned(), mib(logs))]),
            rootfs: BTreeMap::from([("c".to_owned(), mib(rootfs))]),
            volumes: BTreeMap::from([("v".to_owned(), mib(volume))]),
        };
        let check = |demand: &Demand, disk: &PodDisk, expected: Option<&str>| {
            assert_eq!(demand.over_limit(disk).as_deref().map(str::trim_end), expected);
        };
        let none = demand(json!({ "containers": [container("c", json!({}))] }));
        assert!(!none.is_limited());
        check(&none, &disk(9, 9, 9), None);
        let two = [container("c", limit("3Mi")), container("d", limit("5Mi"))];
        let limited = demand(json!({ "containers": two }));
        check(&limited, &disk(1, 2, 5), None);
        let text = "Container c exceeded its local ephemeral storage limit \"3Mi\".";
        check(&limited, &disk(2, 2, 1), Some(text));
        let text = "Pod ephemeral local storage usage exceeds the total limit of containers 8Mi.";
        check(&limited, &disk(1, 1, 7), Some(text));
        let volume = |medium: &str| json!({ "name": "v", "emptyDir": { "sizeLimit": "4Mi", "medium": medium } });
        let sized = demand(json!({ "containers": [], "volumes": [volume("")] }));
        check(&sized, &disk(0, 0, 4), None);
        let text = "Usage of EmptyDir volume \"v\" exceeds the limit \"4Mi\".";
        check(&sized, &disk(0, 0, 5), Some(text));
        let in_memory = demand(
            json!({ "containers": [container("c", limit("5Mi"))], "volumes": [volume("Memory")] }),
        );
        check(&in_memory, &disk(1, 1, 4), None);
        assert_eq!(in_memory.ephemeral(&disk(1, 1, 4)), 2 << 20);
    }

    #[test]
    fn who_is_never_evicted() {
        let with = |priority: i32, note: Option<(&str, &str)>| {
            let notes: BTreeMap<&str, &str> = note.into_iter().collect();
            let pod = json!({
                "metadata": { "name": "p", "annotations": notes },
                "spec": { "containers": [], "priority": priority },
            });
            Demand::of(&serde_json::from_value(pod).unwrap()).critical
        };
        assert!(with(2_000_001_000, None));
        assert!(!with(1_000_000_000, None));
        assert!(with(0, Some(("kubernetes.io/config.source", "file"))));
        assert!(!with(0, Some(("kubernetes.io/config.source", "api"))));
    }
}
