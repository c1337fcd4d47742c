//! Preferred node affinity.

use super::{Rule, Scale};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule {
    applies: |cycle| !cycle.pod.preferred_nodes.is_empty(),
    score,
    scale: Scale::MoreIsBetter,
    weight: 2,
};

fn score(cycle: &Cycle, node: &NodeInfo) -> i64 {
    let Some(node) = &node.node else { return 0 };
    cycle
        .pod
        .preferred_nodes
        .iter()
        .filter(|(_, term)| term.matches(node))
        .map(|(weight, _)| weight)
        .sum()
}
