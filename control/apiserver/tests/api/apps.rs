//! What Kubernetes' own tests of workloads ask of the API alone, whoever makes the pods: every verb, the
//! status and the scale.

use serde_json::{Value, json};

use crate::cluster::{Client, Cluster};

const STRATEGIC: [(&str, &str); 1] = [("content-type", "application/strategic-merge-patch+json")];

fn template() -> Value {
    json!({ "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } })
}

fn selecting(more: Value) -> Value {
    let mut spec = json!({ "selector": { "matchLabels": { "app": "x" } }, "template": template() });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

/// Group and version, resource, kind, specification.
fn workloads() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let mut job = template();
    job["spec"]["restartPolicy"] = "Never".into();
    job["metadata"] = json!({});
    vec![
        ("apps/v1", "deployments", "Deployment", selecting(json!({ "replicas": 2 }))),
        ("apps/v1", "replicasets", "ReplicaSet", selecting(json!({ "replicas": 2 }))),
        (
            "apps/v1",
            "statefulsets",
            "StatefulSet",
            selecting(json!({ "replicas": 2, "serviceName": "x" })),
        ),
        ("apps/v1", "daemonsets", "DaemonSet", selecting(json!({}))),
        ("batch/v1", "jobs", "Job", json!({ "template": job, "suspend": true })),
        (
            "batch/v1",
            "cronjobs",
            "CronJob",
            json!({ "schedule": "*/1 * * * *", "jobTemplate": { "spec": { "template": job } } }),
        ),
        (
            "v1",
            "replicationcontrollers",
            "ReplicationController",
            json!({ "replicas": 2, "selector": { "app": "x" }, "template": template() }),
        ),
        (
            "policy/v1",
            "poddisruptionbudgets",
            "PodDisruptionBudget",
            json!({ "minAvailable": 1, "selector": { "matchLabels": { "app": "x" } } }),
        ),
    ]
}

fn collection(version: &str, resource: &str) -> (String, String) {
    let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    (format!("{root}/namespaces/default/{resource}"), format!("{root}/{resource}"))
}

fn count(list: &Value) -> usize {
    list["items"].as_array().unwrap().len()
}

async fn life(c: &Client, version: &str, resource: &str, kind: &str, spec: Value) {
    let (here, everywhere) = collection(version, resource);
    let object = |name: &str| json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name, "labels": { "e2e": "true" } }, "spec": spec });
    let path = format!("{here}/a");
    let mut watch = c.watch(&format!("{here}?watch=true&labelSelector=e2e%3Dtrue")).await;
    c.post(&here, &object("a")).await.expect(201);
    assert_eq!(watch.brief().await, ("ADDED".into(), "a".into()), "{kind}");
    let selected = "?labelSelector=e2e%3Dtrue";
    assert_eq!(count(&c.get(&format!("{everywhere}{selected}")).await.expect(200)), 1, "{kind}");
    // Patched, put, dry.
    let patch = json!({ "metadata": { "annotations": { "patched": "true" } } }).to_string();
    let patched = c.send("PATCH", &path, &STRATEGIC, patch).await.expect(200);
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true", "{kind}");
    assert_eq!(watch.brief().await, ("MODIFIED".into(), "a".into()), "{kind}");
    let mut put = patched;
    put["metadata"]["annotations"]["updated"] = "true".into();
    let put = c.put(&path, &put).await.expect(200);
    assert_eq!(put["metadata"]["annotations"]["updated"], "true", "{kind}");
    let label = json!({ "metadata": { "labels": { "dry": "1" } } });
    let dry = c.merge(&format!("{path}?dryRun=All"), &label).await.expect(200);
    assert_eq!(dry["metadata"]["labels"]["dry"], "1", "{kind}");
    assert!(c.get(&path).await.expect(200)["metadata"]["labels"].get("dry").is_none(), "{kind}");
    // The status is its own: a write of it leaves the rest alone, and the other way round.
    let status = format!("{path}/status");
    if kind != "CronJob" {
        let mut condition = json!({ "type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from a test" });
        if kind == "PodDisruptionBudget" {
            condition["lastTransitionTime"] = "2026-01-01T00:00:00Z".into();
        }
        let mut sent = c.get(&status).await.expect(200);
        sent["status"]["conditions"] = json!([condition]);
        sent["spec"] = object("a")["spec"].clone();
        let told = c.put(&status, &sent).await.expect(200);
        assert_eq!(told["status"]["conditions"][0]["type"], "StatusUpdate", "{kind}");
        let mut patch = condition.clone();
        patch["type"] = "StatusPatched".into();
        let patch = json!({ "status": { "conditions": [patch] }, "metadata": { "annotations": { "patchedstatus": "true" } } });
        let told = c.merge(&status, &patch).await.expect(200);
        assert_eq!(told["status"]["conditions"][0]["type"], "StatusPatched", "{kind}");
        assert_eq!(told["metadata"]["annotations"]["patchedstatus"], "true", "{kind}");
        let mut main = told.clone();
        main["status"] = json!({});
        assert_eq!(c.put(&path, &main).await.expect(200)["status"], told["status"], "{kind}");
    } else {
        let time = "2026-01-01T00:00:00Z";
        let told = c.merge(&status, &json!({ "status": { "lastScheduleTime": time } })).await;
        assert_eq!(told.expect(200)["status"]["lastScheduleTime"], time);
    }
    if matches!(kind, "Deployment" | "ReplicaSet" | "StatefulSet" | "ReplicationController") {
        let scale = format!("{path}/scale");
        let mut found = c.get(&scale).await.expect(200);
        assert_eq!(
            (&found["kind"], &found["spec"]["replicas"]),
            (&json!("Scale"), &json!(2)),
            "{kind}"
        );
        found["spec"]["replicas"] = 1.into();
        found["metadata"]["resourceVersion"] = Value::Null;
        assert_eq!(c.put(&scale, &found).await.expect(200)["spec"]["replicas"], 1, "{kind}");
        let patch = json!({ "spec": { "replicas": 4 } });
        assert_eq!(c.merge(&scale, &patch).await.expect(200)["spec"]["replicas"], 4, "{kind}");
        assert_eq!(c.get(&path).await.expect(200)["spec"]["replicas"], 4, "{kind}");
    }
    // One by one, and the rest together.
    for name in ["b", "c"] {
        c.post(&here, &object(name)).await.expect(201);
    }
    c.delete(&path, &json!({ "propagationPolicy": "Background" })).await.expect(200);
    c.get(&path).await.expect(404);
    let all = format!("{here}{selected}");
    assert_eq!(count(&c.get(&all).await.expect(200)), 2, "{kind}");
    let background = json!({ "propagationPolicy": "Background" });
    c.delete(&all, &background).await.expect(200);
    assert_eq!(count(&c.get(&all).await.expect(200)), 0, "{kind}");
}

#[tokio::test]
async fn the_lives_of_workloads() {
    let cluster = Cluster::start().await;
    for (version, resource, kind, spec) in workloads() {
        life(&cluster.admin, version, resource, kind, spec).await;
    }
}

#[tokio::test]
async fn the_life_of_a_controller_revision() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let (here, everywhere) = collection("apps/v1", "controllerrevisions");
    let revision = |name: &str, number: i64, label: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision",
            "metadata": { "name": name, "labels": { "daemonset-name": "d", label: "1" } },
            "data": { "spec": { "template": { "$patch": "replace" } } }, "revision": number,
        })
    };
    c.post(&here, &revision("first", 1, "x")).await.expect(201);
    let path = format!("{here}/first");
    let patch = json!({ "metadata": { "labels": { "first": "patched" } } }).to_string();
    let patched = c.send("PATCH", &path, &STRATEGIC, patch).await.expect(200);
    assert_eq!(patched["metadata"]["labels"]["first"], "patched");
    c.post(&here, &revision("second", 3, "y")).await.expect(201);
    let of_set = format!("{everywhere}?labelSelector=daemonset-name%3Dd");
    assert_eq!(count(&c.get(&of_set).await.expect(200)), 2);
    // What it holds does not change; which number it has does.
    let refused = c.merge(&path, &json!({ "data": { "other": true } })).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "data");
    let mut again = c.get(&path).await.expect(200);
    again["revision"] = 4.into();
    assert_eq!(c.put(&path, &again).await.expect(200)["revision"], 4);
    c.delete(&path, &Value::Null).await.expect(200);
    c.delete(&format!("{here}?labelSelector=y%3D1"), &Value::Null).await.expect(200);
    assert_eq!(count(&c.get(&of_set).await.expect(200)), 0);
}
