//! Volumes that are directories of a node: the built-in provisioner. It orders them by a PersistentVolume of
//! type `local`, tied to the node; that node makes the directory when a pod first needs it, and removes it when
//! the object is gone. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::local_volumes;
use rimward_control_volumes as volumes;

use super::volume::HELD;
use crate::pods::{name, uid};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The volume for a claim on the node that its pod goes to; Err is the text of the ProvisioningFailed Event.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&Node>,
) -> Result<PersistentVolume, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.clone().unwrap_or_default();
    if spec.selector.is_some() {
        return Err("claim Selector is not supported".into());
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!(
            "{} does not support block volume provisioning: a volume of this class is a directory",
            local_volumes::PROVISIONER
        ));
    }
    if let Some(mode) = modes.iter().find(|m| !m.starts_with("ReadWriteOnce")) {
        return Err(format!(
            "accessMode {mode} is not supported: a volume of this class is on one node (ReadWriteOnce, ReadWriteOncePod)"
        ));
    }
    let node = node.ok_or_else(|| {
        let class = name(&class.metadata);
        format!("no node was chosen: StorageClass {class:?} needs volumeBindingMode WaitForFirstConsumer")
    })?;
    let node_name = name(&node.metadata);
    let annotations = node.metadata.annotations.as_ref();
    let directory = annotations.and_then(|a| a.get(local_volumes::DIRECTORY)).ok_or_else(|| {
        let key = local_volumes::DIRECTORY;
        format!("node {node_name:?} has no annotation {key:?}: it keeps no volumes")
    })?;
    let hostname = node.metadata.labels.as_ref().and_then(|l| l.get(HOSTNAME));
    let volume = format!("pvc-{}", uid(&claim.metadata));
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let path = format!(
        "{}/{volume}_{namespace}_{}",
        directory.trim_end_matches('/'),
        name(&claim.metadata)
    );
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume),
            finalizers: Some(vec![HELD.to_owned()]),
            annotations: Some(BTreeMap::from([(
                volumes::PROVISIONED_BY.to_owned(),
                local_volumes::PROVISIONER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: spec.resources.and_then(|r| r.requests),
            claim_ref: Some(volumes::reference(claim)),
            local: Some(LocalVolumeSource { path, fs_type: None }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(on_node(hostname.map_or(node_name, String::as_str))),
            persistent_volume_reclaim_policy: Some(
                class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into()),
            ),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some("Filesystem".into()),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    })
}

fn on_node(hostname: &str) -> VolumeNodeAffinity {
    let requirement = NodeSelectorRequirement {
        key: HOSTNAME.into(),
        operator: "In".into(),
        values: Some(vec![hostname.to_owned()]),
    };
    VolumeNodeAffinity {
        required: Some(NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm {
                match_expressions: Some(vec![requirement]),
                match_fields: None,
            }],
        }),
    }
}
