//! A claim of mode ReadWriteOncePod is one pod's, wherever that runs.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#access-modes>

use super::{POD_REMOVED, Reasons, Rule, VOLUMES};
use crate::cycle::Cycle;
use crate::snapshot::NodeInfo;

pub const RULE: Rule = Rule { check, healed_by: POD_REMOVED | VOLUMES };

fn check(cycle: &Cycle, _: &NodeInfo, reasons: &mut Reasons) {
    if cycle.volumes.is_taken {
        reasons.push(
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
                .into(),
        );
    }
}
