//! Deployment: moves pods from one template to the next, one ReplicaSet per template.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>
//!
//! [`rollout`] decides how large each ReplicaSet is to be, [`revision`] keeps the history that
//! `kubectl rollout undo` reads, [`progress`] says in the status how far it is. A rollback needs
//! nothing special: kubectl patches the old template back in, its ReplicaSet is found by template
//! and becomes the newest revision.

pub mod progress;
pub mod revision;
pub mod rollout;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::Resource as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use rimward_api::ObjectKey;
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Client, DeleteOptions, Error, EventType, Recorder};
use rimward_control_lean::Pod;

use crate::claim;
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, enqueue_owners, synced};
use crate::indexes::{self, BY_CONTROLLER};
use crate::pods::{controller_of, is_deleting, is_terminal, name, uid};
use crate::staleness::OwnWrites;
use rollout::{Plan, World};

pub const NAME: &str = "deployment-controller";
const WORKERS: usize = 8;

struct Deployments {
    client: Client,
    recorder: Recorder,
    deployments: Cache<Deployment>,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    own_writes: OwnWrites,
    /// Writes to the ReplicaSets of a Deployment.
    set_writes: OwnWrites,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let deployments = context.informers.of::<Deployment>();
    let (sets, pods) = (context.informers.of::<ReplicaSet>(), context.informers.of::<Pod>());
    indexes::owned(&pods);
    indexes::owned(&sets);
    indexes::deployments_by_selector(&deployments);
    enqueue_changes(&deployments, &keys);
    enqueue_owners(&sets, &deployments, &keys);
    let (queue, known) = (keys.clone(), sets.clone());
    pods.on_change(move |change| {
        // Recreate waits for the last old pod to end; nothing else needs the pods themselves.
        let ended = change.new.is_none_or(|pod| is_terminal(pod));
        if let Some(pod) = change.old.filter(|_| ended) {
            deployment_of(pod, &known).into_iter().for_each(|key| queue.add(key));
        }
    });
    let controller = Deployments {
        client: context.client.clone(),
        recorder: context.recorder(),
        deployments: deployments.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
        own_writes: OwnWrites::default(),
        set_writes: OwnWrites::default(),
    };
    let caches = vec![synced(&deployments), synced(&sets), synced(&pods)];
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

fn deployment_of(pod: &Pod, sets: &Cache<ReplicaSet>) -> Option<ObjectKey> {
    let owner = controller_of(&pod.metadata).filter(|o| o.kind == ReplicaSet::KIND)?;
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let set = sets.get(&namespace, &owner.name)?;
    let owner = controller_of(&set.metadata).filter(|o| o.kind == Deployment::KIND)?;
    Some(ObjectKey::new(namespace, owner.name.clone()))
}

#[async_trait]
impl Controller for Deployments {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(deployment) = self.deployments.get_key(key) else { return Ok(Next::Change) };
        if !self.own_writes.seen(key, &self.deployments) || !self.set_writes.seen(key, &self.sets) {
            return Ok(Next::Change);
        }
        let Some(spec) = &deployment.spec else { return Ok(Next::Change) };
        let Ok(selector) = LabelSelector::from_typed(&spec.selector) else {
            return Ok(Next::Change);
        };
        if selector.is_empty() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&*deployment, EventType::Warning, "SelectingAll", text);
            return Ok(Next::Change);
        }
        let (controlled, orphans) =
            claim::candidates(&self.sets, &deployment.metadata, &spec.selector);
        let claims = claim::plan(&selector, is_deleting(&deployment.metadata), controlled, orphans);
        let adopted = claim::act(&self.client, &*deployment, &claims).await?;
        let sets: Vec<Arc<ReplicaSet>> = claims.kept.into_iter().chain(adopted).collect();
        let plan = {
            let running = |set: &ReplicaSet| {
                let pods = self.pods.indexed(BY_CONTROLLER, uid(&set.metadata));
                pods.iter().any(|p| !is_terminal(p))
            };
            rollout::plan(&World {
                deployment: &deployment,
                sets: &sets,
                running: &running,
                now: Timestamp::now(),
            })
        };
        self.act(key, &deployment, &plan).await?;
        Ok(plan.wake.map_or(Next::Change, Next::After))
    }
}

impl Deployments {
    async fn act(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        plan: &Plan,
    ) -> Result<(), Error> {
        if let Some(set) = &plan.create {
            match self.client.create(set).await {
                Ok(created) => self.set_writes.note(key, &created),
                Err(e) => return self.not_created(key, deployment, set, e).await,
            }
        }
        for set in &plan.update {
            let written = self.client.update(set).await?;
            self.set_writes.note(key, &written);
        }
        for (kind, reason, message) in &plan.events {
            self.recorder.event(deployment, *kind, reason, message.clone());
        }
        if let Some(changed) = &plan.deployment {
            self.write_status(key, changed).await?;
        }
        for set in &plan.delete {
            let (namespace, options) =
                (set.metadata.namespace.as_deref(), DeleteOptions::uid(uid(&set.metadata)));
            let options =
                options.at_revision(set.metadata.resource_version.clone().unwrap_or_default());
            match self
                .client
                .delete::<ReplicaSet>(namespace.unwrap_or_default(), name(&set.metadata), &options)
                .await
            {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    async fn write_status(&self, key: &ObjectKey, deployment: &Deployment) -> Result<(), Error> {
        match self.client.update_status(deployment).await {
            Ok(written) => {
                self.own_writes.note(key, &written);
                Ok(())
            }
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The new ReplicaSet was refused: its name is taken, or the server does not want it.
    async fn not_created(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        set: &ReplicaSet,
        error: Error,
    ) -> Result<(), Error> {
        let mut changed = deployment.clone();
        if error.is_already_exists() {
            let taken: ReplicaSet = self.client.get(&key.namespace, name(&set.metadata)).await?;
            let ours =
                controller_of(&taken.metadata).is_some_and(|o| o.uid == uid(&deployment.metadata));
            if ours && revision::same_template(deployment, &taken) {
                // It is ours, the cache will show it.
                return Err(error);
            }
            // Another template hashed to the same name: the count is part of the next hash.
            let status = changed.status.get_or_insert_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        } else if error.is_namespace_terminating() {
            return Ok(());
        } else {
            let text =
                format!("Failed to create new replica set {:?}: {error}", name(&set.metadata));
            self.recorder.event(
                deployment,
                EventType::Warning,
                "ReplicaSetCreateError",
                text.clone(),
            );
            if progress::has_deadline(deployment) {
                let status = changed.status.get_or_insert_default();
                let now = Timestamp::now();
                progress::set(
                    status,
                    progress::condition("Progressing", "False", "ReplicaSetCreateError", text, now),
                );
            }
        }
        if changed.status != deployment.status {
            self.write_status(key, &changed).await?;
        }
        Err(error)
    }
}
