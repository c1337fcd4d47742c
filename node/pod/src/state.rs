//! What is known of one pod, and what each input does to it. No clock, no I/O: callers give `now`.

mod adopt;
mod view;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodSpec};

use crate::container_spec;
use crate::outside::{Attachment, Image, ImageError};
use crate::probe::{self, Outcome, Probe, Verdict};
use crate::record::{Ended, Record};
use crate::restart::{Backoff, go_seconds, restarts, retry_delay};
use crate::runtime::{Exit, RunId, RuntimeEvent, StartError};
use crate::sources::Name;
use crate::status::{Kind, Transitions};
use crate::volumes::{self, Mounted};

pub(crate) use adopt::KnownRun;

/// How long the first word on a failure is shown before the back-off is.
const FIRST_WORD: SignedDuration = SignedDuration::from_secs(2);

/// A step of set-up that is done once for the pod.
#[derive(Clone, Debug)]
pub(crate) enum Setup<T> {
    Todo,
    /// Under way; after so many failures in a row.
    Doing(u32),
    Failed(Trouble),
    Done(T),
}

/// What went wrong, and when it is tried again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trouble {
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
    pub retry_at: Timestamp,
    /// In a row.
    pub failures: u32,
}

pub(crate) struct PodState {
    pub pod: Arc<Pod>,
    pub uid: Arc<str>,
    /// The record was read and what runs was adopted.
    pub loaded: bool,
    /// No API object was ever seen: it is only cleaned up, silently.
    pub orphan: bool,
    /// The API object is gone.
    pub removed: bool,
    pub boot_id: Arc<str>,
    /// `status.startTime`
    pub started_at: Timestamp,
    pub volumes: Setup<Mounted>,
    pub refresh: Refresh,
    pub network: Setup<Attachment>,
    pub release: Setup<()>,
    /// Init containers then others, as the spec has them.
    pub containers: Vec<ContainerState>,
    /// All init containers did their work (since the machine booted).
    pub initialized: bool,
    /// It is over, whatever becomes of its object.
    pub ended: Option<Ended>,
    pub ending: Option<Ending>,
    /// Objects of which changes are to be told.
    pub watched: Vec<Name>,
    pub since: Transitions,
    pub sent: Sent,
    /// Something that must survive the agent changed; durably if it is worth a sync.
    pub unsaved: Option<Durability>,
    /// What inputs asked for.
    pub queue: Vec<Action>,
}

/// Whether mounted files are to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refresh {
    No,
    Due,
    Doing,
    /// Something changed while it was under way.
    Again,
}

/// The pod is being stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub since: Timestamp,
    pub deadline: Timestamp,
}

/// What was last reported.
#[derive(Default)]
pub(crate) struct Sent {
    /// Of the status; 0 before the first.
    pub digest: u64,
    /// A changed status is held back until then, since more is about to change.
    pub due: Option<Timestamp>,
    pub was_ready: bool,
    pub terminated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Durability {
    /// Survives a crash of the agent.
    Process,
    /// Survives a power cut.
    Power,
}

pub(crate) struct ContainerState {
    pub kind: Kind,
    pub name: String,
    /// Of the current or newest run, or of the first to come.
    pub attempt: u32,
    pub phase: Phase,
    /// How the run before that ended.
    pub last: Option<Box<Exit>>,
    pub image: ImageStep,
    pub image_id: String,
    /// Index and name of the runtime.
    pub runtime: Option<(usize, &'static str)>,
    /// Of the current run.
    pub spec_hash: String,
    pub backoff: Option<Backoff>,
    pub trouble: Option<Box<Trouble>>,
    /// Its definition changed: it starts again whatever the restart policy says.
    pub replace: bool,
}

pub(crate) enum ImageStep {
    Todo,
    Doing,
    Ready(Box<Image>),
}

pub(crate) enum Phase {
    /// The run `attempt` has not begun.
    Fresh,
    /// `Runtime::start` is under way.
    Starting(Box<Starting>),
    Running(Box<Running>),
    Ended(Box<Exit>),
}

pub(crate) struct Starting {
    pub prior_backoff: Option<Backoff>,
    pub started_at: Option<Timestamp>,
    /// It ended before its start was answered.
    pub early_exit: Option<Exit>,
}

pub(crate) struct Running {
    pub started_at: Timestamp,
    pub probes: Vec<Probe>,
    /// postStart is under way.
    pub hook: bool,
    pub stop_deadline: Option<Timestamp>,
}

/// What the task is to do; results come back as inputs.
pub(crate) enum Action {
    SetUpVolumes {
        due: Option<Timestamp>,
    },
    Attach,
    Pull {
        index: usize,
    },
    Start {
        index: usize,
        id: RunId,
        image: Box<Image>,
        runtime: usize,
    },
    PostStart {
        index: usize,
        id: RunId,
        runtime: usize,
        hook: Box<LifecycleHandler>,
    },
    Probe {
        index: usize,
        id: RunId,
        runtime: usize,
        kind: probe::Kind,
    },
    Stop {
        index: usize,
        id: RunId,
        runtime: usize,
        hook: Option<Box<LifecycleHandler>>,
        grace: Duration,
    },
    Forget {
        id: RunId,
        runtime: usize,
    },
    /// A run that belongs to nothing any more.
    Discard {
        id: RunId,
        runtime: usize,
    },
    Release,
    Event(Event),
}

/// A Kubernetes Event to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub field_path: String,
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

/// Why a start failed.
pub(crate) struct StartFailure {
    pub error: StartError,
    /// Objects that were looked at: a change of these may help.
    pub seen: Vec<(Name, Option<String>)>,
}

impl PodState {
    pub fn spec(&self) -> &PodSpec {
        self.pod.spec.as_ref().expect("a pod without a spec is refused by Pods::set")
    }

    pub fn container_spec(&self, index: usize) -> &Container {
        let spec = self.spec();
        let init = spec.init_containers.as_deref().unwrap_or_default();
        init.get(index).unwrap_or_else(|| &spec.containers[index - init.len()])
    }

    pub fn run_id(&self, index: usize) -> RunId {
        let c = &self.containers[index];
        RunId { pod_uid: self.uid.to_string(), container: c.name.clone(), attempt: c.attempt }
    }

    /// `name_namespace(uid)`, as the kubelet's messages have it.
    pub fn full_name(&self) -> String {
        let meta = &self.pod.metadata;
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        format!("{}_{}({})", text(&meta.name), text(&meta.namespace), self.uid)
    }

    pub fn policy(&self) -> &str {
        self.spec().restart_policy.as_deref().unwrap_or("Always")
    }

    /// Whether a run that ended like this is followed by another.
    pub fn restarts(&self, index: usize, exit: &Exit) -> bool {
        let c = &self.containers[index];
        let is_init = c.kind != Kind::Main;
        c.replace || restarts(self.policy(), self.container_spec(index), is_init, exit.code)
    }

    pub fn event(&mut self, warning: bool, reason: &str, message: String) {
        self.queue.push(Action::Event(Event {
            field_path: String::new(),
            warning,
            reason: reason.into(),
            message,
        }));
    }

    pub fn container_event(&mut self, index: usize, warning: bool, reason: &str, message: String) {
        let event = container_event(&self.containers[index], warning, reason, message);
        self.queue.push(event);
    }

    pub fn save(&mut self, durability: Durability) {
        self.unsaved = self.unsaved.max(Some(durability));
    }

    /// Which container and whether it is still the run that `id` names.
    pub fn find(&self, id: &RunId) -> Option<usize> {
        self.containers.iter().position(|c| c.name == id.container && c.attempt == id.attempt)
    }

    // ---- inputs ----

    /// The API object appeared or changed.
    pub fn set_pod(&mut self, pod: Arc<Pod>, now: Timestamp) {
        let old = std::mem::replace(&mut self.pod, pod);
        self.sent.terminated = false;
        if !self.loaded {
            return;
        }
        let (old_meta, new_meta) = (&old.metadata, &self.pod.metadata);
        if old_meta.labels != new_meta.labels || old_meta.annotations != new_meta.annotations {
            self.look_again();
        }
        for index in 0..self.containers.len() {
            let image = |pod: &Pod| {
                let spec = pod.spec.as_ref()?;
                let init = spec.init_containers.as_deref().unwrap_or_default();
                let container =
                    init.get(index).or_else(|| spec.containers.get(index - init.len()))?;
                container.image.clone()
            };
            if image(&old) != image(&self.pod) {
                let c = &mut self.containers[index];
                c.trouble = None;
                if !matches!(c.image, ImageStep::Doing) {
                    c.image = ImageStep::Todo;
                }
            }
        }
        self.notice_deletion(now);
    }

    /// Begins the end once the object says so, and hurries it when the grace was shortened.
    pub fn notice_deletion(&mut self, now: Timestamp) {
        if self.pod.metadata.deletion_timestamp.is_some() {
            self.end(self.grace_seconds(), now);
        }
    }

    pub fn grace_seconds(&self) -> i64 {
        let deletion = self.pod.metadata.deletion_grace_period_seconds;
        deletion.or(self.spec().termination_grace_period_seconds).unwrap_or(30).max(0)
    }

    pub fn remove(&mut self, now: Timestamp) {
        self.removed = true;
        if self.loaded {
            self.end(self.grace_seconds(), now);
        }
    }

    /// From now on the pod is being stopped.
    pub fn end(&mut self, grace_seconds: i64, now: Timestamp) {
        let deadline = now.saturating_add(SignedDuration::from_secs(grace_seconds)).unwrap_or(now);
        match &mut self.ending {
            Some(ending) => ending.deadline = ending.deadline.min(deadline),
            None => {
                self.ending = Some(Ending { since: now, deadline });
                self.save(Durability::Process);
            }
        }
    }

    /// A ConfigMap or Secret that this pod refers to changed, or its labels did.
    pub fn objects_changed(&mut self, now: Timestamp) {
        self.look_again();
        if let Setup::Failed(trouble) = &mut self.volumes {
            trouble.retry_at = now;
        }
        for c in &mut self.containers {
            if let Some(trouble) =
                c.trouble.as_mut().filter(|t| t.reason == "CreateContainerConfigError")
            {
                trouble.retry_at = now;
            }
        }
    }

    fn look_again(&mut self) {
        self.refresh = match self.refresh {
            Refresh::No | Refresh::Due => Refresh::Due,
            Refresh::Doing | Refresh::Again => Refresh::Again,
        };
    }

    pub fn volumes_done(&mut self, result: Result<Mounted, volumes::Failure>, now: Timestamp) {
        self.refresh = match self.refresh {
            Refresh::Again => Refresh::Due,
            _ => Refresh::No,
        };
        match (result, &mut self.volumes) {
            (Ok(mounted), volumes) => *volumes = Setup::Done(mounted),
            // What is mounted stays as it is; the next change is another chance.
            (Err(failure), Setup::Done(mounted)) => {
                mounted.tokens_due = mounted
                    .tokens_due
                    .map(|due| due.max(now.saturating_add(retry_delay(3)).unwrap_or(now)));
                self.event(true, "FailedMount", failure.message);
            }
            (Err(failure), volumes) => {
                let failures = if let Setup::Doing(n) = volumes { *n + 1 } else { 1 };
                // As the kubelet: half a second, doubling to about two minutes.
                let delay = SignedDuration::from_millis(500 << (failures - 1).min(8));
                *volumes =
                    Setup::Failed(trouble("FailedMount", &failure.message, failures, delay, now));
                self.event(true, "FailedMount", failure.message);
            }
        }
    }

    pub fn attached(&mut self, result: Result<Attachment, String>, now: Timestamp) {
        match result {
            Ok(attachment) => self.network = Setup::Done(attachment),
            Err(why) => {
                let message = format!("Failed to create pod sandbox: {why}");
                // Adopted: it stays where it was.
                if matches!(self.network, Setup::Done(_)) {
                    self.event(true, "FailedCreatePodSandBox", message);
                    return;
                }
                let failures = if let Setup::Doing(n) = self.network { n + 1 } else { 1 };
                let delay = SignedDuration::from_secs(1 << (failures - 1).min(6));
                self.network = Setup::Failed(trouble(
                    "FailedCreatePodSandBox",
                    &message,
                    failures,
                    delay,
                    now,
                ));
                self.event(true, "FailedCreatePodSandBox", message);
            }
        }
    }

    /// `runtime` is the one that runs the image.
    pub fn pulled(
        &mut self,
        index: usize,
        reference: &str,
        result: Result<(Image, (usize, &'static str)), ImageError>,
        now: Timestamp,
    ) {
        let wanted = self.container_spec(index).image.as_deref().unwrap_or_default() == reference;
        let c = &mut self.containers[index];
        c.image = ImageStep::Todo;
        if !wanted {
            return;
        }
        match result {
            Ok((image, runtime)) => {
                c.image_id.clone_from(&image.id);
                c.runtime = Some(runtime);
                c.image = ImageStep::Ready(Box::new(image));
                c.trouble = None;
            }
            Err(error) => {
                let failures = c.trouble.as_ref().map_or(1, |t| t.failures + 1);
                let delay = retry_delay(failures);
                c.trouble =
                    Some(Box::new(trouble(&error.reason, &error.message, failures, delay, now)));
                if error.reason == "ErrImagePull" {
                    let message = format!("Back-off pulling image {reference:?}");
                    self.container_event(index, false, "BackOff", message);
                    self.container_event(index, true, "Failed", "Error: ImagePullBackOff".into());
                }
            }
        }
    }

    /// The answer of `Runtime::start`.
    pub fn started(&mut self, id: &RunId, result: Result<(), StartFailure>, now: Timestamp) {
        let Some(index) = self.find(id) else { return };
        let Phase::Starting(starting) = &mut self.containers[index].phase else { return };
        let (early, at) = (starting.early_exit.take(), starting.started_at.unwrap_or(now));
        let prior_backoff = starting.prior_backoff;
        match result {
            Ok(()) => {
                self.container_event(index, false, "Created", "Container created".into());
                self.container_event(index, false, "Started", "Container started".into());
                self.run(index, at);
                self.post_start(index);
                if let Some(exit) = early {
                    self.exited(index, exit, now);
                }
            }
            Err(failure) => {
                let message = format!("Error: {}", failure.error.message);
                self.container_event(index, true, "Failed", message);
                let StartError { reason, message } = failure.error;
                // A run that was begun and failed counts as one; what cannot even be created does not.
                if reason.starts_with("CreateContainer") {
                    self.not_created(index, prior_backoff, &reason, &message, now);
                } else {
                    let exit = early.unwrap_or_else(|| start_error(&message, now));
                    self.exited(index, exit, now);
                    let shown = trouble(&reason, &message, 1, SignedDuration::ZERO, now);
                    self.containers[index].trouble = Some(Box::new(shown));
                }
            }
        }
    }

    fn not_created(
        &mut self,
        index: usize,
        backoff: Option<Backoff>,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        let c = &mut self.containers[index];
        let failures =
            c.trouble.as_ref().filter(|t| t.reason == reason).map_or(1, |t| t.failures + 1);
        // A missing object wakes the pod when it appears, so a steady pace will do.
        let delay = if reason == "CreateContainerConfigError" {
            retry_delay(1)
        } else {
            retry_delay(failures)
        };
        c.trouble = Some(Box::new(trouble(reason, message, failures, delay, now)));
        c.backoff = backoff;
        c.image = ImageStep::Todo;
        c.phase = match c.last.take() {
            Some(exit) if c.attempt > 0 => {
                c.attempt -= 1;
                Phase::Ended(exit)
            }
            last => {
                c.last = last;
                Phase::Fresh
            }
        };
    }

    fn run(&mut self, index: usize, started_at: Timestamp) {
        let spec = self.container_spec(index);
        let probes = probe::Kind::ALL
            .iter()
            .filter_map(|kind| Some(Probe::new(*kind, kind.of(spec)?, started_at)))
            .collect();
        let c = &mut self.containers[index];
        c.image = ImageStep::Todo;
        c.trouble = None;
        c.phase = Phase::Running(Box::new(Running {
            started_at,
            probes,
            hook: false,
            stop_deadline: None,
        }));
    }

    fn post_start(&mut self, index: usize) {
        let lifecycle = self.container_spec(index).lifecycle.as_ref();
        let Some(hook) = lifecycle.and_then(|l| l.post_start.clone()).map(Box::new) else { return };
        let id = self.run_id(index);
        let c = &mut self.containers[index];
        let runtime = c.runtime.map_or(0, |(index, _)| index);
        if let Phase::Running(running) = &mut c.phase {
            running.hook = true;
            self.queue.push(Action::PostStart { index, id, runtime, hook });
        }
    }

    pub fn runtime_event(&mut self, runtime: usize, event: RuntimeEvent, now: Timestamp) {
        match event {
            RuntimeEvent::Started { id, at } => {
                let Some(index) = self.find(&id) else { return };
                if let Phase::Starting(starting) = &mut self.containers[index].phase {
                    starting.started_at = Some(at);
                }
            }
            RuntimeEvent::Exited { id, exit } => {
                let index = self.find(&id).unwrap_or(usize::MAX);
                match self.containers.get_mut(index).map(|c| &mut c.phase) {
                    Some(Phase::Starting(starting)) => starting.early_exit = Some(exit),
                    Some(Phase::Running(_)) => self.exited(index, exit, now),
                    // Too late: it counts as ended already.
                    Some(Phase::Fresh | Phase::Ended(_)) | None => {
                        self.queue.push(Action::Forget { id, runtime });
                    }
                }
            }
            RuntimeEvent::Notice { id, reason, message } => {
                if let Some(index) = self.find(&id) {
                    self.container_event(index, true, &reason, message);
                }
            }
        }
    }

    /// The run is over; whether another follows is planned later.
    pub fn exited(&mut self, index: usize, exit: Exit, now: Timestamp) {
        let id = self.run_id(index);
        let (finished, restarts) = (exit.finished_at, self.restarts(index, &exit));
        let c = &mut self.containers[index];
        let runtime = c.runtime.map_or(0, |(index, _)| index);
        c.phase = Phase::Ended(Box::new(exit));
        c.image = ImageStep::Todo;
        c.trouble = None;
        let held_back =
            !c.replace && Backoff::wait_until(c.backoff.as_ref(), finished, now).is_some();
        if restarts && held_back && self.ending.is_none() {
            let name = &self.containers[index].name;
            let message =
                format!("Back-off restarting failed container {name} in pod {}", self.full_name());
            self.container_event(index, true, "BackOff", message);
        }
        // Written down first, then the runtime may forget it.
        self.save(Durability::Power);
        self.queue.push(Action::Forget { id, runtime });
    }

    pub fn post_started(&mut self, id: &RunId, result: Result<(), String>, now: Timestamp) {
        let Some(index) = self.find(id) else { return };
        let Phase::Running(running) = &mut self.containers[index].phase else { return };
        running.hook = false;
        if result.is_err() {
            self.container_event(index, true, "FailedPostStartHook", "PostStartHook failed".into());
            self.stop(index, None, "FailedPostStartHook".into(), now);
        }
    }

    pub fn probed(&mut self, id: &RunId, kind: probe::Kind, outcome: Outcome, now: Timestamp) {
        let Some(index) = self.find(id) else { return };
        let Some(spec) = kind.of(self.container_spec(index)).cloned() else { return };
        let Phase::Running(running) = &mut self.containers[index].phase else { return };
        let Some(probe) = running.probes.iter_mut().find(|p| p.kind == kind) else { return };
        let verdict = probe.result(&spec, &outcome, now);
        if kind == probe::Kind::Startup && verdict == Verdict::Passed {
            let waiting = running.probes.iter_mut().filter(|p| p.kind != kind && p.due < now);
            waiting.for_each(|p| p.due = now);
        }
        let stopping = running.stop_deadline.is_some();
        let text = kind.text();
        match &outcome {
            Outcome::Success => {}
            Outcome::Failure(why) => {
                self.container_event(
                    index,
                    true,
                    "Unhealthy",
                    format!("{text} probe failed: {why}"),
                );
            }
            Outcome::Unknown(why) => {
                let message = format!("{text} probe errored and resulted in unknown state: {why}");
                self.container_event(index, true, "Unhealthy", message);
            }
        }
        if verdict == Verdict::Failed
            && kind != probe::Kind::Readiness
            && !stopping
            && self.ending.is_none()
        {
            let name = &self.containers[index].name;
            let mut message = format!("Container {name} failed {} probe", text.to_lowercase());
            if restarts(
                self.policy(),
                self.container_spec(index),
                self.containers[index].kind != Kind::Main,
                137,
            ) {
                message += ", will be restarted";
            }
            self.stop(index, spec.termination_grace_period_seconds, message, now);
        }
    }

    /// Asks a running container to end, its preStop hook first.
    pub fn stop(&mut self, index: usize, grace_seconds: Option<i64>, why: String, now: Timestamp) {
        let seconds = grace_seconds.or(self.spec().termination_grace_period_seconds).unwrap_or(30);
        let mut deadline = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
        if let Some(ending) = &self.ending {
            deadline = deadline.min(ending.deadline).max(now);
        }
        let lifecycle = self.container_spec(index).lifecycle.as_ref();
        let hook = lifecycle.and_then(|l| l.pre_stop.clone()).map(Box::new);
        let id = self.run_id(index);
        let c = &mut self.containers[index];
        let runtime = c.runtime.map_or(0, |(index, _)| index);
        let Phase::Running(running) = &mut c.phase else { return };
        let first = running.stop_deadline.is_none();
        running.stop_deadline = Some(deadline);
        if first {
            self.container_event(index, false, "Killing", why);
        }
        // Even a late stop leaves a moment to end by itself.
        let grace = deadline.duration_since(now).max(SignedDuration::from_secs(1));
        let grace = Duration::try_from(grace).unwrap_or(Duration::from_secs(1));
        let hook = hook.filter(|_| first);
        self.queue.push(Action::Stop { index, id, runtime, hook, grace });
    }

    pub fn released(&mut self, result: Result<(), String>, now: Timestamp) {
        match result {
            Ok(()) => {
                self.release = Setup::Done(());
                self.save(Durability::Process);
            }
            Err(why) => {
                let failures = if let Setup::Doing(n) = self.release { n + 1 } else { 1 };
                self.release = Setup::Failed(trouble(
                    "FailedKillPod",
                    &why,
                    failures,
                    retry_delay(failures),
                    now,
                ));
                self.event(true, "FailedKillPod", format!("error killing pod: {why}"));
            }
        }
    }

    /// What must survive the agent.
    pub fn record(&self) -> Record {
        adopt::record(self)
    }
}

pub(crate) fn container_event(
    c: &ContainerState,
    warning: bool,
    reason: &str,
    message: String,
) -> Action {
    let list = if c.kind == Kind::Main { "containers" } else { "initContainers" };
    Action::Event(Event {
        field_path: format!("spec.{list}{{{}}}", c.name),
        warning,
        reason: reason.into(),
        message,
    })
}

fn trouble(
    reason: &str,
    message: &str,
    failures: u32,
    delay: SignedDuration,
    now: Timestamp,
) -> Trouble {
    Trouble {
        reason: reason.into(),
        message: message.into(),
        at: now,
        retry_at: now.saturating_add(delay).unwrap_or(now),
        failures,
    }
}

fn start_error(message: &str, now: Timestamp) -> Exit {
    Exit {
        code: 128,
        signal: None,
        reason: "StartError".into(),
        message: message.into(),
        started_at: now,
        finished_at: now,
    }
}

impl ContainerState {
    pub fn new(kind: Kind, spec: &Container) -> Self {
        Self {
            kind,
            name: spec.name.clone(),
            attempt: 0,
            phase: Phase::Fresh,
            last: None,
            image: ImageStep::Todo,
            image_id: String::new(),
            runtime: None,
            spec_hash: String::new(),
            backoff: None,
            trouble: None,
            replace: false,
        }
    }

    pub fn is_alive(&self) -> bool {
        matches!(self.phase, Phase::Starting(_) | Phase::Running(_))
    }

    /// Running, its postStart hook and startup probe done.
    pub fn is_started(&self) -> bool {
        let Phase::Running(running) = &self.phase else { return false };
        let startup = running.probes.iter().find(|p| p.kind == probe::Kind::Startup);
        !running.hook && startup.is_none_or(|p| p.passed)
    }

    pub fn is_ready(&self) -> bool {
        let Phase::Running(running) = &self.phase else { return false };
        let readiness = running.probes.iter().find(|p| p.kind == probe::Kind::Readiness);
        self.is_started() && readiness.is_none_or(|p| p.passed)
    }

    /// Its run was of another definition than the spec has now.
    pub fn is_outdated(&self, spec: &Container) -> bool {
        self.is_alive() && self.spec_hash != container_spec::hash(spec)
    }

    pub fn backoff_text(&self, pod: &str) -> String {
        let delay = self.backoff.map_or(10, |b| b.delay_seconds);
        format!(
            "back-off {} restarting failed container={} pod={pod}",
            go_seconds(delay),
            self.name
        )
    }
}
