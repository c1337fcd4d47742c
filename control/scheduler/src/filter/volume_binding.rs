//! A pod goes where its volumes are, or where volumes can be had for it.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#node-affinity>

use super::{NODE_ADDED, NODE_LABELS, Reasons, Rule, VOLUMES};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule { check, healed_by: NODE_ADDED | NODE_LABELS | VOLUMES };

fn check(cycle: &Cycle, node: &NodeInfo, reasons: &mut Reasons) {
    if cycle.pod.claims.is_empty() {
        return;
    }
    if !cycle.volumes.reached_from(node) {
        reasons.push("node(s) didn't match PersistentVolume's node affinity".into());
    }
    if cycle.volumes.choose(node).is_none() {
        reasons.push("node(s) didn't find available persistent volumes to bind".into());
    }
}
