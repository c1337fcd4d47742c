//! Required pod affinity and anti-affinity, the other pods' anti-affinity included.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity>

use super::{NAMESPACE, NODE_ADDED, NODE_LABELS, POD_PLACED, POD_REMOVED, Reasons, Rule};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule =
    Rule { check, healed_by: NODE_ADDED | NODE_LABELS | POD_REMOVED | POD_PLACED | NAMESPACE };

fn check(cycle: &Cycle, node: &NodeInfo, reasons: &mut Reasons) {
    if !near(cycle, node) {
        reasons.push("node(s) didn't match pod affinity rules".into());
    } else if !apart(cycle, node) {
        reasons.push("node(s) didn't match pod anti-affinity rules".into());
    } else if cycle.forbidden.iter().any(|(key, value)| node.label(key) == Some(value)) {
        reasons.push("node(s) didn't satisfy existing pods anti-affinity rules".into());
    }
}

fn near(cycle: &Cycle, node: &NodeInfo) -> bool {
    let terms = &cycle.pod.affinity;
    if terms.iter().any(|t| node.label(&t.topology_key).is_none()) {
        return false;
    }
    let met = terms.iter().zip(&cycle.affinity).all(|(term, domains)| {
        node.label(&term.topology_key).is_some_and(|domain| domains.count(domain) > 0)
    });
    // The first of a group that wants to be together has nobody to be with.
    met || (cycle.affinity.iter().all(|domains| domains.is_unpopulated()) && cycle.matches_itself)
}

fn apart(cycle: &Cycle, node: &NodeInfo) -> bool {
    let terms = cycle.pod.anti_affinity.iter().zip(&cycle.anti_affinity);
    terms.into_iter().all(|(term, domains)| {
        node.label(&term.topology_key).is_none_or(|domain| domains.count(domain) == 0)
    })
}
