//! What pods request must fit into what the node has to give.
//! <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#how-pods-with-resource-requests-are-scheduled>

use super::{NODE_ADDED, NODE_ALLOCATABLE, POD_REMOVED, Reasons, Rule};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule { check, healed_by: NODE_ADDED | NODE_ALLOCATABLE | POD_REMOVED };

fn check(cycle: &Cycle, node: &NodeInfo, reasons: &mut Reasons) {
    if node.pods.len() + 1 > node.pods_max {
        reasons.push("Too many pods".into());
    }
    let (wanted, has, used) = (&cycle.pod.requests, &node.allocatable, &node.requested);
    let lacks = |wanted: i64, has: i64, used: i64| wanted > 0 && wanted > has - used;
    if lacks(wanted.cpu, has.cpu, used.cpu) {
        reasons.push("Insufficient cpu".into());
    }
    if lacks(wanted.memory, has.memory, used.memory) {
        reasons.push("Insufficient memory".into());
    }
    if lacks(wanted.ephemeral, has.ephemeral, used.ephemeral) {
        reasons.push("Insufficient ephemeral-storage".into());
    }
    for (name, amount) in &wanted.other {
        let of =
            |all: &std::collections::BTreeMap<String, i64>| all.get(name).copied().unwrap_or(0);
        if lacks(*amount, of(&has.other), of(&used.other)) {
            reasons.push(format!("Insufficient {name}").into());
        }
    }
}
