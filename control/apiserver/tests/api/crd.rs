//! CustomResourceDefinitions themselves: rules, names, conditions, their coming and going.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Client, Cluster};

pub const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

/// A definition of namespaced Widgets with one version and this schema.
pub fn widgets(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"] },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
        },
    })
}

pub fn free() -> Value {
    json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Waits until a GET answers something that satisfies.
pub async fn wait_for(client: &Client, path: &str, good: impl Fn(u16, &Value) -> bool) -> Value {
    let wait = async {
        loop {
            let answer = client.get(path).await;
            let value = serde_json::from_slice(&answer.bytes).unwrap_or(Value::Null);
            if good(answer.code, &value) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it comes to be in time")
}

pub fn condition<'v>(object: &'v Value, kind: &str) -> Option<&'v str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

/// Creates a definition and waits until it is established.
pub async fn establish(client: &Client, definition: &Value) -> Value {
    let made = client.post(CRDS, definition).await.expect(201);
    let path = format!("{CRDS}/{}", made["metadata"]["name"].as_str().unwrap());
    wait_for(client, &path, |_, d| condition(d, "Established") == Some("True")).await
}

pub fn widget(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": name }, "spec": spec })
}

#[tokio::test]
async fn a_definition_comes_and_goes() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.get(WIDGETS).await.code.eq(&404).then_some(()).expect("nothing serves it yet");
    let answer = c.post(CRDS, &widgets(free())).await;
    assert_eq!(answer.warnings(), Vec::<String>::new());
    let made = answer.expect(201);
    assert_eq!(made["spec"]["names"]["singular"], "widget");
    assert_eq!(made["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    let path = format!("{CRDS}/widgets.example.com");
    let made = wait_for(c, &path, |_, d| condition(d, "Established") == Some("True")).await;
    assert_eq!(condition(&made, "NamesAccepted"), Some("True"));
    assert_eq!(made["status"]["acceptedNames"]["shortNames"], json!(["wd"]));

    // Discovery tells of it, in each form.
    let list = c.get("/apis/example.com/v1").await.expect(200);
    assert_eq!(list["resources"][0]["name"], "widgets");
    assert_eq!(list["resources"][0]["shortNames"], json!(["wd"]));
    let groups = c.get("/apis").await.expect(200);
    let names: Vec<&Value> =
        groups["groups"].as_array().unwrap().iter().map(|g| &g["name"]).collect();
    assert!(names.contains(&&json!("example.com")), "{names:?}");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = c.send("GET", "/apis", &[("accept", accept)], "").await.text();
    assert!(aggregated.contains(r#""resource":"widgets""#));

    let one = c.post(WIDGETS, &widget("one", json!({ "a": 1 }))).await.expect(201);
    assert_eq!(one["metadata"]["generation"], 1);
    let mut held = widget("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.post(WIDGETS, &held).await.expect(201);
    let mut watch = c.watch(&format!("{WIDGETS}?watch=1&resourceVersion=0")).await;
    for _ in 0..2 {
        assert_eq!(watch.brief().await.0, "ADDED");
    }

    // It waits for its objects; no new ones are made meanwhile.
    let going = c.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(
        going["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    assert_eq!(condition(&going, "Terminating"), Some("True"));
    let refused = c.post(WIDGETS, &widget("two", json!({}))).await.expect(405);
    assert_eq!(
        refused["message"],
        "create is not supported on resources of kind \"widgets.example.com\""
    );
    assert_eq!(watch.brief().await, ("MODIFIED".into(), "held".into()));
    assert_eq!(watch.brief().await, ("DELETED".into(), "one".into()));
    c.get(&path).await.expect(200);
    c.merge(&format!("{WIDGETS}/held"), &json!({ "metadata": { "finalizers": null } }))
        .await
        .expect(200);
    wait_for(c, &path, |code, _| code == 404).await;
    wait_for(c, "/apis/example.com/v1", |code, _| code == 404).await;
    assert_eq!(c.get(WIDGETS).await.code, 404);
    while let Some(event) = watch.next().await {
        assert_eq!(event["type"], "DELETED", "the watch ends after the last object");
    }

    // Nothing of the old one is left.
    establish(c, &widgets(free())).await;
    assert_eq!(c.get(WIDGETS).await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn names_that_are_taken_are_not_granted() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    establish(c, &widgets(free())).await;
    let mut other = widgets(free());
    other["metadata"]["name"] = "gadgets.example.com".into();
    other["spec"]["names"] = json!({ "plural": "gadgets", "kind": "Widget" });
    c.post(CRDS, &other).await.expect(201);
    let path = format!("{CRDS}/gadgets.example.com");
    let refused = wait_for(c, &path, |_, d| condition(d, "NamesAccepted").is_some()).await;
    assert_eq!(condition(&refused, "NamesAccepted"), Some("False"));
    assert_eq!(condition(&refused, "Established"), Some("False"));
    let conditions = refused["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions[0]["reason"], "ListKindConflict");
    assert_eq!(conditions[0]["message"], "\"WidgetList\" is already in use");
    assert_eq!(c.get("/apis/example.com/v1/namespaces/default/gadgets").await.code, 404);
    // The first goes, the names are free.
    c.delete(&format!("{CRDS}/widgets.example.com"), &Value::Null).await.expect(200);
    wait_for(c, &path, |_, d| condition(d, "Established") == Some("True")).await;
    c.get("/apis/example.com/v1/namespaces/default/gadgets").await.expect(200);
}

#[tokio::test]
async fn definitions_that_are_wrong_are_refused() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let cases: [(&str, Value, &str); 14] = [
        (
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({ "type": "object", "properties": { "a": { "type": "array" } } }),
            "spec.validation.openAPIV3Schema.properties[a].items: Required value: must be specified",
        ),
        (
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({ "type": "object", "properties": { "a": {} } }),
            "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({ "type": "object", "properties": { "a": { "type": "object", "default": { "x": 1 } } } }),
            "spec.validation.openAPIV3Schema.properties[a].default: Invalid value: {\"x\":1}: must not have unknown fields",
        ),
        (
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({ "type": "object", "properties": { "a": { "type": "string", "default": 1 } } }),
            "spec.validation.openAPIV3Schema.properties[a].default: Invalid value: \"integer\":  in body must be of type string: \"integer\"",
        ),
        (
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({ "type": "object", "properties": { "a": { "type": "array", "uniqueItems": true, "items": { "type": "string" } } } }),
            "spec.validation.openAPIV3Schema.properties[a].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ),
        (
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({ "type": "object", "properties": { "a": { "type": "array", "x-kubernetes-list-type": "map", "items": { "type": "object" } } } }),
            "x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
        (
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({ "type": "object", "nullable": true }),
            "nullable cannot be true at the root",
        ),
        (
            "/spec/versions/0/additionalPrinterColumns",
            json!([{ "name": "A", "type": "text", "jsonPath": "x" }]),
            "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"x\": must be a simple json path starting with .",
        ),
        (
            "/spec/versions/0/subresources",
            json!({ "scale": { "specReplicasPath": ".status.n", "statusReplicasPath": ".status.n" } }),
            "spec.subresources.scale.specReplicasPath: Invalid value: \".status.n\": should be a json path under .spec",
        ),
        (
            "/spec/versions/0/selectableFields",
            json!([{ "jsonPath": ".spec.none" }]),
            "spec.selectableFields[0].jsonPath: Invalid value: \".spec.none\": is an invalid path: does not refer to a valid field",
        ),
        (
            "/spec/conversion",
            json!({ "strategy": "Webhook" }),
            "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
        ),
        (
            "/spec/group",
            json!("k8s.io"),
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation",
        ),
        (
            "/spec/names/listKind",
            json!("Widget"),
            "spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same",
        ),
        (
            "/spec/preserveUnknownFields",
            json!(true),
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true",
        ),
    ];
    for (at, value, expected) in cases {
        let mut definition = widgets(free());
        let (parent, key) = at.rsplit_once('/').unwrap();
        let parent = definition.pointer_mut(parent).unwrap();
        match parent.get(key).is_none() && key.parse::<usize>().is_ok() {
            true => unreachable!("no case adds an item"),
            false => parent[key] = value,
        }
        let refused = c.post(CRDS, &definition).await.expect(422);
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains(expected), "{at}: {message}");
    }
}

#[tokio::test]
async fn what_stays_after_an_update() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let made = establish(c, &widgets(free())).await;
    let path = format!("{CRDS}/widgets.example.com");
    let mut changed = made.clone();
    changed["spec"]["scope"] = "Cluster".into();
    let refused = c.put(&path, &changed).await.expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("spec.scope: Invalid value: \"Cluster\": field is immutable"),
        "{refused}"
    );
    let mut unversioned = made.clone();
    unversioned["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    c.put(&path, &unversioned).await.expect(422);

    // The status is a subresource; a write to it leaves the rest alone.
    let status = json!({ "status": { "conditions": [{ "type": "Mine", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": null }] }, "spec": { "scope": "Cluster" } });
    let after = c.merge(&format!("{path}/status"), &status).await.expect(200);
    assert_eq!(condition(&after, "Mine"), Some("True"));
    assert_eq!(after["spec"]["scope"], "Namespaced");

    // A new storage version is added to those that may be stored.
    let v2 = json!({ "name": "v2", "served": true, "storage": true, "schema": { "openAPIV3Schema": free() } });
    let patch = json!([
        { "op": "replace", "path": "/spec/versions/0/storage", "value": false },
        { "op": "add", "path": "/spec/versions/1", "value": v2 },
    ]);
    let headers = [("content-type", "application/json-patch+json")];
    let after = c.send("PATCH", &path, &headers, patch.to_string()).await.expect(200);
    assert_eq!(after["status"]["storedVersions"], json!(["v1", "v2"]));
    let drop = json!([{ "op": "remove", "path": "/spec/versions/0" }]);
    let refused = c.send("PATCH", &path, &headers, drop.to_string()).await.expect(422);
    assert!(
        refused["message"].as_str().unwrap().contains(
            "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions"
        ),
        "{refused}"
    );
}

#[tokio::test]
async fn definitions_outlive_the_server() {
    let cluster = Cluster::start().await;
    establish(&cluster.admin, &widgets(free())).await;
    cluster.admin.post(WIDGETS, &widget("one", json!({ "a": 1 }))).await.expect(201);
    cluster.server.stop();
    // The first request after the start is served: there is nothing to wait for.
    let again = Cluster::start_on(cluster.store.clone(), |_| {}).await;
    let one = again.admin.get(&format!("{WIDGETS}/one")).await.expect(200);
    assert_eq!(one["spec"]["a"], 1);
}
