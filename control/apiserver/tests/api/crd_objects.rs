//! Custom objects: each write, each form of an answer, driven by the schema.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::crd::{CRDS, WIDGETS, establish, free, wait_for, widget, widgets};

fn schema() -> Value {
    json!({ "type": "object", "required": ["spec"], "properties": {
        "spec": { "type": "object", "required": ["n"], "properties": {
            "n": { "type": "integer", "minimum": 1, "maximum": 10 },
            "color": { "type": "string", "enum": ["red", "green"], "default": "red" },
            "cron": { "type": "string", "pattern": "^\\d+$" },
            "maybe": { "type": "string", "nullable": true },
            "port": { "x-kubernetes-int-or-string": true },
            "ports": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                "items": { "type": "object", "required": ["port"], "properties": { "port": { "type": "integer" }, "name": { "type": "string" } } } },
            "tags": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
            "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
            "replicas": { "type": "integer" },
            "template": { "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true },
        } },
        "status": { "type": "object", "properties": { "replicas": { "type": "integer" }, "selector": { "type": "string" }, "phase": { "type": "string" } } },
    } })
}

/// Widgets with everything that a version can offer.
fn full() -> Value {
    let mut definition = widgets(schema());
    let version = &mut definition["spec"]["versions"][0];
    version["subresources"] = json!({ "status": {}, "scale": {
        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector" } });
    version["additionalPrinterColumns"] = json!([
        { "name": "N", "type": "integer", "jsonPath": ".spec.n" },
        { "name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1 },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    version["selectableFields"] = json!([{ "jsonPath": ".spec.color" }]);
    definition
}

#[tokio::test]
async fn values_are_what_the_schema_says() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    establish(c, &full()).await;
    let made = c
        .post(
            WIDGETS,
            &widget(
                "ok",
                json!({ "n": 1, "x": 1, "maybe": null, "cron": null, "free": { "y": 1 } }),
            ),
        )
        .await;
    let spec = made.expect(201)["spec"].clone();
    assert_eq!(
        spec,
        json!({ "n": 1, "color": "red", "maybe": null, "free": { "y": 1 } }),
        "pruned and defaulted"
    );
    assert_eq!(made.warnings(), [r#"299 - "unknown field \"spec.x\"""#]);

    let cases: [(Value, &str, &str); 9] = [
        (
            json!({ "n": "a" }),
            "FieldValueTypeInvalid",
            r#"spec.n: Invalid value: "string": spec.n in body must be of type integer: "string""#,
        ),
        (json!({}), "FieldValueRequired", "spec.n: Required value"),
        (
            json!({ "n": 11 }),
            "FieldValueInvalid",
            "spec.n: Invalid value: 11: spec.n in body should be less than or equal to 10",
        ),
        (
            json!({ "n": 1, "color": "blue" }),
            "FieldValueNotSupported",
            r#"spec.color: Unsupported value: "blue": supported values: "red", "green""#,
        ),
        (
            json!({ "n": 1, "cron": "x" }),
            "FieldValueInvalid",
            r#"spec.cron: Invalid value: "x": spec.cron in body should match '^\d+$'"#,
        ),
        (
            json!({ "n": 1, "tags": ["a", "a"] }),
            "FieldValueDuplicate",
            r#"spec.tags[1]: Duplicate value: "a""#,
        ),
        (
            json!({ "n": 1, "ports": [{ "port": 1 }, { "port": 1 }] }),
            "FieldValueDuplicate",
            r#"spec.ports[1]: Duplicate value: {"port":1}"#,
        ),
        (
            json!({ "n": 1, "port": true }),
            "FieldValueTypeInvalid",
            "must be of type integer,string",
        ),
        (
            json!({ "n": 1, "template": { "kind": "Pod" } }),
            "FieldValueRequired",
            "spec.template.apiVersion: Required value",
        ),
    ];
    for (spec, reason, text) in cases {
        let refused = c.post(WIDGETS, &widget("bad", spec)).await.expect(422);
        assert!(refused["message"].as_str().unwrap().contains(text), "{refused}");
        assert_eq!(refused["details"]["causes"][0]["reason"], reason, "{refused}");
    }
    // What is refused in metadata is refused as of any kind.
    let mut bad = widget("bad", json!({ "n": 1 }));
    bad["metadata"]["labels"] = json!({ "a": 1 });
    let refused = c.post(WIDGETS, &bad).await.expect(400);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("json: cannot unmarshal number into Go struct field"),
        "{refused}"
    );
    let mut other = widget("bad", json!({ "n": 1 }));
    other["apiVersion"] = "example.com/v2".into();
    let refused = c.post(WIDGETS, &other).await.expect(400);
    assert_eq!(
        refused["message"],
        "the API version in the data (example.com/v2) does not match the expected API version (example.com/v1)"
    );
}

#[tokio::test]
async fn strict_bodies() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    establish(c, &full()).await;
    let strict = format!("{WIDGETS}?fieldValidation=Strict");
    let body = r#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"a","unknownMeta":1},
        "spec":{"n":1,"n":2,"x":1,"free":{"y":1},"template":{"apiVersion":"v1","kind":"Pod","metadata":{"unknownSub":1}}}}"#;
    let json = [("content-type", "application/json")];
    let refused = c.send("POST", &strict, &json, body).await.expect(400);
    let message = refused["message"].as_str().unwrap();
    assert!(message.starts_with("Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: duplicate field \"spec.n\""), "{message}");
    for field in ["metadata.unknownMeta", "spec.x", "spec.template.metadata.unknownSub"] {
        assert!(message.contains(&format!("unknown field \"{field}\"")), "{field}: {message}");
    }
    let warned = c.send("POST", WIDGETS, &json, body).await;
    assert_eq!(warned.warnings().len(), 4, "{:?}", warned.warnings());
    let made = warned.expect(201);
    assert_eq!(made["spec"]["n"], 2);
    assert_eq!(made["metadata"].get("unknownMeta"), None);
    assert_eq!(made["spec"]["template"]["metadata"], json!({}));

    // An apply is told what the schema does not declare.
    let apply = [("content-type", "application/apply-patch+yaml")];
    let path = format!("{WIDGETS}/b?fieldManager=m&fieldValidation=Strict");
    let yaml =
        "apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: b\nspec:\n  n: 1\n  zzz: 1\n";
    let refused = c.send("PATCH", &path, &apply, yaml).await;
    assert!(
        refused.text().contains(".spec.zzz: field not declared in schema"),
        "{}",
        refused.text()
    );
    let yaml =
        "\napiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: b\nspec:\n  n: 1\n  n: 2\n";
    let refused = c.send("PATCH", &path, &apply, yaml).await;
    assert!(
        refused.text().contains(r#"line 8: key \"n\" already set in map"#),
        "{}",
        refused.text()
    );
}

#[tokio::test]
async fn every_patch() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    establish(c, &full()).await;
    let path = format!("{WIDGETS}/a");
    let apply = [("content-type", "application/apply-patch+yaml")];
    let body = json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "a" },
        "spec": { "n": 1, "ports": [{ "port": 1, "name": "x" }] } });
    // An apply creates.
    let made = c
        .send("PATCH", &format!("{path}?fieldManager=one"), &apply, body.to_string())
        .await
        .expect(201);
    let fields = &made["metadata"]["managedFields"][0];
    assert_eq!((&fields["manager"], &fields["operation"]), (&json!("one"), &json!("Apply")));
    assert_eq!(
        fields["fieldsV1"]["f:spec"]["f:ports"],
        json!({ "k:{\"port\":1}": { ".": {}, "f:name": {}, "f:port": {} } })
    );
    // Lists merge by their keys; who else owns a field is a conflict.
    let more = json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "a" }, "spec": { "ports": [{ "port": 2 }] } });
    let both = c
        .send("PATCH", &format!("{path}?fieldManager=two"), &apply, more.to_string())
        .await
        .expect(200);
    assert_eq!(both["spec"]["ports"], json!([{ "port": 1, "name": "x" }, { "port": 2 }]));
    let clash = json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "a" }, "spec": { "n": 2 } });
    let refused = c
        .send("PATCH", &format!("{path}?fieldManager=two"), &apply, clash.to_string())
        .await
        .expect(409);
    assert_eq!(refused["details"]["causes"][0]["field"], ".spec.n");
    let forced = c
        .send("PATCH", &format!("{path}?fieldManager=two&force=true"), &apply, clash.to_string())
        .await
        .expect(200);
    assert_eq!(forced["spec"]["n"], 2);

    let merged = c.merge(&path, &json!({ "spec": { "n": 3, "color": null } })).await.expect(200);
    assert_eq!((&merged["spec"]["n"], &merged["spec"]["color"]), (&json!(3), &json!("red")));
    assert_eq!(merged["metadata"]["generation"], 4);
    let ops = json!([{ "op": "replace", "path": "/spec/n", "value": 4 }]);
    let patched = c
        .send("PATCH", &path, &[("content-type", "application/json-patch+json")], ops.to_string())
        .await;
    assert_eq!(patched.expect(200)["spec"]["n"], 4);
    let refused = c
        .send("PATCH", &path, &[("content-type", "application/strategic-merge-patch+json")], "{}")
        .await
        .expect(415);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("accepted media types include: application/json-patch+json")
    );
    let refused = c.merge(&path, &json!({ "spec": { "n": "x" } })).await.expect(422);
    assert!(refused["message"].as_str().unwrap().contains("must be of type integer"));

    // A PUT must say which version it is for.
    let mut put = c.get(&path).await.expect(200);
    put["spec"]["n"] = 5.into();
    let after = c.put(&path, &put).await.expect(200);
    assert_eq!(after["spec"]["n"], 5);
    let same = c.put(&path, &after).await.expect(200);
    assert_eq!(same["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    c.put(&path, &put).await.expect(409);
    put["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    c.put(&path, &put).await.expect(422);
}

#[tokio::test]
async fn status_and_scale() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    establish(c, &full()).await;
    let mut object = widget("a", json!({ "n": 1, "replicas": 2 }));
    object["status"] = json!({ "phase": "x" });
    let made = c.post(WIDGETS, &object).await.expect(201);
    assert_eq!(made.get("status"), None);
    let path = format!("{WIDGETS}/a");
    let patch = json!({ "status": { "replicas": 1, "selector": "a=b", "x": 1 }, "spec": { "n": 9 }, "metadata": { "labels": { "l": "m" } } });
    let after = c.merge(&format!("{path}/status"), &patch).await.expect(200);
    assert_eq!(after["status"], json!({ "replicas": 1, "selector": "a=b" }));
    assert_eq!((&after["spec"]["n"], &after["metadata"]["generation"]), (&json!(1), &json!(1)));
    assert_eq!(after["metadata"].get("labels"), None, "a write to the status changes nothing else");
    let refused =
        c.merge(&format!("{path}/status"), &json!({ "status": { "phase": 1 } })).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "status.phase");

    let scale = c.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(scale["status"], json!({ "replicas": 1, "selector": "a=b" }));
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = c.send("GET", &format!("{path}/scale"), &table, "").await.expect(200);
    let shown = |list: &Value, field: &str| -> Vec<Value> {
        list.as_array().unwrap().iter().map(|c| c[field].clone()).collect()
    };
    let names = shown(&table["columnDefinitions"], "name");
    assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap()[..3],
        [json!("a"), json!(2), json!(1)]
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = 5.into();
    let scaled = c.put(&format!("{path}/scale"), &wanted).await.expect(200);
    assert_eq!(scaled["spec"]["replicas"], 5);
    let after = c.get(&path).await.expect(200);
    assert_eq!(
        (&after["spec"]["replicas"], &after["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );
    let refused = c.merge(&path, &json!({ "spec": { "replicas": -1 } })).await.expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains(".spec.replicas: Invalid value: -1: should be a non-negative integer"),
        "{refused}"
    );
}

#[tokio::test]
async fn lists_and_columns() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    establish(c, &full()).await;
    for (name, color) in [("a", "red"), ("b", "green"), ("d", "green")] {
        let mut object = widget(name, json!({ "n": 1, "color": color }));
        object["metadata"]["labels"] = json!({ "name": name });
        c.post(WIDGETS, &object).await.expect(201);
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let list = c.get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dgreen")).await.expect(200);
    assert_eq!((names(&list), &list["kind"]), (vec!["b".into(), "d".into()], &json!("WidgetList")));
    let list = c.get(&format!("{WIDGETS}?labelSelector=name%3Da")).await.expect(200);
    assert_eq!(names(&list), ["a"]);
    assert_eq!(c.get(&format!("{WIDGETS}?fieldSelector=spec.n%3D1")).await.code, 400);
    let page = c.get("/apis/example.com/v1/widgets?limit=2").await.expect(200);
    let token = page["metadata"]["continue"].as_str().unwrap();
    let rest =
        c.get(&format!("/apis/example.com/v1/widgets?limit=2&continue={token}")).await.expect(200);
    assert_eq!((names(&page).len(), names(&rest)), (2, vec!["d".to_owned()]));

    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let shown = c.send("GET", WIDGETS, &table, "").await.expect(200);
    let columns: Vec<&Value> =
        shown["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(columns, ["Name", "N", "Color", "Age"]);
    let cells = shown["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("a"), json!(1), json!("red")]);

    let mut watch = c
        .watch(&format!("{WIDGETS}?watch=1&resourceVersion=0&fieldSelector=spec.color%3Dred"))
        .await;
    assert_eq!(watch.brief().await, ("ADDED".into(), "a".into()));
    c.merge(&format!("{WIDGETS}/b"), &json!({ "spec": { "color": "red" } })).await.expect(200);
    assert_eq!(watch.brief().await, ("ADDED".into(), "b".into()));
    c.merge(&format!("{WIDGETS}/a"), &json!({ "spec": { "color": "green" } })).await.expect(200);
    assert_eq!(watch.brief().await, ("DELETED".into(), "a".into()));
    let gone =
        c.delete(&format!("{WIDGETS}?labelSelector=name+in+(a,b)"), &Value::Null).await.expect(200);
    assert_eq!(names(&gone).len(), 2);
    assert_eq!(names(&c.get(WIDGETS).await.expect(200)), ["d"]);
}

#[tokio::test]
async fn a_schema_that_changes() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let simple = |spec: Value| json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": spec } } });
    establish(c, &widgets(simple(json!({ "a": { "type": "string" }, "b": { "type": "string" } }))))
        .await;
    c.post(WIDGETS, &widget("old", json!({ "b": "kept" }))).await.expect(201);
    let mut watch = c.watch(&format!("{WIDGETS}?watch=1&resourceVersion=0")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["spec"], json!({ "b": "kept" }));

    let crd = format!("{CRDS}/widgets.example.com");
    let change = |spec: Value| json!([{ "op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": simple(spec) }]);
    let headers = [("content-type", "application/json-patch+json")];
    let new =
        change(json!({ "a": { "type": "string", "default": "A" }, "b": { "type": "string" } }));
    c.send("PATCH", &crd, &headers, new.to_string()).await.expect(200);
    // What was stored before is defaulted when it is read, in each way; at once, since a write is
    // answered when it holds.
    let path = format!("{WIDGETS}/old");
    assert_eq!(c.get(&path).await.expect(200)["spec"], json!({ "a": "A", "b": "kept" }));
    assert_eq!(c.get(WIDGETS).await.expect(200)["items"][0]["spec"]["a"], "A");
    // The watch goes on, with the schema of today.
    c.post(WIDGETS, &widget("new", json!({}))).await.expect(201);
    assert_eq!(watch.next().await.unwrap()["object"]["spec"], json!({ "a": "A" }));
    // A write keeps the default for good.
    c.merge(&path, &json!({ "metadata": { "labels": { "x": "y" } } })).await.expect(200);
    let removed =
        change(json!({ "a": { "type": "string" }, "b": { "type": "string", "default": "B" } }));
    c.send("PATCH", &crd, &headers, removed.to_string()).await.expect(200);
    assert_eq!(c.get(&path).await.expect(200)["spec"], json!({ "a": "A", "b": "kept" }));
    assert_eq!(
        c.get(&format!("{WIDGETS}/new")).await.expect(200)["spec"],
        json!({ "a": "A", "b": "B" })
    );
    // A field that the schema forgot is pruned from what is read.
    let less = change(json!({ "b": { "type": "string" } }));
    c.send("PATCH", &crd, &headers, less.to_string()).await.expect(200);
    assert_eq!(c.get(&path).await.expect(200)["spec"], json!({ "b": "kept" }));
    // What was wrong before does not keep other fields from being changed.
    let tight =
        change(json!({ "b": { "type": "string", "maxLength": 1 }, "n": { "type": "integer" } }));
    c.send("PATCH", &crd, &headers, tight.to_string()).await.expect(200);
    c.merge(&path, &json!({ "spec": { "n": 1 } })).await.expect(200);
    c.merge(&path, &json!({ "spec": { "b": "xx" } })).await.expect(422);
}

#[tokio::test]
async fn schemas_are_published() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let before = c.get("/openapi/v3").await.expect(200);
    assert_eq!(before["paths"].get("apis/example.com/v1"), None);
    establish(c, &full()).await;
    let index = c.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    let v3 = c.get(url).await.expect(200);
    let schema = &v3["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["color"]["enum"],
        json!(["red", "green"])
    );
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    assert!(
        schema["properties"]["metadata"]["allOf"][0]["$ref"]
            .as_str()
            .unwrap()
            .ends_with("ObjectMeta")
    );
    assert!(
        v3["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}/scale"].is_object()
    );
    assert!(v3["components"]["schemas"]["com.example.v1.WidgetList"].is_object());
    let v2 = c.get("/openapi/v2").await.expect(200);
    let schema = &v2["definitions"]["com.example.v1.Widget"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["n"],
        json!({ "type": "integer", "minimum": 1, "maximum": 10 })
    );
    assert_eq!(schema["properties"]["spec"]["properties"]["maybe"], json!({}), "v2 knows no null");
    // Another kind of the same group, and the group as it was when both are gone.
    let mut other = widgets(free());
    other["metadata"]["name"] = "gadgets.example.com".into();
    other["spec"]["names"] = json!({ "plural": "gadgets", "kind": "Gadget" });
    establish(c, &other).await;
    let index = c.get("/openapi/v3").await.expect(200);
    let second = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_ne!(second, url, "another content has another hash");
    let v3 = c.get(second).await.expect(200);
    assert!(v3["components"]["schemas"]["com.example.v1.Gadget"].is_object());
    for name in ["widgets", "gadgets"] {
        c.delete(&format!("{CRDS}/{name}.example.com"), &Value::Null).await.expect(200);
    }
    wait_for(c, "/openapi/v3", |_, v| v["paths"].get("apis/example.com/v1").is_none()).await;
    let v2 = c.get("/openapi/v2").await.expect(200);
    assert_eq!(v2["definitions"].get("com.example.v1.Widget"), None);
}

#[tokio::test]
async fn rules_in_cel() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let with = |rule: Value| {
        widgets(
            json!({ "type": "object", "properties": { "spec": { "type": "object", "x-kubernetes-validations": [rule],
            "properties": { "min": { "type": "integer" }, "max": { "type": "integer" }, "name": { "type": "string", "maxLength": 10,
                "x-kubernetes-validations": [{ "rule": "self == oldSelf", "message": "is immutable" }] } } } } }),
        )
    };
    let refused =
        c.post(CRDS, &with(json!({ "rule": "self.min <= self.nothing" }))).await.expect(422);
    let field = refused["details"]["causes"][0]["field"].as_str().unwrap();
    assert_eq!(
        field,
        "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule"
    );
    establish(c, &with(json!({ "rule": "self.min <= self.max", "messageExpression": "'min is ' + string(self.min)" }))).await;
    c.post(WIDGETS, &widget("a", json!({ "min": 1, "max": 2, "name": "x" }))).await.expect(201);
    let refused = c.post(WIDGETS, &widget("b", json!({ "min": 3, "max": 2 }))).await.expect(422);
    assert!(refused["message"].as_str().unwrap().contains("min is 3"), "{refused}");
    let path = format!("{WIDGETS}/a");
    c.merge(&path, &json!({ "spec": { "max": 3 } })).await.expect(200);
    let refused = c.merge(&path, &json!({ "spec": { "name": "y" } })).await.expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("spec.name: Invalid value: \"y\": is immutable"),
        "{refused}"
    );
    let refused = c.merge(&path, &json!({ "spec": { "min": "x" } })).await.expect(422);
    assert!(
        refused["message"].as_str().unwrap().contains("some validation rules were not checked"),
        "{refused}"
    );
}
