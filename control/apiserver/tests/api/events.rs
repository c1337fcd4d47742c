//! Events under both of their groups, as Kubernetes' own tests of instrumentation use them.

use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Cluster};

const CORE: &str = "/api/v1/namespaces/default/events";
const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const WHEN: &str = "2017-09-19T13:49:16.000000Z";

fn new_event(name: &str, label: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": { "name": name, "labels": { label: "true" } },
        "regarding": { "namespace": "default" }, "eventTime": WHEN, "note": format!("This is {name}"),
        "action": "Do", "reason": "Test", "type": "Normal",
        "reportingController": "test-controller", "reportingInstance": "test-node",
    })
}

fn core_event(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": name, "labels": { "testevent-constant": "true" } },
        "message": "This is a test event", "reason": "Test", "type": "Normal", "count": 1,
        "involvedObject": { "namespace": "default" },
    })
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

/// Without what the server counts.
fn plain(event: &Value) -> Value {
    let mut event = event.clone();
    let metadata = event["metadata"].as_object_mut().unwrap();
    metadata.remove("resourceVersion");
    metadata.remove("managedFields");
    event
}

#[tokio::test]
async fn the_life_of_a_new_event() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post(NEW, &new_event("event-test", "constant")).await.expect(201);
    let selected = "?labelSelector=constant%3Dtrue";
    for place in ["/apis/events.k8s.io/v1/events", NEW] {
        let list = c.get(&format!("{place}{selected}")).await.expect(200);
        assert_eq!(names(&list), ["event-test"]);
    }
    // The reporter of a new event is the source of an old one.
    let by_source =
        c.get(&format!("{CORE}?fieldSelector=source%3Dtest-controller")).await.expect(200);
    assert_eq!(names(&by_source), ["event-test"]);
    assert_eq!(by_source["items"][0]["reportingComponent"], "test-controller");
    let by_reporter = format!("{NEW}?fieldSelector=reportingController%3Dtest-controller");
    assert_eq!(names(&c.get(&by_reporter).await.expect(200)), ["event-test"]);
    let about = format!("{NEW}?fieldSelector=regarding.namespace%3Ddefault,reason!%3DOther");
    assert_eq!(names(&c.get(&about).await.expect(200)), ["event-test"]);
    let path = format!("{NEW}/event-test");
    let mut expected = plain(&c.get(&path).await.expect(200));
    // It goes on: a patch begins a series, a put counts on.
    let series =
        json!({ "series": { "count": 2, "lastObservedTime": "2017-09-19T13:49:11.000000Z" } });
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    c.send("PATCH", &path, &strategic, series.to_string()).await.expect(200);
    expected["series"] = series["series"].clone();
    let found = c.get(&path).await.expect(200);
    assert_eq!(plain(&found), expected);
    let mut counted = found;
    counted["series"] = json!({ "count": 100, "lastObservedTime": WHEN });
    c.put(&path, &counted).await.expect(200);
    assert_eq!(plain(&c.get(&path).await.expect(200)), plain(&counted));
    let as_core = c.get(&format!("{CORE}/event-test")).await.expect(200);
    assert_eq!(as_core["series"], json!({ "count": 100, "lastObservedTime": WHEN }));
    // What was told is not told otherwise.
    for (patch, field) in [
        (json!({ "note": "other" }), "message"),
        (json!({ "type": "Warning" }), "type"),
        (json!({ "reason": "Other" }), "reason"),
        (json!({ "regarding": { "name": "x" } }), "involvedObject"),
        (json!({ "eventTime": "2018-09-19T13:49:16.000000Z" }), "eventTime"),
        (json!({ "reportingController": "other" }), "reportingController"),
    ] {
        let refused = c.merge(&path, &patch).await.expect(422);
        let cause = &refused["details"]["causes"][0];
        assert_eq!(cause["field"], field, "{refused}");
        assert!(cause["message"].as_str().unwrap().ends_with("field is immutable"), "{refused}");
    }
    let refused = c.merge(&path, &json!({ "series": { "count": 1 } })).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "series.count");
    // Under the old group it may be.
    c.merge(&format!("{CORE}/event-test"), &json!({ "message": "other" })).await.expect(200);
    c.delete(&path, &Value::Null).await.expect(200);
    assert!(names(&c.get(&format!("{NEW}{selected}")).await.expect(200)).is_empty());
}

#[tokio::test]
async fn what_a_new_event_must_say() {
    let cluster = Cluster::start().await;
    let refused = async |change: &dyn Fn(&mut Value), expected: &[&str]| {
        let mut event = new_event("e", "x");
        change(&mut event);
        let refused = cluster.admin.post(NEW, &event).await.expect(422);
        let causes = refused["details"]["causes"].as_array().unwrap();
        let mut fields: Vec<&str> = causes.iter().map(|c| c["field"].as_str().unwrap()).collect();
        fields.dedup();
        assert_eq!(fields, expected, "{refused}");
    };
    let without = |field: &'static str| {
        move |event: &mut Value| _ = event.as_object_mut().unwrap().remove(field)
    };
    let with =
        |field: &'static str, value: Value| move |event: &mut Value| event[field] = value.clone();
    refused(&without("eventTime"), &["eventTime"]).await;
    refused(&without("reportingController"), &["reportingController"]).await;
    refused(&without("reportingInstance"), &["reportingInstance"]).await;
    refused(&without("action"), &["action"]).await;
    refused(&without("reason"), &["reason"]).await;
    refused(&with("type", json!("Odd")), &["type"]).await;
    refused(&with("note", json!("x".repeat(1025))), &["message"]).await;
    refused(&with("deprecatedCount", json!(3)), &["count"]).await;
    refused(&with("deprecatedSource", json!({ "component": "c" })), &["source"]).await;
    refused(&with("series", json!({ "count": 1, "lastObservedTime": WHEN })), &["series.count"])
        .await;
}

#[tokio::test]
async fn the_life_of_an_old_event() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post(CORE, &core_event("event-test")).await.expect(201);
    let list = c.get("/api/v1/events?labelSelector=testevent-constant%3Dtrue").await.expect(200);
    assert_eq!(names(&list), ["event-test"]);
    let path = format!("{CORE}/event-test");
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let patch = json!({ "message": "This is a test event - patched" }).to_string();
    c.send("PATCH", &path, &strategic, patch).await.expect(200);
    let mut event = c.get(&path).await.expect(200);
    assert_eq!(event["message"], "This is a test event - patched");
    event["series"] = json!({ "count": 100, "lastObservedTime": "2014-11-21T04:21:15.123456Z" });
    c.put(&path, &event).await.expect(200);
    assert_eq!(plain(&c.get(&path).await.expect(200)), plain(&event));
    // One that has an eventTime says who reports it, under this group too.
    let mut nameless = core_event("newer");
    nameless["eventTime"] = WHEN.into();
    let refused = c.post(CORE, &nameless).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "reportingComponent");
    // It is about something in its own namespace.
    let mut elsewhere = core_event("elsewhere");
    elsewhere["involvedObject"]["namespace"] = "kube-system".into();
    let refused = c.post(CORE, &elsewhere).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "involvedObject.namespace");
    c.delete(&path, &Value::Null).await.expect(200);
    c.get(&path).await.expect(404);
    // Nothing else of the namespace was touched.
    assert_eq!(names(&c.get(CONFIG_MAPS).await.expect(200)), ["kube-root-ca.crt"]);
}

#[tokio::test]
async fn collections_of_events() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for (place, label) in [(NEW, "set-new"), (CORE, "set-old")] {
        for i in 1..=3 {
            c.post(NEW, &new_event(&format!("{label}-{i}"), label)).await.expect(201);
        }
        let selected = format!("{place}?labelSelector={label}%3Dtrue");
        assert_eq!(names(&c.get(&selected).await.expect(200)).len(), 3);
        c.delete(&selected, &Value::Null).await.expect(200);
        assert!(names(&c.get(&selected).await.expect(200)).is_empty());
    }
    let mut watch = c.watch(&format!("{NEW}?watch=true&fieldSelector=reason%3DTest")).await;
    c.post(NEW, &new_event("seen", "x")).await.expect(201);
    let seen = watch.next().await.unwrap();
    assert_eq!(seen["object"]["kind"], "Event");
    assert_eq!(seen["object"]["apiVersion"], "events.k8s.io/v1");
    assert_eq!(seen["object"]["note"], "This is seen");
}
