//! Definitions and objects that mean no good: each ends in a Status.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::crd::{CRDS, WIDGETS, establish, free, wait_for, widget, widgets};

fn nested(depth: usize, make: impl Fn(Value) -> Value, inner: Value) -> Value {
    (0..depth).fold(inner, |below, _| make(below))
}

/// A schema as deep as a body can hold is served like any other.
#[tokio::test]
async fn deep_definitions() {
    const DEPTH: usize = 110;
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let property = |below: Value| json!({ "type": "object", "properties": { "a": below } });
    let leaf = json!({ "type": "string", "default": "x", "x-kubernetes-validations": [{ "rule": "self != 'bad'" }] });
    let schema =
        json!({ "type": "object", "properties": { "spec": nested(DEPTH, property, leaf) } });
    // Its text only: the reader of this test goes less deep.
    assert_eq!(c.post(CRDS, &widgets(schema)).await.code, 201);
    wait_for(c, WIDGETS, |code, _| code == 200).await;
    let spec = |leaf: Value| nested(DEPTH - 1, |below| json!({ "a": below }), leaf);
    let made = c.post(WIDGETS, &widget("deep", spec(json!({ "zzz": 1 })))).await.expect(201);
    assert_eq!(made["spec"], spec(json!({ "a": "x" })), "pruned and defaulted");
    let refused = c.post(WIDGETS, &widget("bad", spec(json!({ "a": "bad" })))).await.expect(422);
    let path = format!("spec{}", ".a".repeat(DEPTH));
    assert_eq!(refused["details"]["causes"][0]["field"], path);
    assert_eq!(c.get("/openapi/v3/apis/example.com/v1").await.code, 200);
    assert_eq!(c.get(&format!("{WIDGETS}/deep")).await.expect(200)["spec"], made["spec"]);
}

#[tokio::test]
async fn hostile_definitions() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let property = |below: Value| json!({ "type": "object", "properties": { "a": below } });
    let wide: Value = (0..20_000)
        .map(|i| (format!("p{i}"), json!({ "type": "string" })))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let schemas = [
        nested(100, property, json!({ "type": "string", "default": "x" })),
        nested(60, |b| json!({ "type": "object", "anyOf": [b] }), json!({})),
        nested(14, |b| json!({ "type": "object", "allOf": [b.clone(), b] }), json!({})),
        nested(60, |b| json!({ "type": "array", "items": b }), json!({ "type": "string" })),
        json!({ "type": "object", "properties": wide }),
        json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "((a{1000}){1000}){1000}" } } }),
        json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "(".repeat(5000) } } }),
        json!({ "type": "object", "properties": { "a": { "type": "number", "multipleOf": 0, "minimum": 1e308, "maximum": -1e308 } } }),
        json!({ "type": "object", "properties": { "a": { "$ref": "#" } } }),
        json!({ "type": "object", "properties": { "": { "type": "string" }, "a.b[0]": { "type": "string" }, "\u{0}": { "type": "string" } } }),
        json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        json!({ "type": "object", "maxProperties": -1, "properties": { "a": { "type": "array", "maxItems": -5, "items": { "type": "string", "maxLength": -1 } } } }),
        json!({ "type": "object", "properties": { "metadata": { "type": "array", "items": { "type": "string" } } } }),
        json!({ "type": "object", "properties": { "a": { "type": "object", "default": [1] } } }),
        json!([]),
        json!("x"),
        Value::Null,
    ];
    // Deeper than any reader goes; as text, since making such a value takes a deep stack too.
    let deep = r#"{"type":"object","properties":{"a":"#.repeat(20_000) + "1";
    let text = widgets(json!("SCHEMA")).to_string().replace("\"SCHEMA\"", &deep);
    c.send("POST", CRDS, &[("content-type", "application/json")], text).await.expect(400);
    for (i, schema) in schemas.into_iter().enumerate() {
        let began = Instant::now();
        let answer = c.post(&format!("{CRDS}?dryRun=All"), &widgets(schema)).await;
        assert!(
            matches!(answer.code, 201 | 400 | 413 | 422),
            "{i}: {}",
            answer.text().chars().take(300).collect::<String>()
        );
        eprintln!("schema {i}: {} in {:?}", answer.code, began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(20), "{i} took {:?}", began.elapsed());
    }
    for (at, value) in [
        (
            "additionalPrinterColumns",
            json!([{ "name": "x", "type": "string", "jsonPath": format!(".{}", "a[".repeat(2000)) }]),
        ),
        (
            "additionalPrinterColumns",
            json!([{ "name": "x", "type": "string", "jsonPath": "..[?(@..a==1)]" }]),
        ),
        ("selectableFields", json!([{ "jsonPath": "........" }, { "jsonPath": ".a['" }])),
        (
            "subresources",
            json!({ "scale": { "specReplicasPath": ".spec..", "statusReplicasPath": ".status." } }),
        ),
    ] {
        let mut definition = widgets(free());
        definition["spec"]["versions"][0][at] = value;
        let answer = c.post(&format!("{CRDS}?dryRun=All"), &definition).await;
        assert!(matches!(answer.code, 201 | 422), "{at}: {}", answer.text());
    }
}

#[tokio::test]
async fn hostile_objects() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut definition = widgets(
        json!({ "type": "object", "properties": { "spec": { "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
        "n": { "type": "integer" }, "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
        "pod": { "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true },
        "re": { "type": "string", "pattern": "^(a+)+$" } } } } }),
    );
    definition["spec"]["versions"][0]["additionalPrinterColumns"] = json!([{ "name": "all", "type": "string", "jsonPath": "..*" }, { "name": "n", "type": "integer", "jsonPath": ".spec.n" }]);
    definition["spec"]["versions"][0]["subresources"] = json!({ "scale": { "specReplicasPath": ".spec.n.deep.x", "statusReplicasPath": ".status.n" } });
    establish(c, &definition).await;
    let deep = nested(200, |b| json!({ "a": b }), json!(1));
    let bodies = [
        widget("a", deep),
        widget("b", json!({ "n": 1e300 })),
        widget("c", json!({ "n": u64::MAX })),
        widget("d", json!({ "set": (0..50_000).map(|i| i.to_string()).collect::<Vec<_>>() })),
        widget("e", json!({ "set": [null, {}, []] })),
        widget("f", json!({ "pod": { "apiVersion": 1, "kind": [], "metadata": "x" } })),
        widget(
            "g",
            json!({ "pod": { "apiVersion": "a/b/c", "kind": "", "metadata": { "name": "../..", "labels": { "": "" } } } }),
        ),
        widget("h", json!({ "re": "a".repeat(100_000) + "b" })),
        widget("i", json!([])),
        json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": [] }),
        json!({ "apiVersion": "example.com/v1", "kind": "Widget" }),
        json!({ "kind": "Widget" }),
        json!({}),
        json!([]),
        json!(null),
        json!("x"),
    ];
    for (i, body) in bodies.iter().enumerate() {
        let began = Instant::now();
        let answer = c.post(WIDGETS, body).await;
        assert!(
            matches!(answer.code, 201 | 400 | 413 | 422),
            "{i}: {}",
            answer.text().chars().take(300).collect::<String>()
        );
        assert!(began.elapsed() < Duration::from_secs(10), "{i} took {:?}", began.elapsed());
    }
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    assert_eq!(c.send("GET", WIDGETS, &table, "").await.code, 200);
    c.post(WIDGETS, &widget("z", json!({ "n": 1 }))).await.expect(201);
    let path = format!("{WIDGETS}/z");
    for (content, body) in [
        ("application/json-patch+json", r#"[{"op":"remove","path":""}]"#.to_owned()),
        (
            "application/json-patch+json",
            r#"[{"op":"replace","path":"/metadata","value":7}]"#.to_owned(),
        ),
        ("application/json-patch+json", r#"[{"op":"remove","path":"/kind"}]"#.to_owned()),
        ("application/merge-patch+json", r#"{"kind":"Other","apiVersion":"v1"}"#.to_owned()),
        ("application/merge-patch+json", r#"{"metadata":null}"#.to_owned()),
        ("application/merge-patch+json", "[]".to_owned()),
        ("application/apply-patch+yaml", "{".repeat(10_000)),
        (
            "application/apply-patch+yaml",
            "apiVersion: example.com/v1\nkind: Widget\nspec: [1]\n".to_owned(),
        ),
        ("application/apply-patch+yaml", "a: &a [*a]\n".to_owned()),
    ] {
        let answer = c
            .send(
                "PATCH",
                &format!("{path}?fieldManager=x"),
                &[("content-type", content)],
                body.clone(),
            )
            .await;
        assert!(
            matches!(answer.code, 400 | 409 | 422 | 500),
            "{content} {body:.60}: {} {}",
            answer.code,
            answer.text()
        );
        assert!(answer.json()["kind"] == "Status");
    }
    let answer = c.get(&format!("{path}/scale")).await;
    assert_eq!(answer.code, 500, "there are no replicas");
    c.get(&path).await.expect(200);
}
