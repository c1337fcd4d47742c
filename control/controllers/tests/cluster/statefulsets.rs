//! StatefulSets: the conformance texts, and what `kubectl rollout` does to them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use rimward_client::{DeleteOptions, Patch, Propagation};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NEVER_READY, image, template};

fn set(replicas: i32, spec: Value) -> Value {
    let mut object = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "replicas": replicas, "serviceName": "web",
            "selector": { "matchLabels": { "app": "web" } }, "template": template("web", "i1"),
        },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

/// Waits until `kubectl rollout status` would say that all is done.
async fn rolled_out(cluster: &Cluster) -> StatefulSet {
    let done = |set: &StatefulSet| {
        let (spec, status) = (set.spec.as_ref().unwrap(), set.status.clone().unwrap_or_default());
        status.observed_generation >= set.metadata.generation
            && status.ready_replicas.unwrap_or(0) == spec.replicas.unwrap()
            && status.replicas == spec.replicas.unwrap()
            && status.current_revision == status.update_revision
    };
    (*cluster.until_one::<StatefulSet>("web", "rolled out", done).await).clone()
}

/// Image by pod.
fn images(cluster: &Cluster) -> BTreeMap<String, String> {
    let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    cluster.pods().iter().map(|p| (p.metadata.name.clone().unwrap(), image(p))).collect()
}

fn are(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Image by number of the revision.
fn history(cluster: &Cluster) -> BTreeMap<i64, String> {
    let all = cluster.informers.of::<ControllerRevision>().list_in("default");
    let image = |r: &ControllerRevision| {
        let data = &r.data.as_ref().unwrap().0;
        let template = &data["spec"]["template"];
        assert_eq!(template["$patch"], "replace");
        template["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
    };
    all.iter().map(|(_, r)| (r.revision, image(r))).collect()
}

async fn until_images(cluster: &Cluster, expected: &[(&str, &str)]) {
    let wanted = are(expected);
    let what = format!("pods are {expected:?}");
    cluster.until::<Pod>(&what, |_| images(cluster) == wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_updated_from_the_top_and_back() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<StatefulSet>(set(3, json!({}))).await;
    let first = rolled_out(&cluster).await.status.unwrap();
    assert_eq!(images(&cluster), are(&[("web-0", "i1"), ("web-1", "i1"), ("web-2", "i1")]));
    assert_eq!((first.current_replicas, first.collision_count), (Some(3), Some(0)));
    let created = |i: usize| cluster.pods()[i].metadata.creation_timestamp.clone();
    assert!(created(0) <= created(1) && created(1) <= created(2));
    cluster
        .until::<ControllerRevision>("its first revision", |_| history(&cluster).len() == 1)
        .await;
    // A canary: only what is at or above the partition.
    let rolling = |partition: i32| json!({ "spec": { "updateStrategy": { "rollingUpdate": { "partition": partition } } } });
    cluster.patch::<StatefulSet>("web", rolling(2)).await;
    cluster.patch::<StatefulSet>("web", image("i2")).await;
    let canary = |s: &StatefulSet| {
        s.status
            .as_ref()
            .is_some_and(|s| s.updated_replicas == Some(1) && s.ready_replicas == Some(3))
    };
    let status = cluster.until_one::<StatefulSet>("web", "one is updated", canary).await;
    let status = status.status.clone().unwrap();
    assert_eq!(
        (&status.current_revision, status.current_replicas),
        (&first.current_revision, Some(2))
    );
    assert_eq!(images(&cluster), are(&[("web-0", "i1"), ("web-1", "i1"), ("web-2", "i2")]));
    // One below it comes back as it was.
    let lost = cluster.pods()[0].metadata.uid.clone();
    cluster.delete::<Pod>("web-0", DeleteOptions::default()).await;
    cluster
        .until::<Pod>("another web-0", |_| {
            cluster.pods().len() == 3 && cluster.pods()[0].metadata.uid != lost
        })
        .await;
    assert_eq!(images(&cluster)["web-0"], "i1");
    cluster.patch::<StatefulSet>("web", rolling(0)).await;
    rolled_out(&cluster).await;
    until_images(&cluster, &[("web-0", "i2"), ("web-1", "i2"), ("web-2", "i2")]).await;
    let both = [(1, "i1".to_owned()), (2, "i2".to_owned())].into();
    assert_eq!(history(&cluster), both);
    // As `kubectl rollout undo` does: the old template again, whose revision becomes the newest.
    let old = cluster.informers.of::<ControllerRevision>().list_in("default");
    let old = old.iter().find(|(_, r)| r.revision == 1).unwrap().1.clone();
    let patch = Patch::strategic(old.data.clone().unwrap().0);
    cluster.admin.patch::<StatefulSet>("default", "web", "", &patch).await.unwrap();
    until_images(&cluster, &[("web-0", "i1"), ("web-1", "i1"), ("web-2", "i1")]).await;
    let after = rolled_out(&cluster).await.status.unwrap();
    assert_eq!(after.current_revision, first.current_revision);
    assert_eq!(history(&cluster), [(2, "i2".to_owned()), (3, "i1".to_owned())].into());
    cluster.patch::<StatefulSet>("web", json!({ "spec": { "revisionHistoryLimit": 0 } })).await;
    cluster.until::<ControllerRevision>("history is cut", |_| history(&cluster).len() == 1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_waits_for_what_is_unwell_unless_told_not_to() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let never = template("web", NEVER_READY);
    cluster.apply::<StatefulSet>(set(3, json!({ "template": never }))).await;
    let one = |s: &StatefulSet| s.status.as_ref().is_some_and(|s| s.replicas == 1);
    let up = |_: &rimward_client::Cache<Pod>| {
        let pods = cluster.pods();
        pods.len() == 1 && pods[0].status.as_ref().unwrap().pod_ip.is_some()
    };
    cluster.until::<Pod>("the first runs, and is not ready", up).await;
    cluster.until_one::<StatefulSet>("web", "it says so", one).await;
    // Had it made another, it would have been before it saw to this.
    cluster.patch::<StatefulSet>("web", json!({ "spec": { "minReadySeconds": 1 } })).await;
    let observed = |s: &StatefulSet| {
        s.status.as_ref().is_some_and(|t| t.observed_generation == s.metadata.generation)
    };
    cluster.until_one::<StatefulSet>("web", "it has seen that", observed).await;
    assert_eq!(cluster.pods().len(), 1);
    cluster.delete::<StatefulSet>("web", DeleteOptions::default()).await;
    cluster.until::<Pod>("all are gone", |_| cluster.pods().is_empty()).await;
    // In parallel: all at once, and a broken update can be taken back.
    cluster.apply::<StatefulSet>(set(3, json!({ "podManagementPolicy": "Parallel" }))).await;
    rolled_out(&cluster).await;
    cluster.patch::<StatefulSet>("web", image(NEVER_READY)).await;
    until_images(&cluster, &[("web-0", "i1"), ("web-1", "i1"), ("web-2", NEVER_READY)]).await;
    cluster.patch::<StatefulSet>("web", image("i1")).await;
    until_images(&cluster, &[("web-0", "i1"), ("web-1", "i1"), ("web-2", "i1")]).await;
    rolled_out(&cluster).await;
    // What fails is replaced.
    let before = cluster.pods()[1].metadata.uid.clone();
    let failed = Patch::strategic(json!({ "status": { "phase": "Failed", "reason": "Evicted" } }));
    cluster.admin.patch::<Pod>("default", "web-1", "status", &failed).await.unwrap();
    cluster
        .until::<Pod>("another web-1", |_| {
            cluster.pods().len() == 3 && cluster.pods()[1].metadata.uid != before
        })
        .await;
    rolled_out(&cluster).await;
    cluster
        .patch::<StatefulSet>(
            "web",
            json!({ "spec": { "replicas": 1, "ordinals": { "start": 5 } } }),
        )
        .await;
    until_images(&cluster, &[("web-5", "i1")]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_set_takes_over_what_was_orphaned() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<StatefulSet>(set(2, json!({}))).await;
    let before = rolled_out(&cluster).await;
    let uids = |cluster: &Cluster| -> Vec<_> {
        cluster.pods().iter().map(|p| p.metadata.uid.clone()).collect()
    };
    let pods = uids(&cluster);
    let orphan = DeleteOptions::default().propagation(Propagation::Orphan);
    cluster.delete::<StatefulSet>("web", orphan).await;
    cluster.until::<StatefulSet>("it is gone", |all| all.is_empty()).await;
    // A stranger of the labels has no name that the set gives: it is left alone.
    let mut stranger = template("web", "i1");
    stranger["metadata"]["name"] = json!("stranger");
    stranger["metadata"]["namespace"] = json!("default");
    cluster.apply::<Pod>(stranger).await;
    cluster.apply::<StatefulSet>(set(2, json!({}))).await;
    let after = rolled_out(&cluster).await;
    assert_ne!(before.metadata.uid, after.metadata.uid);
    assert_eq!(before.status.unwrap().current_revision, after.status.unwrap().current_revision);
    let now = cluster.pods();
    assert_eq!(now.iter().filter_map(|p| p.metadata.owner_references.as_ref()).count(), 2);
    assert!(pods.iter().all(|uid| uids(&cluster).contains(uid)) && now.len() == 3);
    // One that loses its label is let go, and another takes its place once the name is free.
    let label = json!({ "metadata": { "labels": { "app": "other" } } });
    cluster.patch::<Pod>("web-1", label).await;
    cluster
        .until_one::<Pod>("web-1", "it is free", |p| p.metadata.owner_references.is_none())
        .await;
    cluster.delete::<Pod>("web-1", DeleteOptions::default()).await;
    cluster
        .until::<Pod>("another web-1", |pods| {
            pods.get("default", "web-1").is_some_and(|p| p.metadata.owner_references.is_some())
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_come_with_pods_and_go_with_whom_they_are_to() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let claim = json!({ "metadata": { "name": "data" }, "spec": { "storageClassName": "", "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } } });
    let spec = json!({
        "podManagementPolicy": "Parallel", "volumeClaimTemplates": [claim],
        "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Delete", "whenScaled": "Delete" },
    });
    let made = cluster.apply::<StatefulSet>(set(3, spec)).await;
    let claims = |expected: &'static [&'static str]| {
        move |all: &rimward_client::Cache<PersistentVolumeClaim>| {
            all.list().iter().map(|(k, _)| k.name.clone()).eq(expected.iter().copied())
        }
    };
    cluster.until("a claim each", claims(&["data-web-0", "data-web-1", "data-web-2"])).await;
    let first =
        cluster.informers.of::<PersistentVolumeClaim>().get("default", "data-web-0").unwrap();
    assert_eq!(first.metadata.labels.as_ref().unwrap()["app"], "web");
    let owners = first.metadata.owner_references.clone().unwrap();
    assert_eq!(
        (&owners[0].kind[..], Some(&owners[0].uid)),
        ("StatefulSet", made.metadata.uid.as_ref())
    );
    cluster.until::<Pod>("their pods", |_| cluster.pods().len() == 3).await;
    cluster.patch::<StatefulSet>("web", json!({ "spec": { "replicas": 1 } })).await;
    cluster.until("those that are left over go", claims(&["data-web-0"])).await;
    // Grown again, it has claims that are new.
    cluster.patch::<StatefulSet>("web", json!({ "spec": { "replicas": 2 } })).await;
    cluster.until("another claim", claims(&["data-web-0", "data-web-1"])).await;
    // From now on they outlive the set.
    let keep = json!({ "spec": { "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" } } });
    cluster.patch::<StatefulSet>("web", keep).await;
    cluster
        .until::<PersistentVolumeClaim>("nobody owns them", |all| {
            all.list().iter().all(|(_, c)| c.metadata.owner_references.is_none())
        })
        .await;
    let foreground = DeleteOptions::default().propagation(Propagation::Foreground);
    cluster.delete::<StatefulSet>("web", foreground).await;
    cluster.until::<StatefulSet>("it is gone", |all| all.is_empty()).await;
    assert_eq!(cluster.informers.of::<PersistentVolumeClaim>().len(), 2);
    cluster.stop().await;
}
