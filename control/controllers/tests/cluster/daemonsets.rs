//! DaemonSets: the conformance texts, and what `kubectl rollout` does to them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::Node;
use rimward_client::{DeleteOptions, Patch, Propagation};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NEVER_READY, image, template};

fn set(spec: Value) -> Value {
    let mut object = json!({
        "metadata": { "name": "d", "namespace": "default" },
        "spec": { "selector": { "matchLabels": { "app": "d" } }, "template": template("d", "i1") },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

/// Waits until `kubectl rollout status` would say that all is done on so many nodes.
async fn rolled_out(cluster: &Cluster, nodes: i32) -> DaemonSet {
    let done = |set: &DaemonSet| {
        let status = set.status.clone().unwrap_or_default();
        status.observed_generation >= set.metadata.generation
            && status.desired_number_scheduled == nodes
            && status.updated_number_scheduled.unwrap_or(0) == nodes
            && status.number_available.unwrap_or(0) == nodes
    };
    (*cluster.until_one::<DaemonSet>("d", "rolled out", done).await).clone()
}

/// Image by node.
fn images(cluster: &Cluster) -> BTreeMap<String, String> {
    let of = |pod: &Pod| {
        let spec = pod.spec.as_ref().unwrap();
        (spec.node_name.clone().unwrap_or_default(), spec.containers[0].image.clone().unwrap())
    };
    cluster.pods().iter().map(|p| of(p)).collect()
}

async fn until_images(cluster: &Cluster, expected: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> =
        expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let what = format!("pods are {expected:?}");
    let is = |_: &rimward_client::Cache<Pod>| {
        images(cluster) == wanted && cluster.pods().len() == wanted.len()
    };
    cluster.until::<Pod>(&what, is).await;
}

fn numbers(cluster: &Cluster) -> Vec<i64> {
    let all = cluster.informers.of::<ControllerRevision>().list_in("default");
    let mut numbers: Vec<i64> = all.iter().map(|(_, r)| r.revision).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fit_node_has_one() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.add_node("n2", "64").await;
    cluster.apply::<DaemonSet>(set(json!({}))).await;
    rolled_out(&cluster, 2).await;
    cluster.add_node("n3", "64").await;
    rolled_out(&cluster, 3).await;
    until_images(&cluster, &[("n1", "i1"), ("n2", "i1"), ("n3", "i1")]).await;
    // A cordoned node keeps its own, also through an update.
    let node = async |name: &str, patch: Value| {
        cluster.admin.patch::<Node>("", name, "", &Patch::strategic(patch)).await.unwrap();
    };
    node("n1", json!({ "spec": { "unschedulable": true } })).await;
    // One that is lost, or fails, is replaced.
    let pods = cluster.pods();
    let on = |node: &str| {
        let there =
            pods.iter().find(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some(node));
        there.unwrap().metadata.name.clone().unwrap()
    };
    cluster.delete::<Pod>(&on("n1"), DeleteOptions::default()).await;
    let failed = Patch::strategic(json!({ "status": { "phase": "Failed" } }));
    cluster.admin.patch::<Pod>("default", &on("n2"), "status", &failed).await.unwrap();
    let (lost, failed) = (on("n1"), on("n2"));
    cluster
        .until::<Pod>("two others", |pods| {
            pods.len() == 3
                && pods.get("default", &lost).is_none()
                && pods.get("default", &failed).is_none()
        })
        .await;
    rolled_out(&cluster, 3).await;
    // Nodes that it no longer selects lose theirs.
    node("n3", json!({ "metadata": { "labels": { "color": "blue" } } })).await;
    let blue =
        json!({ "spec": { "template": { "spec": { "nodeSelector": { "color": "blue" } } } } });
    cluster.patch::<DaemonSet>("d", blue).await;
    rolled_out(&cluster, 1).await;
    until_images(&cluster, &[("n3", "i1")]).await;
    node("n1", json!({ "metadata": { "labels": { "color": "blue" } } })).await;
    rolled_out(&cluster, 2).await;
    // And those whose taint it does not bear.
    node("n3", json!({ "spec": { "taints": [{ "key": "k", "effect": "NoExecute" }] } })).await;
    rolled_out(&cluster, 1).await;
    until_images(&cluster, &[("n1", "i1")]).await;
    cluster.delete::<DaemonSet>("d", DeleteOptions::default()).await;
    cluster.until::<Pod>("none is left", |pods| pods.is_empty()).await;
    cluster.until::<ControllerRevision>("nor a revision", |all| all.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_go_node_by_node_and_back() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.add_node("n2", "64").await;
    cluster.apply::<DaemonSet>(set(json!({}))).await;
    let first = rolled_out(&cluster, 2).await;
    assert_eq!(
        first.metadata.annotations.unwrap()["deprecated.daemonset.template.generation"],
        "1"
    );
    // Only one at a time: a broken one keeps the other.
    cluster.patch::<DaemonSet>("d", image(NEVER_READY)).await;
    let half = |s: &DaemonSet| {
        s.status
            .as_ref()
            .is_some_and(|s| s.updated_number_scheduled == Some(1) && s.number_available == Some(1))
    };
    cluster.until_one::<DaemonSet>("d", "one is updated, and unwell", half).await;
    let mut there: Vec<String> = images(&cluster).into_values().collect();
    there.sort();
    assert_eq!(there, ["i1", NEVER_READY]);
    let unharmed: Vec<_> = cluster.pods();
    // As `kubectl rollout undo` does; a pod that was not updated yet is not restarted.
    let old = cluster.informers.of::<ControllerRevision>().list_in("default");
    let old = old.iter().find(|(_, r)| r.revision == 1).unwrap().1.clone();
    let patch = Patch::strategic(old.data.clone().unwrap().0);
    cluster.admin.patch::<DaemonSet>("default", "d", "", &patch).await.unwrap();
    until_images(&cluster, &[("n1", "i1"), ("n2", "i1")]).await;
    rolled_out(&cluster, 2).await;
    assert_eq!(numbers(&cluster), [2, 3]);
    let kept = unharmed
        .iter()
        .filter(|p| cluster.pods().iter().any(|now| now.metadata.uid == p.metadata.uid));
    assert_eq!(kept.count(), 1);
    // New ones beside the old.
    let surge = json!({ "spec": { "updateStrategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } } } });
    cluster.patch::<DaemonSet>("d", surge).await;
    cluster.patch::<DaemonSet>("d", image("i2")).await;
    rolled_out(&cluster, 2).await;
    until_images(&cluster, &[("n1", "i2"), ("n2", "i2")]).await;
    // Only where a pod is deleted.
    let manual = json!({ "spec": { "updateStrategy": { "type": "OnDelete", "rollingUpdate": null }, "revisionHistoryLimit": 0 } });
    cluster.patch::<DaemonSet>("d", manual).await;
    cluster.patch::<DaemonSet>("d", image("i3")).await;
    let none = |s: &DaemonSet| {
        let status = s.status.clone().unwrap();
        status.observed_generation == s.metadata.generation
            && status.updated_number_scheduled.is_none()
            && status.number_available == Some(2)
    };
    cluster.until_one::<DaemonSet>("d", "none is updated", none).await;
    let pods = cluster.pods();
    let one = pods.iter().find(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some("n2"));
    cluster
        .delete::<Pod>(one.unwrap().metadata.name.as_deref().unwrap(), DeleteOptions::default())
        .await;
    until_images(&cluster, &[("n1", "i2"), ("n2", "i3")]).await;
    // What no pod needs is forgotten.
    cluster.until::<ControllerRevision>("two are left", |_| numbers(&cluster) == [4, 5]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_set_takes_over_what_was_orphaned() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<DaemonSet>(set(json!({}))).await;
    rolled_out(&cluster, 1).await;
    let before = cluster.pods()[0].metadata.uid.clone();
    let orphan = DeleteOptions::default().propagation(Propagation::Orphan);
    cluster.delete::<DaemonSet>("d", orphan).await;
    cluster.until::<DaemonSet>("it is gone", |all| all.is_empty()).await;
    let made = cluster.apply::<DaemonSet>(set(json!({}))).await;
    rolled_out(&cluster, 1).await;
    let pods = cluster.pods();
    assert_eq!((pods.len(), &pods[0].metadata.uid), (1, &before));
    let owner = &pods[0].metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(Some(&owner.uid), made.metadata.uid.as_ref());
    assert_eq!(numbers(&cluster), [1]);
    cluster.stop().await;
}

/// However slowly the caches follow, no node gets two.
#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_get_one_each() {
    let cluster = Cluster::start().await;
    cluster.apply::<DaemonSet>(set(json!({}))).await;
    let names: Vec<String> = (0..100).map(|i| format!("n{i}")).collect();
    let added = names.iter().map(|name| cluster.add_node(name, "64"));
    futures::future::join_all(added).await;
    rolled_out(&cluster, 100).await;
    assert_eq!((cluster.pods().len(), images(&cluster).len()), (100, 100));
    let all =
        json!({ "spec": { "updateStrategy": { "rollingUpdate": { "maxUnavailable": "100%" } } } });
    cluster.patch::<DaemonSet>("d", all).await;
    cluster.patch::<DaemonSet>("d", image("i2")).await;
    rolled_out(&cluster, 100).await;
    let again = images(&cluster);
    assert!(again.len() == 100 && again.values().all(|i| i == "i2"));
    cluster.stop().await;
}
