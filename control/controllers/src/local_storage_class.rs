//! The StorageClass of volumes that are directories of nodes: the default, so that a claim of a fresh cluster
//! has a volume without anybody's doing. It comes with the first node that has directories: a control plane
//! by itself has no volumes to offer, and a claim that names no class is better off without one.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::local_volumes;
use tokio::sync::Notify;

use crate::driver::Context;
use crate::{persistent_volume_binder, publish};

pub const NAME: &str = "local-storage-class";
pub const IDENTITY: &str = "local-path-provisioner";
/// As other small clusters call it.
pub const CLASS: &str = "local-path";

pub fn start(context: &Context) {
    let (client, shutdown) = (context.client.clone(), context.shutdown.clone());
    let first = Arc::new(Notify::new());
    let came = first.clone();
    context.informers.of::<Node>().on_change(move |change| {
        if change.new.is_some_and(|node| keeps_volumes(node)) {
            came.notify_one();
        }
    });
    context.tasks.spawn(async move {
        if shutdown.run_until_cancelled(first.notified()).await.is_some() {
            publish::once(client, class(), shutdown).await;
        }
    });
}

/// Whether a node has a directory for volumes.
fn keeps_volumes(node: &Node) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    annotations.is_some_and(|a| a.contains_key(local_volumes::DIRECTORY))
}

fn class() -> StorageClass {
    let default = persistent_volume_binder::IS_DEFAULT[0];
    StorageClass {
        metadata: ObjectMeta {
            name: Some(CLASS.into()),
            annotations: Some(BTreeMap::from([(default.into(), "true".into())])),
            ..ObjectMeta::default()
        },
        provisioner: local_volumes::PROVISIONER.into(),
        reclaim_policy: Some("Delete".into()),
        // Only the node that a pod goes to can keep its directory.
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        ..StorageClass::default()
    }
}
