//! Finalizers, grace, namespaces, collections.

use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Cluster, PODS, config_map, pod};

#[tokio::test]
async fn finalizers_hold_an_object() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut object = config_map("a", "1");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.post(CONFIG_MAPS, &object).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let marked = c.delete(&path, &Value::Null).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let again = c.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(again, marked, "a second delete changes nothing");
    let added = json!({ "metadata": { "finalizers": ["example.com/hold", "example.com/more"] } });
    c.merge(&path, &added).await.expect(422);
    c.merge(&path, &json!({ "metadata": { "finalizers": null } })).await.expect(200);
    c.get(&path).await.expect(404);
}

#[tokio::test]
async fn preconditions_and_policies() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let made = c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    c.delete(&path, &json!({ "preconditions": { "uid": "other" } })).await.expect(409);
    c.delete(&path, &json!({ "preconditions": { "resourceVersion": "1" } })).await.expect(409);
    let foreground =
        c.delete(&path, &json!({ "propagationPolicy": "Foreground" })).await.expect(200);
    assert_eq!(foreground["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    c.merge(&path, &json!({ "metadata": { "finalizers": [] } })).await.expect(200);
    c.get(&path).await.expect(404);
    let made2 = c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let gone = c
        .delete(&path, &json!({ "preconditions": { "uid": made2["metadata"]["uid"] } }))
        .await
        .expect(200);
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(gone["details"]["uid"], made2["metadata"]["uid"]);
    assert_ne!(made["metadata"]["uid"], made2["metadata"]["uid"]);
}

#[tokio::test]
async fn a_running_pod_is_given_time() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post(PODS, &pod("waiting")).await.expect(201);
    c.delete(&format!("{PODS}/waiting"), &Value::Null).await.expect(200);
    c.get(&format!("{PODS}/waiting")).await.expect(404);

    let mut running = pod("running");
    running["spec"]["nodeName"] = "n".into();
    c.post(PODS, &running).await.expect(201);
    let path = format!("{PODS}/running");
    let marked = c.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(marked["metadata"]["generation"], 2);
    let shorter = c.delete(&path, &json!({ "gracePeriodSeconds": 5 })).await.expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let longer = c.delete(&path, &json!({ "gracePeriodSeconds": 60 })).await.expect(200);
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 5, "time is never added");
    c.delete(&path, &json!({ "gracePeriodSeconds": 0 })).await.expect(200);
    c.get(&path).await.expect(404);
}

#[tokio::test]
async fn a_namespace_ends_when_it_is_finalized() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post("/api/v1/namespaces", &json!({ "metadata": { "name": "n" } })).await.expect(201);
    let marked = c.delete("/api/v1/namespaces/n", &Value::Null).await.expect(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused =
        c.post("/api/v1/namespaces/n/configmaps", &config_map("a", "1")).await.expect(403);
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut finalized = marked;
    finalized["spec"]["finalizers"] = json!([]);
    c.put("/api/v1/namespaces/n/finalize", &finalized).await.expect(200);
    c.get("/api/v1/namespaces/n").await.expect(404);
    c.post("/api/v1/namespaces/n/configmaps", &config_map("a", "1")).await.expect(404);
}

#[tokio::test]
async fn a_selected_collection_goes() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for i in 0..25 {
        let mut object = config_map(&format!("c{i}"), "1");
        object["metadata"]["labels"] = json!({ "even": (i % 2 == 0).to_string() });
        c.post(CONFIG_MAPS, &object).await.expect(201);
    }
    let gone = c
        .delete(&format!("{CONFIG_MAPS}?labelSelector=even%3Dtrue"), &Value::Null)
        .await
        .expect(200);
    assert_eq!(gone["items"].as_array().unwrap().len(), 13);
    let left = c.get(&format!("{CONFIG_MAPS}?labelSelector=even")).await.expect(200);
    assert_eq!(left["items"].as_array().unwrap().len(), 12);
}
