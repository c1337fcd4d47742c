//! The network of a node that runs as root.
//!
//! ```text
//!  host namespace                               pods' namespace (one per node)
//!   clients ──► nft: Service → pod ──► veth ════ eth0 ── local 10.42.3.0/24 (AnyIP)
//!      └──────► TUN ──► tunnel ──► other nodes      └── nft: Service → pod, on the way out
//! ```
//!
//! Every pod address is local in the pods' namespace, without a device or a thread for each: a Wasm host
//! binds (address, port) there. The same Service rules are in both namespaces, so that a pod that calls a
//! Service keeps its source address. Rejected: a veth per Wasm pod (10,000 of them cost more than the
//! pods), and rules on the host alone (a pod calling a neighbour through a Service would need masquerade).
//!
//! The host has a route for the Service network, to the veth: the kernel looks for a route before it applies
//! the rules, and a machine need not have a default one.
//!
//! Containers have a namespace of their pod's own (see `pods`).
//!
//! What exists is kept: Wasm hosts live in the namespace across restarts of the agent, requests find their way
//! while there is none. Packets to other nodes wait for the next one: the TUN device and its route stay, so that
//! what is lost meanwhile is sent again rather than refused.

mod command;
mod host_ports;
mod namespace;
mod netlink;
mod overlay;
mod pods;
mod routing;
mod rules;
mod tables;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;
use rimward_api::Block;
use rimward_client::Cache;
use rimward_node_pod::outside::{Attachment, HostPort, Network, Traffic};
use tokio_util::sync::CancellationToken;

use crate::addresses::Addresses;
use crate::backends::Backends;
use crate::devices::devices;
use command::Programs;
use host_ports::HostPorts;
use routing::Routing;
use tables::Tables;

pub use command::CommandError;
pub use overlay::{Overlay, PacketPath};

pub struct Config {
    /// For the records of pod addresses.
    pub dir: PathBuf,
    /// Tells the namespaces and devices of several nodes on one machine apart; stable over restarts.
    pub node_key: String,
    pub pod_block: Block,
    /// All pods of the cluster: what the TUN device leads to.
    pub cluster_block: Block,
    /// All Services of the cluster.
    pub service_block: Block,
    pub host_ip: IpAddr,
    /// The cluster DNS server's address in the API, such as 10.43.0.10.
    pub dns_ip: Ipv4Addr,
}

/// The host's end of the veth: where servers for this node's pods listen (DNS, API access).
pub const HOST_END: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 1);
pub(crate) const POD_END: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 2);

/// What the names of this network's devices begin with.
pub const DEVICE_PREFIX: &str = "rw";

/// Names of what this node makes in the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub namespace: String,
    /// What the names of all its devices begin with.
    pub devices: String,
    pub veth: String,
    pub tun: String,
    pub table: String,
}

impl Names {
    fn new(node_key: &str) -> Self {
        // FNV-1a: names must be the same in every build, and device names have 15 characters.
        let hash = node_key
            .bytes()
            .fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Self {
            namespace: format!("rimward-{hash:08x}"),
            devices: format!("{DEVICE_PREFIX}{hash:08x}"),
            veth: format!("{DEVICE_PREFIX}{hash:08x}h"),
            tun: format!("{DEVICE_PREFIX}{hash:08x}t"),
            table: format!("rimward_{hash:08x}"),
        }
    }
}

type OwnNamespace = Arc<tokio::sync::Mutex<Option<PathBuf>>>;

/// Pod addresses in the pods' namespace.
pub struct RootNetwork {
    addresses: Addresses,
    /// Pods whose namespace is known to be there: their further containers need not look. One lock a pod,
    /// since its containers start at the same time.
    own_namespaces: Mutex<BTreeMap<Ipv4Addr, OwnNamespace>>,
    host_ports: HostPorts,
    pods: pods::Pods,
    names: Names,
    /// Until [`RootNetwork::run_services`] takes them.
    tables: Mutex<Option<Tables>>,
    config: Config,
}

impl RootNetwork {
    /// Makes (or finds) the namespace, the veth, the addresses and the rules.
    ///
    /// # Errors
    /// The command that failed, with what it said.
    pub async fn open(config: Config) -> Result<Self, String> {
        let addresses = Addresses::open(&config.dir, config.pod_block)?;
        let names = Names::new(&config.node_key);
        namespace::ensure(&names, &config).await.map_err(|e| e.to_string())?;
        let tables = Tables::open(names.clone(), &config, Arc::new(Programs)).await;
        let tables = Mutex::new(Some(tables.map_err(|e| e.to_string())?));
        namespace::route_services(&names, &config).await.map_err(|e| e.to_string())?;
        let pods = pods::Pods::open(&names, &config);
        let pods = pods.map_err(|e| format!("cannot speak with the kernel of its network: {e}"))?;
        pods.sweep(Some(&addresses)).await;
        let host_ports = HostPorts::open(&names, &config, &addresses, Arc::new(Programs)).await;
        let host_ports = host_ports.map_err(|e| e.to_string())?;
        let own_namespaces = Mutex::default();
        Ok(Self { addresses, own_namespaces, host_ports, pods, names, tables, config })
    }

    /// The namespace for Wasm hosts.
    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.names.namespace)
    }

    /// Opens the way to the other nodes; see [`Overlay::run`].
    pub async fn overlay(&self) -> Result<Overlay, String> {
        overlay::open(&self.names, &self.config).await
    }

    /// Removes everything that was made. Pods must have ended.
    pub async fn remove(&self) {
        self.pods.sweep(None).await;
        overlay::remove(&self.names).await;
        tables::remove(&self.names, &Programs).await;
        host_ports::remove(&self.names, &self.config, &Programs).await;
        namespace::remove(&self.names).await;
    }

    /// Keeps the rules in step with the Services until shutdown.
    ///
    /// `fixed` are ways in that lead to servers of the agent itself: (Service address, port) of DNS and of
    /// the API, to a local address. A batch that the kernel refuses is tried again by itself; `trouble` is
    /// told when that begins, with the cause, and when it is over.
    ///
    /// # Panics
    /// When it is called twice: a mistake in the program.
    pub async fn run_services(
        &self,
        services: Cache<Service>,
        backends: Backends,
        node: String,
        fixed: Vec<Fixed>,
        trouble: impl Fn(Option<&CommandError>) + Send,
        shutdown: CancellationToken,
    ) {
        let tables = self.tables.lock().take().expect("Services are routed once");
        let routing = Routing { tables: tables.with_fixed(fixed), services, backends, node };
        routing.run(trouble, shutdown).await;
    }
}

/// A way in that is always there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    pub address: Ipv4Addr,
    pub protocol: crate::services::Protocol,
    pub port: u16,
    pub to: SocketAddr,
}

#[async_trait]
impl Network for RootNetwork {
    async fn attach(&self, pod_uid: &str, host_network: bool) -> Result<Attachment, String> {
        if host_network {
            let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
            return Ok(Attachment {
                pod_ips: vec![self.config.host_ip],
                bind_ip: any,
                netns: None,
            });
        }
        let address = IpAddr::from(self.addresses.give(pod_uid)?);
        Ok(Attachment { pod_ips: vec![address], bind_ip: address, netns: None })
    }

    async fn own_namespace(&self, pod_uid: &str, made: Option<&Path>) -> Result<PathBuf, String> {
        let address = self.addresses.give(pod_uid)?;
        let slot = self.own_namespaces.lock().entry(address).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(path) = &*slot {
            return Ok(path.clone());
        }
        let path = self.pods.ensure(address, made).await?;
        *slot = Some(path.clone());
        Ok(path)
    }

    fn namespace_of(&self, pod_uid: &str) -> Option<PathBuf> {
        self.pods.existing(self.addresses.of(pod_uid)?)
    }

    async fn publish(&self, pod_uid: &str, ports: &[HostPort]) -> Result<(), String> {
        let address = self.addresses.give(pod_uid)?;
        self.host_ports.publish(pod_uid, address, ports).await
    }

    async fn detach(&self, pod_uid: &str) {
        if let Err(error) = self.host_ports.withdraw(pod_uid).await {
            tracing::warn!(pod_uid, error, "cannot take a pod's host ports away");
        }
        if let Some(address) = self.addresses.of(pod_uid) {
            self.own_namespaces.lock().remove(&address);
            self.pods.remove(address).await;
        }
        self.addresses.take_back(pod_uid);
    }

    fn reach(&self, pod_ip: IpAddr) -> IpAddr {
        pod_ip
    }

    fn dns_server(&self) -> SocketAddr {
        SocketAddr::new(self.config.dns_ip.into(), 53)
    }

    fn host_ip(&self) -> IpAddr {
        self.config.host_ip
    }

    fn traffic(&self) -> HashMap<String, Traffic> {
        let devices: HashMap<String, Traffic> = devices().into_iter().collect();
        let of = |(uid, address): (String, Ipv4Addr)| {
            // What the host sends there, the pod receives.
            Some((uid, devices.get(&self.pods.veth(address))?.mirrored()))
        };
        self.addresses.all().into_iter().filter_map(of).collect()
    }
}
