//! PV protection: a volume that is deleted stays while a claim is bound to it.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolume;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error};

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::finalizers;

pub const NAME: &str = "pv-protection-controller";
const WORKERS: usize = 2;
pub const FINALIZER: &str = "kubernetes.io/pv-protection";

struct Volumes {
    client: Client,
    volumes: Cache<PersistentVolume>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let volumes = context.informers.of::<PersistentVolume>();
    enqueue_changes(&volumes, &keys);
    let controller = Volumes { client: context.client.clone(), volumes: volumes.clone() };
    context.run(Arc::new(controller), keys, WORKERS, vec![synced(&volumes)]);
}

#[async_trait]
impl Controller for Volumes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(volume) = self.volumes.get_key(key) else { return Ok(Next::Change) };
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if let Some(changed) = finalizers::plan(&*volume, FINALIZER, phase == Some("Bound")) {
            finalizers::act(&self.client, &changed).await?;
        }
        Ok(Next::Change)
    }
}
