//! Preferred pod affinity and anti-affinity.

use super::{Rule, Scale};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule {
    applies: |cycle| !cycle.pod.preferred_affinity.is_empty(),
    score,
    scale: Scale::MoreIsBetter,
    weight: 2,
};

fn score(cycle: &Cycle, node: &NodeInfo) -> i64 {
    let terms = cycle.pod.preferred_affinity.iter().zip(&cycle.preferred_affinity);
    terms
        .map(|((weight, term), domains)| {
            node.label(&term.topology_key).map_or(0, |domain| weight * domains.count(domain))
        })
        .sum()
}
