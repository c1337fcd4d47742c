//! What a Job does next: which pods it makes, which go, whether it is over.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/>

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rimward_control_lean::Pod;

use super::failure::{self, Streak, Verdict};
use super::indexes::{self, Indexes, index_of};
use crate::pods::{is_deleting, is_ready, is_terminal, phase, uid};
use crate::replicaset::rank_for_deletion;

/// Holds a pod until it is counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The most pods made or deleted in one go.
const BURST: usize = 500;

pub const COMPLETE: &str = "Complete";
pub const FAILED: &str = "Failed";
pub const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";
pub const FAILURE_TARGET: &str = "FailureTarget";
pub const SUSPENDED: &str = "Suspended";

/// What a Job and its pods look like now.
pub struct World<'a> {
    pub job: &'a Job,
    /// The pods that it controls.
    pub pods: &'a [Arc<Pod>],
    /// Whether the cache lacks pods that this process made.
    pub created_unseen: bool,
    /// Uids of pods that this process deleted and the cache still shows.
    pub deleted_unseen: &'a HashSet<String>,
    /// Failures in a row that were counted before.
    pub streak: Streak,
    pub now: Timestamp,
}

impl World<'_> {
    /// Whether the cache shows all that this process did.
    pub fn is_settled(&self) -> bool {
        !self.created_unseen && self.deleted_unseen.is_empty()
    }

    fn is_going(&self, pod: &Pod) -> bool {
        is_deleting(&pod.metadata) || self.deleted_unseen.contains(uid(&pod.metadata))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewPod {
    pub index: Option<i32>,
    /// Of an index with a limit of its own: how many failed before, and how many of those that do not count.
    pub failures: Option<(i32, i32)>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<NewPod>,
    pub delete: Vec<Arc<Pod>>,
    /// Those that are deleted are no failures: they go without being counted.
    pub uncounted: bool,
    /// Why it is over, before all of it has ended: SuccessCriteriaMet or FailureTarget; or what became of
    /// one that was said before.
    pub verdict: Option<JobCondition>,
    /// Whether it was looked at as one that goes on: then it says whether it is suspended.
    pub managed: bool,
    pub streak: Streak,
    /// Indexes that are done, before this look and with it.
    pub succeeded_before: Indexes,
    pub succeeded: Indexes,
    /// Where indexes have limits of their own.
    pub failed: Option<Indexes>,
    /// Uids of failed pods that stay until their successor, which takes over their count.
    pub delayed: HashSet<String>,
    pub active: i32,
    pub ready: i32,
    pub terminating: i32,
    /// When to look again though nothing changes.
    pub wake: Option<Duration>,
}

pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub fn is_finished(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| is_true(c, COMPLETE) || is_true(c, FAILED))
}

pub fn is_true(condition: &JobCondition, kind: &str) -> bool {
    condition.type_ == kind && condition.status == "True"
}

pub fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

pub fn condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    JobCondition {
        type_: kind.into(),
        status: "True".into(),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
        reason: said(reason),
        message: said(message),
    }
}

/// Decides; touches nothing. For a Job that is not finished.
pub fn plan(world: &World) -> Plan {
    let mut look = Look::new(world);
    look.judge();
    if look.plan.verdict.is_some() {
        look.plan.delete = look.active.iter().map(|p| (*p).clone()).collect();
        look.account_for_deletions();
    } else {
        if world.is_settled() && !is_deleting(&world.job.metadata) {
            look.manage();
            look.plan.managed = true;
        }
        look.complete();
    }
    look.plan
}

struct Look<'a> {
    world: &'a World<'a>,
    spec: JobSpec,
    status: JobStatus,
    active: Vec<&'a Arc<Pod>>,
    succeeded: i32,
    failed: i32,
    /// By index, failed pods that nobody has replaced yet.
    to_replace: BTreeMap<i32, &'a Pod>,
    plan: Plan,
}

impl<'a> Look<'a> {
    fn new(world: &'a World<'a>) -> Self {
        let spec = world.job.spec.clone().unwrap_or_default();
        let status = world.job.status.clone().unwrap_or_default();
        let active: Vec<&Arc<Pod>> =
            world.pods.iter().filter(|p| !is_terminal(p) && !world.is_going(p)).collect();
        let going = |p: &&Arc<Pod>| world.is_going(p) && !is_terminal(p);
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let (done, lost) =
            (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default());
        let succeeded = new_ends(&spec, world.pods, &done, |pod| phase(pod) == "Succeeded");
        let failed = new_ends(&spec, world.pods, &lost, |pod| failure::is_failed(&spec, pod));
        let counted = failed.iter().filter(|p| failure::verdict(&spec, p).counts()).count();
        let plan = Plan {
            streak: world.streak.then(&succeeded, &failed),
            active: active.len() as i32,
            ready: active.iter().filter(|p| is_ready(p)).count() as i32,
            terminating: world.pods.iter().filter(going).count() as i32,
            ..Plan::default()
        };
        let sum = |before: Option<i32>, new: usize, uncounted: usize| {
            before.unwrap_or(0) + new as i32 + uncounted as i32
        };
        Self {
            world,
            succeeded: sum(status.succeeded, succeeded.len(), done.len()),
            failed: sum(status.failed, counted, lost.len()),
            active,
            to_replace: BTreeMap::new(),
            plan,
            spec,
            status,
        }
    }

    /// Whether it is over, and why.
    fn judge(&mut self) {
        let now = self.world.now;
        let before = |kind: &str| {
            self.status.conditions.iter().flatten().find(|c| is_true(c, kind)).cloned()
        };
        let mut verdict = before(SUCCESS_CRITERIA_MET);
        if verdict.is_none() {
            verdict = match before(FAILURE_TARGET) {
                Some(target) => Some(as_final(FAILED, &target, now)),
                None => self.failed_by_policy(),
            };
        }
        let fail = |reason: &str, text: &str| Some(condition(FAILURE_TARGET, reason, text, now));
        if verdict.is_none() {
            let pods: Vec<&Pod> = self.world.pods.iter().map(|p| &**p).collect();
            let limit = self.spec.backoff_limit.unwrap_or(6);
            if self.failed > limit || failure::restarts_exceed(self.world.job, &pods) {
                let text = "Job has reached the specified backoff limit";
                verdict = fail("BackoffLimitExceeded", text);
            } else if let Some(left) = self.deadline() {
                if left.is_zero() {
                    let text = "Job was active longer than specified deadline";
                    verdict = fail("DeadlineExceeded", text);
                } else {
                    self.wake(left);
                }
            }
        }
        if is_indexed(&self.spec) {
            let completions = self.count_indexes();
            if let Some(failed) = self.plan.failed.as_ref().filter(|_| verdict.is_none()) {
                let (failed, done) = (failed.total(), self.plan.succeeded.total());
                if self.spec.max_failed_indexes.is_some_and(|max| failed > max) {
                    let text = "Job has exceeded the specified maximal number of failed indexes";
                    verdict = fail("MaxFailedIndexesExceeded", text);
                } else if failed > 0 && failed + done >= completions {
                    verdict = fail("FailedIndexes", "Job has failed indexes");
                }
            }
            if verdict.is_none() {
                verdict = self.succeeded_by_policy(completions);
            }
        }
        self.plan.verdict = verdict;
    }

    fn failed_by_policy(&self) -> Option<JobCondition> {
        let failed = self.world.pods.iter().filter(|p| failure::is_failed(&self.spec, p));
        let message = failed.into_iter().find_map(|p| match failure::verdict(&self.spec, p) {
            Verdict::FailJob(message) => Some(message),
            _ => None,
        })?;
        Some(condition(FAILURE_TARGET, "PodFailurePolicy", &message, self.world.now))
    }

    fn succeeded_by_policy(&self, completions: i32) -> Option<JobCondition> {
        let (rules, done) = (&self.spec.success_policy.as_ref()?.rules, &self.plan.succeeded);
        let met = rules.iter().position(|rule| match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = Indexes::parse(text, completions);
                let common = wanted.common(done);
                wanted.total() > 0
                    && (common == wanted.total()
                        || rule.succeeded_count.is_some_and(|count| common >= count))
            }
            None => rule.succeeded_count.is_some_and(|count| done.total() >= count),
        })?;
        let message = format!("Matched rules at index {met}");
        let met = || condition(SUCCESS_CRITERIA_MET, "SuccessPolicy", &message, self.world.now);
        (done.total() > 0).then(met)
    }

    /// How long it may still be active; None where it may be for ever.
    fn deadline(&self) -> Option<Duration> {
        let limit = self.spec.active_deadline_seconds.filter(|_| !self.is_suspended())?;
        let started = self.status.start_time.as_ref().map_or(self.world.now, |t| t.0);
        let left = SignedDuration::from_secs(limit) - self.world.now.duration_since(started);
        Some(left.try_into().unwrap_or(Duration::ZERO))
    }

    fn count_indexes(&mut self) -> i32 {
        let completions = self.spec.completions.unwrap_or(0);
        let valid = |p: &Pod| index_of(p).filter(|i| *i < completions && has_finalizer(p));
        let before = self.status.completed_indexes.as_deref().unwrap_or_default();
        let before = Indexes::parse(before, completions);
        let new = self.world.pods.iter().filter(|p| phase(p) == "Succeeded");
        self.plan.succeeded = before.with(new.filter_map(|p| valid(p)));
        self.plan.succeeded_before = before;
        self.succeeded = self.plan.succeeded.total();
        if let Some(limit) = self.spec.backoff_limit_per_index {
            let before = self.status.failed_indexes.as_deref().unwrap_or_default();
            let lost = |p: &&Arc<Pod>| {
                if !failure::is_failed(&self.spec, p) {
                    return false;
                }
                let verdict = failure::verdict(&self.spec, p);
                verdict == Verdict::FailIndex
                    || verdict.counts() && failure::failures_before(p) >= limit
            };
            let lost = self.world.pods.iter().filter(lost).filter_map(|p| valid(p));
            self.plan.failed = Some(Indexes::parse(before, completions).with(lost));
            self.find_to_replace(completions);
        }
        completions
    }

    fn find_to_replace(&mut self, completions: i32) {
        let active = indexes::of(self.active.iter().map(|p| &***p));
        let failed = self.plan.failed.clone().unwrap_or_default();
        let order = |p: &Pod| {
            let count = failure::failures_before(p) + failure::ignored_failures_before(p);
            (count, failure::ended_at(p))
        };
        for pod in self.world.pods {
            let Some(i) = index_of(pod).filter(|i| *i < completions) else { continue };
            let over = self.plan.succeeded.has(i) || failed.has(i) || active.contains(&i);
            if over || !has_finalizer(pod) || !failure::is_failed(&self.spec, pod) {
                continue;
            }
            let last = self.to_replace.entry(i).or_insert(pod);
            if order(pod) >= order(last) {
                *last = pod;
            }
        }
        let uids = self.to_replace.values().map(|p| uid(&p.metadata).to_owned());
        self.plan.delayed = uids.collect();
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    /// As many pods as are wanted; either some go, or some come.
    fn manage(&mut self) {
        let active = self.active.len() as i32;
        if self.is_suspended() {
            self.remove(self.active.len());
            return;
        }
        let parallel = self.spec.parallelism.unwrap_or(1);
        let wanted = match self.spec.completions {
            // Each pod knows by itself when all is done: then no more are made.
            None if self.succeeded > 0 => active,
            None => parallel,
            Some(completions) => (completions - self.succeeded).min(parallel).max(0),
        };
        self.remove((active - wanted).max(0) as usize);
        if !self.plan.delete.is_empty() {
            return;
        }
        let waiting =
            if failure::only_replaces_failed(&self.spec) { self.plan.terminating } else { 0 };
        let missing = (wanted - waiting - active).max(0) as usize;
        if missing > 0 {
            self.make(missing.min(BURST));
        }
    }

    fn remove(&mut self, at_least: usize) {
        let mut left: Vec<Arc<Pod>> = self.active.iter().map(|p| (*p).clone()).collect();
        rank_for_deletion(&mut left, &HashMap::new(), self.world.now);
        let mut gone = Vec::new();
        if is_indexed(&self.spec) {
            // One an index, the best; none without.
            let completions = self.spec.completions.unwrap_or(0);
            let mut seen = BTreeSet::new();
            let keeps =
                |p: &Arc<Pod>| index_of(p).is_some_and(|i| i < completions && seen.insert(i));
            let (mut kept, rest): (Vec<_>, Vec<_>) = left.into_iter().rev().partition(keeps);
            kept.reverse();
            (left, gone) = (kept, rest);
        }
        let more = at_least.saturating_sub(gone.len());
        gone.extend(left.into_iter().take(more));
        gone.truncate(BURST);
        self.plan.delete = gone;
        self.plan.uncounted = true;
        self.account_for_deletions();
    }

    fn account_for_deletions(&mut self) {
        let deleted = self.plan.delete.len() as i32;
        self.plan.active -= deleted;
        self.plan.terminating += deleted;
        self.plan.ready -= self.plan.delete.iter().filter(|p| is_ready(p)).count() as i32;
    }

    fn make(&mut self, count: usize) {
        if !is_indexed(&self.spec) {
            if self.is_time(self.plan.streak) {
                self.plan.create = vec![NewPod::default(); count];
            }
        } else {
            let mut busy = self.plan.succeeded.with(indexes::of(self.active.iter().map(|p| &***p)));
            if failure::only_replaces_failed(&self.spec) {
                let going = |p: &&Arc<Pod>| self.world.is_going(p) && !is_terminal(p);
                busy = busy.with(indexes::of(self.world.pods.iter().filter(going).map(|p| &**p)));
            }
            if let Some(failed) = &self.plan.failed {
                busy = busy.merged(failed);
            }
            let free = busy.missing(count, self.spec.completions.unwrap_or(0));
            if self.spec.backoff_limit_per_index.is_none() {
                if self.is_time(self.plan.streak) {
                    let new = |i| NewPod { index: Some(i), failures: None };
                    self.plan.create = free.into_iter().map(new).collect();
                }
            } else {
                for i in free {
                    self.make_next_of(i);
                }
            }
        }
        self.plan.active += self.plan.create.len() as i32;
    }

    /// Each index has a row of failures of its own, which its pods hand on.
    fn make_next_of(&mut self, index: i32) {
        let (mut counted, mut ignored) = (0, 0);
        if let Some(last) = self.to_replace.get(&index).copied() {
            (counted, ignored) =
                (failure::failures_before(last), failure::ignored_failures_before(last));
            match failure::verdict(&self.spec, last).counts() {
                true => counted += 1,
                false => ignored += 1,
            }
            let failures = (counted + ignored) as u32;
            if !self.is_time(Streak { failures, last: failure::ended_at(last) }) {
                return;
            }
        }
        self.plan.create.push(NewPod { index: Some(index), failures: Some((counted, ignored)) });
    }

    /// Whether the wait after failures is over; else when to look again.
    fn is_time(&mut self, streak: Streak) -> bool {
        let wait = streak.wait(self.world.now);
        if !wait.is_zero() {
            self.wake(wait);
        }
        wait.is_zero()
    }

    fn complete(&mut self) {
        let enough = match self.spec.completions {
            None => self.succeeded > 0,
            Some(completions) => self.succeeded >= completions,
        };
        if enough && self.plan.active == 0 {
            let text = "Reached expected number of succeeded pods";
            self.plan.verdict =
                Some(condition(SUCCESS_CRITERIA_MET, "CompletionsReached", text, self.world.now));
        }
    }

    fn wake(&mut self, left: Duration) {
        self.plan.wake = Some(self.plan.wake.map_or(left, |w| w.min(left)));
    }
}

/// The condition that follows on another once all pods have ended.
pub fn as_final(kind: &str, cause: &JobCondition, now: Timestamp) -> JobCondition {
    let text = |said: &Option<String>| said.clone().unwrap_or_default();
    condition(kind, &text(&cause.reason), &text(&cause.message), now)
}

/// Pods that ended and are not counted yet.
fn new_ends<'a>(
    spec: &JobSpec,
    pods: &'a [Arc<Pod>],
    uncounted: &[String],
    ended: impl Fn(&Pod) -> bool,
) -> Vec<&'a Pod> {
    let completions = spec.completions.unwrap_or(0);
    let valid = |p: &&Pod| {
        has_finalizer(p)
            && !uncounted.iter().any(|u| u == uid(&p.metadata))
            && (!is_indexed(spec) || index_of(p).is_some_and(|i| i < completions))
            && ended(p)
    };
    pods.iter().map(|p| &**p).filter(valid).collect()
}
