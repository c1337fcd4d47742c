//! What a pod needs from the rest of the node, as traits: images, addresses, objects, and the way
//! up for status and Events. `rimward-node-agent` wires the real ones in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus, Secret, Service,
};
use serde::{Deserialize, Serialize};

/// An image that is whole on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As the pod named it.
    pub reference: String,
    /// `name@sha256:…`, for `status.containerStatuses[].imageID`.
    pub id: String,
    /// Of the manifest: `sha256:…`.
    pub digest: String,
    pub form: ImageForm,
}

/// What an image turned out to be, read from the image itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageForm {
    /// A component or a preview-1 core module; `file` is the verified .wasm, `digest` its own.
    Wasm {
        file: PathBuf,
        digest: String,
        entrypoint: Vec<String>,
        cmd: Vec<String>,
        env: Vec<String>,
        working_dir: String,
    },
    /// A Linux root file system; layers are unpacked (lowest first).
    Linux {
        layers: Vec<PathBuf>,
        entrypoint: Vec<String>,
        cmd: Vec<String>,
        env: Vec<String>,
        working_dir: String,
        user: String,
        /// `SIGTERM`, `15`; empty when the image does not say.
        #[serde(default)]
        stop_signal: String,
    },
}

/// Why there is no image: `reason` is what kubectl shows while waiting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ImageError {
    /// `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`, `ImageInspectError`.
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// Credentials for a registry, or for a part of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// As the secret has it: a host, perhaps with a path, perhaps a URL, perhaps with wildcards.
    pub registry: String,
    pub username: String,
    pub password: String,
    /// None of those that no pod gave.
    pub source: Option<SecretSource>,
}

/// The Secret that credentials are from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSource {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// The node's image store.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Whether a reference can be the name of an image at all.
    ///
    /// # Errors
    /// `InvalidImageName`
    fn check_name(&self, _reference: &str) -> Result<(), ImageError> {
        Ok(())
    }

    /// Whether the reference is here already (no pull needed under IfNotPresent).
    async fn present(&self, reference: &str) -> Option<Image>;

    /// Whether a pod with these credentials may use an image that is here without asking its registry again.
    /// What nobody's credentials brought here is everybody's.
    /// <https://kubernetes.io/docs/concepts/containers/images/#ensureimagepullcredentialverification>
    fn may_use(&self, _reference: &str, _image: &Image, _auth: &[RegistryAuth]) -> bool {
        true
    }

    /// The image, pulled if the policy wants it. Concurrent calls for one reference share a pull.
    async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
        auth: &[RegistryAuth],
    ) -> Result<Image, ImageError>;

    /// How large an image that is here is, as it was transferred.
    fn size_bytes(&self, _reference: &str) -> Option<u64> {
        None
    }

    /// How far the pull of a reference is that is under way now.
    fn progress(&self, _reference: &str) -> Option<PullProgress> {
        None
    }
}

/// Of all that an image consists of, as it is transferred. What is here already is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullProgress {
    pub bytes: u64,
    pub bytes_all: u64,
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// As the API shows it.
    pub pod_ips: Vec<IpAddr>,
    /// Where listeners really bind.
    pub bind_ip: IpAddr,
    pub netns: Option<PathBuf>,
}

/// A port of the machine that leads to one of a pod's (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Transport,
    /// None is every address of the machine.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// What went over a network device since it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

impl Traffic {
    /// The same as the other end of a pair sees it.
    pub fn mirrored(self) -> Self {
        Self {
            rx_bytes: self.tx_bytes,
            rx_packets: self.tx_packets,
            rx_errors: self.tx_errors,
            rx_dropped: self.tx_dropped,
            tx_bytes: self.rx_bytes,
            tx_packets: self.rx_packets,
            tx_errors: self.rx_errors,
            tx_dropped: self.rx_dropped,
        }
    }
}

/// Gives pods addresses. Keyed by pod UID; both calls may be repeated, also after a restart.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// `host_network` pods get the node's own address.
    async fn attach(&self, pod_uid: &str, host_network: bool) -> Result<Attachment, String>;

    /// A network namespace of the pod's own, with its address and ways to everywhere in it: for
    /// containers that make their own system calls. The pod was attached and is not on the host's
    /// network. It is `made` already where it belongs to somebody else than the machine's root. May be repeated;
    /// `detach` undoes it.
    async fn own_namespace(&self, _pod_uid: &str, _made: Option<&Path>) -> Result<PathBuf, String> {
        Err("this node gives pods no network namespaces of their own: it does not run as root"
            .into())
    }

    /// The namespace of a pod, if [`Network::own_namespace`] has made it one.
    fn namespace_of(&self, _pod_uid: &str) -> Option<PathBuf> {
        None
    }

    /// Makes ports of the machine lead to an attached pod, just these. May be repeated; `detach` undoes it.
    async fn publish(&self, _pod_uid: &str, ports: &[HostPort]) -> Result<(), String> {
        match ports.first() {
            Some(port) => Err(format!("this node does not publish hostPort {}", port.host_port)),
            None => Ok(()),
        }
    }

    async fn detach(&self, pod_uid: &str);

    /// Where a probe of this node connects to reach `pod_ip`.
    fn reach(&self, pod_ip: IpAddr) -> IpAddr;

    /// Where a probe of this node connects to reach a port of `pod_ip`. User mode moves ports that
    /// an ordinary user cannot bind; with a pod network they are as the pod says.
    fn reach_port(&self, pod_ip: IpAddr, port: u16) -> std::net::SocketAddr {
        std::net::SocketAddr::new(self.reach(pod_ip), port)
    }

    /// The cluster DNS server as pods of this node reach it.
    fn dns_server(&self) -> std::net::SocketAddr;

    fn host_ip(&self) -> IpAddr;

    /// By UID what went over the devices of pods that have one of their own.
    fn traffic(&self) -> HashMap<String, Traffic> {
        HashMap::new()
    }
}

/// A token for a pod's projected volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub token: String,
    pub expires_at: jiff::Timestamp,
}

/// Why an object is not to be had: not there (yet), or the control plane cannot be reached and the
/// node has never seen it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Kubernetes' words: `configmap "x" not found`.
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unavailable(String),
}

/// The objects that this node's pods may see.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Arc<ConfigMap>, ObjectError>;
    async fn secret(&self, namespace: &str, name: &str) -> Result<Arc<Secret>, ObjectError>;
    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<PersistentVolumeClaim>, ObjectError>;
    /// The volume that a claim of this node's pods is bound to.
    async fn volume(&self, name: &str) -> Result<Arc<PersistentVolume>, ObjectError>;
    /// A token bound to the pod (TokenRequest through the hub).
    async fn token(
        &self,
        pod: &Pod,
        audiences: &[String],
        expiration_seconds: i64,
    ) -> Result<Token, ObjectError>;
    /// Services of a namespace, for Kubernetes' service environment variables.
    fn services(&self, namespace: &str) -> Vec<Arc<Service>>;
    /// Wakes when any ConfigMap, Secret or claim changed: mounted volumes are then refreshed.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;
}

/// What this node is just now, by which it takes a pod or turns it away.
#[async_trait]
pub trait ThisNode: Send + Sync + 'static {
    /// Its labels and taints, as it last heard of them.
    fn node(&self) -> Arc<Node>;

    /// The same as the API has it now, where that can be asked.
    async fn node_now(&self) -> Arc<Node> {
        self.node()
    }

    /// The conditions under which it takes not every pod: `MemoryPressure`, `DiskPressure`, `PIDPressure`.
    fn pressures(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

/// The way up. Calls never block: the newest status of a pod replaces an unsent older one.
pub trait Reports: Send + Sync + 'static {
    fn pod_status(&self, pod: &Pod, status: PodStatus);
    /// The pod's containers have ended and its resources are released: the API object may go.
    fn pod_terminated(&self, pod: &Pod, status: PodStatus);
    /// A Kubernetes Event about a pod (`field_path` such as `spec.containers{web}`, or empty).
    fn event(&self, pod: &Pod, field_path: &str, warning: bool, reason: &str, message: &str);
}
