//! Creates and deletes an owner's pods, remembers both until the caches show them, and tells of it in
//! Events as Kubernetes' own controllers do (`RealPodControl` of pkg/controller/controller_utils.go).

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rimward_client::{Client, DeleteOptions, Error, EventType, Object, Recorder};
use rimward_control_lean::Pod;

use crate::driver::Context;
use crate::pods::{name, uid};
use crate::staleness::Unseen;

pub struct PodControl {
    client: Client,
    recorder: Recorder,
    unseen: Unseen,
}

impl PodControl {
    pub fn new(context: &Context, recorder: Recorder) -> Self {
        Self { client: context.client.clone(), recorder, unseen: Unseen::default() }
    }

    /// As [`Unseen::settle`].
    pub fn settle(
        &self,
        owner: &str,
        pods: &[Arc<Pod>],
        revision: u64,
    ) -> (usize, HashSet<String>) {
        self.unseen.settle(owner, pods, revision)
    }

    /// Creates what `pod` says of each number below `count`.
    ///
    /// # Errors
    /// The last refusal of the first batch that had one; an Event tells of it.
    pub async fn create<O: Object>(
        &self,
        owner: &O,
        count: usize,
        pod: impl Fn(usize) -> v1::Pod,
    ) -> Result<(), Error> {
        let outcome = slow_start(count, async |i| {
            let created = self.client.create(&pod(i)).await?;
            self.unseen.created(uid(owner.metadata()), &created);
            let text = format!("Created pod: {}", name(&created.metadata));
            self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", text);
            Ok(())
        });
        let outcome = outcome.await;
        if let Err(e) = &outcome
            && !e.is_namespace_terminating()
        {
            let text = format!("Error creating: {e}");
            self.recorder.event(owner, EventType::Warning, "FailedCreate", text);
        }
        outcome
    }

    /// Deletes all of `pods`; one that is gone or was replaced is no error.
    pub async fn delete<O: Object>(&self, owner: &O, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let answers = join_all(pods.iter().map(|pod| async move {
            let (namespace, options) =
                (pod.metadata.namespace.as_deref(), DeleteOptions::uid(uid(&pod.metadata)));
            let answer = self
                .client
                .delete::<Pod>(namespace.unwrap_or_default(), name(&pod.metadata), &options)
                .await;
            (pod, answer)
        }));
        let mut failed = None;
        for (pod, answer) in answers.await {
            match answer {
                Ok(()) => {
                    self.unseen.deleted(uid(owner.metadata()), &**pod);
                    let text = format!("Deleted pod: {}", name(&pod.metadata));
                    self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", text);
                }
                Err(e) if e.is_not_found() || e.is_conflict() => {}
                Err(e) => failed = Some(e),
            }
        }
        let Some(e) = failed else { return Ok(()) };
        let text = format!("Error deleting: {e}");
        self.recorder.event(owner, EventType::Warning, "FailedDelete", text);
        Err(e)
    }
}

/// Does `count` things in batches of 1, 2, 4 …, so that what the server refuses costs a few requests,
/// not hundreds.
///
/// # Errors
/// The last of the first batch that had one.
pub async fn slow_start<F>(count: usize, act: impl Fn(usize) -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let (mut done, mut batch) = (0, 1);
    while done < count {
        let size = batch.min(count - done);
        let answers = join_all((done..done + size).map(&act)).await;
        if let Some(e) = answers.into_iter().filter_map(Result::err).next_back() {
            return Err(e);
        }
        done += size;
        batch *= 2;
    }
    Ok(())
}

/// A pod as a template says, named by the server after its owner. `owner` is the owner's own reference.
pub fn pod_from_template(
    template: v1::PodTemplateSpec,
    meta: &ObjectMeta,
    owner: OwnerReference,
) -> v1::Pod {
    let said = template.metadata.unwrap_or_default();
    v1::Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(meta))),
            namespace: meta.namespace.clone(),
            labels: said.labels,
            annotations: said.annotations,
            finalizers: said.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
