//! All pods of this node: the handle that the agent holds.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use parking_lot::Mutex;
use rimward_api::ObjectKey;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::allocation::{Allocations, Amounts};
use crate::clock::Clock;
use crate::dns;
use crate::host_ports::Claims;
use crate::logs::{self, LogError, LogRequest, LogWatch};
use crate::outside::{Images, Network, Objects, Reports, ThisNode, Traffic};
use crate::record::{self, Record};
use crate::references::References;
use crate::runtime::{Dns, Exit, Known, RunId, Runtime, RuntimeEvent, StartError};
use crate::state::{KnownRun, PodState};
use crate::task::{self, Handle};
use crate::volumes::host;

/// Events of one runtime that may wait for the pods to take them.
const EVENTS: usize = 1024;
/// Changes of ConfigMaps and Secrets are looked at together when they come fast.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What pods of this node are run with.
#[derive(Clone)]
pub struct Config {
    /// The node's directory (`DIR/node`); pods live in `pods/<uid>/` below it.
    pub data_dir: PathBuf,
    /// In order of preference: the first one that runs an image gets it.
    pub runtimes: Vec<Arc<dyn Runtime>>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
    pub objects: Arc<dyn Objects>,
    pub reports: Arc<dyn Reports>,
    pub this_node: Arc<dyn ThisNode>,
    pub node_name: String,
    /// `cluster.local`
    pub cluster_domain: String,
    /// What limits default to in the downward API.
    pub allocatable: Allocatable,
    /// A directory in memory for Secrets and tokens; None keeps them below `data_dir`.
    /// [`memory_dir`] finds one.
    pub memory_dir: Option<PathBuf>,
    pub clock: Clock,
}

/// A directory on an existing tmpfs for the pods of this data directory, when this process is root.
pub fn memory_dir(data_dir: &Path) -> Option<PathBuf> {
    use sha2::{Digest, Sha256};
    let in_memory =
        |dir: &&&str| rustix::fs::statfs(**dir).is_ok_and(|f| f.f_type as u64 == 0x0102_1994);
    // Machines that are containers themselves often have no /run in memory.
    let memory = ["/run", "/dev/shm"].iter().find(in_memory)?;
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let short: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    Some(Path::new(memory).join("rimward").join(short).join("pods"))
}

/// What is secret is not to be written to a disk, which swap is. A directory that holds something, of an agent
/// that did not do so, stays as it is: containers know it.
fn keep_from_swap(dir: &Path) {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let is_empty = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if swaps.lines().count() < 2 || !is_empty || host::is_mount(dir) {
        return;
    }
    if let Err(error) = host::mount_in_memory(dir, "mode=0711") {
        tracing::warn!(%error, "Secrets in {} may be written to swap", dir.display());
    }
}

/// The node's `status.allocatable`: what pods are granted from, and what the downward API shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ephemeral_storage_bytes: u64,
    /// How many pods there may be.
    pub pods: u64,
}

/// Why no pod can be run at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the directory {path} for pods: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("the {name} runtime does not start: {source}")]
    Runtime { name: &'static str, source: StartError },
}

/// A cheap handle to all pods of the node.
#[derive(Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

struct Inner {
    node: Arc<Node>,
    pods: Mutex<HashMap<Arc<str>, Arc<Handle>>>,
    /// What an earlier agent left, by pod, until the pod is given or found to be nobody's.
    left: Mutex<HashMap<String, Vec<KnownRun>>>,
    /// Counts pods that are gone.
    gone: watch::Sender<u64>,
}

/// What all pods share.
pub(crate) struct Node {
    pub config: Config,
    pub boot_id: Arc<str>,
    pub host_dns: Dns,
    pub references: References,
    pub host_ports: Claims,
    pub allocations: Allocations,
    pub logs: LogWatch,
    pub shutdown: CancellationToken,
    pods: Mutex<Weak<Inner>>,
}

impl Node {
    pub fn runtime(&self, index: usize) -> &Arc<dyn Runtime> {
        &self.config.runtimes[index]
    }

    pub fn runtime_names(&self) -> Vec<&'static str> {
        self.config.runtimes.iter().map(|r| r.name()).collect()
    }

    /// These pods' ConfigMaps or Secrets changed.
    pub fn look_again(&self, uids: HashSet<Arc<str>>) {
        self.tell(uids, PodState::objects_changed);
    }

    fn tell(&self, uids: HashSet<Arc<str>>, what: fn(&mut PodState, jiff::Timestamp)) {
        if uids.is_empty() {
            return;
        }
        let Some(inner) = self.pods.lock().upgrade() else { return };
        for uid in uids {
            let handle = inner.pods.lock().get(&uid).cloned();
            if let Some(handle) = handle {
                handle.apply(what);
            }
        }
    }

    /// What the pod had of the machine is others' to have.
    pub fn gives_back(&self, uid: &str) {
        self.host_ports.release(uid);
        self.allocations.release(uid);
        self.tell_waiting();
    }

    /// Pods that wait for room look again.
    pub fn tell_waiting(&self) {
        self.tell(self.allocations.take_waiting(), PodState::resize_again);
    }

    /// What pods may be promised together.
    pub fn capacity(&self) -> Amounts {
        let Allocatable { cpu_millis, memory_bytes, ephemeral_storage_bytes, pods } =
            self.config.allocatable;
        Amounts { pods, cpu_millis, memory_bytes, storage_bytes: ephemeral_storage_bytes }
    }

    /// All pods but one.
    pub fn others(&self, uid: &str) -> Vec<Arc<Handle>> {
        let Some(inner) = self.pods.lock().upgrade() else { return Vec::new() };
        let pods = inner.pods.lock();
        pods.values().filter(|handle| *handle.uid != *uid).cloned().collect()
    }

    /// The pod's task is over.
    pub fn forget(&self, handle: &Arc<Handle>) {
        let Some(inner) = self.pods.lock().upgrade() else { return };
        let mut pods = inner.pods.lock();
        if pods.get(&handle.uid).is_some_and(|h| Arc::ptr_eq(h, handle)) {
            pods.remove(&handle.uid);
            drop(pods);
            inner.gone.send_modify(|count| *count += 1);
        }
    }
}

impl Pods {
    /// Connects to every runtime, learns what an earlier agent left running, and waits for the first
    /// [`Pods::set`]. When `shutdown` is cancelled, nothing is stopped: containers outlive the agent.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Self, Error> {
        let path = config.data_dir.join("pods");
        let made = std::iter::once(&path).chain(&config.memory_dir);
        for path in made {
            record::make_dir(path)
                .map_err(|source| Error::Directory { path: path.clone(), source })?;
        }
        if let Some(dir) = &config.memory_dir {
            keep_from_swap(dir);
        }
        let logs = LogWatch::start(shutdown.clone());
        let host_dns =
            dns::of_host(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let node = Arc::new(Node {
            config,
            boot_id: record::boot_id().into(),
            host_dns,
            references: References::default(),
            host_ports: Claims::default(),
            allocations: Allocations::default(),
            logs,
            shutdown,
            pods: Mutex::default(),
        });
        let inner = Arc::new(Inner {
            node: node.clone(),
            pods: Mutex::default(),
            left: Mutex::default(),
            gone: watch::Sender::new(0),
        });
        *node.pods.lock() = Arc::downgrade(&inner);
        let pods = Self { inner };
        for (index, runtime) in node.config.runtimes.iter().enumerate() {
            let (sender, receiver) = mpsc::channel(EVENTS);
            let name = runtime.name();
            let known =
                runtime.adopt(sender).await.map_err(|source| Error::Runtime { name, source })?;
            let mut left = pods.inner.left.lock();
            for known in known {
                let run = KnownRun { runtime: (index, name), known };
                left.entry(run.known.id.pod_uid.clone()).or_default().push(run);
            }
            drop(left);
            tokio::spawn(pods.clone().dispatch(index, receiver));
        }
        tokio::spawn(look_again(node));
        Ok(pods)
    }

    /// The desired pod appeared or changed. Needs a UID; the newest call wins. Never blocks. The caller need not
    /// keep the object.
    pub fn set(&self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.as_deref().filter(|uid| is_file_name(uid));
        let (Some(uid), true) = (uid, pod.spec.is_some()) else {
            tracing::warn!(name = ?pod.metadata.name, uid = ?pod.metadata.uid, "a pod without a usable UID or spec is ignored");
            return;
        };
        let existing = self.inner.pods.lock().get(uid).cloned();
        match existing {
            Some(handle) => handle.apply(|state, now| state.set_pod(pod, now)),
            None => {
                let uid = uid.into();
                self.begin(|now, boot_id| PodState::new(pod, uid, boot_id, now));
            }
        }
    }

    /// The API object is gone: what still runs is stopped, then everything is cleaned up.
    pub fn remove(&self, uid: &str) {
        let handle = self.inner.pods.lock().get(uid).cloned();
        if let Some(handle) = handle {
            handle.apply(PodState::remove);
        }
    }

    /// Waits until a pod that was removed has ended and left nothing.
    pub async fn gone(&self, uid: &str) {
        let mut gone = self.inner.gone.subscribe();
        while self.inner.pods.lock().contains_key(uid) {
            if gone.changed().await.is_err() {
                return;
            }
        }
    }

    /// Every desired pod was given once: what belongs to none of them is cleaned up.
    pub fn synced(&self) {
        let config = &self.inner.node.config;
        let dirs = [Some(config.data_dir.join("pods")), config.memory_dir.clone()];
        let entries = dirs.iter().flatten().flat_map(std::fs::read_dir).flatten().flatten();
        let mut uids: BTreeSet<String> =
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        uids.extend(self.inner.left.lock().keys().cloned());
        let pods = self.inner.pods.lock();
        uids.retain(|uid| !pods.contains_key(uid.as_str()));
        drop(pods);
        for uid in uids {
            tracing::info!(uid, "cleaning up what a pod left that is not there any more");
            let pod = self.orphan(&uid);
            self.begin(|now, boot_id| {
                let mut state = PodState::new(pod, uid.into(), boot_id, now);
                (state.orphan, state.removed) = (true, true);
                state
            });
        }
    }

    /// The status as it would be reported now.
    pub fn status(&self, uid: &str) -> Option<PodStatus> {
        let handle = self.inner.pods.lock().get(uid).cloned()?;
        handle.look(|state| state.loaded && !state.orphan).then(|| handle.status())
    }

    /// A container's log. `uid` may be empty: then namespace and name identify the pod.
    pub async fn logs(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, LogError>>, LogError> {
        let handle = self.find(namespace, name, uid);
        let handle = handle.ok_or_else(|| {
            LogError::NotFound(format!("pod {namespace}/{name} is not on this node"))
        })?;
        logs::open(handle, request).await
    }

    /// UIDs of all pods that still have something on this node.
    pub fn uids(&self) -> Vec<String> {
        self.inner.pods.lock().keys().map(|uid| uid.to_string()).collect()
    }

    pub(crate) fn runtimes(&self) -> &[Arc<dyn Runtime>] {
        &self.inner.node.config.runtimes
    }

    pub(crate) fn traffic(&self) -> HashMap<String, Traffic> {
        self.inner.node.config.network.traffic()
    }

    pub(crate) fn handles(&self) -> Vec<Arc<Handle>> {
        self.inner.pods.lock().values().cloned().collect()
    }

    pub(crate) fn find(&self, namespace: &str, name: &str, uid: &str) -> Option<Arc<Handle>> {
        let pods = self.inner.pods.lock();
        if !uid.is_empty() {
            return pods.get(uid).cloned();
        }
        let key = ObjectKey::new(namespace, name);
        pods.values().find(|handle| handle.key == key).cloned()
    }

    fn begin(&self, state: impl FnOnce(jiff::Timestamp, Arc<str>) -> PodState) {
        let node = self.inner.node.clone();
        let state = state(node.config.clock.now(), node.boot_id.clone());
        // Under both locks: an event of an adopted run finds either its place in `left` or the pod.
        let mut pods = self.inner.pods.lock();
        if let Some(other) = pods.get(&state.uid) {
            return other.apply(|existing, now| existing.set_pod(state.pod, now));
        }
        let handle = Arc::new(Handle::new(node, state));
        let known = self.inner.left.lock().remove(&*handle.uid).unwrap_or_default();
        pods.insert(handle.uid.clone(), handle.clone());
        drop(pods);
        tokio::spawn(task::run(handle, known));
    }

    /// A pod that stands for what is left of one: enough to stop and remove it.
    fn orphan(&self, uid: &str) -> Arc<Pod> {
        let record = Record::read(&self.inner.node.config.data_dir.join("pods").join(uid));
        let left = self.inner.left.lock();
        let known = left.get(uid).into_iter().flatten().map(|run| run.known.id.container.clone());
        let recorded = record.iter().flat_map(|r| r.containers.keys().cloned());
        let names: BTreeSet<String> = known.chain(recorded).collect();
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.metadata.name = record.as_ref().map(|r| r.name.clone());
        pod.metadata.namespace = record.as_ref().map(|r| r.namespace.clone());
        pod.spec = Some(PodSpec {
            containers: names
                .into_iter()
                .map(|name| Container { name, ..Container::default() })
                .collect(),
            termination_grace_period_seconds: record.map(|r| r.grace_seconds),
            ..PodSpec::default()
        });
        Arc::new(pod)
    }

    /// Gives each event of a runtime to its pod.
    async fn dispatch(self, runtime: usize, mut events: mpsc::Receiver<RuntimeEvent>) {
        let shutdown = self.inner.node.shutdown.clone();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Some(event) => self.deliver(runtime, event),
                None => return,
            }
        }
    }

    fn deliver(&self, runtime: usize, event: RuntimeEvent) {
        let id = match &event {
            RuntimeEvent::Started { id, .. }
            | RuntimeEvent::Exited { id, .. }
            | RuntimeEvent::Notice { id, .. } => id.clone(),
        };
        let pods = self.inner.pods.lock();
        let Some(handle) = pods.get(id.pod_uid.as_str()).cloned() else {
            self.note(runtime, &id, event);
            return;
        };
        drop(pods);
        match event {
            RuntimeEvent::Exited { exit, .. } if wants_log_tail(&handle, &id, &exit) => {
                tokio::spawn(async move {
                    let message = logs::tail(handle.pod_dir(), id.clone()).await;
                    let exit = Exit { message, ..exit };
                    let event = RuntimeEvent::Exited { id, exit };
                    handle.apply(|state, now| state.runtime_event(runtime, event, now));
                });
            }
            event => handle.apply(|state, now| state.runtime_event(runtime, event, now)),
        }
    }

    /// An event of a run whose pod was not given yet.
    fn note(&self, runtime: usize, id: &RunId, event: RuntimeEvent) {
        let RuntimeEvent::Exited { exit, .. } = event else { return };
        let name = self.inner.node.runtime(runtime).name();
        let mut left = self.inner.left.lock();
        let runs = left.entry(id.pod_uid.clone()).or_default();
        match runs.iter_mut().find(|run| run.known.id == *id) {
            Some(run) => run.known.exit = Some(exit),
            None => {
                let known = Known {
                    id: id.clone(),
                    spec_hash: String::new(),
                    started_at: None,
                    exit: Some(exit),
                };
                runs.push(KnownRun { runtime: (runtime, name), known });
            }
        }
    }
}

/// Wakes the pods whose ConfigMaps or Secrets change.
async fn look_again(node: Arc<Node>) {
    let mut changes = node.config.objects.changes();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = node.shutdown.cancelled() => return,
        }
        node.look_again(node.references.changed(&*node.config.objects).await);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A UID becomes a directory's name.
fn is_file_name(uid: &str) -> bool {
    !uid.is_empty()
        && uid.len() <= 128
        && uid.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

/// terminationMessagePolicy FallbackToLogsOnError
fn wants_log_tail(handle: &Handle, id: &RunId, exit: &Exit) -> bool {
    exit.code != 0
        && exit.message.is_empty()
        && handle.look(|state| {
            let index = if state.loaded { state.find(id) } else { None };
            index.is_some_and(|i| {
                let policy = state.container_spec(i).termination_message_policy.as_deref();
                policy == Some("FallbackToLogsOnError")
            })
        })
}
