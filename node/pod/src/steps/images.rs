//! Step 3: every container whose turn it is has its image. One that fails holds up no other.

use super::{Plan, Progress, turn};
use crate::state::{Action, ImageStep, PodState};

pub(super) fn plan(state: &mut PodState, plan: &mut Plan) -> Progress {
    for index in turn(state, plan).containers {
        let c = &mut state.containers[index];
        if matches!(c.image, ImageStep::Todo) {
            c.image = ImageStep::Doing;
            plan.actions.push(Action::Pull { index });
        }
    }
    Progress::Done
}
