//! Job: pods that run until enough of them have succeeded.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/>
//!
//! [`plan`] says what is done next, [`failure`] what a failure means, [`indexes`] which completions are done,
//! [`tracking`] how pods are counted. [`orphans`] lets pods go that no Job counts any more.

pub mod failure;
pub mod indexes;
pub mod orphans;
pub mod plan;
pub mod tracking;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{self, EnvVar, EnvVarSource, ObjectFieldSelector};
use parking_lot::Mutex;
use rimward_api::ObjectKey;
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Client, Error, Patch, Recorder};
use rimward_control_lean::Pod;
use serde_json::json;

use crate::claim::{self, controller_reference};
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, enqueue_owners, synced};
use crate::indexes as caches;
use crate::pod_control::{PodControl, pod_from_template};
use crate::pods::{is_deleting, name, uid};
use crate::staleness::{OwnWrites, Pace};
use failure::Streak;
use plan::{FINALIZER, NewPod, Plan, World, has_finalizer};

pub const NAME: &str = "job-controller";
const WORKERS: usize = 8;
/// As `spec.managedBy` calls this controller.
const MANAGER: &str = "kubernetes.io/job-controller";
/// Tells a container its index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The longest name that the server makes another of.
const GENERATED_FROM_BYTES_MAX: usize = 58;
/// As of ReplicaSets: a look costs as much as there are pods.
const PACE_PER_POD: Duration = Duration::from_micros(20);
/// When to look again at a creation or deletion whose echo is not in the cache yet.
const ECHO: Duration = Duration::from_secs(10);

struct Jobs {
    client: Client,
    recorder: Recorder,
    control: PodControl,
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    own_writes: OwnWrites,
    /// Finalizers taken away.
    pod_writes: OwnWrites,
    /// Failures in a row, by the Job's uid.
    streaks: Mutex<HashMap<String, Streak>>,
    pace: Pace,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (jobs, pods) = (context.informers.of::<Job>(), context.informers.of::<Pod>());
    caches::owned(&pods);
    caches::jobs_by_selector(&jobs);
    enqueue_changes(&jobs, &keys);
    enqueue_owners(&pods, &jobs, &keys);
    orphans::start(context, &jobs, &pods);
    let caches = vec![synced(&jobs), synced(&pods)];
    let recorder = context.recorder();
    let controller = Jobs {
        client: context.client.clone(),
        recorder: recorder.clone(),
        control: PodControl::new(context, recorder),
        jobs,
        pods,
        own_writes: OwnWrites::default(),
        pod_writes: OwnWrites::default(),
        streaks: Mutex::default(),
        pace: Pace::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// Whether somebody else sees to the Job.
pub fn is_managed_elsewhere(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
    manager.is_some_and(|m| m != MANAGER)
}

#[async_trait]
impl Controller for Jobs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(job) = self.jobs.get_key(key) else { return Ok(Next::Change) };
        if !self.own_writes.seen(key, &self.jobs) || !self.pod_writes.seen(key, &self.pods) {
            return Ok(Next::Change);
        }
        let owner = uid(&job.metadata);
        if is_managed_elsewhere(&job) || plan::is_finished(&job) {
            self.streaks.lock().remove(owner);
            return Ok(Next::Change);
        }
        let Some(spec) = &job.spec else { return Ok(Next::Change) };
        let Some(typed) = &spec.selector else { return Ok(Next::Change) };
        let Ok(selector) = LabelSelector::from_typed(typed) else { return Ok(Next::Change) };
        let pods = self.pods.indexed_len(caches::BY_CONTROLLER, owner);
        let wait = self.pace.wait(key, PACE_PER_POD * pods as u32);
        if !wait.is_zero() {
            return Ok(Next::After(wait));
        }
        self.pace.mark(key);
        // The revision first: what the look lacks is known to be newer.
        let seen = self.pods.revision();
        let (controlled, orphans) = claim::candidates(&self.pods, &job.metadata, typed);
        let (created, deleted) = self.control.settle(owner, &controlled, seen);
        let claims = claim::plan(&selector, is_deleting(&job.metadata), controlled, orphans);
        let adopted = claim::act_holding(&self.client, &*job, &claims, Some(FINALIZER)).await?;
        let pods: Vec<Arc<Pod>> = claims.kept.into_iter().chain(adopted).collect();
        let streak = self.streaks.lock().get(owner).copied().unwrap_or_default();
        let world = World {
            job: &job,
            pods: &pods,
            created_unseen: created > 0,
            deleted_unseen: &deleted,
            streak,
            now: Timestamp::now(),
        };
        let plan = plan::plan(&world);
        let outcome = self.act(key, &job, &plan).await;
        self.count(key, &world, &plan, outcome.is_ok()).await?;
        match outcome {
            // No pod will ever be created there.
            Err(e) if e.is_namespace_terminating() => return Ok(Next::Change),
            outcome => outcome?,
        }
        let wake =
            if world.is_settled() { plan.wake } else { Some(plan.wake.unwrap_or(ECHO).min(ECHO)) };
        Ok(wake.map_or(Next::Change, Next::After))
    }
}

impl Jobs {
    async fn act(&self, key: &ObjectKey, job: &Job, plan: &Plan) -> Result<(), Error> {
        if plan.uncounted {
            self.release(key, &plan.delete).await.1?;
        }
        self.control.delete(job, &plan.delete).await?;
        self.control.create(job, plan.create.len(), |i| new_pod(job, &plan.create[i])).await
    }

    async fn count(
        &self,
        key: &ObjectKey,
        world: &World<'_>,
        plan: &Plan,
        done: bool,
    ) -> Result<(), Error> {
        let (job, tracked) = (world.job, tracking::track(world, plan, done));
        let mut written = self.write_status(key, job, &tracked.status).await?;
        self.streaks.lock().insert(uid(&job.metadata).to_owned(), plan.streak);
        for (kind, reason, text) in &tracked.events {
            self.recorder.event(job, *kind, reason, text.clone());
        }
        let (released, outcome) = self.release(key, &tracked.release).await;
        let spec = job.spec.clone().unwrap_or_default();
        let (status, events) = tracked.close(&spec, &released, world.now);
        if status != tracked.status {
            let base = written.take();
            self.write_status(key, base.as_ref().unwrap_or(job), &status).await?;
        }
        for (kind, reason, text) in events {
            self.recorder.event(job, kind, &reason, text);
        }
        outcome
    }

    /// Takes finalizers away; answers with the uids of those that are without.
    async fn release(
        &self,
        key: &ObjectKey,
        pods: &[Arc<Pod>],
    ) -> (HashSet<String>, Result<(), Error>) {
        let held = pods.iter().filter(|p| has_finalizer(p));
        let answers = join_all(held.map(|pod| async move {
            (uid(&pod.metadata).to_owned(), release(&self.client, pod).await)
        }));
        let (mut released, mut outcome) = (HashSet::new(), Ok(()));
        for (uid, answer) in answers.await {
            match answer {
                Ok(written) => {
                    if let Some(written) = written {
                        self.pod_writes.note(key, &written);
                    }
                    released.insert(uid);
                }
                Err(e) => outcome = Err(e),
            }
        }
        (released, outcome)
    }

    /// Answers with the Job as it is then; None where nothing was to be written, or it is gone.
    async fn write_status(
        &self,
        key: &ObjectKey,
        job: &Job,
        status: &JobStatus,
    ) -> Result<Option<Job>, Error> {
        if job.status.as_ref() == Some(status) {
            return Ok(None);
        }
        let changed = Job { status: Some(status.clone()), ..job.clone() };
        match self.client.update_status(&changed).await {
            Ok(written) => {
                self.own_writes.note(key, &written);
                Ok(Some(written))
            }
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Takes a pod's finalizer away; None if it is gone, or another has its name.
pub async fn release(client: &Client, pod: &Pod) -> Result<Option<Pod>, Error> {
    let meta = &pod.metadata;
    let patch = json!({ "metadata": {
        "uid": uid(meta), "$deleteFromPrimitiveList/finalizers": [FINALIZER],
    } });
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    match client.patch::<Pod>(namespace, name(meta), "", &Patch::strategic(patch)).await {
        Ok(written) => Ok(Some(written)),
        Err(e) if e.is_not_found() || e.is_conflict() => Ok(None),
        Err(e) => Err(e),
    }
}

/// A pod of the Job.
pub fn new_pod(job: &Job, new: &NewPod) -> v1::Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let mut pod = pod_from_template(spec.template, &job.metadata, controller_reference(job));
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    let Some(index) = new.index else { return pod };
    let suffix = format!("-{index}-");
    let job_name = name(&job.metadata);
    let kept = job_name.len().min(GENERATED_FROM_BYTES_MAX - suffix.len());
    pod.metadata.generate_name = Some(format!("{}{suffix}", &job_name[..kept]));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(indexes::INDEX.into(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(indexes::INDEX.into(), index.to_string());
    if let Some((counted, ignored)) = new.failures {
        annotations.insert(failure::FAILURES.into(), counted.to_string());
        if ignored > 0 {
            annotations.insert(failure::IGNORED_FAILURES.into(), ignored.to_string());
        }
    }
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{job_name}-{index}"));
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        let variables = container.env.get_or_insert_default();
        if variables.iter().any(|v| v.name == INDEX_VARIABLE) {
            continue;
        }
        let field = ObjectFieldSelector {
            api_version: None,
            field_path: format!("metadata.labels['{}']", indexes::INDEX),
        };
        variables.push(EnvVar {
            name: INDEX_VARIABLE.into(),
            value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
            ..EnvVar::default()
        });
    }
    pod
}
