//! A pod's state as `status` needs it, and how much of it is still about to change.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::VolumeMountStatus;

use super::{ContainerState, FIRST_WORD, ImageStep, Phase, PodState, Setup, Trouble};
use crate::restart::Backoff;
use crate::runtime::{Exit, RunId};
use crate::status::{self, Facts, Kind, State};

impl PodState {
    pub fn facts(&self, host_ip: IpAddr, now: Timestamp) -> Facts<'_> {
        let pod_ips: &[IpAddr] = match &self.network {
            Setup::Done(attachment) => &attachment.pod_ips,
            _ => &[],
        };
        let released = matches!(self.release, Setup::Done(()));
        let alive = self.containers.iter().any(ContainerState::is_alive);
        Facts {
            started_at: self.started_at,
            pod_ips,
            host_ip,
            network_ready: matches!(self.network, Setup::Done(_)) && !released,
            containers: (0..self.containers.len()).map(|i| self.container(i, now)).collect(),
            ended: self.ended.as_ref(),
            stopped: self.ending.is_some() && !alive,
            rejected: self.rejected,
            restarting_all: self.restarts_all().is_some(),
            since: &self.since,
            resize: self.resize_conditions(),
        }
    }

    fn container(&self, index: usize, now: Timestamp) -> status::Container {
        let c = &self.containers[index];
        let (state, last) = self.container_state(index, now);
        let ended_well = matches!(&c.phase, Phase::Ended(exit) if exit.code == 0);
        let id = |attempt: u32| {
            let run = RunId { pod_uid: self.uid.to_string(), container: c.name.clone(), attempt };
            c.runtime.map(|(_, name)| status::container_id(name, &run)).unwrap_or_default()
        };
        let begun = !matches!(c.phase, Phase::Fresh) || c.last.is_some();
        let last_attempt = last_attempt(c, &state);
        status::Container {
            kind: c.kind,
            name: c.name.clone(),
            image: match begun && !c.image_name.is_empty() {
                true => c.image_name.clone(),
                false => self.container_spec(index).image.clone().unwrap_or_default(),
            },
            image_id: c.image_id.clone(),
            container_id: if begun { id(c.attempt) } else { String::new() },
            last_container_id: last.as_ref().map(|_| id(last_attempt)).unwrap_or_default(),
            state,
            last,
            restarts: c.attempt,
            identity: c.identity.as_deref().filter(|_| begun).cloned(),
            mounts: self.mounts_shown(index),
            stop_signal: Some(&c.stop_signal).filter(|name| begun && !name.is_empty()).cloned(),
            started: c.is_started(),
            // An init container has done its work once it ended, and not before.
            ready: if c.kind == Kind::Init { ended_well } else { c.is_ready() },
            granted: self.granted(index),
            resources: self.resources(index),
        }
    }

    /// What a container has mounted, as its status shows it. Every runtime can do recursively what it mounts
    /// read-only, so IfPossible is known once there is one.
    /// <https://kubernetes.io/docs/concepts/storage/volumes/#recursive-read-only-mounts>
    fn mounts_shown(&self, index: usize) -> Vec<VolumeMountStatus> {
        let possible = self.containers[index].runtime.is_some();
        let recursive = |wanted: Option<&str>| match wanted {
            Some("Enabled") => "Enabled",
            Some("IfPossible") if possible => "Enabled",
            _ => "Disabled",
        };
        let mounts = self.container_spec(index).volume_mounts.iter().flatten();
        mounts
            .map(|mount| VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only: mount.read_only.filter(|read_only| *read_only),
                recursive_read_only: (mount.read_only == Some(true))
                    .then(|| recursive(mount.recursive_read_only.as_deref()).into()),
                ..VolumeMountStatus::default()
            })
            .collect()
    }

    /// The state to show, and the last state beside it.
    fn container_state(&self, index: usize, now: Timestamp) -> (State, Option<Exit>) {
        let c = &self.containers[index];
        let last = || c.last.as_deref().cloned();
        match &c.phase {
            Phase::Running(running) => (State::Running { since: running.started_at }, last()),
            Phase::Fresh => (self.waiting(index, now), last()),
            Phase::Starting(_) => (self.waiting_to_be_created(), last()),
            Phase::Ended(exit) => {
                let over =
                    self.ending.is_some() || self.ended.is_some() || !self.restarts(index, exit);
                let held_back =
                    Backoff::wait_until(c.backoff.as_ref(), exit.finished_at, now).is_some();
                let trouble = c.trouble.as_ref().filter(|t| is_shown(t, now));
                match trouble {
                    _ if over => (State::Terminated((**exit).clone()), last()),
                    Some(_) => (self.waiting(index, now), Some((**exit).clone())),
                    None if held_back && !c.replace => {
                        let message = c.backoff_text(&self.full_name());
                        let waiting = State::Waiting { reason: "CrashLoopBackOff".into(), message };
                        (waiting, Some((**exit).clone()))
                    }
                    None => (State::Terminated((**exit).clone()), last()),
                }
            }
        }
    }

    fn waiting(&self, index: usize, now: Timestamp) -> State {
        match &self.containers[index].trouble {
            None => self.waiting_to_be_created(),
            Some(t) if t.reason == "ErrImagePull" && now >= t.at + FIRST_WORD => {
                let message =
                    format!("Back-off pulling image {:?}: ErrImagePull: {}", t.image, t.message);
                State::Waiting { reason: "ImagePullBackOff".into(), message }
            }
            Some(t) => State::Waiting { reason: t.reason.clone(), message: t.message.clone() },
        }
    }

    fn waiting_to_be_created(&self) -> State {
        let has_init = self.containers.iter().any(|c| matches!(c.kind, Kind::Init | Kind::Sidecar));
        let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
        let message = match (&self.volumes, &self.network) {
            (Setup::Failed(trouble), _) | (_, Setup::Failed(trouble)) => trouble.message.clone(),
            _ => String::new(),
        };
        State::Waiting { reason: reason.into(), message }
    }

    /// Which runs' logs are the current and the previous one.
    pub fn log_attempts(&self, index: usize, now: Timestamp) -> (Option<u32>, Option<u32>) {
        let c = &self.containers[index];
        let (state, last) = self.container_state(index, now);
        let current = match &c.phase {
            Phase::Fresh => c.last.as_ref().map(|_| c.attempt.saturating_sub(1)),
            _ => Some(c.attempt),
        };
        (current, last.map(|_| last_attempt(c, &state)))
    }

    /// When what is shown changes by time alone.
    pub fn next_look(&self, now: Timestamp) -> Option<Timestamp> {
        let troubles = self.containers.iter().filter_map(|c| c.trouble.as_ref());
        troubles.map(|t| t.at + FIRST_WORD).filter(|t| *t > now).min()
    }

    /// Something is under way that will change the status in a moment: an early status would be
    /// written for nothing.
    pub fn is_settling(&self) -> bool {
        let doing = matches!(self.volumes, Setup::Doing(0))
            || matches!(self.network, Setup::Doing(0))
            || self.containers.iter().any(|c| {
                c.trouble.is_none()
                    && (matches!(c.image, ImageStep::Doing)
                        || matches!(c.phase, Phase::Starting(_)))
            });
        let probing = |c: &ContainerState| match &c.phase {
            Phase::Running(running) => running.probes.iter().any(|p| p.in_flight && !p.passed),
            _ => false,
        };
        doing || self.containers.iter().any(probing)
    }
}

/// The last run shown is the current attempt's once that has ended.
fn last_attempt(c: &ContainerState, state: &State) -> u32 {
    match (&c.phase, state) {
        (Phase::Ended(_), State::Waiting { .. }) => c.attempt,
        _ => c.attempt.saturating_sub(1),
    }
}

/// A start that failed is shown for a moment, then its back-off; what cannot be created is shown
/// until it can.
fn is_shown(t: &Trouble, now: Timestamp) -> bool {
    t.reason.starts_with("CreateContainer") || t.reason.contains("Image") || now < t.at + FIRST_WORD
}
