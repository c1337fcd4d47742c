//! What is known of one pod, and what each input does to it. No clock, no I/O: callers give `now`.

mod adopt;
mod input;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, LifecycleHandler, Pod, PodSpec, ResourceRequirements,
};

use crate::container_spec;
use crate::outside::{Attachment, Image};
use crate::probe::{self, Probe};
use crate::record::{Ended, Record};
use crate::restart::{Backoff, go_seconds, restarts, restarts_all};
use crate::runtime::{Exit, Identity, RunId, StartError};
use crate::sources::Name;
use crate::status::{Kind, Transitions};
use crate::volumes::Mounted;

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
    /// That could not be had: the container's own, or one of its volumes'.
    pub image: String,
}

pub(crate) struct PodState {
    pub pod: Arc<Pod>,
    pub uid: Arc<str>,
    /// The record was read and what runs was adopted.
    pub loaded: bool,
    /// No API object was ever seen: it is only cleaned up, silently.
    pub orphan: bool,
    /// This node does not take it: it ended before anything of it began.
    pub rejected: bool,
    /// The API object is gone.
    pub removed: bool,
    pub boot_id: Arc<str>,
    /// `status.startTime`
    pub started_at: Timestamp,
    pub volumes: Setup<Mounted>,
    pub refresh: Refresh,
    pub network: Setup<Attachment>,
    pub release: Setup<()>,
    /// Init containers, others, then ephemeral ones, as the spec has them.
    pub containers: Vec<ContainerState>,
    /// What containers have for which the spec says something else that is not granted (yet).
    pub granted: BTreeMap<String, ResourceRequirements>,
    pub resize: Resize,
    /// Since when containers are being given what was granted.
    pub resizing_since: Option<Timestamp>,
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

/// Where a resize of the pod stands that is not granted yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resize {
    No,
    /// To be looked at.
    Wanted,
    /// Not now, or not ever (`Deferred`, `Infeasible`).
    Pending {
        reason: &'static str,
        message: String,
        since: Timestamp,
    },
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
    pub at: Option<Timestamp>,
    /// The API's view came since, and is to be compared.
    pub check: bool,
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
    /// Of an ephemeral container, which the API keeps in a form of its own. It never changes.
    pub ephemeral: Option<Box<Ephemeral>>,
    /// Of the current or newest run, or of the first to come.
    pub attempt: u32,
    pub phase: Phase,
    /// How the run before that ended.
    pub last: Option<Box<Exit>>,
    pub image: ImageStep,
    /// Of the newest run: as the pod named it then, and what it was.
    pub image_name: String,
    pub image_id: String,
    /// Index and name of the runtime.
    pub runtime: Option<(usize, &'static str)>,
    /// Of the current run.
    pub spec_hash: String,
    /// What asks the newest run to end; empty where that is no signal.
    pub stop_signal: String,
    /// Of the newest run, if its runtime knows users.
    pub identity: Option<Box<Identity>>,
    pub backoff: Option<Backoff>,
    pub trouble: Option<Box<Trouble>>,
    /// Its definition changed: it starts again whatever the restart policy says.
    pub replace: bool,
}

/// An ephemeral container in the form of others.
pub(crate) struct Ephemeral {
    pub spec: Container,
    /// The container whose processes it sees; none when empty.
    pub target: String,
}

impl Ephemeral {
    pub fn new(container: &EphemeralContainer) -> Self {
        // All that it may have is called the same in a Container, which lacks the target only.
        let json = serde_json::to_value(container).expect("a container is plain data");
        let spec = serde_json::from_value(json).expect("its fields are those of a container");
        Self { spec, target: container.target_container_name.clone().unwrap_or_default() }
    }
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
    /// Of a sidecar that waits for its turn to be stopped.
    pub pre_stop: Option<PreStop>,
    /// What it really has, while it is to be resized to what was granted.
    pub resizing: Option<Box<Resizing>>,
}

/// How far a preStop hook is that does not wait for its container's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreStop {
    Doing,
    Done,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resizing {
    pub has: ResourceRequirements,
    /// The runtime is at it.
    pub doing: bool,
    pub error: Option<String>,
    pub retry_at: Timestamp,
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
    Resize {
        index: usize,
        id: RunId,
        runtime: usize,
    },
    /// The hook alone: the stop comes later.
    PreStop {
        index: usize,
        id: RunId,
        runtime: usize,
        hook: Box<LifecycleHandler>,
        limit: Duration,
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
        if let Some(ephemeral) = &self.containers[index].ephemeral {
            return &ephemeral.spec;
        }
        let spec = self.spec();
        let init = spec.init_containers.as_deref().unwrap_or_default();
        init.get(index).unwrap_or_else(|| &spec.containers[index - init.len()])
    }

    pub fn run_id(&self, index: usize) -> RunId {
        let c = &self.containers[index];
        RunId { pod_uid: self.uid.to_string(), container: c.name.clone(), attempt: c.attempt }
    }

    /// The run whose processes a container is to see, if it is one that was made for that.
    ///
    /// # Errors
    /// That run is not there now.
    pub fn target(&self, index: usize) -> Result<Option<RunId>, String> {
        let ephemeral = self.containers[index].ephemeral.as_ref();
        let Some(name) = ephemeral.map(|e| &e.target).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let target = self.containers.iter().position(|c| c.name == *name);
        match target.filter(|i| matches!(self.containers[*i].phase, Phase::Running(_))) {
            Some(index) => Ok(Some(self.run_id(index))),
            None => Err(format!("unable to find target container {name:?}: it does not run")),
        }
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
        c.kind != Kind::Ephemeral
            && (c.replace
                || self.restarts_all().is_some()
                || restarts(self.policy(), self.container_spec(index), is_init, exit.code))
    }

    /// The container whose end begins all of them anew.
    pub fn restarts_all(&self) -> Option<usize> {
        (0..self.containers.len()).find(|index| match &self.containers[*index].phase {
            Phase::Ended(exit) => restarts_all(self.container_spec(*index), exit.code),
            _ => false,
        })
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
    let list = c.kind.list();
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
        image: String::new(),
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
            ephemeral: None,
            attempt: 0,
            phase: Phase::Fresh,
            last: None,
            image: ImageStep::Todo,
            image_name: String::new(),
            image_id: String::new(),
            runtime: None,
            spec_hash: String::new(),
            stop_signal: String::new(),
            identity: None,
            backoff: None,
            trouble: None,
            replace: false,
        }
    }

    pub fn ephemeral(container: &EphemeralContainer) -> Self {
        let ephemeral = Ephemeral::new(container);
        let state = Self::new(Kind::Ephemeral, &ephemeral.spec);
        Self { ephemeral: Some(Box::new(ephemeral)), ..state }
    }

    /// Whatever became of its run, another is to begin, as if it were the first.
    pub fn anew(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Fresh) {
            Phase::Ended(exit) => {
                self.attempt += 1;
                self.last = Some(exit);
                self.trouble = None;
                Phase::Fresh
            }
            other => other,
        };
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
