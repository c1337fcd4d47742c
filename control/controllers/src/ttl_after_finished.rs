//! TTL after finished: a Job that ended is deleted when its time is over.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/ttlafterfinished/>

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error, Propagation};

use crate::driver::{Context, Controller, Keys, Next, synced};
use crate::pods::{is_deleting, uid};

pub const NAME: &str = "ttl-after-finished-controller";
const WORKERS: usize = 2;

struct Finished {
    client: Client,
    jobs: Cache<Job>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let jobs = context.informers.of::<Job>();
    let queue = keys.clone();
    jobs.on_change(move |change| {
        if change.new.is_some_and(|job| over_in(job, Timestamp::now()).is_some()) {
            queue.add(change.key.clone());
        }
    });
    let controller = Finished { client: context.client.clone(), jobs: jobs.clone() };
    context.run(Arc::new(controller), keys, WORKERS, vec![synced(&jobs)]);
}

/// How long until a Job's time is over: zero when it is, None for one that runs, is going, or stays.
/// Pure.
pub fn over_in(job: &Job, now: Timestamp) -> Option<Duration> {
    if is_deleting(&job.metadata) {
        return None;
    }
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten();
    let ended = conditions
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let at = ended.last_transition_time.as_ref()?.0;
    let left = SignedDuration::from_secs(ttl.into()) - now.duration_since(at);
    Some(left.try_into().unwrap_or(Duration::ZERO))
}

#[async_trait]
impl Controller for Finished {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(job) = self.jobs.get_key(key) else { return Ok(Next::Change) };
        let Some(left) = over_in(&job, Timestamp::now()) else { return Ok(Next::Change) };
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        // Its pods go before it does, as Kubernetes has it.
        let options = DeleteOptions::uid(uid(&job.metadata)).propagation(Propagation::Foreground);
        match self.client.delete::<Job>(&key.namespace, &key.name, &options).await {
            Err(e) if !e.is_not_found() && !e.is_conflict() => Err(e),
            _ => Ok(Next::Change),
        }
    }
}
