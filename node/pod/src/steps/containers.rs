//! Step 5: the containers run, of the definition that the pod has now.

use jiff::Timestamp;

use super::{Plan, Progress, turn};
use crate::container_spec;
use crate::restart::Backoff;
use crate::state::{Action, Durability, ImageStep, Phase, PodState, Starting};
use crate::status::Kind;

pub(super) fn plan(state: &mut PodState, plan: &mut Plan) -> Progress {
    let turn = turn(state, plan).containers;
    let mut held_up = false;
    for index in 0..state.containers.len() {
        if state.containers[index].kind != Kind::Main {
            continue;
        }
        let begins = turn.contains(&index);
        let holds_up = holds_up(state, index, begins);
        if begins && !held_up {
            begin(state, index, plan);
        }
        held_up |= holds_up;
    }
    Progress::Done
}

/// A container that begins holds the later ones up until its postStart hook is done: so a proxy is there before
/// what speaks through it.
fn holds_up(state: &PodState, index: usize, begins: bool) -> bool {
    let lifecycle = state.container_spec(index).lifecycle.as_ref();
    if lifecycle.is_none_or(|lifecycle| lifecycle.post_start.is_none()) {
        return false;
    }
    match &state.containers[index].phase {
        Phase::Starting(_) => true,
        Phase::Running(running) => running.hook,
        Phase::Fresh | Phase::Ended(_) => begins,
    }
}

/// A changed image ends the run, also of a sidecar while others initialize; it begins again with the new one.
pub(super) fn stop_outdated(state: &mut PodState, index: usize, now: Timestamp) {
    let c = &state.containers[index];
    let Phase::Running(running) = &c.phase else { return };
    if c.kind == Kind::Init
        || running.stop_deadline.is_some()
        || !c.is_outdated(state.container_spec(index))
    {
        return;
    }
    let why = format!("Container {} definition changed, will be restarted", c.name);
    state.containers[index].replace = true;
    state.stop(index, None, why, now);
}

/// Begins the next run of a container whose turn it is, once its image is there.
pub(super) fn begin(state: &mut PodState, index: usize, plan: &mut Plan) {
    let hash = container_spec::hash(state.container_spec(index));
    let ImageStep::Ready(image) = &state.containers[index].image else { return };
    let (image_name, image_id) = (image.reference.clone(), image.id.clone());
    let stop_signal = container_spec::stop_signal(state.container_spec(index), image);
    let c = &mut state.containers[index];
    (c.image_name, c.image_id, c.stop_signal) = (image_name, image_id, stop_signal);
    let ImageStep::Ready(image) = std::mem::replace(&mut c.image, ImageStep::Todo) else { return };
    let prior_backoff = c.backoff;
    let mut durability = Durability::Process;
    if let Phase::Ended(exit) = std::mem::replace(&mut c.phase, Phase::Fresh) {
        if !c.replace {
            c.backoff = Some(Backoff::next(c.backoff.as_ref(), exit.finished_at, plan.now));
        }
        c.last = Some(exit);
        c.attempt += 1;
        // The counter must not go back after a power cut.
        durability = Durability::Power;
    }
    c.replace = false;
    c.spec_hash = hash;
    c.phase =
        Phase::Starting(Box::new(Starting { prior_backoff, started_at: None, early_exit: None }));
    let runtime = c.runtime.map_or(0, |(index, _)| index);
    let id = state.run_id(index);
    state.save(durability);
    plan.actions.push(Action::Start { index, id, image, runtime });
}
