//! The rules that a node must pass. One rule is one file.

pub mod node_affinity;
pub mod node_ports;
pub mod node_unschedulable;
pub mod pod_affinity;
pub mod resources_fit;
pub mod taints;
pub mod topology_spread;
pub mod volume_binding;
pub mod volume_restrictions;

use std::borrow::Cow;

use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

/// What happened in the cluster, as a set of bits.
pub type Happened = u8;
pub const NODE_ADDED: Happened = 1;
pub const NODE_ALLOCATABLE: Happened = 2;
pub const NODE_LABELS: Happened = 4;
pub const NODE_TAINTS: Happened = 8;
/// A pod that counted on a node no longer does.
pub const POD_REMOVED: Happened = 16;
pub const POD_PLACED: Happened = 32;
pub const NAMESPACE: Happened = 64;
/// A claim, a volume or a class changed.
pub const VOLUMES: Happened = 128;

/// Why a node will not do, in the words that `kubectl describe` shows.
pub type Reasons = Vec<Cow<'static, str>>;

pub struct Rule {
    /// Appends why not; nothing if the node passes.
    pub check: fn(&Cycle, &NodeInfo, &mut Reasons),
    /// What may let a pod pass that failed here.
    pub healed_by: Happened,
}

/// In the order in which a node meets them; the first that refuses it says why.
pub const ALL: &[Rule] = &[
    node_unschedulable::RULE,
    taints::RULE,
    node_affinity::RULE,
    node_ports::RULE,
    resources_fit::RULE,
    volume_restrictions::RULE,
    volume_binding::RULE,
    topology_spread::RULE,
    pod_affinity::RULE,
];
