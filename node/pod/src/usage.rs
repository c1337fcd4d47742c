//! What pods use: CPU and memory of their containers, and what they have written on the node's disk.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;

use crate::pods::Pods;
use crate::runtime::{RunId, Usage};
use crate::state::Phase;
use crate::task::Handle;
use crate::volumes::FOLDER;

/// Runtimes are asked about so many containers at a time.
const ASKED_AT_ONCE: usize = 32;

/// A pod with a container that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub containers: Vec<ContainerUsage>,
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerUsage {
    pub id: RunId,
    pub started_at: Timestamp,
    pub usage: Usage,
}

/// What is taken of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
}

/// What a pod has written on this node, by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDisk {
    pub uid: String,
    /// Logs of each container, all its runs.
    pub logs: BTreeMap<String, DiskUsage>,
    /// What the current run of each container has written outside of volumes.
    pub rootfs: BTreeMap<String, DiskUsage>,
    /// Volumes that are directories of this node: not those of the host, nor claims.
    pub volumes: BTreeMap<String, DiskUsage>,
}

impl std::ops::AddAssign for DiskUsage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

impl DiskUsage {
    /// What a directory and all below it take: not what is mounted in it, and a file with several names once.
    pub fn of(dir: &Path) -> Self {
        let mut all = Self::default();
        let Ok(root) = std::fs::symlink_metadata(dir) else { return all };
        let (device, mut seen, mut open) = (root.dev(), HashSet::new(), vec![dir.to_owned()]);
        all += Self { bytes: root.blocks() * 512, inodes: 1 };
        while let Some(dir) = open.pop() {
            // What is removed meanwhile takes nothing.
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let Ok(file) = entry.metadata() else { continue };
                let linked = file.nlink() > 1 && !file.is_dir();
                if file.dev() != device || (linked && !seen.insert(file.ino())) {
                    continue;
                }
                all += Self { bytes: file.blocks() * 512, inodes: 1 };
                if file.is_dir() {
                    open.push(entry.path());
                }
            }
        }
        all
    }
}

impl PodDisk {
    pub fn total(&self) -> DiskUsage {
        let mut all = DiskUsage::default();
        let parts = [&self.logs, &self.rootfs, &self.volumes];
        parts.iter().flat_map(|part| part.values()).for_each(|one| all += *one);
        all
    }
}

impl Pods {
    /// What the running containers of all pods use, in the order of namespaces and names.
    pub async fn usage(&self) -> Vec<PodUsage> {
        let running = |handle: Arc<Handle>| {
            let runs: Vec<(RunId, usize, Timestamp)> = handle.peek(|state| {
                let run = |i: usize| match &state.containers[i].phase {
                    Phase::Running(running) => {
                        let runtime = state.containers[i].runtime?.0;
                        Some((state.run_id(i), runtime, running.started_at))
                    }
                    _ => None,
                };
                (0..state.containers.len()).filter_map(run).collect()
            });
            (handle, runs)
        };
        let asked = self.handles().into_iter().map(running).filter(|(_, runs)| !runs.is_empty());
        let asked = asked.map(|(handle, runs)| async move {
            let mut containers = Vec::with_capacity(runs.len());
            for (id, runtime, started_at) in runs {
                if let Some(usage) = handle.node.runtime(runtime).usage(&id).await {
                    containers.push(ContainerUsage { id, started_at, usage });
                }
            }
            PodUsage {
                namespace: handle.key.namespace.clone(),
                name: handle.key.name.clone(),
                uid: handle.uid.to_string(),
                containers,
            }
        });
        let mut pods: Vec<PodUsage> =
            futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
        pods.retain(|pod| !pod.containers.is_empty());
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
    }

    /// What pods have written on this node's disk. Walks their directories: not for every request.
    pub async fn disk(&self) -> Vec<PodDisk> {
        let handles = self.handles();
        let measured = tokio::task::spawn_blocking(move || {
            handles.iter().map(|handle| disk_of(handle)).collect()
        });
        measured.await.expect("measuring does not panic")
    }
}

fn disk_of(handle: &Handle) -> PodDisk {
    let (mut disk, places) =
        (PodDisk { uid: handle.uid.to_string(), ..PodDisk::default() }, handle.places());
    let runs: Vec<(RunId, Option<usize>)> = handle.peek(|state| {
        let run = |i: usize| (state.run_id(i), state.containers[i].runtime.map(|r| r.0));
        (0..state.containers.len()).map(run).collect()
    });
    for (id, runtime) in runs {
        let logs = places.pod_dir.join(&id.container);
        if logs.exists() {
            disk.logs.insert(id.container.clone(), DiskUsage::of(&logs));
        }
        let written = runtime.and_then(|runtime| handle.node.runtime(runtime).written(&id));
        if let Some(written) = written.filter(|dir| dir.exists()) {
            disk.rootfs.insert(id.container, DiskUsage::of(&written));
        }
    }
    for folder in [&places.pod_dir, &places.secret_dir].map(|dir| dir.join(FOLDER)) {
        for volume in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = volume.file_name().to_string_lossy().into_owned();
            disk.volumes.insert(name, DiskUsage::of(&volume.path()));
        }
    }
    disk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_measured_once() {
        let dir = tempfile::tempdir().unwrap();
        let empty = DiskUsage::of(dir.path());
        assert_eq!(empty.inodes, 1);
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/big"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(dir.path().join("a/b/big"), dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("out")).unwrap();
        let full = DiskUsage::of(dir.path());
        assert_eq!(full.inodes, 5, "two directories, a file, a link and the root");
        let grown = full.bytes - empty.bytes;
        assert!((100_000..200_000).contains(&grown), "{grown}");
        assert_eq!(DiskUsage::of(&dir.path().join("none")), DiskUsage::default());
    }
}
