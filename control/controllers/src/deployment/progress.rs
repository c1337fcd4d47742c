//! A Deployment's status: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rollout::{max_unavailable, replicas};
use crate::pods::name;

/// Whether lack of progress is to be reported at all.
pub fn has_deadline(deployment: &Deployment) -> bool {
    deadline_seconds(deployment).is_some()
}

fn deadline_seconds(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.progress_deadline_seconds.filter(|s| *s != i32::MAX)
}

pub fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Sets a condition; one that says the same already stays as it is.
pub fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(old) = find(status, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

pub fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// The counts over all ReplicaSets, and Available. `old` are the conditions and the collision count
/// to carry on.
pub fn counted<'a>(
    deployment: &Deployment,
    old: &DeploymentStatus,
    sets: impl Iterator<Item = &'a ReplicaSet> + Clone,
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |of: fn(&ReplicaSet) -> i32| sets.clone().map(of).sum::<i32>();
    let available = sum(available);
    let wanted_total = sum(|s| s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0));
    let terminating =
        |s: &ReplicaSet| s.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0);
    let nonzero = |n: i32| (n != 0).then_some(n);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(actual)),
        updated_replicas: nonzero(new.map_or(0, actual)),
        ready_replicas: nonzero(sum(|s| {
            s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0)
        })),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((wanted_total - available).max(0)),
        terminating_replicas: Some(sum(terminating)),
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
    };
    let enough = available >= replicas(deployment) - max_unavailable(deployment);
    set(
        &mut status,
        if enough {
            let text = "Deployment has minimum availability.".into();
            condition("Available", "True", "MinimumReplicasAvailable", text, now)
        } else {
            let text = "Deployment does not have minimum availability.".into();
            condition("Available", "False", "MinimumReplicasUnavailable", text, now)
        },
    );
    status
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

pub fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |x: Option<i32>| x.unwrap_or(0);
    let old_pods = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || old_pods(new) < old_pods(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// When progress is overdue, given what the status says of it.
fn overdue_at(deployment: &Deployment, progressing: &DeploymentCondition) -> Option<Timestamp> {
    let since = progressing.last_update_time.as_ref()?.0;
    since.checked_add(SignedDuration::from_secs(deadline_seconds(deployment)?.into())).ok()
}

/// Judges a rollout: completes, progresses, or is stuck. Changes the Progressing and ReplicaFailure
/// conditions of `status`.
pub fn judge<'a>(
    deployment: &Deployment,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    new_set: Option<&ReplicaSet>,
    mut sets: impl Iterator<Item = &'a ReplicaSet>,
    now: Timestamp,
) {
    let current = find(old, "Progressing").cloned();
    let settled = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
    let who = match new_set {
        Some(set) => format!("ReplicaSet {:?}", name(&set.metadata)),
        None => format!("Deployment {:?}", name(&deployment.metadata)),
    };
    if !has_deadline(deployment) {
        remove(status, "Progressing");
    } else if !settled {
        let timed_out = current.as_ref().is_some_and(|c| match c.reason.as_deref() {
            Some("NewReplicaSetAvailable") => false,
            Some("ProgressDeadlineExceeded") => true,
            _ => overdue_at(deployment, c).is_some_and(|at| at < now),
        });
        if is_complete(deployment, status) {
            let text = format!("{who} has successfully progressed.");
            set(status, condition("Progressing", "True", "NewReplicaSetAvailable", text, now));
        } else if is_progressing(old, status) {
            let text = format!("{who} is progressing.");
            let mut new = condition("Progressing", "True", "ReplicaSetUpdated", text, now);
            if let Some(current) = current.filter(|c| c.status == "True") {
                new.last_transition_time = current.last_transition_time;
            }
            // Removed first: the update time must move even when nothing else changes.
            remove(status, "Progressing");
            set(status, new);
        } else if timed_out {
            let text = format!("{who} has timed out progressing.");
            set(status, condition("Progressing", "False", "ProgressDeadlineExceeded", text, now));
        }
    }
    let failure = sets.find_map(|s| {
        s.status
            .as_ref()?
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "ReplicaFailure")
            .cloned()
    });
    match failure {
        Some(f) => set(
            status,
            DeploymentCondition {
                type_: f.type_,
                status: f.status,
                reason: f.reason,
                message: f.message,
                last_update_time: f.last_transition_time.clone(),
                last_transition_time: f.last_transition_time,
            },
        ),
        None => remove(status, "ReplicaFailure"),
    }
}

/// When to judge again although nothing happened: lack of progress makes no noise.
pub fn next_look(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let progressing = find(status, "Progressing")?;
    if is_complete(deployment, status)
        || progressing.reason.as_deref() == Some("ProgressDeadlineExceeded")
    {
        return None;
    }
    let left = overdue_at(deployment, progressing)?.duration_since(now);
    // A second more, since the times have seconds only.
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}
