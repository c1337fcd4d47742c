//! `PodStatus` as a pure function of what is known of a pod; the words are Kubernetes'.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rimward_api::Quantity;
use sha2::{Digest, Sha256};

use crate::ending::PREEMPTING;
use crate::record::Ended;
use crate::restart;
use crate::runtime::{Exit, Identity, RunId};

/// What a status is made of.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub started_at: Timestamp,
    pub pod_ips: &'a [IpAddr],
    pub host_ip: IpAddr,
    /// Its place in the network is ready, and not yet given back.
    pub network_ready: bool,
    /// Init containers then others, in the order of the spec.
    pub containers: Vec<Container>,
    pub ended: Option<&'a Ended>,
    /// It was being stopped, and nothing of it runs any more.
    pub stopped: bool,
    /// This node did not take it: nothing of it ever began.
    pub rejected: bool,
    /// All containers are being ended, to begin anew.
    pub restarting_all: bool,
    /// When each condition last changed, as this node knows it.
    pub since: &'a Transitions,
    pub resize: Vec<ResizeCondition>,
}

/// A condition of a resize that is under way: true while it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResizeCondition {
    pub type_: &'static str,
    pub reason: &'static str,
    pub message: String,
    pub since: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Init,
    /// An init container with restartPolicy Always.
    Sidecar,
    Main,
    /// Added to a pod that runs, for debugging; never restarted, and no part of the pod's phase.
    Ephemeral,
}

impl Kind {
    /// The list of the pod's spec that it stands in.
    pub fn list(self) -> &'static str {
        match self {
            Self::Init | Self::Sidecar => "initContainers",
            Self::Main => "containers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub kind: Kind,
    pub name: String,
    pub image: String,
    pub image_id: String,
    /// `wasm://…`; empty before the first run.
    pub container_id: String,
    pub last_container_id: String,
    pub state: State,
    pub last: Option<Exit>,
    pub restarts: u32,
    pub identity: Option<Identity>,
    pub mounts: Vec<api::VolumeMountStatus>,
    /// Of the newest run, where a signal asks it to end.
    pub stop_signal: Option<String>,
    pub started: bool,
    pub ready: bool,
    /// Granted by the node, and what it really has.
    pub granted: api::ResourceRequirements,
    pub resources: api::ResourceRequirements,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    Waiting { reason: String, message: String },
    Running { since: Timestamp },
    Terminated(Exit),
}

/// Status and time of change of the conditions that the node owns.
pub(crate) type Transitions = BTreeMap<&'static str, (bool, Timestamp)>;

const OWNED: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "AllContainersRestarting",
];

/// <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions>
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Since when the API shows a condition as true.
fn have_since(have: &[PodCondition], type_: &str) -> Option<Timestamp> {
    let shown = have.iter().find(|c| c.type_ == type_ && c.status == "True")?;
    shown.last_transition_time.as_ref().map(|time| time.0)
}

/// There only while they hold.
const RESIZE: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The status now. Conditions of others are kept as the pod has them.
pub(crate) fn compute(pod: &Pod, facts: &Facts, now: Timestamp) -> PodStatus {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let phase = phase(spec, facts);
    let statuses = |list: &str| -> Option<Vec<api::ContainerStatus>> {
        let of_kind = facts.containers.iter().filter(|c| c.kind.list() == list && !facts.rejected);
        let list: Vec<_> = of_kind.map(container_status).collect();
        (!list.is_empty()).then_some(list)
    };
    let ips: Vec<String> = facts.pod_ips.iter().map(IpAddr::to_string).collect();
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions(pod, spec, phase, facts, now)),
        container_statuses: statuses("containers"),
        init_container_statuses: statuses("initContainers"),
        ephemeral_container_statuses: statuses("ephemeralContainers"),
        host_ip: Some(facts.host_ip.to_string()),
        host_ips: Some(vec![api::HostIP { ip: facts.host_ip.to_string() }]),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| api::PodIP { ip }).collect()),
        qos_class: Some(qos_class(spec).into()),
        start_time: Some(Time(facts.started_at)),
        reason: facts.ended.and_then(|e| text(&e.reason)),
        message: facts.ended.and_then(|e| text(&e.message)),
        observed_generation: pod.metadata.generation,
        nominated_node_name: pod.status.as_ref().and_then(|s| s.nominated_node_name.clone()),
        ..PodStatus::default()
    }
}

fn container_status(c: &Container) -> api::ContainerStatus {
    let running = |since: Timestamp| api::ContainerState {
        running: Some(api::ContainerStateRunning { started_at: Some(Time(since)) }),
        ..Default::default()
    };
    let waiting = |reason: &str, message: &str| api::ContainerState {
        waiting: Some(api::ContainerStateWaiting {
            reason: Some(reason.into()),
            message: (!message.is_empty()).then(|| message.into()),
        }),
        ..Default::default()
    };
    let state = match &c.state {
        State::Waiting { reason, message } => waiting(reason, message),
        State::Running { since } => running(*since),
        State::Terminated(exit) => terminated(exit, &c.container_id),
    };
    let begun = !c.container_id.is_empty();
    api::ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone(),
        image_id: c.image_id.clone(),
        container_id: (!c.container_id.is_empty()).then(|| c.container_id.clone()),
        state: Some(state),
        last_state: Some(
            c.last.as_ref().map(|e| terminated(e, &c.last_container_id)).unwrap_or_default(),
        ),
        restart_count: c.restarts as i32,
        // Neither is said of what serves nobody.
        started: (c.kind != Kind::Ephemeral).then_some(c.started),
        ready: c.ready && c.kind != Kind::Ephemeral,
        user: c.identity.as_ref().map(|identity| api::ContainerUser {
            linux: Some(api::LinuxContainerUser {
                uid: identity.uid,
                gid: identity.gid,
                supplemental_groups: Some(identity.groups.clone()),
            }),
        }),
        volume_mounts: (!c.mounts.is_empty()).then(|| c.mounts.clone()),
        stop_signal: c.stop_signal.clone(),
        allocated_resources: c.granted.requests.clone().filter(|_| begun),
        resources: begun.then(|| c.resources.clone()),
        ..Default::default()
    }
}

fn terminated(exit: &Exit, container_id: &str) -> api::ContainerState {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    api::ContainerState {
        terminated: Some(api::ContainerStateTerminated {
            exit_code: exit.code,
            signal: exit.signal,
            reason: text(&exit.reason),
            message: text(&exit.message),
            started_at: Some(Time(exit.started_at)),
            finished_at: Some(Time(exit.finished_at)),
            container_id: text(container_id),
        }),
        ..Default::default()
    }
}

/// A stable identity for one run, in the form of a container runtime's.
pub(crate) fn container_id(runtime: &str, id: &RunId) -> String {
    let digest = Sha256::digest(id.to_string().as_bytes());
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("{runtime}://{hex}")
}

fn phase(spec: &PodSpec, facts: &Facts) -> &'static str {
    if let Some(ended) = facts.ended {
        return if ended.succeeded { "Succeeded" } else { "Failed" };
    }
    let main = || facts.containers.iter().filter(|c| c.kind == Kind::Main);
    let succeeded = |c: &Container| matches!(&c.state, State::Terminated(e) if e.code == 0);
    if facts.restarting_all {
        return "Running";
    }
    if facts.stopped {
        return if main().all(succeeded) { "Succeeded" } else { "Failed" };
    }
    let has_run = |c: &Container| !matches!(c.state, State::Waiting { .. }) || c.last.is_some();
    let running = main().any(|c| matches!(c.state, State::Running { .. }));
    let init_pending = facts.containers.iter().any(|c| match c.kind {
        Kind::Init => !succeeded(c),
        Kind::Sidecar => !c.started,
        Kind::Main | Kind::Ephemeral => false,
    });
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    if init_pending && !main().any(has_run) {
        let failed = |c: &Container| matches!(&c.state, State::Terminated(e) if e.code != 0);
        let gave_up =
            policy == "Never" && facts.containers.iter().any(|c| c.kind == Kind::Init && failed(c));
        return if gave_up { "Failed" } else { "Pending" };
    }
    if !main().all(has_run) {
        return "Pending";
    }
    if running {
        return "Running";
    }
    let ended = main().all(|c| matches!(c.state, State::Terminated(_)));
    match policy {
        "Never" if ended && main().all(succeeded) => "Succeeded",
        "Never" if ended => "Failed",
        "OnFailure" if ended && main().all(succeeded) => "Succeeded",
        _ => "Running",
    }
}

/// (status, reason, message)
type Verdict = (bool, Option<String>, Option<String>);

fn conditions(
    pod: &Pod,
    spec: &PodSpec,
    phase: &str,
    facts: &Facts,
    now: Timestamp,
) -> Vec<PodCondition> {
    let have = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if facts.rejected {
        return have.to_vec();
    }
    let initialized = initialized(phase, facts);
    let containers_ready = containers_ready(phase, facts);
    let ready = ready(spec, have, &containers_ready);
    let network = (facts.network_ready, None, None);
    let verdicts = [
        Some(network),
        Some(initialized),
        Some(ready),
        Some(containers_ready),
        all_restarting(spec, phase, facts),
    ];
    let owned =
        OWNED.iter().zip(verdicts).filter_map(|(type_, v)| Some((type_, v?))).map(|(type_, v)| {
            let since = match facts.since.get(type_) {
                Some((status, since)) if *status == v.0 => *since,
                _ => now,
            };
            PodCondition {
                type_: (*type_).into(),
                status: if v.0 { "True" } else { "False" }.into(),
                reason: v.1,
                message: v.2,
                last_transition_time: Some(Time(since)),
                observed_generation: pod.metadata.generation,
                ..PodCondition::default()
            }
        });
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    let resize = facts.resize.iter().map(|told| PodCondition {
        type_: told.type_.into(),
        status: "True".into(),
        reason: text(told.reason),
        message: text(&told.message),
        last_transition_time: Some(Time(told.since)),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    });
    let disrupted = facts.ended.filter(|ended| ended.disrupted);
    let target = disrupted.map(|ended| PodCondition {
        type_: DISRUPTION_TARGET.into(),
        status: "True".into(),
        reason: Some("TerminationByKubelet".into()),
        message: Some(match ended.reason.as_str() {
            PREEMPTING => "Pod was preempted by Kubelet to accommodate a critical pod.".into(),
            _ => ended.message.clone(),
        }),
        last_transition_time: Some(Time(have_since(have, DISRUPTION_TARGET).unwrap_or(now))),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    });
    let ours = |c: &&PodCondition| {
        OWNED.contains(&c.type_.as_str())
            || RESIZE.contains(&c.type_.as_str())
            || (target.is_some() && c.type_ == DISRUPTION_TARGET)
    };
    let others = have.iter().filter(|c| !ours(c)).cloned();
    owned.chain(resize).chain(others).chain(target.clone()).collect()
}

/// Whether the API shows something else than what this node says: somebody changed it, as the node
/// controller does when a node is out of reach.
pub(crate) fn has_drifted(pod: &Pod, status: &PodStatus) -> bool {
    let Some(shown) = &pod.status else { return true };
    let of = |status: &PodStatus, type_: &str| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.find(|c| c.type_ == type_).map(|c| c.status.clone())
    };
    shown.phase != status.phase || OWNED.iter().any(|type_| of(shown, type_) != of(status, type_))
}

/// When the conditions of a status last changed.
pub(crate) fn transitions(status: &PodStatus) -> Transitions {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let own = |c: &PodCondition| {
        let name = OWNED.iter().find(|o| **o == c.type_)?;
        Some((*name, (c.status == "True", c.last_transition_time.as_ref()?.0)))
    };
    conditions.iter().filter_map(own).collect()
}

/// Only said of a pod that has a rule for it.
fn all_restarting(spec: &PodSpec, phase: &str, facts: &Facts) -> Option<Verdict> {
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.any(restart::may_restart_all).then(|| match phase {
        "Succeeded" => (false, Some("PodCompleted".into()), None),
        "Failed" => (false, Some("PodFailed".into()), None),
        _ => (facts.restarting_all, None, None),
    })
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn completed() -> Verdict {
    (true, Some("PodCompleted".into()), None)
}

fn initialized(phase: &str, facts: &Facts) -> Verdict {
    let has_main_run = facts.containers.iter().any(|c| {
        c.kind == Kind::Main && (c.restarts > 0 || !matches!(c.state, State::Waiting { .. }))
    });
    if phase == "Succeeded" {
        return completed();
    }
    if has_main_run {
        return (true, None, None);
    }
    let incomplete = facts.containers.iter().filter(|c| match c.kind {
        Kind::Init => !c.ready,
        Kind::Sidecar => !c.started,
        Kind::Main | Kind::Ephemeral => false,
    });
    let incomplete: Vec<&str> = incomplete.map(|c| c.name.as_str()).collect();
    if incomplete.is_empty() {
        return (true, None, None);
    }
    let message = format!("containers with incomplete status: {}", list(&incomplete));
    (false, Some("ContainersNotInitialized".into()), Some(message))
}

fn containers_ready(phase: &str, facts: &Facts) -> Verdict {
    match phase {
        "Succeeded" => return (false, Some("PodCompleted".into()), None),
        "Failed" => return (false, Some("PodFailed".into()), None),
        _ => {}
    }
    let serving = |c: &&Container| matches!(c.kind, Kind::Sidecar | Kind::Main);
    let unready = facts.containers.iter().filter(serving).filter(|c| !c.ready);
    let unready: Vec<&str> = unready.map(|c| c.name.as_str()).collect();
    if unready.is_empty() {
        return (true, None, None);
    }
    let message = format!("containers with unready status: {}", list(&unready));
    (false, Some("ContainersNotReady".into()), Some(message))
}

fn ready(spec: &PodSpec, have: &[PodCondition], containers_ready: &Verdict) -> Verdict {
    if !containers_ready.0 {
        return containers_ready.clone();
    }
    let open = spec.readiness_gates.iter().flatten().filter_map(|gate| {
        let name = &gate.condition_type;
        match have.iter().find(|c| c.type_ == *name) {
            None => Some(format!(
                "corresponding condition of pod readiness gate {name:?} does not exist."
            )),
            Some(c) if c.status == "True" => None,
            Some(c) => Some(format!(
                "the status of pod readiness gate {name:?} is not \"True\", but {}",
                c.status
            )),
        }
    });
    let open: Vec<String> = open.collect();
    if open.is_empty() {
        return (true, None, None);
    }
    (false, Some("ReadinessGatesNotReady".into()), Some(open.join(", ")))
}

/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>
pub(crate) fn qos_class(spec: &PodSpec) -> &'static str {
    let init = spec.init_containers.iter().flatten();
    let containers: Vec<_> =
        spec.containers.iter().chain(init).map(|c| c.resources.as_ref()).collect();
    let pod_level = spec.resources.as_ref();
    let all = match pod_level {
        Some(r) if r.limits.is_some() || r.requests.is_some() => vec![pod_level],
        _ => containers,
    };
    let amount = |map: Option<&BTreeMap<String, _>>, name: &str| {
        let text: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = map?.get(name)?;
        Quantity::parse(&text.0).ok().filter(|q| !q.is_zero())
    };
    let limit = |r: Option<&api::ResourceRequirements>, n| amount(r?.limits.as_ref(), n);
    let request = |r: Option<&api::ResourceRequirements>, n| amount(r?.requests.as_ref(), n);
    let names = ["cpu", "memory"];
    if all.iter().all(|r| names.iter().all(|n| limit(*r, n).is_none() && request(*r, n).is_none()))
    {
        return "BestEffort";
    }
    let guaranteed = |r: &Option<&api::ResourceRequirements>| {
        names.iter().all(|n| match (limit(*r, n), request(*r, n)) {
            (Some(limit), Some(request)) => limit == request,
            (limit, None) => limit.is_some(),
            (None, Some(_)) => false,
        })
    };
    if all.iter().all(guaranteed) { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests;
