//! A pod goes only where it tolerates the NoSchedule and NoExecute taints.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>

use k8s_openapi::api::core::v1::Taint;
use rimward_api::nodes::tolerates;

use super::{NODE_ADDED, NODE_TAINTS, Reasons, Rule};
use crate::cycle::Cycle;
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule { check, healed_by: NODE_ADDED | NODE_TAINTS };

fn check(cycle: &Cycle, node: &NodeInfo, reasons: &mut Reasons) {
    if let Some(taint) = untolerated(cycle.pod, node) {
        let value = taint.value.as_deref().unwrap_or_default();
        reasons.push(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key).into());
    }
}

/// The first taint that keeps the pod away.
pub fn untolerated<'a>(pod: &PodInfo, node: &'a NodeInfo) -> Option<&'a Taint> {
    let forbids = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    node.taints
        .iter()
        .filter(forbids)
        .find(|taint| !pod.tolerations.iter().any(|t| tolerates(t, taint)))
}
