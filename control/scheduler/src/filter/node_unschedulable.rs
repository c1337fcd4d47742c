//! Nodes that are cordoned off take nothing new, unless a pod tolerates just that.

use k8s_openapi::api::core::v1::Taint;
use rimward_api::nodes::tolerates;

use super::{NODE_ADDED, NODE_TAINTS, Reasons, Rule};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule { check, healed_by: NODE_ADDED | NODE_TAINTS };

fn check(cycle: &Cycle, node: &NodeInfo, reasons: &mut Reasons) {
    if !node.unschedulable {
        return;
    }
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if !cycle.pod.tolerations.iter().any(|t| tolerates(t, &cordon)) {
        reasons.push("node(s) were unschedulable".into());
    }
}
