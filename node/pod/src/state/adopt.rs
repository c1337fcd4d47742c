//! From what an earlier agent wrote down and what the runtimes know, to a state; and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::{Action, ContainerState, Ending, Phase, PodState, Refresh, Resize, Sent, Setup};
use crate::admission;
use crate::record::{Ended, Record, RunRecord};
use crate::runtime::{Exit, Known};
use crate::status::{self, Kind, Transitions};

/// A run and the runtime (index, name) that knows it.
#[derive(Clone, Debug)]
pub(crate) struct KnownRun {
    pub runtime: (usize, &'static str),
    pub known: Known,
}

impl PodState {
    pub fn new(pod: Arc<Pod>, uid: Arc<str>, boot_id: Arc<str>, now: Timestamp) -> Self {
        Self {
            pod,
            uid,
            loaded: false,
            orphan: false,
            rejected: false,
            removed: false,
            boot_id,
            started_at: now,
            volumes: Setup::Todo,
            refresh: Refresh::No,
            network: Setup::Todo,
            release: Setup::Todo,
            containers: Vec::new(),
            granted: BTreeMap::new(),
            resize: Resize::No,
            resizing_since: None,
            initialized: false,
            ended: None,
            ending: None,
            watched: Vec::new(),
            since: Transitions::new(),
            sent: Sent::default(),
            unsaved: None,
            queue: Vec::new(),
        }
    }

    /// Takes over what there is. `runtimes` are the names of all.
    pub fn load(
        &mut self,
        record: Option<Record>,
        known: Vec<KnownRun>,
        runtimes: &[&'static str],
        now: Timestamp,
    ) {
        let init = self.spec().init_containers.iter().flatten().map(|spec| {
            let sidecar = spec.restart_policy.as_deref() == Some("Always");
            ContainerState::new(if sidecar { Kind::Sidecar } else { Kind::Init }, spec)
        });
        let main = self.spec().containers.iter().map(|spec| ContainerState::new(Kind::Main, spec));
        let ephemeral = self.spec().ephemeral_containers.iter().flatten();
        self.containers =
            init.chain(main).chain(ephemeral.map(ContainerState::ephemeral)).collect();
        self.loaded = true;
        let status = self.pod.status.as_ref();
        self.since = status.map(status::transitions).unwrap_or_default();
        let before = status.and_then(|s| s.start_time.as_ref()).map(|time| time.0);
        self.started_at = before.filter(|_| !admission::is_static(&self.pod)).unwrap_or(now);
        let same_boot = record.as_ref().is_none_or(|r| r.boot_id == *self.boot_id);
        match record {
            Some(record) => self.adopt_record(record, &known, runtimes, same_boot, now),
            None if !known.is_empty() => self.adopt_runs(&known, now),
            None => self.adopt_api_status(now),
        }
        if same_boot {
            let begun =
                |c: &ContainerState| c.kind == Kind::Main && !matches!(c.phase, Phase::Fresh);
            self.initialized = self.containers.iter().any(begun);
        } else {
            self.rebooted();
        }
        for run in known {
            if self.find(&run.known.id).is_none() {
                self.queue.push(Action::Discard { id: run.known.id, runtime: run.runtime.0 });
            }
        }
        if self.ended.is_some() && self.ending.is_none() {
            self.end(self.grace_seconds(), now);
        }
        if self.removed {
            self.end(self.grace_seconds(), now);
        }
        self.notice_deletion(now);
    }

    fn adopt_record(
        &mut self,
        record: Record,
        known: &[KnownRun],
        runtimes: &[&'static str],
        same_boot: bool,
        now: Timestamp,
    ) {
        self.started_at = record.started_at;
        self.ended = record.ended;
        self.rejected = record.rejected;
        self.ending = record.ending_since.map(|since| {
            let grace = SignedDuration::from_secs(record.grace_seconds);
            Ending { since, deadline: since.saturating_add(grace).unwrap_or(now) }
        });
        if record.released {
            self.release = Setup::Done(());
        }
        if same_boot {
            self.volumes = record.volumes.map_or(Setup::Todo, Setup::Done);
            if let Some(attachment) = record.attachment {
                self.network = Setup::Done(attachment);
                if !record.released {
                    // The network is told again, in case it forgot.
                    self.queue.push(Action::Attach);
                }
            }
        }
        for index in 0..self.containers.len() {
            let c = &mut self.containers[index];
            let Some(run) = record.containers.get(&c.name) else { continue };
            let runtime = runtimes.iter().position(|name| *name == run.runtime);
            c.runtime = runtime.map(|index| (index, runtimes[index]));
            c.attempt = run.attempt;
            c.image_name.clone_from(&run.image_name);
            c.image_id.clone_from(&run.image_id);
            c.spec_hash.clone_from(&run.spec_hash);
            c.stop_signal.clone_from(&run.stop_signal);
            c.identity = run.identity.clone().map(Box::new);
            c.last = run.last.clone().map(Box::new);
            c.backoff = run.backoff.filter(|_| same_boot);
            match &run.exit {
                Some(exit) => {
                    c.phase = Phase::Ended(Box::new(exit.clone()));
                    if run.anew {
                        c.anew();
                    }
                }
                None => {
                    self.adopt(index, known, now);
                    self.adopt_resources(index, run.granted.as_ref(), run.has.as_ref(), now);
                }
            }
        }
    }

    /// The record is lost, the runs are not.
    fn adopt_runs(&mut self, known: &[KnownRun], now: Timestamp) {
        for index in 0..self.containers.len() {
            let c = &mut self.containers[index];
            let runs = known.iter().filter(|run| run.known.id.container == c.name);
            let Some(newest) = runs.max_by_key(|run| run.known.id.attempt) else { continue };
            c.attempt = newest.known.id.attempt;
            c.spec_hash.clone_from(&newest.known.spec_hash);
            c.runtime = Some(newest.runtime);
            self.adopt(index, known, now);
        }
    }

    /// The newest run of a container goes on, or has ended meanwhile, or is lost.
    fn adopt(&mut self, index: usize, known: &[KnownRun], now: Timestamp) {
        let id = self.run_id(index);
        match known.iter().find(|run| run.known.id == id) {
            None => self.exited(index, lost(now), now),
            Some(run) => {
                self.containers[index].runtime = Some(run.runtime);
                match run.known.exit.clone() {
                    Some(exit) => self.exited(index, exit, now),
                    None => self.go_on(index, run.known.started_at.unwrap_or(now), now),
                }
            }
        }
    }

    /// A running container keeps the readiness that it had: an agent's restart must not take its
    /// traffic away. Probes go on, spread over their periods.
    fn go_on(&mut self, index: usize, started_at: Timestamp, now: Timestamp) {
        self.run(index, started_at);
        let name = self.containers[index].name.clone();
        let status = self.api_status(&name);
        let (started, ready) = (status.and_then(|s| s.started), status.is_some_and(|s| s.ready));
        let spread = self.uid.bytes().fold(0i64, |n, b| (n * 31 + i64::from(b)) % 1000);
        if let Phase::Running(running) = &mut self.containers[index].phase {
            for probe in &mut running.probes {
                probe.passed = match probe.kind {
                    crate::probe::Kind::Startup => started == Some(true),
                    crate::probe::Kind::Liveness => true,
                    crate::probe::Kind::Readiness => ready,
                };
                let due = now + SignedDuration::from_millis(if probe.passed { spread } else { 0 });
                probe.due = probe.due.max(due);
            }
        }
    }

    fn api_status(&self, container: &str) -> Option<&ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let init = status.init_container_statuses.iter().flatten();
        let ephemeral = status.ephemeral_container_statuses.iter().flatten();
        let mut all = status.container_statuses.iter().flatten().chain(init).chain(ephemeral);
        all.find(|s| s.name == container)
    }

    /// This node knows nothing of the pod, but the API may: its runs must not be counted anew, and
    /// what was over stays over. A static pod's file came back: all of it begins again.
    fn adopt_api_status(&mut self, now: Timestamp) {
        let again = admission::is_static(&self.pod);
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).filter(|_| !again);
        if let Some(phase @ ("Succeeded" | "Failed")) = phase {
            let status = self.pod.status.as_ref();
            let text = |f: fn(&k8s_openapi::api::core::v1::PodStatus) -> &Option<String>| {
                status.and_then(|s| f(s).clone()).unwrap_or_default()
            };
            self.ended = Some(Ended {
                succeeded: phase == "Succeeded",
                reason: text(|s| &s.reason),
                message: text(|s| &s.message),
                disrupted: false,
            });
        }
        for index in 0..self.containers.len() {
            let name = self.containers[index].name.clone();
            let Some(status) = self.api_status(&name) else { continue };
            if status.container_id.is_none() {
                continue;
            }
            let terminated = status.state.as_ref().and_then(|s| s.terminated.as_ref());
            let exit = terminated.map_or_else(
                || lost(now),
                |t| Exit {
                    code: t.exit_code,
                    signal: t.signal,
                    reason: t.reason.clone().unwrap_or_default(),
                    message: t.message.clone().unwrap_or_default(),
                    started_at: t.started_at.as_ref().map_or(now, |t| t.0),
                    finished_at: t.finished_at.as_ref().map_or(now, |t| t.0),
                },
            );
            let attempt = status.restart_count.max(0) as u32;
            let (image_name, image_id) = (status.image.clone(), status.image_id.clone());
            let c = &mut self.containers[index];
            c.attempt = attempt;
            (c.image_name, c.image_id) = (image_name, image_id);
            c.phase = Phase::Ended(Box::new(exit));
            if again {
                c.anew();
            }
        }
    }

    /// Nothing of it ever began, here or elsewhere, and nothing is against its beginning.
    pub fn begins_here(&self) -> bool {
        let begun = |c: &ContainerState| !matches!(c.phase, Phase::Fresh);
        !self.orphan && !self.removed && self.ended.is_none() && !self.containers.iter().any(begun)
    }

    /// What init containers had prepared may be gone: they do their work again.
    fn rebooted(&mut self) {
        if self.ended.is_some() || self.ending.is_some() {
            return;
        }
        for c in self.containers.iter_mut().filter(|c| c.kind == Kind::Init) {
            c.anew();
        }
    }
}

fn lost(now: Timestamp) -> Exit {
    Exit {
        code: 137,
        signal: None,
        reason: "ContainerStatusUnknown".into(),
        message: "The container could not be located when the node agent started".into(),
        started_at: now,
        finished_at: now,
    }
}

pub(super) fn record(state: &PodState) -> Record {
    let mut record = Record::new(&state.boot_id, state.started_at);
    let meta = &state.pod.metadata;
    record.namespace = meta.namespace.clone().unwrap_or_default();
    record.name = meta.name.clone().unwrap_or_default();
    record.grace_seconds = state.grace_seconds();
    record.ended = state.ended.clone();
    record.rejected = state.rejected;
    record.ending_since = state.ending.map(|e| e.since);
    record.released = matches!(state.release, Setup::Done(()));
    if let Setup::Done(attachment) = &state.network {
        record.attachment = Some(attachment.clone());
    }
    if let Setup::Done(mounted) = &state.volumes {
        record.volumes = Some(mounted.clone());
    }
    let runs = state.containers.iter().enumerate();
    let runs = runs.filter_map(|(i, c)| Some((c.name.clone(), run_record(state, i, c)?)));
    record.containers = runs.collect();
    record
}

fn run_record(state: &PodState, index: usize, c: &ContainerState) -> Option<RunRecord> {
    let last = || c.last.as_deref().cloned();
    let (attempt, exit, last) = match &c.phase {
        Phase::Fresh if c.last.is_none() => return None,
        Phase::Fresh => (c.attempt.saturating_sub(1), last(), None),
        Phase::Starting(_) | Phase::Running(_) => (c.attempt, None, last()),
        Phase::Ended(exit) => (c.attempt, Some((**exit).clone()), last()),
    };
    Some(RunRecord {
        attempt,
        spec_hash: c.spec_hash.clone(),
        stop_signal: c.stop_signal.clone(),
        identity: c.identity.as_deref().cloned(),
        image_name: c.image_name.clone(),
        image_id: c.image_id.clone(),
        runtime: c.runtime.map(|(_, name)| name.to_owned()).unwrap_or_default(),
        exit,
        last,
        anew: matches!(c.phase, Phase::Fresh),
        backoff: c.backoff,
        granted: Some(state.granted(index)),
        has: match &c.phase {
            Phase::Running(running) => running.resizing.as_ref().map(|r| r.has.clone()),
            _ => None,
        },
    })
}
