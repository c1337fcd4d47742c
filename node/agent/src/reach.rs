//! How this node's servers reach pods, the cluster's registry, and other nodes' packets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use rimward_api::{Block, ObjectKey};
use rimward_node_image::{ClusterRegistry, ClusterResponse};
use rimward_node_network::dial::Duplex;
use rimward_node_network::root::PacketPath;
use rimward_node_network::{Dial, Slices};
use rimward_node_pod::outside::Network;
use rimward_tunnel::call::CallError;
use rimward_tunnel::packets::PacketLink;
use tokio::net::TcpStream;

use crate::Agent;

/// Byte streams to pods, wherever they are, and to the API server.
pub(crate) struct NodeDial {
    pub agent: Agent,
    pub network: Arc<dyn Network>,
    pub slices: Slices,
    /// This node's own pods.
    pub own: Block,
    /// All pods of the cluster.
    pub cluster: Block,
    /// Pods of other nodes are reached by packets (the overlay), not by streams.
    pub packets: bool,
}

impl NodeDial {
    /// Whether an address is an endpoint of `kubernetes.default`, which this node may reach through its
    /// tunnel only.
    fn is_api(&self, address: SocketAddr) -> bool {
        self.slices.of(&ObjectKey::new("default", "kubernetes")).iter().any(|slice| {
            let mut ports = slice.ports.iter().flatten().filter_map(|p| p.port);
            let mut addresses = slice.endpoints.iter().flatten().flat_map(|e| &e.addresses);
            addresses.any(|a| a.parse() == Ok(address.ip()))
                && ports.any(|port| port == i32::from(address.port()))
        })
    }
}

fn refused(error: CallError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, error.to_string())
}

#[async_trait]
impl Dial for NodeDial {
    async fn dial(&self, to: SocketAddr) -> io::Result<Box<dyn Duplex>> {
        let (mine, cluster) = match to.ip() {
            IpAddr::V4(v4) => (self.own.contains(v4), self.cluster.contains(v4)),
            IpAddr::V6(_) => (false, false),
        };
        if cluster && !mine && !self.packets {
            return Ok(Box::new(self.agent.dial_pod(to).await.map_err(refused)?));
        }
        if !cluster && self.is_api(to) {
            return Ok(Box::new(self.agent.dial_api().await.map_err(refused)?));
        }
        let near = mine || to.ip() == self.network.host_ip();
        let to = if near { self.network.reach_port(to.ip(), to.port()) } else { to };
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// The cluster's image registry, through the tunnel.
pub(crate) struct TunnelRegistry {
    pub agent: Agent,
    /// `host:port` names under which people push to it.
    pub hosts: Vec<String>,
}

#[async_trait]
impl ClusterRegistry for TunnelRegistry {
    async fn get(&self, path: &str, accept: &str, from: u64) -> Result<ClusterResponse, String> {
        match self.agent.registry("GET", path, accept, from).await {
            Ok((reply, body)) => {
                let chunks = futures::stream::unfold(body, |mut body| async move {
                    let next = body.next().await.map_err(|e| e.to_string()).transpose()?;
                    Some((next, body))
                });
                Ok(ClusterResponse { status: reply.code, body: chunks.boxed() })
            }
            Err(CallError::Refused { code, .. }) => {
                Ok(ClusterResponse { status: code, body: futures::stream::empty().boxed() })
            }
            Err(error) => Err(format!("the cluster's registry cannot be reached: {error}")),
        }
    }

    fn hosts(&self) -> Vec<String> {
        self.hosts.clone()
    }
}

/// Pod packets over the tunnel's second connection.
pub(crate) struct TunnelPackets(pub PacketLink);

#[async_trait]
impl PacketPath for TunnelPackets {
    fn send(&self, packet: Bytes) {
        if let Err(error) = self.0.send(packet) {
            tracing::trace!(%error, "a pod packet was dropped");
        }
    }

    async fn recv(&self) -> Option<Bytes> {
        self.0.recv().await.ok()
    }
}
