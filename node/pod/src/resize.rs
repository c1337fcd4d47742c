//! In-place resize: what the spec asks for, what this node granted, and what each container really has.
//!
//! A change of the spec is granted as a whole or waits (`PodResizePending`); what was granted is then given
//! to each container that runs, or the container is begun anew where its policy says so
//! (`PodResizeInProgress`). All of it is decided from the state, so that any agent goes on with it.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerResizePolicy, Pod, ResourceRequirements};
use serde::Serialize;

use crate::allocation::Lack;
use crate::runtime::{RunId, StartError};
use crate::state::{Action, ContainerState, Durability, Phase, PodState, Resize, Resizing};
use crate::status::{Kind, ResizeCondition};
use crate::steps::Plan;

/// How long to wait after the runtime refused.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

fn of(container: &Container) -> ResourceRequirements {
    container.resources.clone().unwrap_or_default()
}

impl PodState {
    /// What this node granted a container.
    pub fn granted(&self, index: usize) -> ResourceRequirements {
        let granted = self.granted.get(&self.containers[index].name).cloned();
        granted.unwrap_or_else(|| of(self.container_spec(index)))
    }

    /// What a container really has.
    pub fn resources(&self, index: usize) -> ResourceRequirements {
        let resizing = resizing_of(&self.containers[index]);
        resizing.map_or_else(|| self.granted(index), |resizing| resizing.has.clone())
    }

    /// A container with what was granted instead of what is asked for.
    pub fn granted_container(&self, index: usize) -> Container {
        let mut container = self.container_spec(index).clone();
        if let Some(granted) = self.granted.get(&container.name) {
            container.resources = Some(granted.clone());
        }
        container
    }

    /// The pod with what was granted instead of what is asked for.
    pub fn granted_pod(&self) -> Arc<Pod> {
        if self.granted.is_empty() {
            return self.pod.clone();
        }
        let mut pod = (*self.pod).clone();
        let spec = pod.spec.as_mut().expect("a pod without a spec is refused by Pods::set");
        let init = spec.init_containers.iter_mut().flatten();
        for container in init.chain(&mut spec.containers) {
            if let Some(granted) = self.granted.get(&container.name) {
                container.resources = Some(granted.clone());
            }
        }
        Arc::new(pod)
    }

    /// Whether a change is asked for by which a container's share of swap would change, while it goes on. As the
    /// kubelet has it: with swap before or after, and another request of memory.
    pub fn resizes_swap(&self, index: usize) -> bool {
        let wanted = self.container_spec(index);
        if !self.granted.contains_key(&wanted.name) {
            return false;
        }
        let has = self.granted_container(index);
        let request = |container: &Container| {
            let resources = container.resources.as_ref();
            resources.and_then(|r| r.requests.as_ref()?.get("memory").cloned())
        };
        let restarts = |policy: &ContainerResizePolicy| {
            policy.resource_name == "memory" && policy.restart_policy == "RestartContainer"
        };
        let may_swap = |pod: &Pod, container: &Container| {
            crate::container_spec::may_swap(pod, container).unwrap_or(false)
        };
        request(&has) != request(wanted)
            && !has.resize_policy.iter().flatten().any(restarts)
            && (may_swap(&self.granted_pod(), &has) || may_swap(&self.pod, wanted))
    }

    /// The spec may ask for other resources than before.
    pub fn notice_resources(&mut self, old: &Pod) {
        let Some(old_spec) = &old.spec else { return };
        let init = old_spec.init_containers.iter().flatten();
        let before: Vec<ResourceRequirements> = init.chain(&old_spec.containers).map(of).collect();
        let mut changed = false;
        for (index, before) in before.into_iter().enumerate() {
            let wanted = of(self.container_spec(index));
            if before == wanted {
                continue;
            }
            changed = true;
            let name = self.containers[index].name.clone();
            let granted = self.granted.remove(&name).unwrap_or(before);
            if granted != wanted {
                self.granted.insert(name, granted);
            }
        }
        if changed {
            self.resize = if self.granted.is_empty() { Resize::No } else { Resize::Wanted };
        }
    }

    /// A container that an earlier agent ran had these.
    pub fn adopt_resources(
        &mut self,
        index: usize,
        granted: Option<&ResourceRequirements>,
        has: Option<&ResourceRequirements>,
        now: Timestamp,
    ) {
        if let Some(granted) = granted
            && *granted != of(self.container_spec(index))
        {
            self.granted.insert(self.containers[index].name.clone(), granted.clone());
            self.resize = Resize::Wanted;
        }
        if let (Some(has), Phase::Running(running)) = (has, &mut self.containers[index].phase) {
            running.resizing = Some(resizing(has.clone(), now));
            self.resizing_since.get_or_insert(now);
        }
    }

    /// Others need less now: what did not fit may.
    pub fn resize_again(&mut self, _now: Timestamp) {
        if matches!(self.resize, Resize::Pending { reason: "Deferred", .. }) {
            self.resize = Resize::Wanted;
        }
    }

    /// This node has what the spec asks for.
    pub fn resize_granted(&mut self, now: Timestamp) {
        self.resize = Resize::No;
        for (name, had) in std::mem::take(&mut self.granted) {
            let index = self.containers.iter().position(|c| c.name == name);
            let Some(index) = index else { continue };
            let wanted = of(self.container_spec(index));
            if let Phase::Running(running) = &mut self.containers[index].phase {
                let has = running.resizing.take().map_or(had, |resizing| resizing.has);
                if has != wanted {
                    running.resizing = Some(resizing(has, now));
                }
            }
        }
        let any = self.containers.iter().any(|c| resizing_of(c).is_some());
        self.resizing_since = any.then_some(now).or(self.resizing_since);
        self.resize_event(false, "ResizeStarted", "started", "");
        if !any {
            self.resize_done();
        }
        self.save(Durability::Process);
    }

    pub fn resize_lacks(&mut self, lack: &Lack, now: Timestamp) {
        let reason = if lack.is_for_good() { "Infeasible" } else { "Deferred" };
        self.resize_pending(reason, lack.of_resize(), now);
    }

    pub fn resize_pending(&mut self, reason: &'static str, message: String, now: Timestamp) {
        let event = if reason == "Infeasible" { "ResizeInfeasible" } else { "ResizeDeferred" };
        self.resize_event(true, event, reason, &message);
        self.resize = Resize::Pending { reason, message, since: now };
    }

    /// The runtime's answer.
    pub fn resized(&mut self, id: &RunId, result: Result<(), StartError>, now: Timestamp) {
        let Some(index) = self.find(id) else { return };
        let Phase::Running(running) = &mut self.containers[index].phase else { return };
        let Some(resizing) = &mut running.resizing else { return };
        resizing.doing = false;
        match result {
            Ok(()) => {
                running.resizing = None;
                self.save(Durability::Process);
            }
            Err(error) => {
                let first = resizing.error.as_ref() != Some(&error.message);
                resizing.error = Some(error.message.clone());
                resizing.retry_at = now.saturating_add(RETRY).unwrap_or(now);
                if first {
                    self.resize_event(true, "ResizeError", "error", &error.message);
                }
            }
        }
    }

    fn resize_done(&mut self) {
        self.resizing_since = None;
        self.resize_event(false, "ResizeCompleted", "completed", "");
    }

    /// In the kubelet's form: what is asked for of each container, and what is in the way.
    fn resize_event(&mut self, warning: bool, reason: &str, what: &str, error: &str) {
        #[derive(Serialize)]
        struct Of<'a> {
            name: &'a str,
            resources: ResourceRequirements,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Summary<'a> {
            #[serde(skip_serializing_if = "Vec::is_empty")]
            init_containers: Vec<Of<'a>>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            containers: Vec<Of<'a>>,
            generation: i64,
            #[serde(skip_serializing_if = "str::is_empty")]
            error: &'a str,
        }
        fn all(list: &[Container]) -> Vec<Of<'_>> {
            list.iter().map(|c| Of { name: &c.name, resources: of(c) }).collect()
        }
        let spec = self.spec();
        let summary = Summary {
            init_containers: all(spec.init_containers.as_deref().unwrap_or_default()),
            containers: all(&spec.containers),
            generation: self.pod.metadata.generation.unwrap_or(0),
            error,
        };
        let summary = serde_json::to_string(&summary).expect("resources are plain data");
        self.event(warning, reason, format!("Pod resize {what}: {summary}"));
    }

    pub fn resize_conditions(&self) -> Vec<ResizeCondition> {
        let mut conditions = Vec::new();
        if let Resize::Pending { reason, message, since } = &self.resize {
            conditions.push(ResizeCondition {
                type_: "PodResizePending",
                reason,
                message: message.clone(),
                since: *since,
            });
        }
        if let Some(since) = self.resizing_since {
            let under_way = self.containers.iter().filter_map(resizing_of);
            let errors = under_way.filter_map(|resizing| resizing.error.clone());
            let message = errors.collect::<Vec<_>>().join("; ");
            let reason = if message.is_empty() { "" } else { "Error" };
            let type_ = "PodResizeInProgress";
            conditions.push(ResizeCondition { type_, reason, message, since });
        }
        conditions
    }
}

fn resizing(has: ResourceRequirements, now: Timestamp) -> Box<Resizing> {
    Box::new(Resizing { has, doing: false, error: None, retry_at: now })
}

fn resizing_of(c: &ContainerState) -> Option<&Resizing> {
    match &c.phase {
        Phase::Running(running) => running.resizing.as_deref(),
        _ => None,
    }
}

/// Containers that run with other resources than were granted get those, or are begun anew.
pub(crate) fn plan(state: &mut PodState, plan: &mut Plan) {
    for index in 0..state.containers.len() {
        let Phase::Running(running) = &state.containers[index].phase else { continue };
        let Some(resizing) = &running.resizing else { continue };
        if resizing.doing || running.stop_deadline.is_some() {
            continue;
        }
        let wanted = state.granted(index);
        if wants_restart(state.container_spec(index), &resizing.has, &wanted)
            && state.containers[index].kind != Kind::Init
        {
            let why = format!("Container {} resize requires restart", state.containers[index].name);
            state.containers[index].replace = true;
            state.stop(index, None, why, plan.now);
            continue;
        }
        if !plan.is_due(resizing.retry_at) {
            continue;
        }
        let id = state.run_id(index);
        let c = &mut state.containers[index];
        let runtime = c.runtime.map_or(0, |(index, _)| index);
        if let Phase::Running(running) = &mut c.phase
            && let Some(resizing) = &mut running.resizing
        {
            resizing.doing = true;
            plan.actions.push(Action::Resize { index, id, runtime });
        }
    }
    let goes_on = |c: &ContainerState| {
        resizing_of(c).is_some() || c.replace || matches!(c.phase, Phase::Starting(_))
    };
    if state.resizing_since.is_some() && !state.containers.iter().any(goes_on) {
        state.resize_done();
    }
}

/// resizePolicy of a resource that changes; NotRequired is the default.
fn wants_restart(
    container: &Container,
    has: &ResourceRequirements,
    wanted: &ResourceRequirements,
) -> bool {
    let of = |resources: &ResourceRequirements, name: &str| {
        let limit = resources.limits.as_ref().and_then(|map| map.get(name).cloned());
        let request = resources.requests.as_ref().and_then(|map| map.get(name).cloned());
        (limit, request)
    };
    let changes = |name: &str| of(has, name) != of(wanted, name);
    let policies = container.resize_policy.iter().flatten();
    policies
        .filter(|policy| policy.restart_policy == "RestartContainer")
        .any(|policy| changes(&policy.resource_name))
}
