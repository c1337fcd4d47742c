//! Generic ephemeral volumes: a claim for each, which goes with its pod.
//! <https://kubernetes.io/docs/concepts/storage/ephemeral-volumes/#generic-ephemeral-volumes>

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error, EventType, Recorder};
use rimward_control_lean::Pod;
use rimward_control_volumes as volumes;

use crate::driver::{Context, Controller, Keys, Next, synced};
use crate::pods::{is_active, name, uid};

pub const NAME: &str = "ephemeral-volume-controller";
const WORKERS: usize = 2;

struct Ephemeral {
    client: Client,
    recorder: Recorder,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let pods = context.informers.of::<Pod>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let queue = keys.clone();
    pods.on_change(move |change| {
        // Most pods have none, and a pod's volumes never change.
        if change.new.is_some_and(|pod| !wanted(pod).is_empty()) && change.old.is_none() {
            queue.add(change.key.clone());
        }
    });
    let queue = keys.clone();
    claims.on_change(move |change| {
        let owner = change.old.filter(|_| change.new.is_none()).and_then(|claim| {
            let owners = claim.metadata.owner_references.iter().flatten();
            owners.into_iter().find(|o| o.kind == "Pod").map(|o| o.name.clone())
        });
        if let Some(pod) = owner {
            queue.add(ObjectKey::new(change.key.namespace.as_str(), pod));
        }
    });
    let caches = vec![synced(&pods), synced(&claims)];
    let controller =
        Ephemeral { client: context.client.clone(), recorder: context.recorder(), pods, claims };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// The claims that a pod's ephemeral volumes need; none once it ends. Pure.
pub fn wanted(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    if !is_active(pod) {
        return Vec::new();
    }
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let templates = volumes.filter_map(|volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
        let meta = template.metadata.clone().unwrap_or_default();
        Some(PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", name(&pod.metadata), volume.name)),
                namespace: pod.metadata.namespace.clone(),
                labels: meta.labels,
                annotations: meta.annotations,
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Pod".into(),
                    name: name(&pod.metadata).to_owned(),
                    uid: uid(&pod.metadata).to_owned(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec.clone()),
            ..PersistentVolumeClaim::default()
        })
    });
    templates.collect()
}

#[async_trait]
impl Controller for Ephemeral {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(pod) = self.pods.get_key(key) else { return Ok(Next::Change) };
        for claim in wanted(&pod) {
            let claim_key = ObjectKey::of_meta(&claim.metadata);
            if let Some(there) = self.claims.get_key(&claim_key) {
                if !volumes::is_owned_by(&there, &pod) {
                    let message =
                        format!("PVC {claim_key} was not created for pod {key} (pod is not owner)");
                    self.recorder.event(&*pod, EventType::Warning, "FailedCreate", message);
                }
                continue;
            }
            match self.client.create(&claim).await {
                Err(e) if e.is_already_exists() || e.is_namespace_terminating() => {}
                Err(e) => {
                    let message = format!(
                        "ephemeral volume controller failed to create claim {claim_key}: {e}"
                    );
                    self.recorder.event(&*pod, EventType::Warning, "FailedCreate", message);
                    return Err(e);
                }
                Ok(_) => {}
            }
        }
        Ok(Next::Change)
    }
}
