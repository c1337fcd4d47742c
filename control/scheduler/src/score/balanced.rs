//! Prefers nodes whose CPU and memory would be used up evenly, so that neither is left over alone.

use super::{Rule, Scale};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule {
    applies: |cycle| cycle.pod.requests.cpu > 0 || cycle.pod.requests.memory > 0,
    score,
    scale: Scale::Percent,
    weight: 1,
};

fn score(cycle: &Cycle, node: &NodeInfo) -> i64 {
    let share = |has: i64, used: i64, wanted: i64| {
        if has <= 0 { 1.0 } else { ((used + wanted) as f64 / has as f64).min(1.0) }
    };
    let (used, wanted) = (&node.requested, &cycle.pod.requests);
    let cpu = share(node.allocatable.cpu, used.cpu, wanted.cpu);
    let memory = share(node.allocatable.memory, used.memory, wanted.memory);
    ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64
}
