use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use rimward_client::DeleteOptions;
use rimward_control_lean::Pod;
use serde_json::json;

use crate::cluster::{Cluster, deployment};

#[tokio::test(flavor = "multi_thread")]
async fn life_and_death() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<Namespace>(json!({"metadata": {"name": "ns"}})).await;
    cluster
        .until::<ServiceAccount>("its default account", |all| all.get("ns", "default").is_some())
        .await;
    cluster
        .until::<ConfigMap>("its CA", |maps| {
            let data = maps.get("ns", "kube-root-ca.crt").and_then(|m| m.data.clone());
            data.is_some_and(|d| d.get("ca.crt").is_some_and(|ca| ca == "a CA"))
        })
        .await;
    // Both come back.
    cluster
        .admin
        .delete::<ConfigMap>("ns", "kube-root-ca.crt", &DeleteOptions::default())
        .await
        .unwrap();
    cluster
        .until::<ConfigMap>("its CA again", |maps| maps.get("ns", "kube-root-ca.crt").is_some())
        .await;

    let mut object = deployment("web", 3, "v1");
    object["metadata"]["namespace"] = json!("ns");
    cluster.apply::<Deployment>(object).await;
    cluster
        .until::<Pod>("running", |pods| {
            let running = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
            pods.list_in("ns").iter().filter(|(_, p)| running(p)).count() == 3
        })
        .await;
    let held = json!({"metadata": {"name": "held", "namespace": "ns", "finalizers": ["example.com/hold"]}});
    cluster.apply::<ConfigMap>(held).await;
    cluster.admin.delete::<Namespace>("", "ns", &DeleteOptions::default()).await.unwrap();
    cluster
        .until::<Namespace>("it says what holds it", |all| {
            let conditions = all.get("", "ns").and_then(|n| n.status.clone()?.conditions);
            conditions.into_iter().flatten().any(|c| {
                c.type_ == "NamespaceFinalizersRemaining"
                    && c.status == "True"
                    && c.message.is_some_and(|m| m.contains("example.com/hold in 1"))
            })
        })
        .await;
    let release = rimward_client::Patch::merge(json!({"metadata": {"finalizers": null}}));
    cluster.admin.patch::<ConfigMap>("ns", "held", "", &release).await.unwrap();
    cluster.until::<Namespace>("it goes", |all| all.get("", "ns").is_none()).await;
    assert_eq!(cluster.informers.of::<Deployment>().list_in("ns").len(), 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_go_first_and_a_thousand_objects_go_fast() {
    let cluster = Cluster::start().await;
    cluster.apply::<Namespace>(json!({"metadata": {"name": "ns"}})).await;
    let objects: Vec<ConfigMap> = (0..1000)
        .map(|i| {
            let object = json!({"metadata": {"name": format!("m{i}"), "namespace": "ns"}});
            serde_json::from_value(object).unwrap()
        })
        .collect();
    for batch in objects.chunks(50) {
        let made = batch.iter().map(|map| cluster.admin.create(map));
        futures::future::try_join_all(made).await.unwrap();
    }
    let held = json!({
        "metadata": {"name": "held", "namespace": "ns", "finalizers": ["example.com/hold"]},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    cluster.apply::<Pod>(held).await;
    cluster.until::<ConfigMap>("all are seen", |maps| maps.list_in("ns").len() >= 1000).await;
    cluster.admin.delete::<Namespace>("", "ns", &DeleteOptions::default()).await.unwrap();
    cluster
        .until::<Namespace>("it waits for the pod", |all| {
            let conditions = all.get("", "ns").and_then(|n| n.status.clone()?.conditions);
            conditions.into_iter().flatten().any(|c| {
                c.type_ == "NamespaceContentRemaining"
                    && c.status == "True"
                    && c.message.is_some_and(|m| m.contains("pods. has 1 resource instances"))
            })
        })
        .await;
    let maps = cluster.informers.of::<ConfigMap>().list_in("ns");
    assert!(maps.len() >= 1000, "nothing that a pod may use goes before it: {}", maps.len());
    assert!(maps.iter().all(|(_, m)| m.metadata.deletion_timestamp.is_none()));
    let started = std::time::Instant::now();
    let release = rimward_client::Patch::merge(json!({"metadata": {"finalizers": null}}));
    cluster.admin.patch::<Pod>("ns", "held", "", &release).await.unwrap();
    cluster.until::<Namespace>("it goes", |all| all.get("", "ns").is_none()).await;
    eprintln!("1,000 objects went in {:?}", started.elapsed());
    cluster.stop().await;
}
