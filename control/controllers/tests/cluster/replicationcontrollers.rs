//! ReplicationControllers, and what the garbage collector does with theirs: the conformance texts.

use k8s_openapi::api::core::v1::ReplicationController;
use rimward_client::{DeleteOptions, Patch, Propagation};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, template};

fn controller(name: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"app": name}, "template": template(name, "i")},
    })
}

fn owned_by<'a>(pods: &'a [(rimward_api::ObjectKey, std::sync::Arc<Pod>)], uid: &'a str) -> usize {
    let owns = |pod: &Pod| pod.metadata.owner_references.iter().flatten().any(|o| o.uid == uid);
    pods.iter().filter(|(_, p)| owns(p)).count()
}

async fn running(cluster: &Cluster, name: &str, replicas: i32) -> ReplicationController {
    let ready = move |rc: &ReplicationController| {
        rc.status
            .as_ref()
            .is_some_and(|s| s.ready_replicas.unwrap_or(0) == replicas && s.replicas == replicas)
    };
    (*cluster.until_one::<ReplicationController>(name, "all are ready", ready).await).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_its_number_and_goes_as_it_is_told() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    for policy in [Propagation::Background, Propagation::Foreground] {
        cluster.apply::<ReplicationController>(controller("a", 10)).await;
        running(&cluster, "a", 10).await;
        let scaled: ReplicationController =
            cluster.patch("a", json!({"spec": {"replicas": 4}})).await;
        let uid = scaled.metadata.uid.unwrap();
        running(&cluster, "a", 4).await;
        cluster.until::<Pod>("four are left", |pods| pods.len() == 4).await;
        let foreground = policy == Propagation::Foreground;
        cluster
            .delete::<ReplicationController>("a", DeleteOptions::default().propagation(policy))
            .await;
        cluster
            .until::<ReplicationController>("it is gone", |all| {
                let gone = all.is_empty();
                if gone && foreground {
                    let pods = cluster.informers.of::<Pod>().list();
                    // (The caches are not of one moment: what is deleted counts as gone.)
                    let left = pods.iter().filter(|(_, p)| p.metadata.deletion_timestamp.is_none());
                    assert_eq!(left.count(), 0, "pods go first");
                }
                gone
            })
            .await;
        cluster.until::<Pod>("its pods are gone", |pods| owned_by(&pods.list(), &uid) == 0).await;
    }
    // Without a policy its pods are orphaned, as ever.
    cluster.apply::<ReplicationController>(controller("a", 3)).await;
    running(&cluster, "a", 3).await;
    cluster.delete::<ReplicationController>("a", DeleteOptions::default()).await;
    cluster.until::<ReplicationController>("it is gone", |all| all.is_empty()).await;
    cluster
        .until::<Pod>("orphans", |pods| {
            pods.len() == 3
                && pods.list().iter().all(|(_, p)| p.metadata.owner_references.is_none())
        })
        .await;
    // Another of the same selector takes them over.
    cluster.apply::<ReplicationController>(controller("a", 3)).await;
    running(&cluster, "a", 3).await;
    assert_eq!(cluster.pods().len(), 3);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_another_valid_owner_stay() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<ReplicationController>(controller("going", 10)).await;
    let going = running(&cluster, "going", 10).await;
    let staying = cluster.apply::<ReplicationController>(controller("staying", 0)).await;
    let owner = json!([{ "apiVersion": "v1", "kind": "ReplicationController", "name": "staying", "uid": staying.metadata.uid }]);
    let shared: Vec<String> =
        cluster.pods().iter().take(5).map(|p| p.metadata.name.clone().unwrap()).collect();
    for name in &shared {
        let patch = Patch::strategic(json!({ "metadata": { "ownerReferences": owner } }));
        cluster.admin.patch::<Pod>("default", name, "", &patch).await.unwrap();
    }
    let foreground = DeleteOptions::default().propagation(Propagation::Foreground);
    cluster.delete::<ReplicationController>("going", foreground).await;
    cluster.until::<ReplicationController>("it is gone", |all| all.len() == 1).await;
    let uid = going.metadata.uid.unwrap();
    cluster
        .until::<Pod>("half stay, and forget it", |pods| {
            pods.len() == 5 && owned_by(&pods.list(), &uid) == 0
        })
        .await;
    for pod in cluster.pods() {
        assert!(pod.metadata.deletion_timestamp.is_none());
        assert!(shared.contains(pod.metadata.name.as_ref().unwrap()));
    }
    cluster.stop().await;
}
