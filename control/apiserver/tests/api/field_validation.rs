//! `fieldValidation`: what is told of fields that are unknown or there twice, in each kind of write. What
//! Kubernetes' own integration tests of it assert is the measure.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#field-validation>

use serde_json::{Value, json};

use crate::cluster::Cluster;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const OPERATIONS: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

struct Case {
    method: &'static str,
    path: String,
    content: &'static str,
    body: String,
}

impl Case {
    fn new(method: &'static str, path: &str, content: &'static str, body: &str) -> Self {
        Self { method, path: path.to_owned(), content, body: body.to_owned() }
    }
}

/// Strict refuses with that end of a message, Warn tells the same one by one, Ignore tells nothing.
async fn check(cluster: &Cluster, case: Case, strict: &str, warnings: &[&str]) {
    let Case { method, path, content, body } = &case;
    let send = async |validation: &str| {
        let path = format!("{path}?fieldManager=m&fieldValidation={validation}&dryRun=All");
        cluster.admin.send(method, &path, &[("content-type", content)], body.clone()).await
    };
    let refused = send("Strict").await;
    let message = refused.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(
        refused.code >= 400 && message.ends_with(strict),
        "{method} {content}: {} {message}",
        refused.code
    );
    for (validation, expected) in [("Warn", warnings), ("", warnings), ("Ignore", &[])] {
        let answer = send(validation).await;
        assert!(answer.code < 300, "{method} {content} {validation}: {}", answer.text());
        let texts: Vec<String> = answer
            .warnings()
            .iter()
            .map(|w| {
                let quoted = w.strip_prefix("299 - \"").and_then(|w| w.strip_suffix('"'));
                quoted.expect("a quoted text").replace("\\\"", "\"")
            })
            .collect();
        assert_eq!(texts, expected, "{method} {content} {validation}");
    }
}

fn strict(all: &[&str]) -> String {
    format!("strict decoding error: {}", all.join(", "))
}

fn deployment(spec: &str, container: &str) -> String {
    format!(
        r#"{{"apiVersion":"apps/v1","kind":"Deployment","metadata":{{"name":"d"}},
            "spec":{{{spec}"selector":{{"matchLabels":{{"a":"b"}}}},
            "template":{{"metadata":{{"labels":{{"a":"b"}}}},"spec":{{"containers":[
                {{"name":"c","image":"i"{container}}}]}}}}}}}}"#
    )
}

const WRONG_SPEC: &str = r#""once":1,"twice":1,"twice":2,"paused":true,"paused":false,"#;
const WRONG_CONTAINER: &str = r#","nested":1,"imagePullPolicy":"Always","imagePullPolicy":"Never""#;

#[tokio::test]
async fn of_built_in_kinds() {
    let cluster = Cluster::start().await;
    let wrong = deployment(WRONG_SPEC, WRONG_CONTAINER);
    let of_body = [
        r#"unknown field "spec.once""#,
        // Of what is unknown nobody says that it is there twice.
        r#"unknown field "spec.twice""#,
        r#"duplicate field "spec.paused""#,
        r#"unknown field "spec.template.spec.containers[0].nested""#,
        r#"duplicate field "spec.template.spec.containers[0].imagePullPolicy""#,
    ];
    let post = Case::new("POST", DEPLOYMENTS, JSON, &wrong);
    check(&cluster, post, &strict(&of_body), &of_body).await;

    let yaml = "apiVersion: apps/v1
kind: Deployment
metadata:
  name: d
  name: d
spec:
  once: 1
  paused: true
  paused: false
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {a: b}}
    spec:
      containers:
      - name: c
        image: i
        imagePullPolicy: Always
        imagePullPolicy: Never
";
    let lines = [
        r#"line 5: key "name" already set in map"#,
        r#"line 9: key "paused" already set in map"#,
        r#"line 18: key "imagePullPolicy" already set in map"#,
    ];
    let complaint = format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "));
    let unknown = r#"unknown field "spec.once""#;
    let post = Case::new("POST", DEPLOYMENTS, YAML, yaml);
    let warnings = [&lines[..], &[unknown]].concat();
    check(&cluster, post, &strict(&[&complaint, unknown]), &warnings).await;

    cluster
        .admin
        .post(DEPLOYMENTS, &serde_json::from_str(&deployment("", "")).unwrap())
        .await
        .expect(201);
    let one = format!("{DEPLOYMENTS}/d");
    let put = Case::new("PUT", &one, JSON, &wrong);
    check(&cluster, put, &strict(&of_body), &of_body).await;
    let patch = format!(
        r#"{{"spec":{{{WRONG_SPEC}"template":{{"spec":{{"containers":[{{"name":"c","image":"i"{WRONG_CONTAINER}}}]}}}}}}}}"#
    );
    let of_patch = [
        r#"duplicate field "spec.twice""#,
        r#"duplicate field "spec.paused""#,
        r#"duplicate field "spec.template.spec.containers[0].imagePullPolicy""#,
        r#"unknown field "spec.once""#,
        r#"unknown field "spec.template.spec.containers[0].nested""#,
        r#"unknown field "spec.twice""#,
    ];
    for content in [MERGE, STRATEGIC] {
        let case = Case::new("PATCH", &one, content, &patch);
        check(&cluster, case, &strict(&of_patch), &of_patch).await;
        // Nothing is unknown in the outcome, and the patch is wrong all the same.
        let twice = r#"{"spec":{"paused":true,"paused":false}}"#;
        let only = [r#"duplicate field "spec.paused""#];
        let case = Case::new("PATCH", &one, content, twice);
        check(&cluster, case, &strict(&only), &only).await;
    }
    let operations = r#"[{"op":"add","path":"/spec/once","value":1,"foo":"bar"},
        {"op":"add","path":"/spec/paused","path":"/spec/other","value":1}]"#;
    let of_operations = [
        r#"json patch unknown field "[0].foo""#,
        r#"json patch duplicate field "[1].path""#,
        r#"unknown field "spec.once""#,
        r#"unknown field "spec.other""#,
    ];
    let case = Case::new("PATCH", &one, OPERATIONS, operations);
    check(&cluster, case, &strict(&of_operations), &of_operations).await;

    let applied = deployment("\n\"paused\":true,\"paused\":false,\n", ",\"image\":\"j\"");
    let lines =
        [r#"line 3: key "paused" already set in map"#, r#"line 6: key "image" already set in map"#];
    let why = format!(
        "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {}",
        lines.join("\n  ")
    );
    check(&cluster, Case::new("PATCH", &one, APPLY, &applied), &why, &lines).await;
}

#[tokio::test]
async fn of_custom_kinds() {
    let cluster = Cluster::start().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "widgets", "kind": "Widget" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "properties": { "spec": { "type": "object", "properties": {
                    "a": { "type": "integer" } } } } } } }] } });
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.admin.post(path, &definition).await.expect(201);
    let body = r#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w","odd":1},"spec":{"a":1,"a":2,"b":1,"b":2}}"#;
    let of_body = [
        r#"duplicate field "spec.a""#,
        r#"duplicate field "spec.b""#,
        r#"unknown field "metadata.odd""#,
        r#"unknown field "spec.b""#,
    ];
    check(&cluster, Case::new("POST", WIDGETS, JSON, body), &strict(&of_body), &of_body).await;
    let plain: Value =
        json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "w" } });
    cluster.admin.post(WIDGETS, &plain).await.expect(201);
    let one = format!("{WIDGETS}/w");
    let patch = r#"{"spec":{"a":1,"a":2,"b":1}}"#;
    let of_patch = [r#"duplicate field "spec.a""#, r#"unknown field "spec.b""#];
    check(&cluster, Case::new("PATCH", &one, MERGE, patch), &strict(&of_patch), &of_patch).await;
    let operations = r#"[{"op":"add","path":"/spec","value":{"a":1,"b":2},"foo":1}]"#;
    let of_operations = [r#"json patch unknown field "[0].foo""#, r#"unknown field "spec.b""#];
    let case = Case::new("PATCH", &one, OPERATIONS, operations);
    check(&cluster, case, &strict(&of_operations), &of_operations).await;
}
