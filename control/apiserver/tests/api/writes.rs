//! Create, update and patch.

use rimward_api::UserInfo;
use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Cluster, PODS, config_map, pod};

#[tokio::test]
async fn an_object_through_its_writes() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let made = c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    assert_eq!(c.get(&path).await.expect(200), made, "what was answered is what is read");
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "tests");

    // A write that changes nothing keeps the version.
    let same = c.put(&path, &config_map("a", "1")).await.expect(200);
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);

    let changed = c.put(&path, &config_map("a", "2")).await.expect(200);
    assert_ne!(changed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    for field in ["uid", "creationTimestamp"] {
        assert_eq!(changed["metadata"][field], made["metadata"][field]);
    }
    // A version that is over is refused, in a PUT and in a patch.
    let mut stale = made.clone();
    stale["data"]["k"] = "3".into();
    assert_eq!(c.put(&path, &stale).await.expect(409)["reason"], "Conflict");
    let old = json!({ "metadata": { "resourceVersion": made["metadata"]["resourceVersion"] }, "data": { "k": "3" } });
    c.merge(&path, &old).await.expect(409);
    let mut other = config_map("a", "3");
    other["metadata"]["uid"] = "another".into();
    assert!(
        c.put(&path, &other).await.expect(409)["message"]
            .as_str()
            .unwrap()
            .contains("UID in precondition: another")
    );

    let merged = c.merge(&path, &json!({ "data": { "k": null, "n": "v" } })).await.expect(200);
    assert_eq!(merged["data"], json!({ "n": "v" }));
    let ops = json!([{ "op": "test", "path": "/data/n", "value": "v" }, { "op": "add", "path": "/data/x", "value": "y" }]);
    let patched = c
        .send("PATCH", &path, &[("content-type", "application/json-patch+json")], ops.to_string())
        .await;
    assert_eq!(patched.expect(200)["data"], json!({ "n": "v", "x": "y" }));
    c.delete(&path, &Value::Null).await.expect(200);
    c.get(&path).await.expect(404);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let dry = c.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", "1")).await.expect(201);
    assert!(dry["metadata"]["uid"].is_string());
    assert_eq!(dry["metadata"].get("resourceVersion"), None, "it was never stored");
    let yaml = [("content-type", "application/json"), ("accept", "application/yaml")];
    let path = format!("{CONFIG_MAPS}?dryRun=All");
    let dry = c.send("POST", &path, &yaml, config_map("a", "1").to_string()).await;
    assert!(dry.code == 201 && !dry.text().contains("resourceVersion"), "{}", dry.text());
    c.put(CONFIG_MAPS, &config_map("a", "1")).await.expect(405);
    c.get(&format!("{CONFIG_MAPS}/a")).await.expect(404);
    let made = c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    c.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", "1")).await.expect(409);
    c.put(&format!("{CONFIG_MAPS}/a?dryRun=All"), &config_map("a", "2")).await.expect(200);
    c.delete(&format!("{CONFIG_MAPS}/a?dryRun=All"), &Value::Null).await.expect(200);
    assert_eq!(c.get(&format!("{CONFIG_MAPS}/a")).await.expect(200), made);
}

#[tokio::test]
async fn names_are_generated() {
    let cluster = Cluster::start().await;
    let object = json!({ "metadata": { "generateName": "g-" } });
    let first = cluster.admin.post(CONFIG_MAPS, &object).await.expect(201);
    let second = cluster.admin.post(CONFIG_MAPS, &object).await.expect(201);
    let name = |o: &Value| o["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&first).starts_with("g-") && name(&first).len() == 7);
    assert_ne!(name(&first), name(&second));
}

#[tokio::test]
async fn concurrent_unconditional_patches_all_count() {
    let cluster = Cluster::start().await;
    cluster.admin.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let patches = (0..40).map(|i| {
        let client = cluster.admin.clone();
        tokio::spawn(async move {
            client
                .merge(&format!("{CONFIG_MAPS}/a"), &json!({ "data": { format!("k{i}"): "v" } }))
                .await
                .expect(200);
        })
    });
    for patch in patches.collect::<Vec<_>>() {
        patch.await.unwrap();
    }
    let data = cluster.admin.get(&format!("{CONFIG_MAPS}/a")).await.expect(200)["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 41);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
        "spec": { "replicas": 2, "selector": { "matchLabels": { "a": "b" } },
            "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
        "status": { "replicas": 9 },
    });
    let made = c.post(deployments, &deployment).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["status"].get("replicas"), None, "a create sets no status");
    let path = format!("{deployments}/d");
    let status =
        json!({ "spec": { "replicas": 7 }, "status": { "replicas": 2, "observedGeneration": 1 } });
    let after = c.merge(&format!("{path}/status"), &status).await.expect(200);
    assert_eq!((&after["spec"]["replicas"], &after["status"]["replicas"]), (&json!(2), &json!(2)));
    assert_eq!(after["metadata"]["generation"], 1);
    let after = c
        .merge(&path, &json!({ "spec": { "replicas": 3 }, "status": { "replicas": 0 } }))
        .await
        .expect(200);
    assert_eq!((&after["spec"]["replicas"], &after["status"]["replicas"]), (&json!(3), &json!(2)));
    assert_eq!(after["metadata"]["generation"], 2);

    let scale = c.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(3), &json!("a=b"))
    );
    let scaled =
        c.merge(&format!("{path}/scale"), &json!({ "spec": { "replicas": 5 } })).await.expect(200);
    assert_eq!(scaled["spec"]["replicas"], 5);
    let mut put = scaled.clone();
    put["spec"]["replicas"] = 6.into();
    c.put(&format!("{path}/scale"), &put).await.expect(200);
    c.put(&format!("{path}/scale"), &put).await.expect(409);
    c.merge(&format!("{path}/scale"), &json!({ "spec": { "replicas": -1 } })).await.expect(422);
    assert_eq!(c.get(&path).await.expect(200)["spec"]["replicas"], 6);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::start().await;
    let scheduler = cluster.client(UserInfo::authenticated("system:kube-scheduler", &[]));
    cluster.admin.post(PODS, &pod("p")).await.expect(201);
    let bind = |node: &str| json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" }, "target": { "kind": "Node", "name": node } });
    scheduler.post(&format!("{PODS}/p/binding"), &bind("n1")).await.expect(201);
    let refused = scheduler.post(&format!("{PODS}/p/binding"), &bind("n2")).await.expect(409);
    assert!(
        refused["message"].as_str().unwrap().ends_with("pod p is already assigned to node \"n1\""),
        "{refused}"
    );
    let bound = cluster.admin.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let list = cluster.admin.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn bodies_may_be_yaml_and_may_not_be_huge() {
    let cluster = Cluster::start().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yaml\ndata:\n  k: v\n";
    let made = cluster
        .admin
        .send("POST", CONFIG_MAPS, &[("content-type", "application/yaml")], yaml)
        .await;
    assert_eq!(made.expect(201)["data"]["k"], "v");
    let huge = config_map("h", &"x".repeat(3 << 20)).to_string();
    let refused = cluster
        .admin
        .send("POST", CONFIG_MAPS, &[("content-type", "application/json")], huge)
        .await;
    assert_eq!(refused.expect(413)["reason"], "RequestEntityTooLarge");
}

#[tokio::test]
async fn unknown_fields_warn_and_are_dropped() {
    let cluster = Cluster::start().await;
    let mut object = config_map("w", "v");
    object["nope"] = 1.into();
    let answer = cluster.admin.post(CONFIG_MAPS, &object).await;
    assert_eq!(answer.expect(201).get("nope"), None);
    assert_eq!(answer.warnings(), ["299 - \"unknown field \\\"nope\\\"\""]);
    object["metadata"]["name"] = "w2".into();
    let quiet = cluster
        .admin
        .post(&format!("{CONFIG_MAPS}?fieldValidation=Ignore&dryRun=All"), &object)
        .await;
    assert!(quiet.warnings().is_empty());
}

/// Whoever reports on a pod need not repeat what it is: a write of the status keeps all else, and who
/// set it.
#[tokio::test]
async fn a_status_comes_without_the_rest() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let made = c.post(PODS, &pod("p")).await.expect(201);
    let path = format!("{PODS}/p");
    let report = json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": made["metadata"],
        "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }] },
    });
    let told = c.put(&format!("{path}/status"), &report).await.expect(200);
    assert_eq!(told["spec"], made["spec"]);
    assert_eq!(told["status"]["phase"], "Running");
    assert_eq!(told["status"]["qosClass"], made["status"]["qosClass"]);
    let managers = |pod: &Value| pod["metadata"]["managedFields"].as_array().unwrap().clone();
    assert_eq!(managers(&told)[0], managers(&made)[0], "the spec is still whose it was");
    assert_eq!(managers(&told)[1]["subresource"], "status");
}
