//! The node selector and required node affinity.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/>

use super::{NODE_ADDED, NODE_LABELS, Reasons, Rule};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule { check, healed_by: NODE_ADDED | NODE_LABELS };

fn check(cycle: &Cycle, node: &NodeInfo, reasons: &mut Reasons) {
    if !node.node.as_ref().is_some_and(|n| cycle.pod.wants_node(n)) {
        reasons.push("node(s) didn't match Pod's node affinity/selector".into());
    }
}
