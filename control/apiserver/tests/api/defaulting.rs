//! Minimal objects come back as Kubernetes v1.36 completed them (`defaulting.json`).

use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Makes allocated and random values equal: addresses, node ports, generated suffixes, times.
fn normal(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, v) in map.iter_mut() {
                match key.as_str() {
                    "clusterIP" if v != "None" => *v = json!("IP"),
                    "clusterIPs" if v[0] != "None" => *v = json!(["IP"]),
                    "nodePort" | "healthCheckNodePort" => *v = json!(1),
                    "lastPhaseTransitionTime" => *v = json!("TIME"),
                    _ => normal(v),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(normal),
        Value::String(text) if text.starts_with("kube-api-access-") => {
            *text = "kube-api-access-".into()
        }
        _ => {}
    }
}

/// Cases that are known to differ; the list may only shrink.
const KNOWN: &[&str] = &[];

#[tokio::test]
async fn every_minimal_object() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../../kinds/testdata/defaulting.json")).unwrap();
    let cluster = Cluster::start().await;
    let mut wrong = Vec::new();
    for case in &cases {
        let path = case["path"].as_str().unwrap();
        let answer = cluster.admin.post(path, &case["send"]).await;
        let mut got: Value = serde_json::from_slice(&answer.bytes).unwrap_or_default();
        if let Some(meta) = got["metadata"].as_object_mut() {
            // An object without a field to own has no owner of fields.
            meta.remove("managedFields");
            for field in ["uid", "creationTimestamp", "resourceVersion"] {
                if meta.remove(field).is_none() && answer.code == 201 {
                    wrong.push(format!("{path}: no {field}"));
                }
            }
        }
        let mut expected = case["answer"].clone();
        // Labels that repeat the object's random uid.
        for value in [&mut got, &mut expected] {
            normal(value);
            let text = value.to_string();
            *value = serde_json::from_str(&blank_uids(&text)).unwrap();
        }
        let differs = answer.code != 201 || got != expected;
        if KNOWN.contains(&path) {
            assert!(differs, "{path} agrees now, take it off the list");
        } else if differs {
            wrong.push(format!(
                "{path} {}\n  wanted {expected}\n  got {} {got}",
                case["send"]["metadata"]["name"], answer.code
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Replaces every UUID in a text.
fn blank_uids(text: &str) -> String {
    let shape = [8, 4, 4, 4, 12];
    let is_uid = |s: &str| {
        let parts: Vec<&str> = s.split('-').collect();
        parts.len() == 5
            && parts
                .iter()
                .zip(shape)
                .all(|(p, n)| p.len() == n && p.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < text.len() {
        match text.get(i..i + 36) {
            Some(s) if is_uid(s) => {
                out.push_str("UID");
                i += 36;
            }
            _ => {
                let c = text[i..].chars().next().unwrap();
                out.push(c);
                i += c.len_utf8();
            }
        }
    }
    out
}
