//! What must hold before a pod runs, as a list of steps. Each looks at the state, plans what is
//! missing, and says whether the next may go on. They are planned again at every change, so each
//! also keeps what it brought about.

mod containers;
mod images;
mod init_containers;
mod network;
mod volumes;

use jiff::{SignedDuration, Timestamp};

use crate::record::Ended;
use crate::restart::Backoff;
use crate::state::{Action, ContainerState, Durability, Phase, PodState, Refresh, Setup};
use crate::status::Kind;
use crate::{ending, probing, resize};

/// In this order.
const STEPS: [Step; 5] = [
    Step { name: "volumes", plan: volumes::plan },
    Step { name: "network", plan: network::plan },
    Step { name: "images", plan: images::plan },
    Step { name: "init containers", plan: init_containers::plan },
    Step { name: "containers", plan: containers::plan },
];

struct Step {
    name: &'static str,
    plan: fn(&mut PodState, &mut Plan) -> Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Done,
    /// The steps after it wait.
    Wait,
}

/// What to do now, and when to look again if nothing happens.
pub(crate) struct Plan {
    pub now: Timestamp,
    pub actions: Vec<Action>,
    pub wake: Option<Timestamp>,
    /// Everything is cleaned up: the pod may be forgotten.
    pub gone: bool,
}

impl Plan {
    pub fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Whether a thing that is due at `at` is due; else it wakes the pod then.
    pub fn is_due(&mut self, at: Timestamp) -> bool {
        let due = at <= self.now;
        if !due {
            self.wake_at(at);
        }
        due
    }
}

/// Plans from the whole state.
pub(crate) fn plan(state: &mut PodState, now: Timestamp) -> Plan {
    let mut plan = Plan { now, actions: Vec::new(), wake: None, gone: false };
    if !state.loaded {
        return plan;
    }
    plan_deadline(state, &mut plan);
    plan_end(state, now);
    if state.ending.is_some() {
        ending::plan(state, &mut plan);
    } else if !plan_restart_of_all(state, &mut plan) {
        for index in 0..state.containers.len() {
            ending::give_up(state, index, &mut plan);
            containers::stop_outdated(state, index, now);
        }
        for step in &STEPS {
            if (step.plan)(state, &mut plan) == Progress::Wait {
                tracing::trace!(pod = %state.uid, step = step.name, "waits");
                break;
            }
        }
        plan_refresh(state, &mut plan);
        resize::plan(state, &mut plan);
    }
    probing::plan(state, &mut plan);
    if let Some(look) = state.next_look(now) {
        plan.wake_at(look);
    }
    // What inputs asked for comes first: an end is told before the next start.
    let mut actions = std::mem::take(&mut state.queue);
    actions.append(&mut plan.actions);
    plan.actions = actions;
    plan
}

/// activeDeadlineSeconds, counted from the pod's start.
fn plan_deadline(state: &mut PodState, plan: &mut Plan) {
    let Some(seconds) = state.spec().active_deadline_seconds else { return };
    if state.ended.is_some() || state.ending.is_some() {
        return;
    }
    let deadline = state.started_at.saturating_add(SignedDuration::from_secs(seconds));
    if plan.is_due(deadline.unwrap_or(Timestamp::MAX)) {
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        state.event(false, "DeadlineExceeded", message.clone());
        let reason = "DeadlineExceeded".into();
        state.ended = Some(Ended { succeeded: false, reason, message, disrupted: false });
        state.save(Durability::Power);
        state.end(state.grace_seconds(), plan.now);
    }
}

/// A pod is over when none of its containers will run again.
fn plan_end(state: &mut PodState, now: Timestamp) {
    if state.ended.is_some() || state.ending.is_some() {
        return;
    }
    let over = |index: usize| match &state.containers[index].phase {
        Phase::Ended(exit) if !state.restarts(index, exit) => Some(exit.code == 0),
        _ => None,
    };
    // Success of each that is over, None for those that go on.
    let of = |kind: Kind| -> Vec<Option<bool>> {
        let all = state.containers.iter().enumerate();
        all.filter(|(_, c)| c.kind == kind).map(|(index, _)| over(index)).collect()
    };
    let init_failed = !state.initialized && of(Kind::Init).contains(&Some(false));
    let main = of(Kind::Main);
    if init_failed || main.iter().all(Option::is_some) {
        let succeeded = !init_failed && main.iter().all(|over| *over == Some(true));
        let (reason, message) = (String::new(), String::new());
        state.ended = Some(Ended { succeeded, reason, message, disrupted: false });
        state.save(Durability::Power);
        state.end(state.grace_seconds(), now);
    }
}

/// Once a container ended with a code that asks for it, all are ended and begin anew, init containers
/// first; what has no end yet holds the others up. Answers whether it does.
fn plan_restart_of_all(state: &mut PodState, plan: &mut Plan) -> bool {
    let Some(cause) = state.restarts_all() else { return false };
    let why = format!("Restarting all containers since {} ended", state.containers[cause].name);
    let mut alive = false;
    for index in 0..state.containers.len() {
        let c = &state.containers[index];
        if c.kind == Kind::Ephemeral || !c.is_alive() {
            continue;
        }
        if matches!(&c.phase, Phase::Running(running) if running.stop_deadline.is_none()) {
            state.kill(index, why.clone(), plan.now);
        }
        alive |= !ending::give_up(state, index, plan);
    }
    let Phase::Ended(exit) = &state.containers[cause].phase else { return true };
    let finished = exit.finished_at;
    let c = &state.containers[cause];
    let held_back = Backoff::wait_until(c.backoff.as_ref(), finished, plan.now);
    if let Some(until) = held_back {
        plan.wake_at(until);
    }
    if alive || held_back.is_some() {
        return true;
    }
    let c = &mut state.containers[cause];
    c.backoff = Some(Backoff::next(c.backoff.as_ref(), finished, plan.now));
    for c in state.containers.iter_mut().filter(|c| c.kind != Kind::Ephemeral) {
        c.anew();
    }
    state.initialized = false;
    state.save(Durability::Power);
    false
}

/// Files that may be stale are looked at again; so are tokens near their end.
fn plan_refresh(state: &mut PodState, plan: &mut Plan) {
    let Setup::Done(mounted) = &state.volumes else { return };
    if matches!(state.refresh, Refresh::Doing | Refresh::Again) {
        return;
    }
    let due = mounted.tokens_due;
    let tokens = due.is_some_and(|due| plan.is_due(due));
    if tokens || state.refresh == Refresh::Due {
        state.refresh = Refresh::Doing;
        plan.actions.push(Action::SetUpVolumes { due: due.filter(|_| !tokens) });
    }
}

/// Which containers are to begin a run now.
struct Turn {
    containers: Vec<usize>,
    /// All init containers did their work, or are up if they are sidecars.
    initialized: bool,
}

enum Want {
    /// It runs, or its run is being begun.
    Nothing,
    Begin,
    Later(Timestamp),
    /// It ended, for good.
    Over,
}

fn want(state: &PodState, index: usize, now: Timestamp) -> Want {
    let c = &state.containers[index];
    let retry = c.trouble.as_ref().map(|t| t.retry_at).filter(|at| *at > now);
    match (&c.phase, retry) {
        (Phase::Starting(_) | Phase::Running(_), _) => Want::Nothing,
        (Phase::Ended(exit), _) if !state.restarts(index, exit) => Want::Over,
        (_, Some(retry)) => Want::Later(retry),
        (Phase::Fresh, None) => Want::Begin,
        (Phase::Ended(_), None) if c.replace => Want::Begin,
        (Phase::Ended(exit), None) => {
            match Backoff::wait_until(c.backoff.as_ref(), exit.finished_at, now) {
                Some(until) => Want::Later(until),
                None => Want::Begin,
            }
        }
    }
}

fn turn(state: &PodState, plan: &mut Plan) -> Turn {
    let mut turn = Turn { containers: Vec::new(), initialized: state.initialized };
    // As under the kubelet, nothing begins while something is being ended: a restart after a probe that failed
    // would race with what ends.
    let stopping =
        |c: &ContainerState| matches!(&c.phase, Phase::Running(r) if r.stop_deadline.is_some());
    let ends = state.containers.iter().any(stopping);
    let mut waits = false;
    for (index, c) in state.containers.iter().enumerate() {
        if c.kind == Kind::Init && state.initialized {
            continue;
        }
        // Later init containers and the others wait for an earlier one; what debugs does not.
        if waits && c.kind != Kind::Ephemeral {
            continue;
        }
        let want = want(state, index, plan.now);
        let over = matches!(want, Want::Over);
        match want {
            Want::Begin if ends => {}
            Want::Begin => turn.containers.push(index),
            Want::Later(at) => plan.wake_at(at),
            Want::Nothing | Want::Over => {}
        }
        let done = match c.kind {
            Kind::Init => over,
            Kind::Sidecar => c.is_started() || state.initialized,
            Kind::Main | Kind::Ephemeral => true,
        };
        waits |= !done;
    }
    turn.initialized = !waits;
    turn
}
