//! Prefers nodes with few PreferNoSchedule taints that the pod does not tolerate.

use super::{Rule, Scale};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;
use rimward_api::nodes::tolerates;

pub const RULE: Rule = Rule { applies: |_| true, score, scale: Scale::LessIsBetter, weight: 3 };

fn score(cycle: &Cycle, node: &NodeInfo) -> i64 {
    let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    soft.filter(|taint| !cycle.pod.tolerations.iter().any(|t| tolerates(t, taint))).count() as i64
}
