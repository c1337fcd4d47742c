//! The assembly of the node, in dependency order.
//!
//! First [`Agent::start`]: ledger and tunnel. Then [`Agent::welcome`]: the node's block of addresses
//! and the cluster's DNS, from the ledger or the control plane. Then image store, runtimes and network,
//! some of which need the welcome; with them [`run_pods`]. Last DNS, Service routing and ingress over
//! [`Agent::desired`]'s caches.

use std::sync::Arc;

use rimward_node_pod::outside::{Images, Network};
use rimward_node_pod::runtime::Runtime;
use rimward_node_pod::{Allocatable, Clock, Pods};
use tokio_util::sync::CancellationToken;

use crate::Agent;
use crate::machine::Capacity;

/// What runs pods on this node.
pub struct Parts {
    /// In order of preference.
    pub runtimes: Vec<Arc<dyn Runtime>>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
}

/// Why the node cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Pods(#[from] rimward_node_pod::Error),
}

/// Starts the pod manager on the agent's objects and reports, and attaches it: every desired pod
/// starts, the node becomes Ready.
///
/// # Errors
/// When a runtime or the pods' directory cannot be used.
pub async fn run_pods(
    agent: &Agent,
    parts: Parts,
    cluster_domain: &str,
    shutdown: CancellationToken,
) -> Result<Pods, Error> {
    let config = agent.config();
    let free = Capacity::of(&config.data_dir).allocatable();
    let network = parts.network.clone();
    let pods = Pods::start(
        rimward_node_pod::Config {
            data_dir: config.data_dir.clone(),
            runtimes: parts.runtimes,
            images: parts.images,
            network: parts.network,
            objects: agent.objects(),
            reports: agent.reports(),
            node_name: config.name.clone(),
            cluster_domain: cluster_domain.to_owned(),
            allocatable: Allocatable {
                cpu_millis: free.cpu_millis,
                memory_bytes: free.memory_bytes,
                ephemeral_storage_bytes: free.storage_bytes,
            },
            memory_dir: rimward_node_pod::memory_dir(&config.data_dir),
            clock: Clock::system(),
        },
        shutdown,
    )
    .await?;
    agent.attach(Arc::new(pods.clone()), network);
    Ok(pods)
}
