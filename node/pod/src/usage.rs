//! What pods use: CPU and memory of their containers, and what they have written on the node's disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::outside::{Image, ImageForm, Traffic};
use crate::pods::Pods;
use crate::runtime::{Pressure, RunId, Usage};
use crate::state::{ImageStep, Phase};
use crate::task::Handle;
use crate::volumes::FOLDER;
use crate::volumes::claimed::claim_of;

/// Runtimes are asked about so many containers at a time.
const ASKED_AT_ONCE: usize = 32;

/// A pod with a container that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub containers: Vec<ContainerUsage>,
    /// Of its own network device, if it has one.
    pub traffic: Option<Traffic>,
    /// What its containers waited for, together.
    pub pressure: Option<Pressure>,
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
    /// Volumes that are directories of the pod: not what is mounted, nor of the host, nor claims.
    pub volumes: BTreeMap<String, DiskUsage>,
}

/// The volume of a claim, which a pod has mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimUsage {
    pub pod_uid: String,
    pub namespace: String,
    pub claim: String,
    /// As the pod calls it.
    pub volume: String,
    pub capacity_bytes: u64,
    /// What its file system tells; None of one that is a disk itself.
    pub files: Option<ClaimFiles>,
}

/// A file system's own numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimFiles {
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// What containers are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagesInUse {
    /// Of manifests.
    pub digests: HashSet<String>,
    /// Layers and files.
    pub paths: HashSet<PathBuf>,
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
    /// What all pods use together, and what runs them: by the names that the kubelet's Summary has.
    pub fn usage_of_all(&self) -> Vec<(&'static str, Usage)> {
        self.runtimes().iter().flat_map(|runtime| runtime.usage_of_all()).collect()
    }

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
        let traffic = &self.traffic();
        let asked = asked.map(|(handle, runs)| async move {
            let mut containers = Vec::with_capacity(runs.len());
            let mut pressure = None;
            for (id, runtime, started_at) in runs {
                if pressure.is_none() {
                    pressure = handle.node.runtime(runtime).pressure(&handle.uid).await;
                }
                if let Some(usage) = handle.node.runtime(runtime).usage(&id).await {
                    containers.push(ContainerUsage { id, started_at, usage });
                }
            }
            PodUsage {
                namespace: handle.key.namespace.clone(),
                name: handle.key.name.clone(),
                uid: handle.uid.to_string(),
                containers,
                traffic: traffic.get(&*handle.uid).copied(),
                pressure,
            }
        });
        let mut pods: Vec<PodUsage> =
            futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
        pods.retain(|pod| !pod.containers.is_empty());
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
    }

    /// The images of all containers that are there or about to start.
    pub fn images(&self) -> ImagesInUse {
        let mut all = ImagesInUse::default();
        let mut add = |image: &Image| {
            all.digests.insert(image.digest.clone());
            match &image.form {
                ImageForm::Wasm { file, .. } => drop(all.paths.insert(file.clone())),
                ImageForm::Linux { layers, .. } => all.paths.extend(layers.iter().cloned()),
            }
        };
        let mut ids = Vec::new();
        for handle in self.handles() {
            handle.peek(|state| {
                for container in &state.containers {
                    if let ImageStep::Ready(image) = &container.image {
                        add(image);
                    }
                    ids.extend(container.image_id.split_once('@').map(|(_, d)| d.to_owned()));
                }
            });
        }
        self.runtimes().iter().flat_map(|runtime| runtime.images()).for_each(|image| add(&image));
        all.digests.extend(ids);
        all
    }

    /// UIDs of the pods that are not over, nor about to end.
    pub fn active(&self) -> Vec<String> {
        let active = |handle: &Arc<Handle>| {
            handle.peek(|state| {
                state.loaded && !state.orphan && state.ended.is_none() && state.ending.is_none()
            })
        };
        self.handles().iter().filter(|h| active(h)).map(|h| h.uid.to_string()).collect()
    }

    /// A pod as the control plane told it.
    pub fn object(&self, uid: &str) -> Option<Arc<Pod>> {
        Some(self.find("", "", uid)?.look(|state| state.pod.clone()))
    }

    /// Ends a pod for good: Failed, `Evicted`, with a message that says why. `disrupted` tells that the node
    /// needs room, not that the pod did wrong. Answers whether there was such a pod to end.
    pub fn evict(&self, uid: &str, message: String, disrupted: bool, grace_seconds: i64) -> bool {
        let handle = self.find("", "", uid);
        handle.is_some_and(|handle| {
            handle.apply(|state, now| state.evict(message, disrupted, grace_seconds, now))
        })
    }

    /// What pods have written on this node's disk, all or only some. Walks their directories: not for every
    /// request.
    pub async fn disk(&self, only: Option<HashSet<String>>) -> Vec<PodDisk> {
        let mut handles = self.handles();
        handles.retain(|handle| only.as_ref().is_none_or(|only| only.contains(&*handle.uid)));
        let measured = tokio::task::spawn_blocking(move || {
            let mounted = mount_points();
            handles.iter().map(|handle| disk_of(handle, &mounted)).collect()
        });
        measured.await.expect("measuring does not panic")
    }
}

impl Pods {
    /// The claims that pods have mounted. Servers of NFS are not asked: they may not answer.
    pub async fn claims(&self) -> Vec<ClaimUsage> {
        let handles = self.handles();
        let looked = tokio::task::spawn_blocking(move || {
            let mounted = mount_points();
            handles.iter().flat_map(|handle| claims_of(handle, &mounted)).collect()
        });
        looked.await.expect("looking does not panic")
    }
}

fn claims_of(handle: &Handle, mounted: &HashMap<PathBuf, String>) -> Vec<ClaimUsage> {
    let (pod, places) = (handle.peek(|state| state.pod.clone()), handle.places());
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let one = |volume: &Volume| {
        let claim = claim_of(&pod, volume)?;
        let place = places.of(volume);
        // A disk or an export is mounted at the very place, a directory of the node linked there.
        let root = match mounted.get(&place) {
            Some(kind) if kind.starts_with("nfs") => return None,
            Some(_) => place,
            None => std::fs::read_link(&place).ok()?,
        };
        let (capacity_bytes, files) = measure(&root).ok()?;
        Some(ClaimUsage {
            pod_uid: handle.uid.to_string(),
            namespace: handle.key.namespace.clone(),
            claim,
            volume: volume.name.clone(),
            capacity_bytes,
            files,
        })
    };
    volumes.filter_map(one).collect()
}

fn measure(root: &Path) -> std::io::Result<(u64, Option<ClaimFiles>)> {
    if !std::fs::metadata(root)?.is_dir() {
        return Ok((std::fs::File::open(root)?.seek(SeekFrom::End(0))?, None));
    }
    let fs = rustix::fs::statvfs(root)?;
    let bytes = |blocks: u64| blocks * fs.f_frsize;
    let files = ClaimFiles {
        available_bytes: bytes(fs.f_bavail),
        used_bytes: bytes(fs.f_blocks.saturating_sub(fs.f_bfree)),
        inodes: fs.f_files,
        inodes_free: fs.f_ffree,
    };
    Ok((bytes(fs.f_blocks), Some(files)))
}

/// Where something is mounted, and of what kind. Told by the kernel: to look at such a place may wait for a server that is gone.
fn mount_points() -> HashMap<PathBuf, String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let point = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let place = front.split(' ').nth(4)?.replace("\\040", " ");
        Some((PathBuf::from(place), back.split(' ').next()?.to_owned()))
    };
    mounts.lines().filter_map(point).collect()
}

fn disk_of(handle: &Handle, mounted: &HashMap<PathBuf, String>) -> PodDisk {
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
            // In memory, of an image, or elsewhere: none of it is the disk's.
            let is_link = volume.file_type().is_ok_and(|kind| kind.is_symlink());
            if is_link || mounted.contains_key(&volume.path()) {
                continue;
            }
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
