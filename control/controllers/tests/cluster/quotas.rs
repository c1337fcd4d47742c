use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::ResourceQuota;
use rimward_client::{DeleteOptions, Patch};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, deployment};

fn quota(hard: Value) -> Value {
    json!({"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}})
}

async fn until_used(cluster: &Cluster, what: &str, wanted: Value) {
    let wanted: BTreeMap<String, String> = serde_json::from_value(wanted).unwrap();
    cluster
        .until_one::<ResourceQuota>("q", what, |q| {
            let used = q.status.as_ref().and_then(|s| s.used.clone()).unwrap_or_default();
            let used: BTreeMap<String, String> = used.into_iter().map(|(k, v)| (k, v.0)).collect();
            used == wanted
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_counted_and_then_kept() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<Deployment>(deployment("web", 3, "v1")).await;
    cluster.rolled_out("web").await;
    let hard = json!({"pods": "5", "count/replicasets.apps": "9", "count/widgets.example.com": "1", "configmaps": "9", "resourcequotas": "1"});
    cluster.apply::<ResourceQuota>(quota(hard)).await;
    let used = |pods: &str| json!({"pods": pods, "count/replicasets.apps": "1", "count/widgets.example.com": "0", "configmaps": "1", "resourcequotas": "1"});
    until_used(&cluster, "counted", used("3")).await;
    // A Deployment grows to the quota, and says why no further.
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 8}})).await;
    until_used(&cluster, "full", used("5")).await;
    cluster
        .until::<ReplicaSet>("it says why", |sets| {
            let conditions = |s: &ReplicaSet| s.status.clone().and_then(|s| s.conditions);
            sets.list().iter().filter_map(|(_, s)| conditions(s)).flatten().any(|c| {
                c.type_ == "ReplicaFailure"
                    && c.message.is_some_and(|m| m.contains("exceeded quota: q"))
            })
        })
        .await;
    // The quota counts in the transaction of a create; who watches hears of it a moment later.
    cluster.until::<Pod>("as many are seen as count", |pods| pods.len() == 5).await;
    // More room is used; less room takes nothing away.
    let limit = |pods: &str| json!({"spec": {"hard": {"pods": pods}}});
    cluster.patch::<ResourceQuota>("q", limit("6")).await;
    until_used(&cluster, "raised", used("6")).await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 2}})).await;
    until_used(&cluster, "released", used("2")).await;
    // Whoever writes the status is corrected.
    let wrong = Patch::merge(json!({"status": {"hard": {"pods": "77"}}}));
    cluster.admin.patch::<ResourceQuota>("default", "q", "status", &wrong).await.unwrap();
    cluster
        .until_one::<ResourceQuota>("q", "corrected", |q| {
            let hard = q.status.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
            hard.get("pods").is_some_and(|q| q.0 == "6")
        })
        .await;
    until_used(&cluster, "still", used("2")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_and_compute() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let pod = |name: &str, deadline: Option<i64>| {
        json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"activeDeadlineSeconds": deadline, "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}]},
        })
    };
    cluster.apply::<Pod>(pod("short", Some(3600))).await;
    cluster.apply::<Pod>(pod("long", None)).await;
    let mut scoped = quota(json!({"pods": "9", "requests.cpu": "9", "requests.memory": "9Gi"}));
    scoped["spec"]["scopes"] = json!(["Terminating"]);
    cluster.apply::<ResourceQuota>(scoped).await;
    let used = |pods: &str, cpu: &str, memory: &str| json!({"pods": pods, "requests.cpu": cpu, "requests.memory": memory});
    until_used(&cluster, "only the short one counts", used("1", "500m", "1Gi")).await;
    cluster.apply::<Pod>(pod("another", Some(3600))).await;
    cluster.apply::<Pod>(pod("third", None)).await;
    until_used(&cluster, "and the next short one", used("2", "1", "2Gi")).await;
    cluster.delete::<Pod>("short", DeleteOptions::default().grace(0)).await;
    until_used(&cluster, "one is gone", used("1", "500m", "1Gi")).await;
    cluster.stop().await;
}
