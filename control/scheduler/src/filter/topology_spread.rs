//! Topology spread constraints that forbid.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints/>

use super::{NODE_ADDED, NODE_LABELS, POD_PLACED, POD_REMOVED, Reasons, Rule};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule =
    Rule { check, healed_by: NODE_ADDED | NODE_LABELS | POD_REMOVED | POD_PLACED };

fn check(cycle: &Cycle, node: &NodeInfo, reasons: &mut Reasons) {
    for (constraint, domains) in cycle.pod.spread.iter().zip(&cycle.spread) {
        if !constraint.hard {
            continue;
        }
        let Some(domain) = node.label(&constraint.topology_key) else {
            reasons.push(
                "node(s) didn't match pod topology spread constraints (missing required label)"
                    .into(),
            );
            return;
        };
        let itself = i64::from(constraint.selects(&cycle.pod.labels));
        let here = domains.count(domain);
        if here + itself - domains.least(constraint.min_domains) > constraint.max_skew {
            reasons.push("node(s) didn't match pod topology spread constraints".into());
            return;
        }
    }
}
