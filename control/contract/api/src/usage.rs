//! What a node says of what its pods and it itself use: the answer of the node's own API at
//! [`PATH`], of which the control plane makes `metrics.k8s.io`.
//!
//! CPU is a rate over a window that ends at the timestamp; memory is the working set at that moment.
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/resource-metrics-pipeline/>

use serde::{Deserialize, Serialize};

/// Where a node's own API has it.
pub const PATH: &str = "/rimward/usage";

/// A node and its pods. Fields are only added: the two ends may be of different releases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeUsage {
    /// RFC 3339.
    pub timestamp: String,
    /// Over how long CPU was measured.
    pub window_ms: u64,
    pub node: Amount,
    pub pods: Vec<PodUsage>,
}

/// A pod with at least one container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodUsage {
    pub uid: String,
    pub containers: Vec<ContainerUsage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerUsage {
    pub name: String,
    #[serde(flatten)]
    pub used: Amount,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Amount {
    /// Billionths of a core.
    pub cpu_nano_cores: u64,
    /// The working set, in bytes.
    pub memory_bytes: u64,
}
