use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Event;
use rimward_client::ListOptions;
use rimward_control_lean::Pod;
use serde_json::json;

use crate::cluster::{Cluster, NEVER_READY, deployment, image, template};

fn row(revision: &str, replicas: i32, image: &str) -> (String, i32, String) {
    (revision.into(), replicas, image.into())
}

fn reason(d: &Deployment, kind: &str) -> String {
    let condition =
        d.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == kind);
    condition
        .map(|c| format!("{} {}", c.status, c.reason.clone().unwrap_or_default()))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn rolls_and_undoes() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<Deployment>(deployment("web", 4, "v1")).await;
    let first = cluster.rolled_out("web").await;
    assert_eq!(cluster.history("web"), [row("1", 4, "v1")]);
    cluster
        .until_one::<Deployment>("web", "complete", |d| {
            reason(d, "Progressing") == "True NewReplicaSetAvailable"
        })
        .await;
    assert_eq!(reason(&first, "Available"), "True MinimumReplicasAvailable");

    cluster.patch::<Deployment>("web", image("v2")).await;
    cluster.rolled_out("web").await;
    assert_eq!(cluster.history("web"), [row("1", 0, "v1"), row("2", 4, "v2")]);

    // What `kubectl rollout undo` does: the old template, patched back in.
    cluster.patch::<Deployment>("web", image("v1")).await;
    let undone = cluster.rolled_out("web").await;
    assert_eq!(cluster.history("web"), [row("2", 0, "v2"), row("3", 4, "v1")]);
    let annotations = undone.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations.get("deployment.kubernetes.io/revision").map(String::as_str), Some("3"));

    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    cluster.rolled_out("web").await;
    assert_eq!(cluster.history("web"), [row("2", 0, "v2"), row("3", 1, "v1")]);

    cluster
        .until::<Event>("events tell of it", |events| {
            let told = |reason: &str, text: &str| {
                events.list().iter().any(|(_, e)| {
                    e.reason.as_deref() == Some(reason)
                        && e.message.as_deref().is_some_and(|m| m.contains(text))
                })
            };
            told("ScalingReplicaSet", "Scaled up replica set web-")
                && told("SuccessfulCreate", "Created pod: web-")
                && told("Scheduled", "to n1")
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_rollout_keeps_what_works_and_times_out() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let mut object = deployment("web", 4, "v1");
    object["spec"]["progressDeadlineSeconds"] = json!(2);
    object["spec"]["minReadySeconds"] = json!(1);
    cluster.apply::<Deployment>(object).await;
    cluster.rolled_out("web").await;
    cluster.patch::<Deployment>("web", image(NEVER_READY)).await;
    let stuck = cluster
        .until_one::<Deployment>("web", "stuck", |d| {
            reason(d, "Progressing") == "False ProgressDeadlineExceeded"
        })
        .await;
    let status = stuck.status.clone().unwrap();
    assert_eq!(
        (status.available_replicas, status.updated_replicas, status.replicas),
        (Some(3), Some(2), Some(5))
    );
    assert_eq!(cluster.history("web"), [row("1", 3, "v1"), row("2", 2, NEVER_READY)]);
    cluster.patch::<Deployment>("web", image("v1")).await;
    cluster.rolled_out("web").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_pause_and_history_limit() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let mut object = deployment("web", 2, "v1");
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    object["spec"]["revisionHistoryLimit"] = json!(1);
    cluster.apply::<Deployment>(object).await;
    cluster.rolled_out("web").await;
    for version in ["v2", "v3"] {
        cluster.patch::<Deployment>("web", image(version)).await;
        cluster.rolled_out("web").await;
    }
    cluster.until::<ReplicaSet>("one old one is kept", |sets| sets.len() == 2).await;
    assert_eq!(cluster.history("web"), [row("2", 0, "v2"), row("3", 2, "v3")]);

    cluster.patch::<Deployment>("web", json!({"spec": {"paused": true}})).await;
    cluster
        .until_one::<Deployment>("web", "paused", |d| {
            reason(d, "Progressing") == "Unknown DeploymentPaused"
        })
        .await;
    cluster.patch::<Deployment>("web", image("v4")).await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 3}})).await;
    cluster
        .until::<ReplicaSet>("scaled though paused", |_| {
            cluster.history("web").contains(&row("3", 3, "v3"))
        })
        .await;
    assert!(!cluster.history("web").iter().any(|(_, _, image)| image == "v4"));
    cluster.patch::<Deployment>("web", json!({"spec": {"paused": false}})).await;
    cluster.rolled_out("web").await;
    assert!(cluster.history("web").contains(&row("4", 3, "v4")));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_replicas_are_a_thousand_pods() {
    let cluster = Cluster::start().await;
    for i in 0..4 {
        cluster.add_node(&format!("n{i}"), "640").await;
    }
    let created = Arc::new(AtomicUsize::new(0));
    let count = created.clone();
    cluster.informers.of::<Pod>().on_change(move |change| {
        count.fetch_add(usize::from(change.old.is_none()), Ordering::Relaxed);
    });
    let started = std::time::Instant::now();
    cluster.apply::<Deployment>(deployment("big", 1000, "v1")).await;
    cluster.until::<Pod>("created", |pods| pods.len() == 1000).await;
    let made = started.elapsed();
    cluster
        .until::<Pod>("bound", |pods| {
            pods.list().iter().all(|(_, p)| p.spec.as_ref().is_some_and(|s| s.node_name.is_some()))
        })
        .await;
    let bound = started.elapsed();
    cluster.rolled_out("big").await;
    eprintln!(
        "1,000 replicas: created in {made:?}, bound in {bound:?}, rolled out in {:?}",
        started.elapsed()
    );
    let ever = created.load(Ordering::Relaxed);
    assert_eq!(ever, 1000, "no pod is ever created but those that are asked for");
    for i in 0..4 {
        let node = format!("n{i}");
        let here = cluster
            .pods()
            .iter()
            .filter(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some(&node))
            .count();
        assert!((200..=300).contains(&here), "{node} has {here} of 1,000");
    }
    cluster.patch::<Deployment>("big", json!({"spec": {"replicas": 10}})).await;
    cluster.until::<Pod>("scaled down", |pods| pods.len() == 10).await;
    assert_eq!(created.load(Ordering::Relaxed), ever, "scaling down creates nothing");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_sets_adopt_release_and_replace() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let bare = json!({
        "metadata": {"name": "bare", "namespace": "default", "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    cluster.apply::<Pod>(bare).await;
    // A set that does not see it yet makes two of its own, and then has one too many.
    cluster.until::<Pod>("the bare pod seen", |pods| pods.get("default", "bare").is_some()).await;
    let set = json!({
        "metadata": {"name": "set", "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": template("a", "i")},
    });
    cluster.apply::<ReplicaSet>(set).await;
    let ready = |n: i32| {
        move |s: &ReplicaSet| {
            s.status.as_ref().is_some_and(|s| s.ready_replicas == Some(n) && s.replicas == n)
        }
    };
    cluster.until_one::<ReplicaSet>("set", "two ready", ready(2)).await;
    assert_eq!(cluster.pods().len(), 2, "the bare one counts");
    cluster.patch::<Pod>("bare", json!({"metadata": {"labels": {"app": "other"}}})).await;
    cluster
        .until::<Pod>("released and replaced", |pods| {
            let free =
                pods.get("default", "bare").is_some_and(|p| p.metadata.owner_references.is_none());
            free && pods.len() == 3
        })
        .await;
    cluster.until_one::<ReplicaSet>("set", "two ready again", ready(2)).await;
    let events = cluster.admin.list::<Event>("default", &ListOptions::default()).await.unwrap();
    assert!(!events.items.iter().any(|e| e.reason.as_deref() == Some("SuccessfulDelete")));
    cluster.stop().await;
}
