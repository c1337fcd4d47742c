//! Prefers nodes with the most room left.

use super::{Rule, Scale};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule { applies: |_| true, score, scale: Scale::Percent, weight: 1 };

fn score(cycle: &Cycle, node: &NodeInfo) -> i64 {
    let free = |has: i64, used: i64, wanted: i64| {
        if has <= 0 { 0 } else { (has - used - wanted).max(0) * 100 / has }
    };
    let (used, wanted) = (node.weight, cycle.pod.weight);
    (free(node.allocatable.cpu, used.0, wanted.0) + free(node.allocatable.memory, used.1, wanted.1))
        / 2
}
