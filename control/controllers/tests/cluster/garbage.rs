use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::ConfigMap;
use rimward_client::{DeleteOptions, Propagation};
use rimward_control_lean::Pod;
use serde_json::json;

use crate::cluster::{Cluster, deployment};

async fn with_deployment() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<Deployment>(deployment("web", 3, "v1")).await;
    cluster.rolled_out("web").await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn background_and_foreground_take_everything() {
    for policy in [Propagation::Background, Propagation::Foreground] {
        let cluster = with_deployment().await;
        cluster.delete::<Deployment>("web", DeleteOptions::default().propagation(policy)).await;
        cluster.until::<Pod>("no pods", |pods| pods.is_empty()).await;
        cluster.until::<ReplicaSet>("no sets", |sets| sets.is_empty()).await;
        cluster.until::<Deployment>("no deployment", |d| d.is_empty()).await;
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orphan_leaves_what_was_owned() {
    let cluster = with_deployment().await;
    cluster
        .delete::<Deployment>("web", DeleteOptions::default().propagation(Propagation::Orphan))
        .await;
    cluster.until::<Deployment>("no deployment", |d| d.is_empty()).await;
    cluster
        .until::<ReplicaSet>("a free set", |sets| {
            sets.list().iter().all(|(_, s)| {
                s.metadata.owner_references.is_none() && s.metadata.deletion_timestamp.is_none()
            })
        })
        .await;
    assert_eq!(cluster.pods().len(), 3);
    // A new Deployment of the same kind takes them over.
    cluster.apply::<Deployment>(deployment("web", 3, "v1")).await;
    cluster
        .until::<ReplicaSet>("adopted", |sets| {
            sets.len() == 1
                && sets.list().iter().all(|(_, s)| s.metadata.owner_references.is_some())
        })
        .await;
    cluster.rolled_out("web").await;
    assert_eq!(cluster.pods().len(), 3);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_owners_and_owners_that_live() {
    let cluster = Cluster::start().await;
    let map = |name: &str, owners: serde_json::Value| json!({"metadata": {"name": name, "namespace": "default", "ownerReferences": owners}});
    let owner = cluster.apply::<ConfigMap>(map("owner", json!([]))).await;
    let reference = |name: &str, uid: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid});
    let real = reference("owner", owner.metadata.uid.as_deref().unwrap());
    let absent = reference("owner", "00000000-0000-0000-0000-000000000000");
    cluster.apply::<ConfigMap>(map("kept", json!([real, absent]))).await;
    cluster.apply::<ConfigMap>(map("lost", json!([absent]))).await;
    cluster
        .until::<ConfigMap>("the lost one goes, the kept one forgets", |maps| {
            let owners = |name: &str| {
                maps.get("default", name)
                    .map(|m| m.metadata.owner_references.as_ref().map_or(0, Vec::len))
            };
            maps.get("default", "owner").is_some()
                && owners("lost").is_none()
                && owners("kept") == Some(1)
        })
        .await;
    cluster.delete::<ConfigMap>("owner", DeleteOptions::default()).await;
    cluster.until::<ConfigMap>("now it goes", |maps| maps.get("default", "kept").is_none()).await;
    cluster.stop().await;
}
