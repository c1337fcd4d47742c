//! Several versions of a kind: without conversion, and by a webhook.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use rimward_control_apiserver::Converts;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::crd::{CRDS, WIDGETS, establish, widget, widgets};

const WIDGETS_V2: &str = "/apis/example.com/v2/namespaces/default/widgets";

fn two_versions(conversion: Value) -> Value {
    let schema = |field: &str| {
        json!({ "openAPIV3Schema": { "type": "object", "properties": {
        "spec": { "type": "object", "properties": { field: { "type": "string" }, "same": { "type": "integer" } } } } } })
    };
    let mut definition = widgets(json!({}));
    definition["spec"]["versions"] = json!([
        { "name": "v1", "served": true, "storage": true, "schema": schema("hostPort") },
        { "name": "v2", "served": true, "storage": false, "schema": schema("host"), "deprecated": true },
    ]);
    definition["spec"]["conversion"] = conversion;
    definition
}

#[tokio::test]
async fn without_conversion() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    establish(c, &two_versions(json!({ "strategy": "None" }))).await;
    let made =
        c.post(WIDGETS, &widget("a", json!({ "hostPort": "h", "same": 1 }))).await.expect(201);
    let v2 = c.get(&format!("{WIDGETS_V2}/a")).await;
    assert_eq!(v2.warnings(), [r#"299 - "example.com/v2 Widget is deprecated""#]);
    let v2 = v2.expect(200);
    assert_eq!((&v2["apiVersion"], &v2["spec"]), (&json!("example.com/v2"), &json!({ "same": 1 })));
    assert_eq!(v2["metadata"]["uid"], made["metadata"]["uid"]);
    // A write through the other version loses what it does not know.
    let after =
        c.merge(&format!("{WIDGETS_V2}/a"), &json!({ "spec": { "same": 2 } })).await.expect(200);
    assert_eq!(after["spec"], json!({ "same": 2 }));
    assert_eq!(c.get(&format!("{WIDGETS}/a")).await.expect(200)["spec"], json!({ "same": 2 }));
    let group = c.get("/apis/example.com").await.expect(200);
    assert_eq!(group["preferredVersion"]["version"], "v2", "the newest is preferred");
    // What is stored moves to a new storage version with the next write, and not before.
    let swap = json!([
        { "op": "replace", "path": "/spec/versions/0/storage", "value": false },
        { "op": "replace", "path": "/spec/versions/1/storage", "value": true },
    ]);
    let crd = format!("{CRDS}/widgets.example.com");
    c.send("PATCH", &crd, &[("content-type", "application/json-patch+json")], swap.to_string())
        .await
        .expect(200);
    let before = c.get(&format!("{WIDGETS}/a")).await.expect(200);
    let same = c.put(&format!("{WIDGETS}/a"), &before).await.expect(200);
    assert_ne!(
        same["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"],
        "it was written anew"
    );
    let again = c
        .put(&format!("{WIDGETS_V2}/a"), &c.get(&format!("{WIDGETS_V2}/a")).await.expect(200))
        .await
        .expect(200);
    let last = c.put(&format!("{WIDGETS_V2}/a"), &again).await.expect(200);
    assert_eq!(last["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
}

/// Renames `hostPort` to `host` and back, as a webhook would.
struct Renames {
    asked: AtomicUsize,
    breaks: bool,
}

#[async_trait]
impl Converts for Renames {
    async fn converts(&self, config: &Value, review: &Value) -> Result<Value, String> {
        assert_eq!(config["service"]["name"], "converter");
        self.asked.fetch_add(1, Ordering::SeqCst);
        let request = &review["request"];
        let wanted = request["desiredAPIVersion"].as_str().unwrap();
        let objects: Vec<Value> = request["objects"]
            .as_array()
            .unwrap()
            .iter()
            .map(|object| {
                let mut object = object.clone();
                object["apiVersion"] = wanted.into();
                let (from, to) = if wanted.ends_with("v2") {
                    ("hostPort", "host")
                } else {
                    ("host", "hostPort")
                };
                if let Some(spec) = object["spec"].as_object_mut()
                    && let Some(value) = spec.remove(from)
                {
                    spec.insert(to.into(), value);
                }
                if self.breaks {
                    object["metadata"]["name"] = "another".into();
                }
                object
            })
            .collect();
        Ok(json!({
            "apiVersion": review["apiVersion"], "kind": "ConversionReview",
            "response": { "uid": request["uid"], "result": { "status": "Success" }, "convertedObjects": objects },
        }))
    }
}

fn by_webhook() -> Value {
    json!({ "strategy": "Webhook", "webhook": { "conversionReviewVersions": ["v1", "v1beta1"],
        "clientConfig": { "service": { "namespace": "default", "name": "converter", "path": "/convert" } } } })
}

#[tokio::test]
async fn by_a_webhook() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let made = establish(c, &two_versions(by_webhook())).await;
    assert_eq!(made["spec"]["conversion"]["webhook"]["clientConfig"]["service"]["port"], 443);
    for name in ["a", "b"] {
        c.post(WIDGETS, &widget(name, json!({ "hostPort": name }))).await.expect(201);
    }
    let failed = c.get(&format!("{WIDGETS_V2}/a")).await.expect(500);
    assert!(
        failed["message"]
            .as_str()
            .unwrap()
            .contains("conversion webhook for example.com/v1, Kind=Widget failed"),
        "{failed}"
    );
    let webhook = Arc::new(Renames { asked: AtomicUsize::new(0), breaks: false });
    cluster.server.set_converts(webhook.clone());
    let mut watch = c.watch(&format!("{WIDGETS_V2}?watch=1&resourceVersion=0")).await;
    for name in ["a", "b"] {
        assert_eq!(watch.next().await.unwrap()["object"]["spec"], json!({ "host": name }));
    }
    let asked = webhook.asked.load(Ordering::SeqCst);
    let list = c.get(WIDGETS_V2).await.expect(200);
    assert_eq!(list["items"][1]["spec"], json!({ "host": "b" }));
    assert_eq!(webhook.asked.load(Ordering::SeqCst), asked + 1, "a page is one review");
    c.get(WIDGETS).await.expect(200);
    assert_eq!(
        webhook.asked.load(Ordering::SeqCst),
        asked + 1,
        "what is stored in a version is served in it"
    );
    // Writes through the other version.
    let mut new = widget("d", json!({ "host": "x" }));
    new["apiVersion"] = "example.com/v2".into();
    let made = c.post(WIDGETS_V2, &new).await.expect(201);
    assert_eq!(made["spec"], json!({ "host": "x" }));
    assert_eq!(
        c.get(&format!("{WIDGETS}/d")).await.expect(200)["spec"],
        json!({ "hostPort": "x" })
    );
    assert_eq!(watch.brief().await, ("ADDED".into(), "d".into()));
    let after =
        c.merge(&format!("{WIDGETS_V2}/d"), &json!({ "spec": { "host": "y" } })).await.expect(200);
    assert_eq!(after["spec"], json!({ "host": "y" }));
    c.delete(&format!("{WIDGETS_V2}/d"), &Value::Null).await.expect(200);
    // Metadata needs no conversion: garbage collection goes on while a webhook is down.
    cluster.server.set_converts(Arc::new(Renames { asked: AtomicUsize::new(0), breaks: true }));
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    c.send("GET", WIDGETS_V2, &accept, "").await.expect(200);
    let failed = c.get(&format!("{WIDGETS_V2}/a")).await.expect(500);
    assert!(
        failed["message"].as_str().unwrap().contains("must have the same name: a != another"),
        "{failed}"
    );
}
