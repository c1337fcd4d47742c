//! The StorageClass of volumes that are directories of nodes: the default, so that a claim of a fresh cluster
//! has a volume without anybody's doing.

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::local_volumes;

use crate::driver::Context;
use crate::{persistent_volume_binder, publish};

pub const NAME: &str = "local-storage-class";
pub const IDENTITY: &str = "local-path-provisioner";
/// As other small clusters call it.
pub const CLASS: &str = "local-path";

pub fn start(context: &Context) {
    let (client, shutdown) = (context.client.clone(), context.shutdown.clone());
    context.tasks.spawn(publish::once(client, class(), shutdown));
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
