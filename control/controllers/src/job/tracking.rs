//! How a Job counts its pods: each once, though it may be deleted at any moment.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#job-tracking-with-finalizers>
//!
//! A finalizer holds each pod. Of one that ended the uid is first written into the status, as not yet
//! counted; then the finalizer is taken away; then the uid becomes one more in the count. Whatever fails in
//! between is done again without counting twice. A completed index needs no uid: it is in the list or not.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rimward_client::EventType;
use rimward_control_lean::Pod;

use super::failure::{self, Verdict};
use super::indexes::index_of;
use super::plan::{
    COMPLETE, FAILED, FAILURE_TARGET, Plan, SUCCESS_CRITERIA_MET, SUSPENDED, World, as_final,
    condition, has_finalizer, is_indexed, is_true,
};
use crate::pods::{is_deleting, phase, uid};

/// The most uids in a status: they are 36 letters each.
const UNCOUNTED_MAX: usize = 500;

pub type Event = (EventType, String, String);

/// The first half of counting: what the status says before finalizers are taken away.
#[derive(Debug, Default, PartialEq)]
pub struct Tracked {
    pub status: JobStatus,
    /// Pods whose finalizer goes.
    pub release: Vec<Arc<Pod>>,
    pub events: Vec<Event>,
    /// What becomes of the Job once all is counted and has ended.
    last: Option<JobCondition>,
    /// Uids of pods that still have the finalizer.
    held: HashSet<String>,
    /// More are to be counted than fit.
    full: bool,
}

/// After a plan was acted on. `done` is false where that failed: then nothing is over yet.
pub fn track(world: &World, plan: &Plan, done: bool) -> Tracked {
    let spec = world.job.spec.clone().unwrap_or_default();
    let held: Vec<&Arc<Pod>> = world.pods.iter().filter(|p| has_finalizer(p)).collect();
    let mut tracked = Tracked {
        status: world.job.status.clone().unwrap_or_default(),
        held: held.iter().map(|p| uid(&p.metadata).to_owned()).collect(),
        ..Tracked::default()
    };
    let verdict = plan.verdict.clone().filter(|_| done && world.is_settled());
    let status = &mut tracked.status;
    if status.start_time.is_none() && spec.suspend != Some(true) {
        status.start_time = Some(Time(world.now));
    }
    if plan.managed && plan.verdict.is_none() {
        tracked.events.extend(say_suspended(status, spec.suspend == Some(true), world.now));
    }
    status.active = (plan.active != 0).then_some(plan.active);
    status.ready = Some(plan.ready);
    status.terminating = Some(plan.terminating);
    status.uncounted_terminated_pods.get_or_insert_default();
    count_released(status, &tracked.held);
    tracked.count_ends(world, plan, &spec, held, verdict.as_ref());
    let status = &mut tracked.status;
    if is_indexed(&spec) {
        let listed = plan.succeeded.to_string();
        status.succeeded = nonzero(plan.succeeded.total());
        status.completed_indexes = (!listed.is_empty()).then_some(listed);
        status.failed_indexes = plan.failed.as_ref().map(ToString::to_string);
    }
    if let Some(verdict) = verdict {
        let said = status.conditions.iter().flatten().any(|c| is_true(c, &verdict.type_));
        if matches!(verdict.type_.as_str(), FAILURE_TARGET | SUCCESS_CRITERIA_MET) && !said {
            status.conditions.get_or_insert_default().push(verdict.clone());
        }
        tracked.last = Some(match verdict.type_.as_str() {
            SUCCESS_CRITERIA_MET => as_final(COMPLETE, &verdict, world.now),
            FAILURE_TARGET => as_final(FAILED, &verdict, world.now),
            _ => verdict,
        });
    }
    tracked
}

fn nonzero(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

fn say_suspended(status: &mut JobStatus, suspended: bool, now: Timestamp) -> Option<Event> {
    let (status_is, reason, text) = match suspended {
        true => ("True", "JobSuspended", "Job suspended"),
        false => ("False", "JobResumed", "Job resumed"),
    };
    let conditions = status.conditions.get_or_insert_default();
    let wanted =
        JobCondition { status: status_is.into(), ..condition(SUSPENDED, reason, text, now) };
    let changed = match conditions.iter_mut().find(|c| c.type_ == SUSPENDED) {
        Some(before) if before.status == wanted.status => false,
        Some(before) => {
            *before = wanted;
            true
        }
        // One that never was suspended has nothing to say of it.
        None if !suspended => false,
        None => {
            conditions.push(wanted);
            true
        }
    };
    if conditions.is_empty() {
        status.conditions = None;
    }
    if !changed {
        return None;
    }
    if !suspended {
        // The deadline is of the time that it was active without a break.
        status.start_time = Some(Time(now));
    }
    let reason = if suspended { "Suspended" } else { "Resumed" };
    Some((EventType::Normal, reason.into(), text.into()))
}

/// Those that are no longer held become one more in the count.
fn count_released(status: &mut JobStatus, held: &HashSet<String>) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let release = |uids: &mut Option<Vec<String>>, count: &mut Option<i32>| {
        let before = uids.take().unwrap_or_default();
        let (still, gone): (Vec<_>, Vec<_>) = before.into_iter().partition(|u| held.contains(u));
        *count = nonzero(count.unwrap_or(0) + gone.len() as i32);
        *uids = (!still.is_empty()).then_some(still);
    };
    release(&mut uncounted.succeeded, &mut status.succeeded);
    release(&mut uncounted.failed, &mut status.failed);
}

impl Tracked {
    fn count_ends(
        &mut self,
        world: &World,
        plan: &Plan,
        spec: &JobSpec,
        mut held: Vec<&Arc<Pod>>,
        verdict: Option<&JobCondition>,
    ) {
        let (indexed, completions) = (is_indexed(spec), spec.completions.unwrap_or(0));
        if indexed {
            held.sort_by_key(|p| index_of(p));
        }
        let fails = verdict.is_some_and(|v| v.type_ != SUCCESS_CRITERIA_MET);
        let uncounted = self.status.uncounted_terminated_pods.get_or_insert_default();
        let listed = |uids: &Option<Vec<String>>, pod: &Pod| {
            uids.iter().flatten().any(|u| u == uid(&pod.metadata))
        };
        let mut new_indexes = 0;
        for pod in held {
            let (failed, succeeded) = (failure::is_failed(spec, pod), phase(pod) == "Succeeded");
            let over = is_deleting(&world.job.metadata) || verdict.is_some();
            let stays = plan.delayed.contains(uid(&pod.metadata));
            if !over && !succeeded && (!failed || stays) {
                continue;
            }
            self.release.push(pod.clone());
            let index = index_of(pod).filter(|i| *i < completions);
            if succeeded && !listed(&uncounted.failed, pod) {
                if indexed {
                    new_indexes +=
                        usize::from(index.is_some_and(|i| !plan.succeeded_before.has(i)));
                } else if !listed(&uncounted.succeeded, pod) {
                    uncounted.succeeded.get_or_insert_default().push(uid(&pod.metadata).to_owned());
                }
            } else if (failed || fails)
                && !listed(&uncounted.failed, pod)
                && (!indexed || index.is_some())
                && failure::verdict(spec, pod) != Verdict::Ignore
            {
                uncounted.failed.get_or_insert_default().push(uid(&pod.metadata).to_owned());
            }
            let uids = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
            let listed = new_indexes + uids(&uncounted.succeeded) + uids(&uncounted.failed);
            if listed >= UNCOUNTED_MAX {
                self.full = true;
                break;
            }
        }
    }

    /// The second half: what the status says once the finalizers of `released` are gone, and what is to be
    /// told if that is the end.
    pub fn close(
        &self,
        spec: &JobSpec,
        released: &HashSet<String>,
        now: Timestamp,
    ) -> (JobStatus, Vec<Event>) {
        let mut status = self.status.clone();
        let held: HashSet<String> = self.held.difference(released).cloned().collect();
        count_released(&mut status, &held);
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let open = uncounted.succeeded.is_some() || uncounted.failed.is_some() || self.full;
        let going = status.terminating.unwrap_or(0) > 0;
        let Some(last) = self.last.clone().filter(|_| !open && !going) else {
            return (status, Vec::new());
        };
        let mut events = Vec::new();
        if last.type_ == COMPLETE {
            status.completion_time = Some(Time(now));
            if spec.completions.is_some_and(|c| status.succeeded.unwrap_or(0) > c) {
                let text = "Too many succeeded pods running after completion count reached";
                events.push((EventType::Warning, "TooManySucceededPods".into(), text.into()));
            }
            events.push((EventType::Normal, "Completed".into(), "Job completed".into()));
        } else {
            let text = |said: &Option<String>| said.clone().unwrap_or_default();
            events.push((EventType::Warning, text(&last.reason), text(&last.message)));
        }
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != last.type_);
        conditions.push(last);
        (status, events)
    }
}
