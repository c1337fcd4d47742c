//! Step 1: all volumes are there and filled.

use super::{Plan, Progress};
use crate::state::{Action, PodState, Setup};

pub(super) fn plan(state: &mut PodState, plan: &mut Plan) -> Progress {
    let failures = match &state.volumes {
        Setup::Done(_) => return Progress::Done,
        Setup::Doing(_) => return Progress::Wait,
        Setup::Todo => 0,
        Setup::Failed(trouble) if plan.is_due(trouble.retry_at) => trouble.failures,
        Setup::Failed(_) => return Progress::Wait,
    };
    state.volumes = Setup::Doing(failures);
    plan.actions.push(Action::SetUpVolumes { due: None });
    Progress::Wait
}
