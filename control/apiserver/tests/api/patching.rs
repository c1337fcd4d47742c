//! Patches and applies, step by step, leave the objects and the owners of fields that a real API
//! server left.

use serde_json::Value;

use crate::cluster::Cluster;

/// Removes what differs from cluster to cluster.
fn normal(mut object: Value) -> Value {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "creationTimestamp", "resourceVersion"] {
            meta.remove(field);
        }
        for entry in
            meta.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten()
        {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
        }
    }
    for field in ["clusterIP", "clusterIPs"] {
        if let Some(value) = object.pointer_mut(&format!("/spec/{field}")) {
            *value = "IP".into();
        }
    }
    // The answers were kept without status; a refusal's is its own.
    if object["kind"] != "Status"
        && let Some(object) = object.as_object_mut()
    {
        object.remove("status");
    }
    object
}

#[tokio::test]
async fn every_case() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../../schema/testdata/patching.json")).unwrap();
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut wrong = Vec::new();
    for case in &cases {
        let path = case["path"].as_str().unwrap();
        let name = case["create"]["metadata"]["name"].as_str().unwrap_or_default();
        if case["create"].is_object() {
            c.post(&format!("{path}?fieldManager=creator"), &case["create"]).await.expect(201);
        }
        for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let text = |f: &str| step[f].as_str().unwrap_or_default();
            let name = match step["send"]["metadata"]["name"].as_str() {
                Some(sent) if name.is_empty() => sent,
                _ => name,
            };
            let at = match step.get("path").and_then(Value::as_str) {
                Some(own) => own.to_owned(),
                None => format!("{path}/{name}{}", text("query")),
            };
            let body = match &step["send"] {
                Value::String(raw) => raw.clone(),
                object => object.to_string(),
            };
            let headers = [("content-type", text("contentType")), ("user-agent", "curl/8")];
            let answer = c.send("PATCH", &at, &headers, body).await;
            let same_code = u64::from(answer.code) == step["code"].as_u64().unwrap();
            let got: Value = serde_json::from_slice(&answer.bytes).unwrap_or_default();
            let same = same_code
                && (step["answer"].get("note").is_some()
                    || normal(got) == normal(step["answer"].clone()));
            if !same {
                wrong.push(format!(
                    "{} step {i}\n  wanted {} {}\n  got    {} {}",
                    case["case"],
                    step["code"],
                    normal(step["answer"].clone()),
                    answer.code,
                    serde_json::from_slice(&answer.bytes)
                        .map(|v| normal(v).to_string())
                        .unwrap_or_default()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} steps differ:\n{}", wrong.len(), wrong.join("\n"));
}
