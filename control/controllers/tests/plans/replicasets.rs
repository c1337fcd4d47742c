use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::jiff::Timestamp;
use rimward_control_controllers::replicaset::{Counts, World, plan, rank_for_deletion, status};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-02-01T00:00:00Z".parse().expect("a time")
}

/// "name state[ seconds ready]"; states: ready, running, pending, unbound, failed, leaving.
fn pod(text: &str) -> Arc<Pod> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let seconds: i64 = words.get(2).map_or(3600, |s| s.parse().expect("seconds"));
    let at = (now() - Duration::from_secs(seconds as u64)).to_string();
    let ready = if words[1] == "ready" { "True" } else { "False" };
    let phase = match words[1] {
        "pending" | "unbound" => "Pending",
        "failed" => "Failed",
        _ => "Running",
    };
    let mut object: Value = json!({
        "metadata": {"name": words[0], "namespace": "ns", "uid": words[0], "labels": {"app": "a"}, "creationTimestamp": at},
        "spec": {"containers": [], "nodeName": if words[1] == "unbound" { "" } else { "n" }},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": at}]},
    });
    if words[1] == "leaving" {
        object["metadata"]["deletionTimestamp"] = json!(at);
    }
    Arc::new(serde_json::from_value(object).expect("a pod"))
}

fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
    let object = json!({
        "metadata": {"name": "s", "namespace": "ns", "uid": "s", "generation": 3},
        "spec": {"replicas": replicas, "minReadySeconds": min_ready, "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}}},
    });
    serde_json::from_value(object).expect("a ReplicaSet")
}

#[test]
fn how_many() {
    #[track_caller]
    fn check(
        replicas: i32,
        pods: &[&str],
        unseen: usize,
        deleted: &[&str],
        create: usize,
        delete: usize,
    ) {
        let pods: Vec<_> = pods.iter().map(|p| pod(p)).collect();
        let deleted: HashSet<String> = deleted.iter().map(|d| (*d).to_owned()).collect();
        let set = set(replicas, 0);
        let plan = plan(&World {
            set: &set,
            pods: &pods,
            created_unseen: unseen,
            deleted_unseen: &deleted,
            now: now(),
        });
        assert_eq!((plan.create, plan.delete), (create, delete));
    }
    check(3, &[], 0, &[], 3, 0);
    check(3, &["a ready"], 2, &[], 0, 0);
    check(3, &["a ready", "b failed", "c leaving"], 0, &[], 2, 0);
    check(1, &["a ready", "b ready"], 0, &[], 0, 1);
    check(1, &["a ready", "b ready"], 0, &["b"], 0, 0);
    check(2, &["a ready", "b ready"], 0, &["b"], 1, 0);
    check(0, &["a ready"], 3, &[], 0, 1);
    check(2000, &[], 0, &[], 500, 0);
}

#[test]
fn counts_and_when_to_look_again() {
    let pods: Vec<_> = ["a ready 100", "b ready 7", "c running", "d leaving", "e failed"]
        .iter()
        .map(|p| pod(p))
        .collect();
    let set = set(3, 10);
    let plan = plan(&World {
        set: &set,
        pods: &pods,
        created_unseen: 0,
        deleted_unseen: &HashSet::new(),
        now: now(),
    });
    let expected = Counts { replicas: 3, fully_labeled: 3, ready: 2, available: 1, terminating: 1 };
    assert_eq!((plan.counts, plan.wake), (expected, Some(Duration::from_secs(3))));
    let said = status(&set, plan.counts, Some(("FailedCreate", "no".into())), now());
    assert_eq!((said.available_replicas, said.observed_generation), (Some(1), Some(3)));
    let failing = ReplicaSet { status: Some(said.clone()), ..set };
    assert_eq!(
        status(&failing, plan.counts, Some(("FailedCreate", "again".into())), now()),
        said,
        "one condition, unchanged"
    );
    assert_eq!(status(&failing, plan.counts, None, now()).conditions, None);
}

#[test]
fn what_goes_first() {
    let mut pods: Vec<_> = [
        "old-ready ready 100000",
        "new-ready ready 10",
        "running running",
        "pending pending",
        "unbound unbound",
    ]
    .iter()
    .map(|p| pod(p))
    .collect();
    let mut cheap = (*pod("cheap ready 100000")).clone();
    cheap.metadata.annotations =
        Some([("controller.kubernetes.io/pod-deletion-cost".to_owned(), "-5".to_owned())].into());
    pods.push(Arc::new(cheap));
    let mut doubled = (*pod("doubled ready 100000")).clone();
    doubled.spec.get_or_insert_default().node_name = Some("crowded".into());
    pods.push(Arc::new(doubled));
    rank_for_deletion(
        &mut pods,
        &HashMap::from([("crowded".to_owned(), 2), ("n".to_owned(), 1)]),
        now(),
    );
    let order: Vec<&str> = pods.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
    assert_eq!(
        order,
        ["unbound", "pending", "running", "cheap", "doubled", "new-ready", "old-ready"]
    );
}
