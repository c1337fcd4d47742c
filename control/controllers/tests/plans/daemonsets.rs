//! What a DaemonSet does next, for what is there.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use rimward_control_controllers::daemonset::placement::{self, Placement, Wish};
use rimward_control_controllers::daemonset::rollout::{Plan, World, plan};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-02-01T00:00:00Z".parse().expect("a time")
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("such an object")
}

/// "node state [revision [seconds ready]]", named "node-state-revision"; states: ready, running, failed,
/// succeeded, leaving, ended (failed and leaving), waiting (not bound); revisions: new (unless said), old.
fn pod(text: &str) -> Arc<Pod> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let seconds: u64 = words.get(3).map_or(3600, |s| s.parse().expect("seconds"));
    let at = (now() - Duration::from_secs(seconds)).to_string();
    let phase = match words[1] {
        "waiting" => "Pending",
        "failed" | "ended" => "Failed",
        "succeeded" => "Succeeded",
        _ => "Running",
    };
    let ready = if words[1] == "ready" { "True" } else { "False" };
    let revision = words.get(2).copied().unwrap_or("new");
    let name = format!("{}-{}-{revision}", words[0], words[1]);
    let mut object = json!({
        "metadata": { "name": name, "namespace": "ns", "uid": name, "creationTimestamp": at,
            "labels": { "app": "a", "controller-revision-hash": revision } },
        "spec": { "containers": [], "nodeName": words[0] },
        "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": at }] },
    });
    if matches!(words[1], "leaving" | "ended") {
        object["metadata"]["deletionTimestamp"] = json!(at);
    }
    if words[1] == "waiting" {
        let made = placement::pod(&set(json!({})), revision, words[0]);
        object["spec"] = json!({ "affinity": made.spec.expect("a spec").affinity });
    }
    Arc::new(from(object))
}

/// "name [key=value:effect …]"
fn node(text: &str) -> Node {
    let mut words = text.split_whitespace();
    let name = words.next().expect("a name");
    let taints: Vec<Value> = words
        .map(|taint| {
            let (key, effect) = taint.split_once(':').expect("an effect");
            json!({ "key": key, "effect": effect })
        })
        .collect();
    from(
        json!({ "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } }, "spec": { "taints": taints } }),
    )
}

fn set(spec: Value) -> DaemonSet {
    let mut object = json!({
        "metadata": { "name": "d", "namespace": "ns", "uid": "set", "generation": 2,
            "annotations": { "deprecated.daemonset.template.generation": "2" } },
        "spec": {
            "selector": { "matchLabels": { "app": "a" } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "template": { "metadata": { "labels": { "app": "a" } } },
        },
    });
    for (key, value) in spec.as_object().expect("members") {
        object["spec"][key] = value.clone();
    }
    from(object)
}

fn planned(spec: Value, nodes: &[&str], pods: &[&str], settled: bool) -> Plan {
    plan(&World {
        set: &set(spec),
        nodes: &nodes.iter().map(|n| Arc::new(node(n))).collect::<Vec<_>>(),
        pods: &pods.iter().map(|p| pod(p)).collect::<Vec<_>>(),
        hash: "new",
        collisions: None,
        settled,
        backoff: &|node| Duration::from_secs(if node == "bad" { 4 } else { 0 }),
        now: now(),
    })
}

fn deleted(plan: &Plan) -> Vec<&str> {
    plan.delete.iter().map(|p| p.metadata.name.as_deref().expect("a name")).collect()
}

#[track_caller]
fn check(spec: Value, nodes: &[&str], pods: &[&str], create: &[&str], delete: &[&str]) {
    let plan = planned(spec, nodes, pods, true);
    assert_eq!(
        (plan.create.iter().map(String::as_str).collect(), deleted(&plan)),
        (create.to_vec(), delete.to_vec())
    );
}

#[test]
fn one_pod_a_node() {
    let plain = || json!({});
    check(plain(), &["a", "b"], &[], &["a", "b"], &[]);
    check(plain(), &["a", "b"], &["a ready"], &["b"], &[]);
    check(plain(), &["a", "b"], &["a ready", "b waiting"], &[], &[]);
    // The oldest stays; one that is bound before one that is not.
    check(plain(), &["a"], &["a ready new 10", "a running new 20"], &[], &["a-ready-new"]);
    check(plain(), &["a"], &["a ready new 10", "a waiting new 20"], &[], &["a-waiting-new"]);
    // Its successor comes when it is gone; one that ended is as good as gone.
    check(plain(), &["a"], &["a leaving"], &[], &[]);
    check(plain(), &["a"], &["a ended"], &["a"], &[]);
    check(plain(), &["a"], &["a failed"], &[], &["a-failed-new"]);
    check(plain(), &["a"], &["a succeeded"], &[], &["a-succeeded-new"]);
    check(plain(), &["bad"], &["bad failed"], &[], &[]);
    // A node that is gone takes its pods along, but nobody takes those that it never had.
    check(plain(), &[], &["a ready", "b waiting"], &[], &["b-waiting-new"]);
    let taint = "b example.com/x:NoSchedule";
    check(plain(), &["a", taint], &[], &["a"], &[]);
    check(plain(), &["a", taint], &["a ready", "b ready"], &[], &[]);
    let taint = "b example.com/x:NoExecute";
    check(plain(), &["a", taint], &["a ready", "b ready"], &[], &["b-ready-new"]);
}

#[test]
fn why_it_did_so() {
    let plan =
        planned(json!({}), &["a", "b", "bad"], &["a failed", "b succeeded", "bad failed"], true);
    let told: Vec<_> =
        plan.events.iter().map(|(_, reason, text)| (*reason, text.as_str())).collect();
    assert_eq!(
        told,
        [
            (
                "FailedDaemonPod",
                "Found failed daemon pod ns/a-failed-new on node a, will try to kill it"
            ),
            (
                "SucceededDaemonPod",
                "Found succeeded daemon pod ns/b-succeeded-new on node b, will try to delete it"
            ),
        ]
    );
    assert_eq!((plan.failed, plan.wake), (vec!["a".to_owned()], Some(Duration::from_secs(4))));
}

#[test]
fn replacing() {
    let strategy = |said: Value| json!({ "minReadySeconds": 10, "updateStrategy": said });
    let unavailable = |n: Value| {
        strategy(json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": n } }))
    };
    let nodes = ["a", "b", "c"];
    let old = ["a ready old", "b ready old", "c ready old"];
    check(unavailable(json!(1)), &nodes, &old, &[], &["a-ready-old"]);
    check(unavailable(json!(2)), &nodes, &old, &[], &["a-ready-old", "b-ready-old"]);
    check(unavailable(json!("34%")), &nodes, &old, &[], &["a-ready-old", "b-ready-old"]);
    check(strategy(json!({ "type": "OnDelete" })), &nodes, &old, &[], &[]);
    // One is on its way already, or is not ready for long enough.
    check(
        unavailable(json!(1)),
        &nodes,
        &["a leaving old", "b ready old", "c ready old"],
        &[],
        &[],
    );
    check(
        unavailable(json!(1)),
        &nodes,
        &["a ready new 9", "b ready old", "c ready old"],
        &[],
        &[],
    );
    check(
        unavailable(json!(1)),
        &nodes,
        &["a ready new 10", "b ready old", "c ready old"],
        &[],
        &["b-ready-old"],
    );
    // Old ones that are not available go in any case, but before others.
    check(
        unavailable(json!(1)),
        &nodes,
        &["a ready old", "b running old", "c running old"],
        &[],
        &["b-running-old", "c-running-old"],
    );
    // What is missing comes first.
    check(unavailable(json!(1)), &nodes, &["a ready old", "b ready old"], &["c"], &[]);
}

#[test]
fn surging() {
    let surge = |n: Value| json!({ "minReadySeconds": 10, "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": n, "maxUnavailable": 0 } } });
    let nodes = ["a", "b", "c"];
    let old = ["a ready old", "b ready old", "c ready old"];
    check(surge(json!(1)), &nodes, &old, &["a"], &[]);
    check(surge(json!("50%")), &nodes, &old, &["a", "b"], &[]);
    let with = |pods: &[&'static str]| [&old[..], pods].concat();
    check(surge(json!(1)), &nodes, &with(&["a running"]), &[], &[]);
    check(surge(json!(1)), &nodes, &with(&["a ready new 9"]), &[], &[]);
    check(surge(json!(1)), &nodes, &with(&["a ready new 10"]), &[], &["a-ready-old"]);
    // The old one is no use any more: the new one need not wait for it, nor it for the new one.
    check(
        surge(json!(1)),
        &nodes,
        &["a running old", "b running old", "c ready old"],
        &["a", "b", "c"],
        &[],
    );
    check(
        surge(json!(1)),
        &nodes,
        &["a running old", "a running", "b ready", "c ready"],
        &[],
        &["a-running-old"],
    );
    // One that is going does not keep its successor waiting.
    check(surge(json!(1)), &nodes, &["a leaving", "b ready", "c ready"], &["a"], &[]);
    // Pods leave nodes that they no longer belong on once others are there.
    let taint = "c example.com/x:NoSchedule";
    check(surge(json!(1)), &["a", taint], &["a ready", "c ready old"], &[], &["c-ready-old"]);
    check(surge(json!(1)), &["a", taint], &["a running", "c ready old"], &[], &[]);
    check(surge(json!(1)), &["a", taint], &["a running", "c running old"], &[], &["c-running-old"]);
}

#[test]
fn what_the_status_says() {
    let nodes = ["a", "b", "c", "d", "e example.com/x:NoSchedule"];
    let pods = ["a ready", "b ready new 7", "c running old", "e ready"];
    let plan = planned(json!({ "minReadySeconds": 10 }), &nodes, &pods, true);
    let said = serde_json::to_value(&plan.status).expect("JSON");
    let expected = json!({
        "observedGeneration": 2, "desiredNumberScheduled": 4, "currentNumberScheduled": 3,
        "numberMisscheduled": 1, "numberReady": 2, "numberAvailable": 1, "numberUnavailable": 3,
        "updatedNumberScheduled": 2,
    });
    assert_eq!((said, plan.wake), (expected, Some(Duration::from_secs(3))));
    // What it did is not seen yet: it neither does it again nor says that it is done.
    let plan = planned(json!({}), &["a"], &[], false);
    assert_eq!((plan.create.len(), plan.status.observed_generation), (0, None));
}

#[test]
fn where_it_belongs() {
    #[track_caller]
    fn check(pod: Value, node_: &str, expected: Wish) {
        let template =
            json!({ "template": { "metadata": { "labels": { "app": "a" } }, "spec": pod } });
        assert_eq!(Placement::new(&set(template)).wish(&node(node_)), expected);
    }
    for condition in [
        "not-ready:NoExecute",
        "unreachable:NoExecute",
        "disk-pressure:NoSchedule",
        "memory-pressure:NoSchedule",
        "pid-pressure:NoSchedule",
        "unschedulable:NoSchedule",
    ] {
        check(json!({}), &format!("n node.kubernetes.io/{condition}"), Wish::Run);
    }
    let unwired = "n node.kubernetes.io/network-unavailable:NoSchedule";
    check(json!({}), unwired, Wish::Stay);
    check(json!({ "hostNetwork": true }), unwired, Wish::Run);
    check(json!({}), "n k:PreferNoSchedule", Wish::Run);
    check(json!({}), "n k:NoSchedule l:NoExecute", Wish::Leave);
    check(
        json!({ "tolerations": [{ "operator": "Exists" }] }),
        "n k:NoSchedule l:NoExecute",
        Wish::Run,
    );
    check(json!({ "nodeSelector": { "kubernetes.io/hostname": "n" } }), "n", Wish::Run);
    check(json!({ "nodeSelector": { "kubernetes.io/hostname": "m" } }), "n", Wish::Leave);
    check(json!({ "nodeName": "m" }), "n", Wish::Leave);
    let wants = |name: &str| {
        json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] }] } } } })
    };
    check(wants("n"), "n", Wish::Run);
    check(wants("m"), "n", Wish::Leave);
}

#[test]
fn what_a_pod_looks_like() {
    let template = json!({ "template": { "metadata": { "labels": { "app": "a" } }, "spec": {
        "containers": [], "tolerations": [
            { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5 },
            { "key": "mine", "operator": "Exists" }] } } });
    let pod = serde_json::to_value(placement::pod(&set(template), "h", "n")).expect("JSON");
    assert_eq!(pod["metadata"]["generateName"], "d-");
    let labels =
        json!({ "app": "a", "controller-revision-hash": "h", "pod-template-generation": "2" });
    assert_eq!(pod["metadata"]["labels"], labels);
    let tolerations: Vec<&str> = pod["spec"]["tolerations"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|t| t["key"].as_str().map(|k| k.trim_start_matches("node.kubernetes.io/")))
        .collect();
    assert_eq!(
        tolerations,
        [
            "not-ready",
            "mine",
            "unreachable",
            "disk-pressure",
            "memory-pressure",
            "pid-pressure",
            "unschedulable"
        ]
    );
    assert_eq!(pod["spec"]["tolerations"][0]["tolerationSeconds"], Value::Null);
    let lean: Pod = from(pod);
    assert_eq!(placement::target(&lean), Some("n"));
    assert!(
        placement::is_updated(&lean, "h", None) && placement::is_updated(&lean, "other", Some(2))
    );
    assert!(
        !placement::is_updated(&lean, "other", Some(3)) && !placement::is_updated(&lean, "", None)
    );
}
