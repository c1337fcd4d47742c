use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Node};
use rimward_client::{DeleteOptions, Patch};
use rimward_control_controllers::Config;
use rimward_control_controllers::node_lifecycle::ready_status;
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, deployment};

fn impatient() -> Config {
    let short = Duration::from_millis(400);
    Config { node_monitor_grace: short, node_gone_quarantine: short, ..Config::default() }
}

/// A Lease as if the node were heard of for the next hour.
async fn keep_alive(cluster: &Cluster, node: &str) {
    let later = k8s_openapi::jiff::Timestamp::now() + Duration::from_secs(3600);
    let lease: Value = json!({
        "metadata": {"name": node, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": node, "renewTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(later)},
    });
    cluster.apply::<k8s_openapi::api::coordination::v1::Lease>(lease).await;
}

fn on(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_lost_node_move() {
    let cluster = Cluster::start_with(impatient()).await;
    keep_alive(&cluster, "n1").await;
    keep_alive(&cluster, "n2").await;
    cluster.add_node("n1", "64").await;
    cluster.add_node("n2", "64").await;
    let mut object = deployment("web", 4, "v1");
    object["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
    ]);
    cluster.apply::<Deployment>(object).await;
    cluster.rolled_out("web").await;
    let there = cluster.pods().into_iter().filter(|p| on(p) == Some("n1")).collect::<Vec<_>>();
    assert_eq!(there.len(), 2, "spread over both");
    for pod in &there {
        // Nobody ends these any more.
        cluster
            .patch::<Pod>(
                pod.metadata.name.as_deref().unwrap(),
                json!({"metadata": {"annotations": {"node-is-lost": "yes"}}}),
            )
            .await;
    }
    let past = json!({"spec": {"renewTime": "2020-01-01T00:00:00.000000Z"}});
    cluster
        .admin
        .patch::<k8s_openapi::api::coordination::v1::Lease>(
            "kube-node-lease",
            "n1",
            "",
            &Patch::merge(past),
        )
        .await
        .unwrap();
    // The hub wrote the condition anew when the node connected again; then it went for good.
    let again =
        json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Again"}]}});
    cluster.admin.patch::<Node>("", "n1", "status", &Patch::strategic(again)).await.unwrap();
    cluster
        .until_one::<Node>("n1", "unknown and tainted", |n| {
            let taints = n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
            let mut shown: Vec<String> =
                taints.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect();
            shown.sort();
            ready_status(n) == Some("Unknown")
                && shown
                    == [
                        "node.kubernetes.io/unreachable:NoExecute",
                        "node.kubernetes.io/unreachable:NoSchedule",
                    ]
        })
        .await;
    cluster
        .until::<Pod>("four ready ones on the other node, two ending on the lost one", |pods| {
            let all = pods.list_in("default");
            let here = all
                .iter()
                .filter(|(_, p)| {
                    on(p) == Some("n2") && rimward_control_controllers::pods::is_ready(p)
                })
                .count();
            let ending = all
                .iter()
                .filter(|(_, p)| on(p) == Some("n1") && p.metadata.deletion_timestamp.is_some())
                .count();
            here == 4 && ending == 2
        })
        .await;
    assert_eq!(ready_status(&cluster.informers.of::<Node>().get("", "n2").unwrap()), Some("True"));

    // Its object goes: so do the pods that nobody else will end.
    cluster.admin.delete::<Node>("", "n1", &DeleteOptions::default()).await.unwrap();
    cluster.until::<Pod>("no pods of the node that is gone", |pods| pods.len() == 4).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fits_nowhere_says_why_and_goes_once_it_fits() {
    let cluster = Cluster::start().await;
    cluster.add_node("small", "1").await;
    cluster.add_node("tainted", "64").await;
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    cluster.admin.patch::<Node>("", "tainted", "", &Patch::merge(taint)).await.unwrap();
    cluster
        .until_one::<Node>("tainted", "tainted", |n| {
            n.spec.as_ref().is_some_and(|s| s.taints.is_some())
        })
        .await;
    let pod = json!({
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}}]},
    });
    cluster.apply::<Pod>(pod).await;
    let text =
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}.";
    cluster
        .until_one::<Pod>("p", "it says why", |p| {
            let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
            conditions.into_iter().any(|c| {
                c.type_ == "PodScheduled"
                    && c.reason.as_deref() == Some("Unschedulable")
                    && c.message.as_deref() == Some(text)
            })
        })
        .await;
    cluster
        .until::<Event>("so does an event", |events| {
            events.list().iter().any(|(_, e)| {
                e.reason.as_deref() == Some("FailedScheduling")
                    && e.message.as_deref() == Some(text)
            })
        })
        .await;
    let started = std::time::Instant::now();
    cluster.add_node("large", "64").await;
    cluster.until_one::<Pod>("p", "bound", |p| on(p) == Some("large")).await;
    assert!(started.elapsed() < Duration::from_secs(5), "it is woken, not polled");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_bound_at_once() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "640").await;
    cluster.until::<Node>("seen", |nodes| nodes.len() == 1).await;
    let mut times = Vec::new();
    for i in 0..20 {
        let name = format!("p{i}");
        let pod = json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        });
        cluster.apply::<Pod>(pod).await;
        let created = std::time::Instant::now();
        cluster.until_one::<Pod>(&name, "bound", |p| on(p).is_some()).await;
        times.push(created.elapsed());
    }
    times.sort();
    eprintln!(
        "created to bound, as a watcher sees it: median {:?}, worst {:?}",
        times[10], times[19]
    );
    assert!(times[10] < Duration::from_millis(500), "nothing waits for a timer: {times:?}");
    cluster.stop().await;
}
