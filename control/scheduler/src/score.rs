//! The rules that compare nodes that passed. One rule is one file.

pub mod balanced;
pub mod least_allocated;
pub mod node_preference;
pub mod pod_preference;
pub mod spread;
pub mod taint_preference;

use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub struct Rule {
    /// Whether it says anything about a pod.
    pub applies: fn(&Cycle) -> bool,
    pub score: fn(&Cycle, &NodeInfo) -> i64,
    pub scale: Scale,
    pub weight: i64,
}

/// How raw scores become 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// They are that already.
    Percent,
    /// The highest becomes 100.
    MoreIsBetter,
    /// The highest becomes 0.
    LessIsBetter,
}

pub const ALL: &[Rule] = &[
    least_allocated::RULE,
    balanced::RULE,
    taint_preference::RULE,
    node_preference::RULE,
    spread::RULE,
    pod_preference::RULE,
];

/// The weighted sum for each node.
pub fn total(cycle: &Cycle, nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    let mut raw = Vec::with_capacity(nodes.len());
    for rule in ALL.iter().filter(|r| (r.applies)(cycle)) {
        raw.clear();
        raw.extend(nodes.iter().map(|n| (rule.score)(cycle, n)));
        let (least, most) =
            raw.iter().fold((i64::MAX, i64::MIN), |(l, m), s| (l.min(*s), m.max(*s)));
        for (total, score) in totals.iter_mut().zip(&raw) {
            let scaled = match rule.scale {
                Scale::Percent => *score,
                Scale::MoreIsBetter if most > least.min(0) => {
                    100 * (score - least.min(0)) / (most - least.min(0))
                }
                Scale::MoreIsBetter => 0,
                Scale::LessIsBetter if most > 0 => 100 - 100 * score / most,
                Scale::LessIsBetter => 100,
            };
            *total += scaled * rule.weight;
        }
    }
    totals
}
