//! The PersistentVolume binder: brings claims and volumes together, provisions directories of nodes, and
//! reclaims what is released.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/>
//!
//! [`claim`] and [`volume`] decide, about one object each, from what both caches show; [`bind`] makes the next
//! objects; this file reads, writes, and wakes the other side when one changes. Both kinds share one queue and
//! one worker, so two claims never choose a volume at once. A binding is written volume first: a half-done one
//! is completed from what the volume says, and a volume is never two claims'.

pub mod bind;
pub mod claim;
pub mod local;
pub mod volume;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error, EventType, Recorder};
use rimward_control_lean::Pod;
use rimward_control_volumes as volumes;

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::finalizers;
use crate::pods::{is_active, is_deleting, name, node_name, uid};
use claim::Said;
use volume::Reclaim;

pub const NAME: &str = "persistent-volume-binder";
/// As Events know it.
const COMPONENT: &str = "persistentvolume-controller";
/// Volumes by the claim that they are for.
const BY_CLAIM: &str = "volume/claim";
/// Pods by the claims that they use.
const PODS_BY_CLAIM: &str = "pod/claims";
/// How often a claim that nothing was found for says so again, as Kubernetes' resync does.
const RESYNC: Duration = Duration::from_secs(15);
/// <https://kubernetes.io/docs/tasks/administer-cluster/change-default-storage-class/>
pub const IS_DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

struct Binder {
    client: Client,
    recorder: Recorder,
    keys: Keys,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let classes = context.informers.of::<StorageClass>();
    let nodes = context.informers.of::<Node>();
    let pods = context.informers.of::<Pod>();
    volumes.add_index(BY_CLAIM, |v| {
        volumes::claim_key(v).map(|key| key.to_string()).into_iter().collect()
    });
    pods.add_index(PODS_BY_CLAIM, |pod| {
        volumes::claims_of(pod).iter().map(ToString::to_string).collect()
    });
    wake(&keys, &claims, &volumes, &classes);
    let caches =
        vec![synced(&claims), synced(&volumes), synced(&classes), synced(&nodes), synced(&pods)];
    let controller = Binder {
        client: context.client.clone(),
        recorder: Recorder::new(context.client.clone(), COMPONENT, context.shutdown.clone()),
        keys: keys.clone(),
        claims,
        volumes,
        classes,
        nodes,
        pods,
    };
    context.run(Arc::new(controller), keys, 1, caches);
}

/// Which objects a change concerns. A volume's key has no namespace, a claim's has one.
fn wake(
    keys: &Keys,
    claims: &Cache<PersistentVolumeClaim>,
    volumes: &Cache<PersistentVolume>,
    classes: &Cache<StorageClass>,
) {
    enqueue_changes(claims, keys);
    enqueue_changes(volumes, keys);
    let (queue, all) = (keys.clone(), volumes.clone());
    claims.on_change(move |change| {
        for volume in all.indexed(BY_CLAIM, &change.key.to_string()) {
            queue.add(ObjectKey::of_meta(&volume.metadata));
        }
    });
    let (queue, all) = (keys.clone(), claims.clone());
    volumes.on_change(move |change| {
        for volume in [change.old, change.new].into_iter().flatten() {
            match volumes::claim_key(volume) {
                Some(claim) => queue.add(claim),
                // It may be what one of them waits for.
                None => waiting(&all, |_| true).for_each(|claim| queue.add(claim)),
            }
        }
        let named = |claim: &PersistentVolumeClaim| volumes::volume_name(claim) == change.key.name;
        if change.old.is_none() || change.new.is_none() {
            all.list()
                .into_iter()
                .filter(|(_, claim)| named(claim))
                .for_each(|(key, _)| queue.add(key));
        }
    });
    let (queue, all) = (keys.clone(), claims.clone());
    classes.on_change(move |change| {
        let class = change.key.name.as_str();
        let concerned =
            |claim: &PersistentVolumeClaim| matches!(volumes::class_of_claim(claim), c if c.is_empty() || c == class);
        waiting(&all, concerned).for_each(|claim| queue.add(claim));
    });
}

/// Claims that have no volume yet.
fn waiting(
    claims: &Cache<PersistentVolumeClaim>,
    concerned: impl Fn(&PersistentVolumeClaim) -> bool,
) -> impl Iterator<Item = ObjectKey> {
    let open = claims.list().into_iter().filter(move |(_, claim)| {
        volumes::claim_annotation(claim, volumes::BIND_COMPLETED).is_none() && concerned(claim)
    });
    open.map(|(key, _)| key)
}

/// The newest of the classes that say they are the default.
pub fn default_class<'a>(
    classes: impl IntoIterator<Item = &'a StorageClass>,
) -> Option<&'a StorageClass> {
    let says = |class: &&StorageClass| {
        let annotations = class.metadata.annotations.as_ref();
        IS_DEFAULT
            .iter()
            .any(|key| annotations.and_then(|a| a.get(*key)).is_some_and(|v| v == "true"))
    };
    let newest = |class: &&StorageClass| {
        let made = class.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (made, std::cmp::Reverse(class.metadata.name.clone()))
    };
    classes.into_iter().filter(says).max_by_key(newest)
}

#[async_trait]
impl Controller for Binder {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let done = match key.namespace.is_empty() {
            true => self.volume(key).await.map(|()| Next::Change),
            false => self.claim(key).await,
        };
        match done {
            // Gone meanwhile: its own change says so.
            Err(e) if e.is_not_found() => Ok(Next::Change),
            other => other,
        }
    }
}

impl Binder {
    async fn claim(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(Next::Change) };
        let plan = {
            let all: Vec<Arc<PersistentVolume>> =
                self.volumes.list().into_iter().map(|(_, v)| v).collect();
            let classes: Vec<Arc<StorageClass>> =
                self.classes.list().into_iter().map(|(_, c)| c).collect();
            let class = self.classes.get("", volumes::class_of_claim(&claim));
            let node = volumes::claim_annotation(&claim, volumes::SELECTED_NODE)
                .and_then(|node| self.nodes.get("", node));
            claim::plan(&claim::Sight {
                claim: &claim,
                volumes: &all,
                class: class.as_deref(),
                default_class: default_class(classes.iter().map(|c| &**c)),
                node: node.as_deref(),
                waiting: self.unscheduled(key),
            })
        };
        match plan {
            claim::Plan::Bind(volume) => self.bind(&volume, &claim).await.map(|()| Next::Change),
            claim::Plan::Lost(why) => {
                if let Some(next) = bind::claim_status(&claim, "Lost", None) {
                    self.client.update_status(&next).await?;
                    self.say(&claim, &why);
                }
                Ok(Next::Change)
            }
            claim::Plan::Adopt(class) => {
                let mut next = (*claim).clone();
                next.spec.get_or_insert_default().storage_class_name = Some(class);
                self.client.update(&next).await?;
                Ok(Next::Change)
            }
            _ if is_deleting(&claim.metadata) => Ok(Next::Change),
            claim::Plan::Pending(why) => {
                if let Some(next) = bind::claim_status(&claim, "Pending", None) {
                    self.client.update_status(&next).await?;
                }
                Ok(match why {
                    None => Next::Change,
                    Some(why) => {
                        self.say(&claim, &why);
                        Next::After(RESYNC)
                    }
                })
            }
            claim::Plan::Delegate(provisioner) => self.delegate(&claim, &provisioner).await,
            claim::Plan::Provision(volume) => {
                self.provision(&claim, &volume).await.map(|()| Next::Change)
            }
        }
    }

    fn unscheduled(&self, claim: &ObjectKey) -> Vec<String> {
        let users = self.pods.indexed(PODS_BY_CLAIM, &claim.to_string());
        let open = users.iter().filter(|pod| node_name(pod).is_empty() && is_active(pod));
        let mut names: Vec<String> = open.map(|pod| name(&pod.metadata).to_owned()).collect();
        names.sort();
        names
    }

    fn say(&self, claim: &PersistentVolumeClaim, said: &Said) {
        let kind = if said.warning { EventType::Warning } else { EventType::Normal };
        self.recorder.event(claim, kind, said.reason, said.message.as_str());
    }

    async fn bind(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<(), Error> {
        let mut volume = volume.clone();
        if let Some(next) = volumes::volume_to(&volume, claim) {
            volume = self.client.update(&next).await?;
        }
        if let Some(next) = bind::grown(&volume, claim) {
            volume = self.client.update(&next).await?;
            let message = "Resize volume succeeded";
            self.recorder.event(claim, EventType::Normal, "VolumeResizeSuccessful", message);
        }
        if let Some(next) = bind::volume_status(&volume, "Bound", "") {
            self.client.update_status(&next).await?;
        }
        let mut claim = claim.clone();
        if let Some(next) = bind::claim_to(&claim, name(&volume.metadata)) {
            claim = self.client.update(&next).await?;
        }
        if let Some(next) = bind::claim_status(&claim, "Bound", Some(&volume)) {
            self.client.update_status(&next).await?;
        }
        Ok(())
    }

    async fn delegate(
        &self,
        claim: &PersistentVolumeClaim,
        provisioner: &str,
    ) -> Result<Next, Error> {
        let mut next = claim.clone();
        for key in [volumes::STORAGE_PROVISIONER, volumes::OLD_STORAGE_PROVISIONER] {
            volumes::annotate(&mut next.metadata.annotations, key, provisioner);
        }
        if next != *claim {
            next = self.client.update(&next).await?;
        }
        if let Some(next) = bind::claim_status(&next, "Pending", None) {
            self.client.update_status(&next).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.recorder.event(claim, EventType::Normal, "ExternalProvisioning", message);
        Ok(Next::After(RESYNC))
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Error> {
        match self.client.create(volume).await {
            Ok(volume) => {
                let message = format!("Successfully provisioned volume {}", name(&volume.metadata));
                self.recorder.event(claim, EventType::Normal, "ProvisioningSucceeded", message);
                Ok(())
            }
            // An earlier attempt made it: the cache will show it.
            Err(e) if e.is_already_exists() => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn volume(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(volume) = self.volumes.get_key(key) else { return Ok(()) };
        let claim_key = volumes::claim_key(&volume);
        let claim = claim_key.as_ref().and_then(|key| self.claims.get_key(key));
        let plan = volume::plan(&volume, claim.as_deref());
        // What it does next, its own change says.
        if let Some(next) = volume::held(&volume, &plan) {
            return finalizers::act(&self.client, &next).await;
        }
        match plan {
            volume::Plan::Phase(phase) => self.phase(&volume, phase).await.map(drop),
            volume::Plan::LookAtClaim => {
                claim_key.into_iter().for_each(|key| self.keys.add(key));
                Ok(())
            }
            volume::Plan::Unbind => {
                let free = self.client.update(&bind::unbound(&volume)).await?;
                self.phase(&free, "Available").await.map(drop)
            }
            volume::Plan::Release(reclaim) => self.release(&volume, reclaim).await,
        }
    }

    async fn phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
    ) -> Result<PersistentVolume, Error> {
        match bind::volume_status(volume, phase, "") {
            Some(next) => self.client.update_status(&next).await,
            None => Ok(volume.clone()),
        }
    }

    async fn release(&self, volume: &PersistentVolume, reclaim: Reclaim) -> Result<(), Error> {
        let failed = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed");
        let volume = match failed {
            true => volume.clone(),
            false => self.phase(volume, "Released").await?,
        };
        match reclaim {
            Reclaim::Leave => Ok(()),
            Reclaim::Delete if is_deleting(&volume.metadata) => Ok(()),
            Reclaim::Delete => {
                let options = DeleteOptions::uid(uid(&volume.metadata));
                self.client
                    .delete::<PersistentVolume>("", name(&volume.metadata), &options)
                    .await
                    .map(drop)
            }
            Reclaim::Fail(reason, message) => {
                if let Some(next) = bind::volume_status(&volume, "Failed", &message) {
                    self.client.update_status(&next).await?;
                    self.recorder.event(&volume, EventType::Warning, reason, message);
                }
                Ok(())
            }
        }
    }
}
