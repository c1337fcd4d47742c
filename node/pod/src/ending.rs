//! Stopping a pod: containers, then sidecars in reverse order, then what it held. All preStop hooks begin at once.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination>

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::record::Ended;
use crate::runtime::Exit;
use crate::state::{Action, Durability, Phase, PodState, PreStop, Refresh, Setup};
use crate::status::Kind;
use crate::steps::Plan;

/// `status.reason` of a pod that made room.
pub(crate) const PREEMPTING: &str = "Preempting";

/// How long after its grace a runtime may take to report an end, before the run counts as lost.
const PATIENCE: SignedDuration = SignedDuration::from_secs(15);

pub(crate) fn plan(state: &mut PodState, plan: &mut Plan) {
    let mut alive = false;
    for index in 0..state.containers.len() {
        if state.containers[index].kind != Kind::Sidecar {
            alive |= stop(state, index, plan);
        }
    }
    // Each in its turn, but none is spared for others that take too long. Their preStop hooks wait for nobody.
    for index in (0..state.containers.len()).rev() {
        if state.containers[index].kind != Kind::Sidecar {
            continue;
        }
        let waits = alive || matches!(prepared(state, index), Some(PreStop::Doing));
        alive |= match waits && !is_late(state, plan) {
            true => prepare(state, index, plan),
            false => stop(state, index, plan),
        };
    }
    if !alive {
        release(state, plan);
    }
}

/// Whether the pod's grace is over.
fn is_late(state: &PodState, plan: &mut Plan) -> bool {
    state.ending.is_none_or(|ending| plan.is_due(ending.deadline))
}

fn prepared(state: &PodState, index: usize) -> Option<PreStop> {
    match &state.containers[index].phase {
        Phase::Running(running) => running.pre_stop,
        _ => None,
    }
}

/// A sidecar whose turn has not come does what its preStop hook says; answers whether it is still there.
fn prepare(state: &mut PodState, index: usize, plan: &Plan) -> bool {
    let left = state.ending.map_or(SignedDuration::ZERO, |e| e.deadline.duration_since(plan.now));
    let limit = Duration::try_from(left).unwrap_or_default();
    if matches!(state.containers[index].phase, Phase::Running(_))
        && prepared(state, index).is_none()
    {
        state.prepare_stop(index, limit);
    }
    state.containers[index].is_alive()
}

impl PodState {
    /// The node ends the pod for want of room (`disrupted`), or since the pod takes more than it may. Answers
    /// whether there was anything to end.
    pub fn evict(&mut self, message: String, disrupted: bool, grace: i64, now: Timestamp) -> bool {
        if !self.loaded || self.orphan || self.ended.is_some() || self.ending.is_some() {
            return false;
        }
        self.end_early("Evicted", message, disrupted, grace, now);
        true
    }

    /// The pod makes room for a critical one.
    pub fn preempt(&mut self, now: Timestamp) {
        if self.loaded && self.ended.is_none() && self.ending.is_none() {
            let message = "Preempted in order to admit critical pod".into();
            self.end_early(PREEMPTING, message, true, self.grace_seconds(), now);
        }
    }

    fn end_early(
        &mut self,
        reason: &str,
        message: String,
        disrupted: bool,
        grace: i64,
        now: Timestamp,
    ) {
        self.event(true, reason, message.clone());
        let reason = reason.into();
        self.ended = Some(Ended { succeeded: false, reason, message, disrupted });
        self.save(Durability::Power);
        self.end(grace, now);
    }
}

/// Makes sure that a container is being stopped; answers whether it is still there.
fn stop(state: &mut PodState, index: usize, plan: &mut Plan) -> bool {
    let deadline = state.ending.map_or(plan.now, |e| e.deadline);
    let running = match &state.containers[index].phase {
        Phase::Fresh | Phase::Ended(_) => return false,
        // Its start is answered first, or it would be lost.
        Phase::Starting(_) => return true,
        Phase::Running(running) => running,
    };
    let late = SignedDuration::from_secs(1);
    match running.stop_deadline {
        None => {
            let why = format!("Stopping container {}", state.containers[index].name);
            let grace = seconds_until(deadline, plan.now);
            state.stop(index, Some(grace), why, plan.now);
        }
        // The grace was shortened.
        Some(stop) if deadline < stop - late => {
            let grace = seconds_until(deadline, plan.now);
            state.stop(index, Some(grace), String::new(), plan.now);
        }
        Some(_) => {}
    }
    !give_up(state, index, plan)
}

/// A second that has begun counts whole: who is to have three seconds has not two. The deadline holds all the same.
fn seconds_until(deadline: Timestamp, now: Timestamp) -> i64 {
    let left = deadline.duration_since(now);
    (left.as_secs() + i64::from(left.subsec_nanos() > 0)).max(0)
}

/// A run that was stopped, and whose end the runtime does not report, counts as ended.
pub(crate) fn give_up(state: &mut PodState, index: usize, plan: &mut Plan) -> bool {
    let Phase::Running(running) = &state.containers[index].phase else { return false };
    let Some(stop) = running.stop_deadline else { return false };
    let lost = plan.is_due(stop.saturating_add(PATIENCE).unwrap_or(stop));
    if lost {
        state.exited(index, unreported(plan.now), plan.now);
    }
    lost
}

fn unreported(now: Timestamp) -> Exit {
    Exit {
        code: 137,
        signal: None,
        reason: "ContainerStatusUnknown".into(),
        message: "The container could not be located when the pod was terminated".into(),
        started_at: now,
        finished_at: now,
    }
}

/// Gives back the address and the volumes, once nothing is about to take them.
fn release(state: &mut PodState, plan: &mut Plan) {
    let busy = matches!(state.volumes, Setup::Doing(_))
        || matches!(state.network, Setup::Doing(_))
        || matches!(state.refresh, Refresh::Doing | Refresh::Again);
    if busy {
        return;
    }
    let failures = match &state.release {
        Setup::Done(()) => {
            plan.gone = state.removed;
            return;
        }
        Setup::Doing(_) => return,
        Setup::Todo => 0,
        Setup::Failed(trouble) if plan.is_due(trouble.retry_at) => trouble.failures,
        Setup::Failed(_) => return,
    };
    state.release = Setup::Doing(failures);
    plan.actions.push(Action::Release);
}
