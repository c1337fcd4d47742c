//! What a pod's failure means to its Job, and how long the next pod waits for it.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#handling-pod-and-container-failures>

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::ContainerStatus;
use rimward_control_lean::Pod;

use crate::pods::{condition, is_deleting, name, phase};

/// On a pod of an index with a limit of its own: how many failed before it.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The same, of those that the policy ignores.
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// What a rule of the pod failure policy makes of a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts, as it would without a policy.
    Count,
    Ignore,
    FailIndex,
    /// The whole Job fails, with this message.
    FailJob(String),
}

impl Verdict {
    pub fn counts(&self) -> bool {
        *self != Self::Ignore
    }
}

/// The first rule that matches decides.
pub fn verdict(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.iter().flat_map(|p| &p.rules);
    let judged = rules.enumerate().find_map(|(i, rule)| Some((i, rule, reason(rule, pod)?)));
    let Some((i, rule, why)) = judged else { return Verdict::Count };
    match rule.action.as_str() {
        "Ignore" => Verdict::Ignore,
        "FailIndex" => Verdict::FailIndex,
        "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {i}")),
        _ => Verdict::Count,
    }
}

/// Why a rule matches; None when it does not.
fn reason(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_name = name(&pod.metadata);
    if let Some(wanted) = &rule.on_exit_codes {
        let containers = status.container_statuses.iter().flatten();
        let all = containers.chain(status.init_container_statuses.iter().flatten());
        let (container, code) = all
            .filter_map(|c| Some((c, exit_code(c)?)))
            .find(|(c, code)| matches(wanted, c, *code))?;
        return Some(format!(
            "Container {} for pod {namespace}/{pod_name} failed with exit code {code}",
            container.name
        ));
    }
    let patterns = rule.on_pod_conditions.iter().flatten();
    let mut conditions = patterns.filter_map(|pattern| {
        let status = pattern.status.as_deref().unwrap_or("True");
        condition(pod, &pattern.type_).filter(|c| c.status == status)
    });
    let found = conditions.next()?;
    Some(format!("Pod {namespace}/{pod_name} has condition {}", found.type_))
}

fn exit_code(container: &ContainerStatus) -> Option<i32> {
    Some(container.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn matches(
    wanted: &PodFailurePolicyOnExitCodesRequirement,
    container: &ContainerStatus,
    code: i32,
) -> bool {
    let meant = wanted.container_name.as_ref().is_none_or(|n| *n == container.name);
    let listed = wanted.values.contains(&code);
    let chosen = match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    meant && code != 0 && chosen
}

/// Whether a pod is replaced only once it has ended, not as soon as it is asked to go.
pub fn only_replaces_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

pub fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    // One that is deleted counts too: it might be gone before it ends.
    phase(pod) == "Failed"
        || !only_replaces_failed(spec) && is_deleting(&pod.metadata) && phase(pod) != "Succeeded"
}

/// How often the index of a pod failed before it.
pub fn failures_before(pod: &Pod) -> i32 {
    count(pod, FAILURES)
}

pub fn ignored_failures_before(pod: &Pod) -> i32 {
    count(pod, IGNORED_FAILURES)
}

fn count(pod: &Pod, annotation: &str) -> i32 {
    let said = pod.metadata.annotations.as_ref().and_then(|a| a.get(annotation));
    said.and_then(|text| text.parse().ok()).filter(|n| *n >= 0).unwrap_or(0)
}

/// Whether containers that are restarted in place were so too often.
pub fn restarts_exceed(job: &Job, pods: &[&Pod]) -> bool {
    let Some(spec) = &job.spec else { return false };
    let template = spec.template.spec.as_ref();
    if template.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let running = pods.iter().filter(|p| matches!(phase(p), "Running" | "Pending"));
    let statuses = running.filter_map(|p| p.status.as_ref()).flat_map(|s| {
        let own = s.container_statuses.iter().flatten();
        own.chain(s.init_container_statuses.iter().flatten())
    });
    let restarts: i64 = statuses.map(|c| i64::from(c.restart_count)).sum();
    restarts >= i64::from(spec.backoff_limit.unwrap_or(6)).max(1)
}

/// When a pod ended, as well as can be known.
pub fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref());
    let ended: Option<Vec<Timestamp>> = containers
        .unwrap_or_default()
        .iter()
        .map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0))
        .collect();
    let by_containers = ended.and_then(|all| all.into_iter().max());
    let by_condition = || {
        let ready = condition(pod, "Ready").filter(|c| c.status == "False")?;
        Some(ready.last_transition_time.as_ref()?.0)
    };
    let by_deletion = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        let at = pod.metadata.deletion_timestamp.as_ref()?.0;
        at.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    let made = || pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    by_containers.or_else(by_condition).or_else(by_deletion).or_else(made)
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    pub failures: u32,
    pub last: Option<Timestamp>,
}

impl Streak {
    /// With pods that newly ended: a success ends the row.
    #[must_use]
    pub fn then(self, succeeded: &[&Pod], failed: &[&Pod]) -> Self {
        let mut ends: Vec<Timestamp> = failed.iter().filter_map(|p| ended_at(p)).collect();
        if let Some(success) = succeeded.iter().filter_map(|p| ended_at(p)).max() {
            ends.retain(|end| *end > success);
            return Self { failures: ends.len() as u32, last: ends.into_iter().max() };
        }
        if !succeeded.is_empty() {
            return Self::default();
        }
        Self {
            failures: self.failures + failed.len() as u32,
            last: ends.into_iter().max().or(self.last),
        }
    }

    /// How long the next pod still waits: ten seconds after the first failure, twice as long after each.
    pub fn wait(self, now: Timestamp) -> Duration {
        let Some(last) = self.last.filter(|_| self.failures > 0) else { return Duration::ZERO };
        let doublings = (self.failures - 1).min(16);
        let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
        let passed = Duration::try_from(now.duration_since(last)).unwrap_or_default();
        wait.saturating_sub(passed)
    }
}
