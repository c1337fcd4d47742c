//! Pods that wait to be counted by a Job that is gone, or finished: they are let go.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::Resource as _;
use k8s_openapi::api::batch::v1::Job;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error};
use rimward_control_lean::Pod;

use super::is_managed_elsewhere;
use super::plan::{has_finalizer, is_finished};
use crate::driver::{Context, Controller, Keys, Next, synced};
use crate::indexes::BY_CONTROLLER;
use crate::pods::{controller_of, uid};

const WORKERS: usize = 2;

struct Orphans {
    client: Client,
    jobs: Cache<Job>,
    pods: Cache<Pod>,
}

pub fn start(context: &Context, jobs: &Cache<Job>, pods: &Cache<Pod>) {
    let keys = Keys::default();
    let (queue, known) = (keys.clone(), jobs.clone());
    pods.on_change(move |change| {
        if change.new.is_some_and(|pod| is_orphan(pod, &known)) {
            queue.add(change.key.clone());
        }
    });
    let (queue, all) = (keys.clone(), pods.clone());
    jobs.on_change(move |change| {
        let over = change.new.is_none_or(|job| is_finished(job));
        if let Some(job) = change.new.or(change.old).filter(|_| over) {
            for pod in all.indexed(BY_CONTROLLER, uid(&job.metadata)) {
                queue.add(ObjectKey::of_meta(&pod.metadata));
            }
        }
    });
    let caches = vec![synced(jobs), synced(pods)];
    let controller =
        Orphans { client: context.client.clone(), jobs: jobs.clone(), pods: pods.clone() };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// Whether nobody will count the pod.
fn is_orphan(pod: &Pod, jobs: &Cache<Job>) -> bool {
    if !has_finalizer(pod) {
        return false;
    }
    let Some(owner) = controller_of(&pod.metadata) else { return true };
    if owner.kind != Job::KIND || owner.api_version != Job::API_VERSION {
        return false;
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let job = jobs.get(namespace, &owner.name).filter(|job| uid(&job.metadata) == owner.uid);
    job.is_none_or(|job| is_finished(&job) && !is_managed_elsewhere(&job))
}

#[async_trait]
impl Controller for Orphans {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(pod) = self.pods.get_key(key) else { return Ok(Next::Change) };
        if is_orphan(&pod, &self.jobs) {
            super::release(&self.client, &pod).await?;
        }
        Ok(Next::Change)
    }
}
