//! Step 4: init containers, one after the other: ordinary ones run to their end, sidecars until
//! they are up, and go on running.
//! <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/>

use super::{Plan, Progress, containers, turn};
use crate::state::PodState;
use crate::status::Kind;

pub(super) fn plan(state: &mut PodState, plan: &mut Plan) -> Progress {
    let turn = turn(state, plan);
    for index in turn.containers {
        if state.containers[index].kind != Kind::Main {
            containers::begin(state, index, plan);
        }
    }
    if !turn.initialized {
        return Progress::Wait;
    }
    state.initialized = true;
    Progress::Done
}
