//! CronJob: a Job at each time of a schedule.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>
//!
//! [`plan`] decides from the Jobs that are there and the clock. A Job's name holds the minute that it is
//! for, so that no run is started twice, whoever forgets what. Without a time zone the schedule is UTC's.

pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rimward_api::ObjectKey;
use rimward_client::events::reference;
use rimward_client::{Cache, Client, DeleteOptions, Error, EventType, Propagation, Recorder};

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::indexes::{self, BY_CONTROLLER};
use crate::pods::{controller_of, name, uid};
use crate::staleness::OwnWrites;
use plan::Plan;

pub const NAME: &str = "cronjob-controller";
const WORKERS: usize = 4;

struct CronJobs {
    client: Client,
    recorder: Recorder,
    crons: Cache<CronJob>,
    jobs: Cache<Job>,
    own_writes: OwnWrites,
    /// Jobs made.
    job_writes: OwnWrites,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (crons, jobs) = (context.informers.of::<CronJob>(), context.informers.of::<Job>());
    indexes::owned(&jobs);
    enqueue_changes(&crons, &keys);
    let queue = keys.clone();
    jobs.on_change(move |change| {
        for job in [change.old, change.new].into_iter().flatten() {
            let owner = controller_of(&job.metadata).filter(|o| o.kind == "CronJob");
            if let Some(owner) = owner {
                queue.add(ObjectKey::new(change.key.namespace.as_str(), owner.name.as_str()));
            }
        }
    });
    let caches = vec![synced(&crons), synced(&jobs)];
    let controller = CronJobs {
        client: context.client.clone(),
        recorder: context.recorder(),
        crons,
        jobs,
        own_writes: OwnWrites::default(),
        job_writes: OwnWrites::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

#[async_trait]
impl Controller for CronJobs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(cron) = self.crons.get_key(key) else { return Ok(Next::Change) };
        if !self.own_writes.seen(key, &self.crons) || !self.job_writes.seen(key, &self.jobs) {
            return Ok(Next::Change);
        }
        let mut jobs = self.jobs.indexed(BY_CONTROLLER, uid(&cron.metadata));
        jobs.sort_by_cached_key(|job| name(&job.metadata).to_owned());
        let mut plan = plan::plan(&cron, &jobs, Timestamp::now());
        for (kind, reason, text) in std::mem::take(&mut plan.events) {
            self.recorder.event(&*cron, kind, reason, text);
        }
        let outcome = self.act(key, &cron, &mut plan).await;
        self.write_status(key, &cron, plan.status).await?;
        match outcome {
            // No Job will ever be created there.
            Err(e) if e.is_namespace_terminating() => Ok(Next::Change),
            Err(e) => Err(e),
            // A little later than on time is surely not too early.
            Ok(()) => Ok(plan
                .wake
                .map_or(Next::Change, |wake| Next::After(wake + Duration::from_millis(100)))),
        }
    }
}

impl CronJobs {
    async fn act(&self, key: &ObjectKey, cron: &CronJob, plan: &mut Plan) -> Result<(), Error> {
        for job in &plan.delete {
            self.delete(cron, job).await?;
        }
        let Some(at) = plan.start else { return Ok(()) };
        let wanted = plan::job(cron, at);
        let job = match self.client.create(&wanted).await {
            Ok(job) => {
                let text = format!("Created job {}", name(&job.metadata));
                self.recorder.event(cron, EventType::Normal, "SuccessfulCreate", text);
                job
            }
            Err(e) if e.is_already_exists() => {
                // Ours, and not noted before a crash; or somebody else's, who sees to it.
                let there: Job = self.client.get(&key.namespace, name(&wanted.metadata)).await?;
                let owner = controller_of(&there.metadata);
                if owner.is_none_or(|o| o.uid != uid(&cron.metadata)) {
                    return Ok(());
                }
                there
            }
            Err(e) => {
                if !e.is_namespace_terminating() {
                    let text = format!("Error creating job: {e}");
                    self.recorder.event(cron, EventType::Warning, "FailedCreate", text);
                }
                return Err(e);
            }
        };
        self.job_writes.note(key, &job);
        plan.status.active.get_or_insert_default().push(reference(&job));
        plan.status.last_schedule_time = Some(Time(at));
        Ok(())
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<(), Error> {
        let meta = &job.metadata;
        let (namespace, options) = (
            meta.namespace.as_deref().unwrap_or_default(),
            DeleteOptions::uid(uid(meta)).propagation(Propagation::Background),
        );
        match self.client.delete::<Job>(namespace, name(meta), &options).await {
            Ok(()) => {
                let text = format!("Deleted job {}", name(meta));
                self.recorder.event(cron, EventType::Normal, "SuccessfulDelete", text);
                Ok(())
            }
            Err(e) if e.is_not_found() || e.is_conflict() => Ok(()),
            Err(e) => {
                let text = format!("Deleted job: {e}");
                self.recorder.event(cron, EventType::Warning, "FailedDelete", text);
                Err(e)
            }
        }
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        status: CronJobStatus,
    ) -> Result<(), Error> {
        if cron.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let changed = CronJob { status: Some(status), ..cron.clone() };
        match self.client.update_status(&changed).await {
            Ok(written) => {
                self.own_writes.note(key, &written);
                Ok(())
            }
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
        }
    }
}
