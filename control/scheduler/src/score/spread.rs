//! Spreads the pods of one owner over nodes, and follows topology spread constraints that only
//! prefer.

use super::{Rule, Scale};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule {
    applies: |cycle| cycle.pod.owner.is_some() || cycle.pod.spread.iter().any(|c| !c.hard),
    score,
    scale: Scale::LessIsBetter,
    weight: 2,
};

fn score(cycle: &Cycle, node: &NodeInfo) -> i64 {
    let siblings = cycle.pod.owner.as_ref().and_then(|o| node.owners.get(o)).copied().unwrap_or(0);
    let soft = cycle.pod.spread.iter().zip(&cycle.spread).filter(|(c, _)| !c.hard);
    let crowd: i64 = soft
        .map(|(c, domains)| match node.label(&c.topology_key) {
            Some(domain) => domains.count(domain),
            // Outside of every domain is worse than in the fullest.
            None => domains.most() + 1,
        })
        .sum();
    i64::from(siblings) + crowd
}
