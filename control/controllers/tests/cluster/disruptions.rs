use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use rimward_client::{Client, DeleteOptions, Error, Patch};
use rimward_control_controllers::pods;
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, deployment};

fn budget(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["selector"] = json!({ "matchLabels": { "app": "web" } });
    json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec })
}

async fn evict(client: &Client, pod: &str, dry_run: bool) -> Result<Value, Error> {
    let options = if dry_run { json!({ "dryRun": ["All"] }) } else { json!({}) };
    let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": pod, "namespace": "default" }, "deleteOptions": options });
    client.post_subresource::<Pod, Value>("default", pod, "eviction", &eviction).await
}

fn refusal(answer: Result<Value, Error>) -> String {
    let status = answer.unwrap_err().status().cloned().unwrap();
    assert_eq!(status.code, 429, "{status:?}");
    assert_eq!(status.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    let cause = serde_json::to_value(&status.details.unwrap().causes[0]).unwrap();
    assert_eq!(cause["reason"], "DisruptionBudget");
    cause["message"].as_str().unwrap().to_owned()
}

async fn allowed(cluster: &Cluster, name: &str, what: &str, n: i32) -> Arc<PodDisruptionBudget> {
    cluster
        .until_one::<PodDisruptionBudget>(name, what, |b| {
            let status = b.status.as_ref();
            status.is_some_and(|s| {
                s.observed_generation == b.metadata.generation && s.disruptions_allowed == Some(n)
            })
        })
        .await
}

fn pod(name: &str) -> Value {
    json!({ "metadata": { "name": name, "namespace": "default", "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "v1" }] } })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_waits_until_the_budget_allows_it() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    for name in ["a", "b", "c"] {
        cluster.apply::<Pod>(pod(name)).await;
    }
    cluster.apply::<PodDisruptionBudget>(budget("b", json!({ "minAvailable": 3 }))).await;
    let full = allowed(&cluster, "b", "nobody may go", 0).await;
    let healthy = |b: &PodDisruptionBudget| b.status.as_ref().unwrap().current_healthy.unwrap();
    if healthy(&full) < 3 {
        cluster.until_one::<PodDisruptionBudget>("b", "all are healthy", |b| healthy(b) == 3).await;
    }
    let client = &cluster.admin;
    let why = refusal(evict(client, "a", false).await);
    assert_eq!(why, "The disruption budget b needs 3 healthy pods and has 3 currently");
    refusal(evict(client, "a", true).await);
    cluster.patch::<PodDisruptionBudget>("b", json!({ "spec": { "minAvailable": 2 } })).await;
    allowed(&cluster, "b", "one may go", 1).await;
    // A rehearsal takes nothing.
    evict(client, "a", true).await.unwrap();
    assert!(client.get::<Pod>("default", "a").await.unwrap().metadata.deletion_timestamp.is_none());
    evict(client, "a", false).await.unwrap();
    cluster.until::<Pod>("it is gone", |pods| pods.get("default", "a").is_none()).await;
    allowed(&cluster, "b", "no other may", 0).await;
    refusal(evict(client, "b", false).await);
    // Nobody would say how many there should be: nothing is permitted, and it says why.
    let of_nobody = json!({ "spec": { "minAvailable": null, "maxUnavailable": 1 } });
    let patch = Patch::merge(of_nobody);
    client.patch::<PodDisruptionBudget>("default", "b", "", &patch).await.unwrap();
    allowed(&cluster, "b", "pods without an owner are not expected", 0).await;
    client.delete::<PodDisruptionBudget>("default", "b", &DeleteOptions::default()).await.unwrap();
    evict(client, "b", false).await.unwrap();
    cluster.until::<Pod>("it is gone", |pods| pods.get("default", "b").is_none()).await;
    cluster.stop().await;
}

/// How few pods were ready, and not going, at a time from now on.
fn fewest_healthy(cluster: &Cluster) -> Arc<AtomicUsize> {
    let (fewest, armed) =
        (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicBool::new(false)));
    let (low, measures, healthy) = (fewest.clone(), armed.clone(), Mutex::new(HashSet::new()));
    cluster.informers.of::<Pod>().on_change(move |change| {
        let mut healthy = healthy.lock().unwrap();
        let serves = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_none() && pods::is_ready(p);
        match change.new.filter(serves) {
            Some(_) => healthy.insert(change.key.clone()),
            None => healthy.remove(change.key),
        };
        if measures.load(Ordering::SeqCst) {
            low.fetch_min(healthy.len(), Ordering::SeqCst);
        }
    });
    armed.store(true, Ordering::SeqCst);
    fewest
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_evictions_as_many_as_allowed_succeed() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<Deployment>(deployment("web", 20, "v1")).await;
    cluster.rolled_out("web").await;
    cluster.apply::<PodDisruptionBudget>(budget("b", json!({ "maxUnavailable": "25%" }))).await;
    let budget = allowed(&cluster, "b", "a quarter may go", 5).await;
    assert_eq!(budget.status.as_ref().unwrap().expected_pods, Some(20));
    let fewest = fewest_healthy(&cluster);
    let names: Vec<String> =
        cluster.pods().iter().map(|p| p.metadata.name.clone().unwrap()).collect();
    let evictions = names.into_iter().map(|name| {
        let client = cluster.admin.clone();
        tokio::spawn(async move { evict(&client, &name, false).await.is_ok() })
    });
    let outcomes = futures::future::join_all(evictions.collect::<Vec<_>>()).await;
    let gone = outcomes.into_iter().filter(|o| *o.as_ref().unwrap()).count();
    assert!(gone >= 5, "{gone} of 5");
    cluster.rolled_out("web").await;
    allowed(&cluster, "b", "all are back", 5).await;
    let fewest = fewest.load(Ordering::SeqCst);
    assert!((15..20).contains(&fewest), "{fewest} of 20 were there at the least");
    // Two budgets for a pod are one too many.
    cluster.apply::<PodDisruptionBudget>(self::budget("c", json!({ "minAvailable": 0 }))).await;
    let name = cluster.pods()[0].metadata.name.clone().unwrap();
    let refused = evict(&cluster.admin, &name, false).await.unwrap_err();
    let status = refused.status().unwrap();
    assert_eq!(status.code, 500);
    assert!(status.message.contains("more than one PodDisruptionBudget"), "{}", status.message);
    cluster.stop().await;
}
