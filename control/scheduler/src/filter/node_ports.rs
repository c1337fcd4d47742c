//! A host port can be bound once.

use super::{NODE_ADDED, POD_REMOVED, Reasons, Rule};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule { check, healed_by: NODE_ADDED | POD_REMOVED };

fn check(cycle: &Cycle, node: &NodeInfo, reasons: &mut Reasons) {
    let taken = |wanted| node.ports.iter().any(|(_, used)| used.conflicts(wanted));
    if cycle.pod.host_ports.iter().any(taken) {
        reasons.push("node(s) didn't have free ports for the requested pod ports".into());
    }
}
