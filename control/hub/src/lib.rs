//! The hub: the only door between nodes and the API.
//!
//! A node dials in over the tunnel, and everything that it learns or says goes through here, under
//! the hub's own identity and by rules that a node cannot bend: it is told its own pods and what
//! they reference, Services and Ingresses; it may report on its own pods and on its own Node; it gets
//! tokens for its own pods. The hub refuses to schedule, to decide whether a node is ready beyond
//! what the node says, and to keep anything that is not in the API: a restarted hub has lost nothing.
//!
//! In reading order: [`world`] knows who needs what; `session` is one connected node; `joining`,
//! `registration`, `reports`, `requests` are what a session may lead to; `relay` forwards pod packets;
//! `reach` is how the API server reaches a node, `sessions` how exec and attach go on from there.
//!
//! Memory a node: a set of changed keys (never a queue of objects) and the QUIC windows. Heartbeats
//! are not writes: a Lease is written when a node connects, goes, and every ten minutes; what is read
//! in between is when its last packet came.

pub mod token;

mod joining;
mod mirrors;
mod reach;
mod registration;
mod relay;
mod reports;
mod requests;
mod runtime_classes;
mod session;
mod sessions;
mod world;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use rimward_api::Block;
use rimward_client::{Body, Client, Informers, Recorder};
use rimward_tunnel::accept::{Arrival, Knock, ListenError, Listener};
use rimward_tunnel::signer::Signer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often the hub looks which connections have heard something.
const LISTEN_EVERY: Duration = Duration::from_secs(5);
/// Handshakes under way at once; more wait in the kernel's and quinn's bounded queues.
const ARRIVALS_MAX: usize = 256;

/// Serves `/v2/` reads of nodes: the built-in image registry.
#[async_trait]
pub trait RegistryFetch: Send + Sync + 'static {
    /// A GET or HEAD of a path that starts with `/v2/`.
    ///
    /// # Errors
    /// A sentence, when there is no answer at all; refusals are responses.
    async fn fetch(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, String>;
}

/// What the hub is made of.
pub struct Config {
    pub signer: Arc<Signer>,
    /// Bound already, so that a taken port is an error before anything starts.
    pub socket: UdpSocket,
    /// Acts as `system:serviceaccount:kube-system:rimward-hub`.
    pub client: Client,
    /// The control plane's shared caches.
    pub informers: Informers,
    pub network: NetworkConfig,
    pub registry: Arc<dyn RegistryFetch>,
    /// Where the API server listens; what nodes' connections to `kubernetes.default` reach.
    pub api_addr: SocketAddr,
    /// Of this program, told to nodes.
    pub version: String,
}

/// Addresses that every node is told.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    pub pod_network: Block,
    /// The size of a node's block: 24 is 256 addresses.
    pub node_bits: u8,
    pub service_network: String,
    pub cluster_dns: String,
    pub cluster_domain: String,
    /// `IP:port` of `kubernetes.default`.
    pub api_service: String,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            pod_network: "10.42.0.0/16".parse().expect("a block"),
            node_bits: 24,
            service_network: "10.43.0.0/16".into(),
            cluster_dns: "10.43.0.10".into(),
            cluster_domain: "cluster.local".into(),
            api_service: "10.43.0.1:443".into(),
        }
    }
}

/// A running hub. Clones are handles.
#[derive(Clone)]
pub struct Hub {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    signer: Arc<Signer>,
    client: Client,
    /// The same, for what nodes are told: they do without managedFields.
    looking: Client,
    recorder: Recorder,
    world: Arc<world::World>,
    network: NetworkConfig,
    registry: Arc<dyn RegistryFetch>,
    api_addr: SocketAddr,
    version: String,
    listener: Listener,
    /// Connected nodes by name.
    connected: Mutex<HashMap<String, Connected>>,
    relay: relay::Relay,
    /// Wakes links whose node has just connected.
    entered: tokio::sync::Notify,
    /// Held while a block of addresses is chosen and written.
    allocation: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// A node that is connected now.
struct Connected {
    session: u64,
    connection: rimward_tunnel::quinn::Connection,
    block: Block,
    /// The connection's count of packets received when it was last looked at, and when it last grew.
    heard: (u64, Timestamp),
}

impl Hub {
    /// Serves nodes until `shutdown`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the socket or the CA cannot be used.
    pub fn start(config: Config, shutdown: CancellationToken) -> Result<Self, ListenError> {
        let listener = Listener::new(config.socket, config.signer.clone())?;
        let world = world::World::new(&config.informers);
        // By this name whoever looks for what a node says of its pods finds it.
        let recorder = Recorder::new(config.client.clone(), "kubelet", shutdown.clone());
        let inner = Arc::new(Inner {
            signer: config.signer,
            looking: config.client.omitting_managed_fields(),
            client: config.client,
            recorder,
            world,
            network: config.network,
            registry: config.registry,
            api_addr: config.api_addr,
            version: config.version,
            listener,
            connected: Mutex::default(),
            relay: relay::Relay::default(),
            entered: tokio::sync::Notify::new(),
            allocation: tokio::sync::Mutex::new(()),
            tasks: TaskTracker::new(),
            shutdown,
        });
        let hub = Self { inner };
        hub.inner.tasks.spawn(hub.clone().accept());
        hub.inner.tasks.spawn(hub.clone().listen());
        Ok(hub)
    }

    /// Where nodes dial.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.inner.listener.local_addr()
    }

    /// What bootstrap tokens pin.
    pub fn ca_hash(&self) -> &str {
        self.inner.signer.ca_hash()
    }

    /// The nodes that are connected now.
    pub fn connected(&self) -> Vec<String> {
        self.inner.connected.lock().keys().cloned().collect()
    }

    /// Waits, after the shutdown, until nodes have been told and the last Leases are written.
    pub async fn stopped(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    async fn accept(self) {
        let inner = &self.inner;
        let slots = Arc::new(tokio::sync::Semaphore::new(ARRIVALS_MAX));
        loop {
            let next = async {
                let slot = slots.clone().acquire_owned().await;
                let slot = slot.expect("the semaphore is never closed");
                Some((inner.listener.accept().await?, slot))
            };
            let Some(Some((knock, slot))) = inner.shutdown.run_until_cancelled(next).await else {
                break;
            };
            let hub = self.clone();
            inner.tasks.spawn(async move {
                let arrival = hub.inner.shutdown.run_until_cancelled(hub.arrive(knock)).await;
                drop(slot);
                if let Some(Some(arrival)) = arrival {
                    hub.serve(arrival).await;
                }
            });
        }
        inner.listener.close().await;
    }

    async fn arrive(&self, knock: Knock) -> Option<Arrival> {
        match knock.arrive().await {
            Ok(arrival) => Some(arrival),
            Err(cause) => {
                tracing::warn!(%cause, "a node was not let in");
                None
            }
        }
    }

    async fn serve(&self, arrival: Arrival) {
        match arrival {
            Arrival::Join(request) => joining::serve(&self.inner, request).await,
            Arrival::Node(tunnel) => session::run(self, *tunnel).await,
            Arrival::Packets { holder, link } => relay::run(self, &holder.node, link).await,
        }
    }

    /// Notes which connections have received packets: what makes a node's Lease fresh.
    async fn listen(self) {
        let mut ticks = tokio::time::interval(LISTEN_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.inner.shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = Timestamp::now();
            for node in self.inner.connected.lock().values_mut() {
                node.listen(now);
            }
        }
    }
}

impl Connected {
    fn listen(&mut self, now: Timestamp) {
        let packets = self.connection.stats().udp_rx.datagrams;
        if packets != self.heard.0 {
            self.heard = (packets, now);
        }
    }
}
