//! Several versions of a kind: without conversion, and by a webhook.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::crd::{CRDS, WIDGETS, establish, widget, widgets};
use crate::tls::{self, Answer, Ca, Seen, Server};
use crate::webhooks::{hook, patched, register, review};

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

/// Renames `hostPort` to `host` and back; when it breaks it renames the object too.
fn renames(seen: &Seen, breaks: bool) -> Answer {
    let review = seen.json();
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap();
    let (from, to) =
        if wanted.ends_with("v2") { ("hostPort", "host") } else { ("host", "hostPort") };
    let renamed = |object: &Value| {
        let mut object = object.clone();
        object["apiVersion"] = wanted.into();
        if let Some(spec) = object["spec"].as_object_mut()
            && let Some(value) = spec.remove(from)
        {
            spec.insert(to.into(), value);
        }
        if breaks {
            object["metadata"]["name"] = "another".into();
        }
        object
    };
    let objects: Vec<Value> = request["objects"].as_array().unwrap().iter().map(renamed).collect();
    tls::json(&json!({
        "apiVersion": review["apiVersion"], "kind": "ConversionReview",
        "response": { "uid": request["uid"], "result": { "status": "Success" }, "convertedObjects": objects },
    }))
}

fn by_webhook(port: u16, ca: &Ca) -> Value {
    json!({ "strategy": "Webhook", "webhook": { "conversionReviewVersions": ["v1", "v1beta1"],
        "clientConfig": { "url": format!("https://127.0.0.1:{port}/convert"), "caBundle": ca.bundle() } } })
}

#[tokio::test]
async fn by_a_webhook() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let breaks = Arc::new(AtomicBool::new(false));
    let broken = breaks.clone();
    let server = Server::simple(&ca, &["127.0.0.1"], move |seen| {
        renames(seen, broken.load(Ordering::SeqCst))
    })
    .await;
    // Nobody listens on port 1.
    establish(c, &two_versions(by_webhook(1, &ca))).await;
    for name in ["a", "b"] {
        c.post(WIDGETS, &widget(name, json!({ "hostPort": name }))).await.expect(201);
    }
    let failed = c.get(&format!("{WIDGETS_V2}/a")).await.expect(500);
    let message = failed["message"].as_str().unwrap();
    let wanted = "conversion webhook for example.com/v1, Kind=Widget failed: Post \"https://127.0.0.1:1/convert?timeout=30s\":";
    assert!(message.contains(wanted), "{message}");
    let there = json!({ "spec": { "conversion": by_webhook(server.addr.port(), &ca) } });
    c.merge(&format!("{CRDS}/widgets.example.com"), &there).await.expect(200);
    let mut watch = c.watch(&format!("{WIDGETS_V2}?watch=1&resourceVersion=0")).await;
    for name in ["a", "b"] {
        assert_eq!(watch.next().await.unwrap()["object"]["spec"], json!({ "host": name }));
    }
    server.take();
    let list = c.get(WIDGETS_V2).await.expect(200);
    assert_eq!(list["items"][1]["spec"], json!({ "host": "b" }));
    // Items of an untyped list say what they are.
    assert_eq!(list["items"][1]["kind"], "Widget");
    assert_eq!(list["items"][1]["apiVersion"], list["apiVersion"]);
    assert_eq!(server.take().len(), 1, "a page is one review");
    c.get(WIDGETS).await.expect(200);
    assert_eq!(server.take().len(), 0, "what is stored in a version is served in it");
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
    breaks.store(true, Ordering::SeqCst);
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    c.send("GET", WIDGETS_V2, &accept, "").await.expect(200);
    let failed = c.get(&format!("{WIDGETS_V2}/a")).await.expect(500);
    assert!(
        failed["message"].as_str().unwrap().contains("must have the same name: a != another"),
        "{failed}"
    );
}

/// A webhook whose rules name one version is asked about the others too, in the version that it knows.
#[tokio::test]
async fn webhooks_are_asked_in_the_version_that_they_know() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server = Server::simple(&ca, &["127.0.0.1"], |seen| match seen.path.as_str() {
        "/convert?timeout=30s" => renames(seen, false),
        path if path.starts_with("/m.") => patched(
            seen,
            &json!([
                { "op": "add", "path": "/spec/same", "value": 5 },
                { "op": "add", "path": "/spec/host", "value": "mutated" },
            ]),
        ),
        _ => review(seen, json!({ "allowed": true })),
    })
    .await;
    let of_v2 = |name: &str, operations: &[&str]| {
        let mut hook = hook(name, &server, &ca, operations, &["widgets"]);
        hook["rules"][0]["apiVersions"] = json!(["v2"]);
        hook
    };
    let both = ["CREATE", "UPDATE"];
    register(c, "mutating", "m", vec![of_v2("m.example.com", &["CREATE"])]).await;
    register(c, "validating", "v", vec![of_v2("v.example.com", &both)]).await;

    // Without conversion the other version is another name: what it does not know survives.
    establish(c, &two_versions(json!({ "strategy": "None" }))).await;
    let made =
        c.post(WIDGETS, &widget("a", json!({ "hostPort": "h", "same": 1 }))).await.expect(201);
    assert_eq!(made["spec"], json!({ "hostPort": "h", "same": 5 }));
    let asked: Vec<Value> = server.take().iter().map(|s| s.json()["request"].clone()).collect();
    assert_eq!(asked.len(), 2);
    for request in &asked {
        assert_eq!(request["kind"]["version"], "v2");
        assert_eq!(request["requestKind"]["version"], "v1");
        assert_eq!(request["object"]["apiVersion"], "example.com/v2");
    }
    assert_eq!(asked[0]["object"]["spec"], json!({ "hostPort": "h", "same": 1 }));

    // By a webhook, there and back.
    let conversion = json!({ "spec": { "conversion": by_webhook(server.addr.port(), &ca) } });
    c.merge(&format!("{CRDS}/widgets.example.com"), &conversion).await.expect(200);
    let made = c.post(WIDGETS, &widget("b", json!({ "hostPort": "h" }))).await.expect(201);
    assert_eq!(made["spec"], json!({ "hostPort": "mutated", "same": 5 }));
    let seen = server.take();
    let asked = seen.iter().filter(|s| s.path.starts_with("/v.")).map(Seen::json);
    let asked: Vec<Value> = asked.collect();
    assert_eq!(asked[0]["request"]["object"]["spec"], json!({ "host": "mutated", "same": 5 }));
    let change = json!({ "spec": { "hostPort": "later" } });
    c.merge(&format!("{WIDGETS}/b"), &change).await.expect(200);
    let seen = server.take();
    let asked = seen.iter().find(|s| s.path.starts_with("/v.")).unwrap().json();
    assert_eq!(asked["request"]["object"]["spec"]["host"], "later");
    assert_eq!(asked["request"]["oldObject"]["spec"]["host"], "mutated");
    assert_eq!(asked["request"]["oldObject"]["apiVersion"], "example.com/v2");
}
