//! What a CronJob does next.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-syntax>

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_client::EventType;
use rimward_control_kinds::schedule::Schedule;

use crate::claim::controller_reference;
use crate::pods::{is_deleting, name, uid};

/// On a Job: the time that it is for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than that are told of: something is wrong.
const MISSED_MANY: i64 = 100;

#[derive(Debug, Default)]
pub struct Plan {
    /// The time that a Job is to be made for.
    pub start: Option<Timestamp>,
    pub delete: Vec<Arc<Job>>,
    pub events: Vec<(EventType, &'static str, String)>,
    /// But for what is started.
    pub status: CronJobStatus,
    /// Until the next time.
    pub wake: Option<Duration>,
}

/// Decides; touches nothing. `jobs` are those that it controls.
pub fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = cron.spec.clone();
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.note(jobs);
    if !is_deleting(&cron.metadata) {
        plan.schedule(cron, &spec, jobs, now);
    }
    plan.clean(&spec, jobs);
    if plan.status.active.as_ref().is_some_and(Vec::is_empty) {
        plan.status.active = None;
    }
    plan
}

/// "Complete" or "Failed", once it is that.
fn end_of(job: &Job) -> Option<&str> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ends = conditions.filter(|c| c.status == "True").map(|c| c.type_.as_str());
    ends.find(|kind| matches!(*kind, "Complete" | "Failed"))
}

impl Plan {
    /// What became of the Jobs that ran.
    fn note(&mut self, jobs: &[Arc<Job>]) {
        let active = self.status.active.get_or_insert_default();
        for job in jobs {
            let id = uid(&job.metadata);
            let is_known = active.iter().any(|r| r.uid.as_deref() == Some(id));
            let end = end_of(job);
            if let Some(end) = end.filter(|_| is_known) {
                active.retain(|r| r.uid.as_deref() != Some(id));
                let text = format!("Saw completed job: {}, status: {end}", name(&job.metadata));
                self.events.push((EventType::Normal, "SawCompletedJob", text));
            } else if end.is_none() && !is_known {
                let text = format!(
                    "Saw a job that the controller did not create or forgot: {}",
                    name(&job.metadata)
                );
                self.events.push((EventType::Warning, "UnexpectedJob", text));
            }
            if end == Some("Complete") {
                let at = job.status.as_ref().and_then(|s| s.completion_time.clone());
                let last = self.status.last_successful_time.take();
                self.status.last_successful_time = last.max(at);
            }
        }
        let there: HashSet<&str> = jobs.iter().map(|j| uid(&j.metadata)).collect();
        for gone in active.extract_if(.., |r| !there.contains(r.uid.as_deref().unwrap_or_default()))
        {
            let text = format!("Active job went missing: {}", gone.name.unwrap_or_default());
            self.events.push((EventType::Normal, "MissingJob", text));
        }
    }

    fn schedule(&mut self, cron: &CronJob, spec: &CronJobSpec, jobs: &[Arc<Job>], now: Timestamp) {
        let Ok(zone) = zone_of(spec) else {
            let text =
                format!("invalid timeZone: {:?}", spec.time_zone.as_deref().unwrap_or_default());
            self.events.push((EventType::Warning, "UnknownTimeZone", text));
            return;
        };
        if spec.suspend == Some(true) {
            return;
        }
        let Some(schedule) = Schedule::parse(&spec.schedule) else {
            let text = format!("unparseable schedule: {:?}", spec.schedule);
            self.events.push((EventType::Warning, "UnparseableSchedule", text));
            return;
        };
        let next = schedule.next(now, &zone);
        self.wake = next.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let Some((due, missed)) = due(cron, spec, &schedule, &zone, now) else { return };
        if missed > MISSED_MANY {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.events.push((EventType::Warning, "TooManyMissedTimes", text.into()));
        }
        let started = self.status.last_schedule_time.as_ref().is_some_and(|t| t.0 >= due);
        if started {
            return;
        }
        let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        if deadline.is_some_and(|d| now.duration_since(due) > d) {
            let text = format!("Missed scheduled time to start a job: {due}");
            self.events.push((EventType::Warning, "MissSchedule", text));
            return;
        }
        let active = self.status.active.get_or_insert_default();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.events.push((EventType::Normal, "JobAlreadyActive", text.into()));
                return;
            }
            Some("Replace") => {
                let running = active.drain(..).filter_map(|r| r.uid).collect::<HashSet<String>>();
                let running = jobs.iter().filter(|j| running.contains(uid(&j.metadata)));
                self.delete.extend(running.cloned());
            }
            _ => {}
        }
        self.start = Some(due);
    }

    /// Deletes the oldest of those that have ended, beyond what is kept of each kind.
    fn clean(&mut self, spec: &CronJobSpec, jobs: &[Arc<Job>]) {
        let limits = [
            ("Complete", spec.successful_jobs_history_limit),
            ("Failed", spec.failed_jobs_history_limit),
        ];
        for (kind, limit) in limits {
            let Some(limit) = limit else { continue };
            let mut ended: Vec<_> = jobs.iter().filter(|j| end_of(j) == Some(kind)).collect();
            ended.sort_by_key(|job| {
                let started = job.status.as_ref().and_then(|s| s.start_time.as_ref());
                (started.is_none(), started.map(|t| t.0), name(&job.metadata))
            });
            let surplus = ended.len().saturating_sub(limit.max(0) as usize);
            let going = ended.into_iter().take(surplus).filter(|j| !is_deleting(&j.metadata));
            self.delete.extend(going.cloned());
        }
    }
}

fn zone_of(spec: &CronJobSpec) -> Result<TimeZone, jiff::Error> {
    spec.time_zone.as_deref().map_or(Ok(TimeZone::UTC), TimeZone::get)
}

/// The newest time that has come since the last run, and about how many came; None if none did.
fn due(
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) -> Option<(Timestamp, i64)> {
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    let mut since = last.or(cron.metadata.creation_timestamp.as_ref())?.0;
    if let Some(seconds) = spec.starting_deadline_seconds {
        // Before that nothing would be started anyway.
        since = since.max(now.checked_sub(SignedDuration::from_secs(seconds)).ok()?);
    }
    let first = schedule.next(since, zone).filter(|at| *at <= now)?;
    let Some(second) = schedule.next(first, zone).filter(|at| *at <= now) else {
        return Some((first, 1));
    };
    let step = second.duration_since(first).as_secs().max(1);
    let missed = now.duration_since(first).as_secs() / step + 1;
    // Years may have passed: look from near the end, and from further back until there is one.
    let (mut back, mut from) = (step, second);
    loop {
        let start = now.checked_sub(SignedDuration::from_secs(back)).unwrap_or(second).max(second);
        if start == second {
            break;
        }
        if let Some(at) = schedule.next(start, zone).filter(|at| *at <= now) {
            from = at;
            break;
        }
        back = back.saturating_mul(2);
    }
    while let Some(at) = schedule.next(from, zone).filter(|at| *at <= now) {
        from = at;
    }
    Some((from, missed))
}

/// The Job for a time.
pub fn job(cron: &CronJob, at: Timestamp) -> Job {
    let spec = cron.spec.clone();
    let zone = zone_of(&spec).unwrap_or(TimeZone::UTC);
    let template = spec.job_template;
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let local = at.to_zoned(zone);
    let shown = match local.offset().is_zero() {
        true => at.to_string(),
        false => local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    };
    annotations.insert(SCHEDULED.into(), shown);
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", name(&cron.metadata), at.as_second() / 60)),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
