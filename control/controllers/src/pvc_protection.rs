//! PVC protection: a claim that is deleted stays until no pod uses it.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error};
use rimward_control_lean::Pod;
use rimward_control_volumes::claims_of;

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::finalizers;
use crate::pods::{controller_of, is_deleting, is_terminal, name, node_name, uid};

pub const NAME: &str = "pvc-protection-controller";
const WORKERS: usize = 2;
pub const FINALIZER: &str = "kubernetes.io/pvc-protection";
/// Pods by namespace and name of the claims that they use.
const BY_CLAIM: &str = "claim";

struct Claims {
    client: Client,
    claims: Cache<PersistentVolumeClaim>,
    pods: Cache<Pod>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let pods = context.informers.of::<Pod>();
    pods.add_index(BY_CLAIM, |pod| claims_of(pod).iter().map(ToString::to_string).collect());
    enqueue_changes(&claims, &keys);
    let (queue, known) = (keys.clone(), claims.clone());
    pods.on_change(move |change| {
        for pod in [change.old, change.new].into_iter().flatten() {
            // Most pods use no claim, and most claims stay.
            let leaving =
                |key: &ObjectKey| known.get_key(key).is_some_and(|c| is_deleting(&c.metadata));
            claims_of(pod).into_iter().filter(leaving).for_each(|key| queue.add(key));
        }
    });
    let caches = vec![synced(&claims), synced(&pods)];
    let controller = Claims { client: context.client.clone(), claims, pods };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// Whether a pod keeps a claim. One that no node has does not: no kubelet would start it with a claim
/// that is going. Pure.
pub fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    if node_name(pod).is_empty() {
        return false;
    }
    let wanted = name(&claim.metadata);
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|volume| {
        if let Some(source) = &volume.persistent_volume_claim {
            return source.claim_name == wanted;
        }
        volume.ephemeral.is_some()
            && !is_terminal(pod)
            && format!("{}-{}", name(&pod.metadata), volume.name) == wanted
            && controller_of(&claim.metadata).is_some_and(|o| o.uid == uid(&pod.metadata))
    })
}

#[async_trait]
impl Controller for Claims {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(Next::Change) };
        let users = self.pods.indexed(BY_CLAIM, &key.to_string());
        let in_use = users.iter().any(|pod| uses(pod, &claim));
        if let Some(changed) = finalizers::plan(&*claim, FINALIZER, in_use) {
            finalizers::act(&self.client, &changed).await?;
        }
        Ok(Next::Change)
    }
}
