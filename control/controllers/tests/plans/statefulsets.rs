//! What a StatefulSet does next, for what is there.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use rimward_control_controllers::statefulset::identity::{self, Revision};
use rimward_control_controllers::statefulset::rollout::{Plan, Step, World, plan};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-02-01T00:00:00Z".parse().expect("a time")
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("such an object")
}

/// "ordinal state [revision [seconds ready]]"; states: ready, running, pending, failed, succeeded,
/// leaving, nameless; revisions: new (unless said), old.
fn pod(text: &str) -> Arc<Pod> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let seconds: u64 = words.get(3).map_or(3600, |s| s.parse().expect("seconds"));
    let at = (now() - Duration::from_secs(seconds)).to_string();
    let phase = match words[1] {
        "pending" => "Pending",
        "failed" => "Failed",
        "succeeded" => "Succeeded",
        _ => "Running",
    };
    let ready = matches!(words[1], "ready" | "leaving" | "nameless");
    let name = format!("s-{}", words[0]);
    let mut object = json!({
        "metadata": { "name": name, "namespace": "ns", "uid": name, "labels": {
            "app": "a", "controller-revision-hash": words.get(2).unwrap_or(&"new"),
        } },
        "spec": { "containers": [] },
        "status": { "phase": phase, "conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at,
        }] },
    });
    if words[1] != "nameless" {
        object["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] = json!(name);
    }
    if words[1] == "leaving" {
        object["metadata"]["deletionTimestamp"] = json!(at);
    }
    Arc::new(from(object))
}

/// A set of three, changed by what is said.
fn set(spec: Value) -> StatefulSet {
    let mut object = json!({
        "metadata": { "name": "s", "namespace": "ns", "uid": "set", "generation": 3 },
        "spec": {
            "replicas": 3, "serviceName": "svc", "selector": { "matchLabels": { "app": "a" } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } },
            "template": { "metadata": { "labels": { "app": "a" } } },
        },
        "status": { "replicas": 0, "currentReplicas": 1 },
    });
    for (key, value) in spec.as_object().expect("members") {
        object["spec"][key] = value.clone();
    }
    from(object)
}

fn template(image: &str) -> Value {
    json!({ "metadata": { "labels": { "app": "a" } }, "spec": {
        "containers": [{ "name": "c", "image": image }],
        "volumes": [{ "name": "data", "emptyDir": {} }, { "name": "own", "emptyDir": {} }],
    } })
}

fn planned(set: &StatefulSet, pods: &[&str], claims: &[Value], unseen: &[&str]) -> Plan {
    let pods: Vec<_> = pods.iter().map(|p| pod(p)).collect();
    let claims: BTreeMap<String, Arc<PersistentVolumeClaim>> = claims
        .iter()
        .map(|c| from::<PersistentVolumeClaim>(c.clone()))
        .map(|c| (c.metadata.name.clone().expect("a name"), Arc::new(c)))
        .collect();
    let revision = |name: &str| Revision { name: name.into(), template: from(template(name)) };
    plan(&World {
        set,
        current: &revision("old"),
        update: &revision("new"),
        collisions: 0,
        pods: &pods,
        deleted_unseen: &unseen.iter().map(|u| (*u).to_owned()).collect::<HashSet<String>>(),
        claim: &|name| claims.get(name).cloned(),
        now: now(),
    })
}

fn shown(step: &Step) -> String {
    let names = |claims: &[PersistentVolumeClaim]| -> String {
        claims.iter().map(|c| format!(" {}", c.metadata.name.as_deref().unwrap_or("?"))).collect()
    };
    match step {
        Step::Create { pod, claims } => {
            let labels = pod.metadata.labels.as_ref().expect("labels");
            let name = pod.metadata.name.as_deref().expect("a name");
            format!("create {name} {}{}", labels["controller-revision-hash"], names(claims))
        }
        Step::Blocked { pod, claim, going } => format!("blocked {pod} {claim} {going}"),
        Step::Claims { pod, claims } => format!("claims {pod}{}", names(claims)),
        Step::Reown { claim, contested } => {
            let owners = claim.metadata.owner_references.iter().flatten();
            let owners: Vec<&str> = owners.map(|o| o.name.as_str()).collect();
            let name = claim.metadata.name.as_deref().expect("a name");
            format!("{name} to {owners:?}{}", if *contested { " contested" } else { "" })
        }
        Step::Relabel { pod, ordinal } => {
            format!("relabel {} {ordinal}", pod.metadata.name.as_deref().expect("a name"))
        }
        Step::Delete(pod) => format!("delete {}", pod.metadata.name.as_deref().expect("a name")),
    }
}

#[track_caller]
fn check(spec: Value, pods: &[&str], expected: &[&str]) {
    let plan = planned(&set(spec), pods, &[], &[]);
    assert_eq!(plan.steps.iter().map(shown).collect::<Vec<_>>(), expected);
}

#[test]
fn one_after_the_other() {
    let ordered = || json!({});
    check(ordered(), &[], &["create s-0 new"]);
    check(ordered(), &["0 pending"], &[]);
    check(ordered(), &["0 running"], &[]);
    check(ordered(), &["0 ready"], &["create s-1 new"]);
    check(ordered(), &["0 ready", "2 ready"], &["create s-1 new"]);
    check(ordered(), &["0 ready", "1 leaving", "2 ready"], &[]);
    check(ordered(), &["0 ready", "1 ready", "2 ready"], &[]);
    // What ended is replaced, however it did.
    check(ordered(), &["0 failed", "1 ready"], &["delete s-0"]);
    check(ordered(), &["0 succeeded", "1 ready"], &["delete s-0"]);
    // Fewer: from the top, each once all below are well.
    let two = || json!({ "replicas": 1 });
    check(two(), &["0 ready", "1 ready", "2 ready"], &["delete s-2"]);
    check(two(), &["0 ready", "1 ready", "2 leaving"], &[]);
    check(two(), &["0 running", "1 ready", "2 ready"], &[]);
    check(two(), &["0 ready", "1 running", "2 ready"], &["delete s-2"]);
    check(two(), &["0 ready", "1 running", "2 running"], &[]);
    check(two(), &["0 ready", "1 ready", "2 running"], &["delete s-2"]);
    check(json!({ "replicas": 0 }), &["0 running"], &["delete s-0"]);
    // minReadySeconds
    check(json!({ "minReadySeconds": 10 }), &["0 ready new 9"], &[]);
    check(json!({ "minReadySeconds": 10 }), &["0 ready new 10"], &["create s-1 new"]);
    // Ordinals that do not start at 0.
    check(json!({ "ordinals": { "start": 5 } }), &["5 ready"], &["create s-6 new"]);
    check(
        json!({ "replicas": 1, "ordinals": { "start": 1 } }),
        &["0 ready", "1 ready", "2 ready"],
        &["delete s-2"],
    );
}

#[test]
fn all_at_once() {
    let parallel = |mut spec: Value| {
        spec["podManagementPolicy"] = json!("Parallel");
        spec
    };
    check(parallel(json!({})), &["1 running"], &["create s-0 new", "create s-2 new"]);
    check(
        parallel(json!({ "replicas": 1 })),
        &["0 running", "1 ready", "2 leaving"],
        &["delete s-1"],
    );
    check(parallel(json!({})), &["0 failed", "1 failed", "2 ready"], &["delete s-0", "delete s-1"]);
}

#[test]
fn updating() {
    let rolling = |said: Value| json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": said } });
    let old = ["0 ready old", "1 ready old", "2 ready old"];
    check(rolling(json!({ "partition": 0 })), &old, &["delete s-2"]);
    check(rolling(json!({ "partition": 2 })), &old, &["delete s-2"]);
    check(rolling(json!({ "partition": 3 })), &old, &[]);
    check(rolling(json!({ "maxUnavailable": 2 })), &old, &["delete s-2", "delete s-1"]);
    check(rolling(json!({ "maxUnavailable": "67%" })), &old, &["delete s-2", "delete s-1"]);
    check(rolling(json!({ "maxUnavailable": "1%" })), &old, &["delete s-2"]);
    check(rolling(Value::Null), &old, &["delete s-2"]);
    check(json!({ "updateStrategy": { "type": "OnDelete" } }), &old, &[]);
    let done = ["0 ready old", "1 ready old", "2 ready"];
    check(rolling(json!({ "partition": 0 })), &done, &["delete s-1"]);
    check(rolling(json!({ "partition": 2 })), &done, &[]);
    // One that is lost comes back at the revision it had.
    let lost = |said: Value, is: &str| check(rolling(said), &["1 ready old", "2 ready"], &[is]);
    lost(json!({ "partition": 1 }), "create s-0 old");
    lost(json!({ "partition": 0 }), "create s-0 new");
    lost(Value::Null, "create s-0 old");
    // A set that waits for none.
    let burst = |said: Value, pods: &[&str], expected: &[&str]| {
        let mut spec = rolling(said);
        spec["podManagementPolicy"] = json!("Parallel");
        check(spec, pods, expected);
    };
    burst(json!({}), &["0 ready old", "1 ready old", "2 running"], &[]);
    burst(json!({}), &["0 ready old", "1 ready old", "2 leaving"], &[]);
    burst(
        json!({ "maxUnavailable": 2 }),
        &["0 ready old", "1 ready old", "2 running"],
        &["delete s-1"],
    );
    // Pods that never become ready are not in their own way.
    burst(json!({}), &["0 running old", "1 running old", "2 running old"], &["delete s-2"]);
    burst(json!({}), &["0 running old", "1 running old", "2 running"], &[]);
    burst(json!({}), &["0 running old", "1 running old", "2 ready"], &["delete s-1"]);
    burst(json!({}), &["0 running old", "1 ready old", "2 ready"], &["delete s-0"]);
}

#[test]
fn what_was_done_and_does_not_show_yet() {
    let spec = json!({ "podManagementPolicy": "Parallel", "replicas": 1 });
    let plan = planned(&set(spec), &["0 ready", "1 ready", "2 ready"], &[], &["s-2"]);
    assert_eq!(plan.steps.iter().map(shown).collect::<Vec<_>>(), ["delete s-1"]);
    let old = ["0 ready old", "1 ready old", "2 ready old"];
    let plan = planned(&set(json!({})), &old, &[], &["s-2"]);
    assert_eq!(plan.steps, []);
}

#[test]
fn who_a_pod_is() {
    let claims = json!([{ "metadata": { "name": "data", "labels": { "l": "1" } }, "spec": { "accessModes": ["ReadWriteOnce"] } }]);
    let set = set(json!({ "replicas": 1, "volumeClaimTemplates": claims }));
    let plan = planned(&set, &[], &[], &[]);
    let [Step::Create { pod, claims }] = &plan.steps[..] else { panic!("{:?}", plan.steps) };
    let meta = serde_json::to_value(&pod.metadata).expect("JSON");
    let owner = json!([{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "uid": "set", "controller": true, "blockOwnerDeletion": true }]);
    let labels = json!({
        "app": "a", "apps.kubernetes.io/pod-index": "0", "controller-revision-hash": "new",
        "statefulset.kubernetes.io/pod-name": "s-0",
    });
    let expected = json!({ "name": "s-0", "generateName": "s-", "namespace": "ns", "labels": labels, "ownerReferences": owner });
    assert_eq!(meta, expected);
    let spec = serde_json::to_value(&pod.spec).expect("JSON");
    assert_eq!((&spec["hostname"], &spec["subdomain"]), (&json!("s-0"), &json!("svc")));
    let data = json!({ "name": "data", "persistentVolumeClaim": { "claimName": "data-s-0" } });
    assert_eq!(spec["volumes"], json!([data, { "name": "own", "emptyDir": {} }]));
    let claim = serde_json::to_value(&claims[0]).expect("JSON");
    let expected =
        json!({ "name": "data-s-0", "namespace": "ns", "labels": { "app": "a", "l": "1" } });
    assert_eq!(claim["metadata"], expected);
    assert_eq!(claim["spec"]["accessModes"], json!(["ReadWriteOnce"]));
    let named = |name| identity::ordinal("s", name);
    assert_eq!((named("s-0"), named("s-12")), (Some(0), Some(12)));
    for stranger in ["s", "s-", "s-01", "s-+1", "s-x", "t-1", "s-1-1", "s-4294967296"] {
        assert_eq!(named(stranger), None, "{stranger}");
    }
    assert!(identity::has_claim(&set, "data-s-7") && !identity::has_claim(&set, "data-t-7"));
    check(json!({ "replicas": 1 }), &["0 nameless"], &["relabel s-0 0"]);
}

/// A claim of a pod, owned by "kind/name/uid[/controller]".
fn claim(ordinal: i64, owners: &[&str]) -> Value {
    let owner = |text: &&str| {
        let words: Vec<&str> = text.split('/').collect();
        let version = if words[0] == "Pod" { "v1" } else { "apps/v1" };
        json!({ "apiVersion": version, "kind": words[0], "name": words[1], "uid": words[2], "controller": words.len() > 3 })
    };
    let owners: Vec<Value> = owners.iter().map(owner).collect();
    json!({ "metadata": { "name": format!("data-s-{ordinal}"), "namespace": "ns", "ownerReferences": owners } })
}

#[test]
fn claims_go_with_whom_they_are_to() {
    const SET: &str = "StatefulSet/s/set/controller";
    const POD: &str = "Pod/s-1/s-1/controller";
    /// A set of one, its pod 0 and the condemned pod 1; the claims of both have the owners.
    #[track_caller]
    fn check(deleted: &str, scaled: &str, owners: [&[&str]; 2], expected: &[&str]) {
        let spec = json!({
            "replicas": 1, "volumeClaimTemplates": [{ "metadata": { "name": "data" } }],
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": deleted, "whenScaled": scaled },
        });
        let claims = [claim(0, owners[0]), claim(1, owners[1])];
        let plan = planned(&set(spec), &["0 ready", "1 ready"], &claims, &[]);
        let steps: Vec<String> = plan.steps.iter().map(shown).collect();
        assert_eq!(steps, [expected, &["delete s-1"]].concat());
    }
    let (keep, gone) = ("Retain", "Delete");
    check(keep, keep, [&[], &[]], &[]);
    check(keep, keep, [&[SET], &[POD]], &["data-s-0 to []", "data-s-1 to []"]);
    check(gone, keep, [&[], &[SET]], &[r#"data-s-0 to ["s"]"#]);
    check(keep, gone, [&[], &[]], &[r#"data-s-1 to ["s-1"]"#]);
    check(keep, gone, [&[SET], &[POD]], &["data-s-0 to []"]);
    check(gone, gone, [&[], &[SET]], &[r#"data-s-0 to ["s"]"#, r#"data-s-1 to ["s-1"]"#]);
    check(gone, gone, [&[SET], &[POD]], &[]);
    // Owners that are none of ours stay; who does not control is made to.
    check(gone, keep, [&["Job/j/j"], &[SET]], &[r#"data-s-0 to ["j", "s"]"#]);
    check(gone, keep, [&["StatefulSet/s/set"], &[SET]], &[r#"data-s-0 to ["s"]"#]);
    // Another controller is left alone, and so is what an earlier set or pod of the name left.
    check(gone, keep, [&["Job/j/j/controller"], &[SET]], &[]);
    check(gone, keep, [&["Job/j/j/controller", SET], &[SET]], &[r#"data-s-0 to ["j"] contested"#]);
    check(gone, keep, [&["StatefulSet/s/earlier/controller"], &[SET]], &[]);
}

#[test]
fn claims_come_before_pods() {
    let spec = |scaled: &str| {
        json!({
            "replicas": 1, "volumeClaimTemplates": [{ "metadata": { "name": "data" } }],
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": scaled },
        })
    };
    let steps = |scaled: &str, pods: &[&str], claims: &[Value]| {
        let plan = planned(&set(spec(scaled)), pods, claims, &[]);
        plan.steps.iter().map(shown).collect::<Vec<_>>()
    };
    assert_eq!(steps("Retain", &[], &[]), ["create s-0 new data-s-0"]);
    assert_eq!(steps("Retain", &[], &[claim(0, &[])]), ["create s-0 new"]);
    assert_eq!(steps("Retain", &["0 pending"], &[]), ["claims s-0 data-s-0"]);
    let earlier = claim(0, &["Pod/s-0/earlier/controller"]);
    assert_eq!(steps("Retain", &[], std::slice::from_ref(&earlier)), ["create s-0 new"]);
    assert_eq!(steps("Delete", &[], &[earlier]), ["blocked s-0 data-s-0 false"]);
    let mut going = claim(0, &[]);
    going["metadata"]["deletionTimestamp"] = json!(now().to_string());
    assert_eq!(steps("Retain", &[], &[going]), ["blocked s-0 data-s-0 true"]);
}

#[test]
fn what_the_status_says() {
    let spec = json!({ "minReadySeconds": 10 });
    let pods = ["0 ready old", "1 ready new 7", "2 leaving new", "3 pending new"];
    let plan = planned(&set(spec), &pods, &[], &[]);
    let said = serde_json::to_value(&plan.status).expect("JSON");
    let expected = json!({
        "observedGeneration": 3, "replicas": 4, "readyReplicas": 3, "availableReplicas": 2,
        "currentReplicas": 1, "updatedReplicas": 2, "currentRevision": "old", "updateRevision": "new",
        "collisionCount": 0,
    });
    assert_eq!((said, plan.wake), (expected, Some(Duration::from_secs(3))));
    // Once all are updated that is what they are at.
    let plan = planned(&set(json!({})), &["0 ready", "1 ready", "2 ready"], &[], &[]);
    assert_eq!(plan.status.current_revision.as_deref(), Some("new"));
    assert_eq!(plan.status.current_replicas, Some(3));
    // One that goes for the update is not counted any more.
    let plan = planned(&set(json!({})), &["0 ready old", "1 ready old", "2 ready old"], &[], &[]);
    assert_eq!((plan.status.current_replicas, plan.status.replicas), (Some(2), 3));
    // One that is being deleted only says how it stands.
    let mut leaving = set(json!({}));
    leaving.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let plan = planned(&leaving, &["0 failed"], &[], &[]);
    assert_eq!((plan.steps.len(), plan.status.replicas), (0, 1));
}
