//! Claims, volumes and pods, with the real API server and scheduler.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use rimward_client::{DeleteOptions, Patch};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::Cluster;

fn claim(name: &str, spec: Value) -> Value {
    let mut whole =
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": whole})
}

fn user(name: &str, claim: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}})
}

fn phase(claim: Option<std::sync::Arc<PersistentVolumeClaim>>) -> Option<String> {
    claim?.status.as_ref()?.phase.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_comes_with_the_first_pod_and_goes_with_the_claim() {
    let cluster = Cluster::start().await;
    for node in ["n1", "n2"] {
        cluster.add_node(node, "64").await;
        let says =
            json!({"metadata": {"annotations": {"rimward.dev/local-volumes": format!("/{node}")}}});
        cluster.admin.patch::<Node>("", node, "", &Patch::strategic(says)).await.unwrap();
    }
    cluster
        .until::<StorageClass>("there is a default class", |c| c.get("", "local-path").is_some())
        .await;
    cluster
        .apply::<PersistentVolumeClaim>(claim("data", json!({"storageClassName": "local-path"})))
        .await;
    cluster.apply::<Pod>(user("first", "data")).await;
    cluster
        .until::<PersistentVolumeClaim>("it is bound", |all| {
            phase(all.get("default", "data")).as_deref() == Some("Bound")
        })
        .await;
    let placed = |pods: &rimward_client::Cache<Pod>, name: &str| {
        pods.get("default", name).and_then(|p| p.spec.as_ref()?.node_name.clone())
    };
    cluster.until::<Pod>("it has a node", |pods| placed(pods, "first").is_some()).await;
    // Whoever uses the claim next goes to the same node.
    for name in ["second", "third", "fourth"] {
        cluster.apply::<Pod>(user(name, "data")).await;
        cluster
            .until::<Pod>("where the volume is", |pods| {
                placed(pods, name).is_some_and(|node| Some(node) == placed(pods, "first"))
            })
            .await;
    }
    for name in ["first", "second", "third", "fourth"] {
        cluster.delete::<Pod>(name, DeleteOptions::default().grace(0)).await;
    }
    cluster.delete::<PersistentVolumeClaim>("data", DeleteOptions::default()).await;
    cluster.until::<PersistentVolume>("its volume goes", |all| all.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_an_administrator() {
    let cluster = Cluster::start().await;
    let volume = |name: &str, size: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size},
            "storageClassName": "manual", "hostPath": {"path": "/x"}}})
    };
    cluster.apply::<PersistentVolume>(volume("large", "10Gi")).await;
    cluster.apply::<PersistentVolume>(volume("small", "2Gi")).await;
    let state = |name: &'static str, wanted: &'static str| {
        move |all: &rimward_client::Cache<PersistentVolume>| {
            let volume = all.get("", name);
            volume.and_then(|v| v.status.as_ref()?.phase.clone()).as_deref() == Some(wanted)
        }
    };
    cluster.until::<PersistentVolume>("it can be had", state("small", "Available")).await;
    let manual = json!({"storageClassName": "manual"});
    cluster.apply::<PersistentVolumeClaim>(claim("one", manual.clone())).await;
    cluster.until::<PersistentVolume>("the smallest is bound", state("small", "Bound")).await;
    cluster
        .until::<PersistentVolumeClaim>("so is the claim", |all| {
            phase(all.get("default", "one")).as_deref() == Some("Bound")
        })
        .await;
    cluster.delete::<PersistentVolumeClaim>("one", DeleteOptions::default()).await;
    cluster.until::<PersistentVolume>("it is kept", state("small", "Released")).await;
    // The next claim gets the other, not what another left behind.
    cluster.apply::<PersistentVolumeClaim>(claim("one", manual)).await;
    cluster.until::<PersistentVolume>("the other is bound", state("large", "Bound")).await;
    cluster.stop().await;
}
