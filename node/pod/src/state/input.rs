//! What each input does to a pod's state: a changed object, an answer, an end, a probe's result.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};

use super::{
    Action, ContainerState, Durability, Ending, ImageStep, Phase, PodState, PreStop, Refresh,
    Running, Setup, StartFailure, start_error, trouble,
};
use crate::image_volumes::Failed;
use crate::outside::{Attachment, Image};
use crate::probe::{self, Outcome, Probe, Verdict};
use crate::record::Ended;
use crate::restart::{Backoff, restarts, retry_delay};
use crate::runtime::{Exit, Identity, RunId, RuntimeEvent, StartError};
use crate::status::Kind;
use crate::volumes::{self, Mounted};

/// As the kubelet's.
const LEAST_GRACE: SignedDuration = SignedDuration::from_secs(2);

impl PodState {
    /// The API object appeared or changed.
    pub fn set_pod(&mut self, pod: Arc<Pod>, now: Timestamp) {
        if self.loaded && !self.has_same_containers(&pod) {
            tracing::warn!(
                pod = self.full_name(),
                "an update that changes the list of containers is ignored"
            );
            return;
        }
        let old = std::mem::replace(&mut self.pod, pod);
        self.sent.terminated = false;
        self.sent.check = true;
        if !self.loaded {
            return;
        }
        let (old_meta, new_meta) = (&old.metadata, &self.pod.metadata);
        if old_meta.labels != new_meta.labels || old_meta.annotations != new_meta.annotations {
            self.look_again();
        }
        let known = self.containers.iter().filter(|c| c.kind == Kind::Ephemeral).count();
        let spec = self.spec();
        let added = spec.ephemeral_containers.iter().flatten().skip(known);
        let added: Vec<_> = added.map(ContainerState::ephemeral).collect();
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
        self.containers.extend(added);
        self.notice_resources(&old);
        self.notice_deletion(now);
    }

    /// The API does not let the list of containers of a pod change, except that ephemeral ones are added.
    fn has_same_containers(&self, pod: &Pod) -> bool {
        let spec = pod.spec.as_ref();
        let init = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten());
        let lasting = init.chain(spec.into_iter().flat_map(|s| &s.containers)).map(|c| &c.name);
        let ephemeral = spec.into_iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
        let mut ephemeral = ephemeral.map(|c| &c.name);
        let (known, added): (Vec<_>, Vec<_>) =
            self.containers.iter().partition(|c| c.kind != Kind::Ephemeral);
        lasting.eq(known.iter().map(|c| &c.name))
            && added.iter().all(|c| ephemeral.next() == Some(&c.name))
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

    /// This node does not take the pod: it has failed, and nothing of it begins.
    pub fn reject(&mut self, reason: &str, why: &str, now: Timestamp) {
        self.event(true, reason, why.into());
        let message = format!("Pod was rejected: {why}");
        let reason = reason.into();
        self.ended = Some(Ended { succeeded: false, reason, message, disrupted: false });
        self.rejected = true;
        self.save(Durability::Power);
        self.end(0, now);
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
                if let Some(others) = failure.mounted {
                    *mounted = others;
                }
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

    /// An image came, and which runtime runs it, for a container that wanted this one then.
    pub fn pulled(
        &mut self,
        index: usize,
        wanted: &str,
        result: Result<(Image, (usize, &'static str)), Failed>,
        now: Timestamp,
    ) {
        let still = self.container_spec(index).image.as_deref().unwrap_or_default() == wanted;
        let c = &mut self.containers[index];
        c.image = ImageStep::Todo;
        if !still {
            return;
        }
        match result {
            Ok((image, runtime)) => {
                c.runtime = Some(runtime);
                c.image = ImageStep::Ready(Box::new(image));
                c.trouble = None;
            }
            Err(Failed { reference, error }) => {
                let failures = c.trouble.as_ref().map_or(1, |t| t.failures + 1);
                let delay = retry_delay(failures);
                let mut trouble = trouble(&error.reason, &error.message, failures, delay, now);
                let (of_volume, message) =
                    (reference != wanted, format!("Back-off pulling image {reference:?}"));
                trouble.image = reference;
                c.trouble = Some(Box::new(trouble));
                if error.reason != "ErrImagePull" {
                    return;
                }
                match of_volume {
                    true => self.event(false, "BackOff", message),
                    false => self.container_event(index, false, "BackOff", message),
                }
                self.container_event(index, true, "Failed", "Error: ImagePullBackOff".into());
            }
        }
    }

    /// The answer of `Runtime::start`.
    pub fn started(
        &mut self,
        id: &RunId,
        result: Result<Option<Identity>, StartFailure>,
        now: Timestamp,
    ) {
        let Some(index) = self.find(id) else { return };
        let Phase::Starting(starting) = &mut self.containers[index].phase else { return };
        let (early, at) = (starting.early_exit.take(), starting.started_at.unwrap_or(now));
        let prior_backoff = starting.prior_backoff;
        match result {
            Ok(identity) => {
                self.containers[index].identity = identity.map(Box::new);
                self.container_event(index, false, "Created", "Container created".into());
                self.container_event(index, false, "Started", "Container started".into());
                self.run(index, at);
                self.post_start(index);
                if let Some(exit) = early {
                    self.failed(index, &exit);
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

    pub fn identified(&mut self, id: &RunId, identity: Identity) {
        if let Some(index) = self.find(id) {
            self.containers[index].identity = Some(Box::new(identity));
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

    pub(super) fn run(&mut self, index: usize, started_at: Timestamp) {
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
            pre_stop: None,
            resizing: None,
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
                    Some(Phase::Running(_)) => {
                        self.failed(index, &exit);
                        self.exited(index, exit, now);
                    }
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

    /// An Event for an end of which the runtime knows more than a code: a trap, a limit. The status has the
    /// rest of it, which is where it happened.
    fn failed(&mut self, index: usize, exit: &Exit) {
        let cause = exit.message.lines().next().unwrap_or_default();
        if exit.code != 0 && !cause.is_empty() {
            self.container_event(index, true, "Failed", format!("Error: {cause}"));
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
            Outcome::Warned(why) => {
                let message = format!("{text} probe warning: {why}");
                self.container_event(index, true, "ProbeWarning", message);
            }
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

    /// Tells a running container that it will be asked to end, by its preStop hook if it has one.
    pub fn prepare_stop(&mut self, index: usize, limit: Duration) {
        let why = format!("Stopping container {}", self.containers[index].name);
        self.container_event(index, false, "Killing", why);
        let lifecycle = self.container_spec(index).lifecycle.as_ref();
        let hook = lifecycle.and_then(|l| l.pre_stop.clone()).map(Box::new);
        let id = self.run_id(index);
        let c = &mut self.containers[index];
        let runtime = c.runtime.map_or(0, |(index, _)| index);
        let Phase::Running(running) = &mut c.phase else { return };
        running.pre_stop = Some(if hook.is_some() { PreStop::Doing } else { PreStop::Done });
        if let Some(hook) = hook {
            self.queue.push(Action::PreStop { index, id, runtime, hook, limit });
        }
    }

    pub fn pre_stopped(&mut self, id: &RunId) {
        let Some(index) = self.find(id) else { return };
        if let Phase::Running(running) = &mut self.containers[index].phase {
            running.pre_stop = Some(PreStop::Done);
        }
    }

    /// Asks a running container to end, its preStop hook first.
    pub fn stop(&mut self, index: usize, grace_seconds: Option<i64>, why: String, now: Timestamp) {
        let lifecycle = self.container_spec(index).lifecycle.as_ref();
        let hook = lifecycle.and_then(|l| l.pre_stop.clone()).map(Box::new);
        self.stop_after(hook, index, grace_seconds, why, now);
    }

    /// Asks a running container to end at once, without its preStop hook.
    pub fn kill(&mut self, index: usize, why: String, now: Timestamp) {
        self.stop_after(None, index, Some(0), why, now);
    }

    fn stop_after(
        &mut self,
        hook: Option<Box<LifecycleHandler>>,
        index: usize,
        grace_seconds: Option<i64>,
        why: String,
        now: Timestamp,
    ) {
        let seconds = grace_seconds.or(self.spec().termination_grace_period_seconds);
        let seconds = seconds.unwrap_or(30).max(0);
        let mut deadline = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
        if let Some(ending) = &self.ending {
            deadline = deadline.min(ending.deadline).max(now);
        }
        let id = self.run_id(index);
        let c = &mut self.containers[index];
        let runtime = c.runtime.map_or(0, |(index, _)| index);
        let Phase::Running(running) = &mut c.phase else { return };
        let first = running.stop_deadline.is_none() && running.pre_stop.is_none();
        running.stop_deadline = Some(deadline);
        if first {
            self.container_event(index, false, "Killing", why);
        }
        // Even a late stop leaves a moment to end by itself.
        let grace = deadline.duration_since(now).max(LEAST_GRACE);
        let grace = Duration::try_from(grace).unwrap_or_default();
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
}
