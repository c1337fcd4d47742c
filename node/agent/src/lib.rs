//! The node agent: keeps the tunnel, knows the desired state, tells the control plane what became
//! of it, and assembles the node's parts.
//!
//! What the control plane says is written into the [`ledger`] before anything acts on it; the
//! in-memory caches that DNS, ingress, network and pods read are filled from there. So a node that
//! boots without a control plane starts its pods, serves names and Services, and reports later. The
//! agent refuses to run guests, to decide about containers (`rimward-node-pod` does) and to keep
//! anything secret in the clear on disk.
//!
//! In reading order: [`desired`] is the state, `link` the connection, `objects` and `reports` what a
//! pod needs from both, `static_pods` those of the
//! node's own files, `serving` what the control plane asks for (`sessions` the streams of it, `api`
//! the node's own, `stats` what it tells of usage), [`machine`] what this node is, [`pressure`] what it
//! runs short of, `eviction` what it does then, `images` what it keeps, [`node`] the assembly.

pub mod desired;
pub mod ledger;
pub mod machine;
pub mod node;
pub mod pressure;

mod api;
mod doors;
mod eviction;
mod images;
mod link;
mod objects;
mod reach;
mod reports;
mod serving;
mod sessions;
mod static_pods;
mod stats;
mod volumes;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{ContainerImage, Pod};
use rimward_node_image::{GcPolicy, ImageStore};
use rimward_node_pod::outside::{Attachment, Network};
use rimward_node_pod::runtime::{Handler, Usage};
use rimward_node_pod::{
    ClaimUsage, ImagesInUse, LogError, LogRequest, NoSession, PodDisk, PodUsage, RunningContainer,
};
use rimward_tunnel::BootstrapToken;
use rimward_tunnel::call::{Body, CallError, Duplex, call};
use rimward_tunnel::packets::PacketLink;
use rimward_tunnel::wire::{DialRequest, DialTarget, RegistryRequest, Reply, Welcome};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use desired::Desired;
pub use ledger::LedgerError;
pub use pressure::{EvictionHard, EvictionSoft};
pub use rimward_tunnel::dial::Error as TunnelError;

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's directory (`DIR/node`).
    pub data_dir: PathBuf,
    /// The name of its Node object.
    pub name: String,
    /// HOST:PORT of the control plane's tunnel.
    pub server: String,
    /// Needed until the node has joined, and after its certificate expired.
    pub token: Option<BootstrapToken>,
    /// Beside those that every node has.
    pub labels: BTreeMap<String, String>,
    /// None: the address from which this machine reaches others.
    pub node_ip: Option<IpAddr>,
    pub pods_max: u32,
    /// When the node says that it has too little memory or disk, and ends pods.
    pub eviction_hard: EvictionHard,
    /// What this node's runtimes let a RuntimeClass name.
    pub handlers: Vec<Handler>,
    /// When it says so and ends pods if that lasts.
    pub eviction_soft: EvictionSoft,
    /// What a pod gets of its grace period when a soft threshold ends it.
    pub eviction_max_pod_grace_seconds: i64,
    /// Files of pods that this node runs without being told.
    pub static_pods: Option<PathBuf>,
    /// Of this program: `0.1.0`.
    pub version: String,
}

/// Why a node cannot start, or cannot go on. One line for a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {cause}")]
    Directory { path: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error(
        "this machine holds the certificate of node {held:?}, not {asked:?}; name it so, or remove {path} to join under the new name"
    )]
    OtherName { held: String, asked: String, path: PathBuf },
    #[error(
        "this node has not joined a cluster yet; give it a token (`rimward token create` prints one)"
    )]
    NotJoined,
    #[error("cannot open a UDP socket: {0}")]
    Socket(std::io::Error),
}

/// Runs the desired pods; `rimward_node_pod::Pods` is the real one.
#[async_trait]
pub trait PodHandler: Send + Sync + 'static {
    fn set(&self, pod: Arc<Pod>);
    fn remove(&self, uid: &str);
    /// Every desired pod was given once.
    fn synced(&self);
    /// Waits until a pod that was removed has ended and left nothing.
    async fn gone(&self, _uid: &str) {}
    async fn logs(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, LogError>>, LogError>;
    /// A container that runs, for exec and attach.
    fn running(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
    ) -> Result<RunningContainer, NoSession>;
    /// A pod's place in the network, for port-forward.
    fn attachment(&self, namespace: &str, name: &str, uid: &str) -> Result<Attachment, NoSession>;
    /// What the running containers of all pods use.
    async fn usage(&self) -> Vec<PodUsage> {
        Vec::new()
    }
    /// What all pods use together, and what runs them. See `rimward_node_pod::Pods::usage_of_all`.
    fn usage_of_all(&self) -> Vec<(&'static str, Usage)> {
        Vec::new()
    }
    /// What pods have written on this node's disk.
    async fn disk(&self, _only: Option<HashSet<String>>) -> Vec<PodDisk> {
        Vec::new()
    }
    /// The claims that pods have mounted.
    async fn claims(&self) -> Vec<ClaimUsage> {
        Vec::new()
    }
    /// UIDs of the pods that are not over, nor about to end.
    fn active(&self) -> Vec<String> {
        Vec::new()
    }
    /// A pod as the control plane told it.
    fn object(&self, _uid: &str) -> Option<Arc<Pod>> {
        None
    }
    /// Ends a pod for good; answers whether there was one to end. See `rimward_node_pod::Pods::evict`.
    fn evict(&self, _uid: &str, _message: String, _disrupted: bool, _grace_seconds: i64) -> bool {
        false
    }
    /// The images of all containers that are not removed yet.
    fn images(&self) -> ImagesInUse {
        ImagesInUse::default()
    }
}

#[async_trait]
impl PodHandler for rimward_node_pod::Pods {
    fn set(&self, pod: Arc<Pod>) {
        Self::set(self, pod);
    }

    fn remove(&self, uid: &str) {
        Self::remove(self, uid);
    }

    fn synced(&self) {
        Self::synced(self);
    }

    async fn gone(&self, uid: &str) {
        Self::gone(self, uid).await;
    }

    async fn logs(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, LogError>>, LogError> {
        Self::logs(self, namespace, name, uid, request).await
    }

    fn running(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
    ) -> Result<RunningContainer, NoSession> {
        Self::running(self, namespace, name, uid, container)
    }

    fn attachment(&self, namespace: &str, name: &str, uid: &str) -> Result<Attachment, NoSession> {
        Self::attachment(self, namespace, name, uid)
    }

    async fn usage(&self) -> Vec<PodUsage> {
        Self::usage(self).await
    }

    fn usage_of_all(&self) -> Vec<(&'static str, Usage)> {
        Self::usage_of_all(self)
    }

    async fn disk(&self, only: Option<HashSet<String>>) -> Vec<PodDisk> {
        Self::disk(self, only).await
    }

    async fn claims(&self) -> Vec<ClaimUsage> {
        Self::claims(self).await
    }

    fn active(&self) -> Vec<String> {
        Self::active(self)
    }

    fn object(&self, uid: &str) -> Option<Arc<Pod>> {
        Self::object(self, uid)
    }

    fn evict(&self, uid: &str, message: String, disrupted: bool, grace_seconds: i64) -> bool {
        Self::evict(self, uid, message, disrupted, grace_seconds)
    }

    fn images(&self) -> ImagesInUse {
        Self::images(self)
    }
}

/// A running agent. Clones are handles.
#[derive(Clone)]
pub struct Agent {
    core: Arc<Core>,
}

/// What the agent's tasks share.
pub(crate) struct Core {
    config: Config,
    desired: Desired,
    reports: Arc<reports::Outgoing>,
    statics: Arc<static_pods::StaticPods>,
    identity: rimward_tunnel::identity::IdentityDir,
    dialer: rimward_tunnel::dial::Dialer,
    /// The connection while there is one.
    connection: watch::Sender<Option<rimward_tunnel::quinn::Connection>>,
    welcome: watch::Sender<Option<Welcome>>,
    /// The parts that `attach` brought, once they are there.
    parts: watch::Sender<Option<Parts>>,
    images: watch::Sender<Vec<ContainerImage>>,
    /// Once there is one.
    image_store: OnceLock<Arc<images::NodeImages>>,
    pressure: pressure::Pressure,
    stats: stats::Stats,
    /// Held while a change is applied.
    applying: Arc<tokio::sync::Mutex<()>>,
    /// How the link ended for good.
    ended: watch::Sender<Option<Result<(), Arc<Error>>>>,
    shutdown: CancellationToken,
}

/// The parts of the node that the agent itself calls.
#[derive(Clone)]
pub(crate) struct Parts {
    pub pods: Arc<dyn PodHandler>,
    pub network: Arc<dyn Network>,
}

impl Agent {
    /// Opens the ledger and starts to dial. Pods run once [`Agent::attach`] was called. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When the data directory or the ledger in it cannot be used.
    pub fn start(config: Config, shutdown: CancellationToken) -> Result<Self, Error> {
        let directory = |cause| Error::Directory { path: config.data_dir.clone(), cause };
        std::fs::create_dir_all(&config.data_dir).map_err(directory)?;
        let ledger = Arc::new(ledger::Ledger::open(&config.data_dir)?);
        let desired = Desired::load(ledger.clone(), &config.data_dir)?;
        let reports = Arc::new(reports::Outgoing::load(ledger.clone(), &config.name)?);
        let dir = config.static_pods.clone();
        let statics = static_pods::StaticPods::new(&config.name, dir, reports.clone());
        let identity = rimward_tunnel::identity::IdentityDir::open(config.data_dir.join("pki"))
            .map_err(TunnelError::from)?;
        let dialer = rimward_tunnel::dial::Dialer::new(&config.server).map_err(Error::Socket)?;
        let machine = pressure::Machine { data_dir: config.data_dir.clone() };
        let pressure =
            pressure::Pressure::new(machine, config.eviction_hard, config.eviction_soft.clone());
        let core = Arc::new(Core {
            welcome: watch::Sender::new(ledger.welcome()?),
            config,
            desired,
            reports,
            statics: Arc::new(statics),
            identity,
            dialer,
            connection: watch::Sender::new(None),
            parts: watch::Sender::new(None),
            images: watch::Sender::new(Vec::new()),
            image_store: OnceLock::new(),
            pressure,
            stats: stats::Stats::default(),
            applying: Arc::default(),
            ended: watch::Sender::new(None),
            shutdown,
        });
        tokio::spawn(link::run(core.clone()));
        tokio::spawn(eviction::run(core.clone()));
        Ok(Self { core })
    }

    /// Waits until the agent has ended: after the shutdown, or because something is wrong that only a
    /// person can put right.
    ///
    /// # Errors
    /// What that is; the program prints it and exits.
    pub async fn ended(&self) -> Result<(), Arc<Error>> {
        let mut ended = self.core.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// What it was started with.
    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// The desired state: the caches that DNS, ingress and network read.
    pub fn desired(&self) -> &Desired {
        &self.core.desired
    }

    /// What the cluster told this node of addresses and domains; known from the ledger when the node
    /// was connected before, else once it is connected. None when the agent ends first.
    pub async fn welcome(&self) -> Option<Welcome> {
        let mut welcome = self.core.welcome.subscribe();
        let known = async { welcome.wait_for(Option::is_some).await.ok()?.clone() };
        tokio::select! {
            known = known => known,
            _ = self.ended() => None,
        }
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.core.connection.borrow().is_some()
    }

    /// Objects for pods.
    pub fn objects(&self) -> Arc<dyn rimward_node_pod::outside::Objects> {
        Arc::new(objects::NodeObjects { core: self.core.clone() })
    }

    /// What this node is, for pods.
    pub fn this_node(&self) -> Arc<dyn rimward_node_pod::outside::ThisNode> {
        Arc::new(objects::OwnNode(objects::NodeObjects { core: self.core.clone() }))
    }

    /// The way up for pods.
    pub fn reports(&self) -> Arc<dyn rimward_node_pod::outside::Reports> {
        self.core.statics.clone()
    }

    /// An Event about this node.
    pub fn node_event(&self, warning: bool, reason: &str, message: &str) {
        self.core.reports.node_event(warning, reason, message);
    }

    /// Brings the parts that run pods: they are given every desired pod, and from now on every change.
    /// The node becomes Ready.
    pub fn attach(&self, pods: Arc<dyn PodHandler>, network: Arc<dyn Network>) {
        let statics = self.core.statics.clone();
        // Before what belongs to no pod is cleaned up.
        statics.begin(&pods);
        tokio::spawn(statics.clone().run(pods.clone(), self.core.shutdown.clone()));
        let pods: Arc<dyn PodHandler> = Arc::new(static_pods::Mirrored { pods, statics });
        self.core.desired.attach(pods.clone());
        self.core.parts.send_replace(Some(Parts { pods, network }));
    }

    /// Brings the image store: the Node tells of it, people may ask for it, and it is kept within the disk.
    pub fn attach_images(&self, store: ImageStore, policy: GcPolicy, pods: Arc<dyn PodHandler>) {
        let images = Arc::new(images::NodeImages::new(store, policy));
        if self.core.image_store.set(images.clone()).is_ok() {
            tokio::spawn(images.run(self.core.clone(), pods));
        }
    }

    /// Answers the node's own API on a socket in its directory, for whoever may open it: root, or the user that
    /// the node runs as. Runs until the shutdown.
    ///
    /// # Errors
    /// Names the socket that cannot be made.
    pub async fn serve_local(self) -> std::io::Result<()> {
        api::serve_local(self.core).await
    }

    /// A GET or HEAD of the cluster's registry (`/v2/…`), as its reply and its body. `from` is the first byte
    /// that is wanted; a reply with the code 206 begins with it, another one with the first of all.
    ///
    /// # Errors
    /// [`CallError::Refused`] carries the registry's status code.
    pub async fn registry(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        from: u64,
    ) -> Result<(Reply, Body), CallError> {
        let accept = Some(("accept".to_owned(), accept.to_owned())).filter(|_| !accept.is_empty());
        let range = (from > 0).then(|| ("range".to_owned(), format!("bytes={from}-")));
        let headers = accept.into_iter().chain(range).collect();
        let request = RegistryRequest { method: method.into(), path: path.into(), headers };
        let (reply, stream) = call(&self.core.connection()?, &request).await?;
        Ok((reply, stream.into_body()))
    }

    /// A byte stream to a pod on another node, through the control plane.
    ///
    /// # Errors
    /// When there is no connection, no such pod, or the pod refuses.
    pub async fn dial_pod(&self, pod: SocketAddr) -> Result<Duplex, CallError> {
        let request = DialRequest {
            target: DialTarget::Pod as u8,
            ip: pod.ip().to_string(),
            port: pod.port(),
        };
        Ok(call(&self.core.connection()?, &request).await?.1)
    }

    /// A byte stream to the API server: what `kubernetes.default` leads to.
    ///
    /// # Errors
    /// When there is no connection, or the API server does not answer.
    pub async fn dial_api(&self) -> Result<Duplex, CallError> {
        let request = DialRequest { target: DialTarget::Api as u8, ..DialRequest::default() };
        Ok(call(&self.core.connection()?, &request).await?.1)
    }

    /// A link for pod packets; waits until there is one. Call it again when the link ends. None when
    /// the agent ends.
    pub async fn packets(&self) -> Option<PacketLink> {
        let core = &self.core;
        let mut failures = 0;
        let linked = async {
            loop {
                let mut connected = core.connection.subscribe();
                connected.wait_for(Option::is_some).await.ok()?;
                let identity = core.identity.load().ok().flatten();
                let opened = match identity {
                    Some(identity) => core.dialer.packets(&identity).await,
                    None => return None,
                };
                match opened {
                    Ok(link) => return Some(link),
                    Err(cause) => {
                        failures += 1;
                        tracing::warn!(%cause, "no link for pod packets");
                        tokio::time::sleep(rimward_tunnel::backoff::wait(failures, rand::random()))
                            .await;
                    }
                }
            }
        };
        core.shutdown.run_until_cancelled(linked).await.flatten()
    }
}

impl Core {
    /// For `status.images`.
    fn show_images(&self, images: Vec<ContainerImage>) {
        self.images.send_if_modified(|current| {
            let changed = *current != images;
            *current = images;
            changed
        });
    }

    /// The connection, if there is one now.
    fn connection(&self) -> Result<rimward_tunnel::quinn::Connection, CallError> {
        let connection = self.connection.borrow().clone();
        connection.ok_or_else(|| CallError::Broken("the control plane is not connected".into()))
    }
}
