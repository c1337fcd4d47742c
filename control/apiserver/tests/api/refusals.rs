//! Every bad request of `refusals.json` gets the very Status that Kubernetes v1.36 gave.

use serde_json::Value;

use crate::cluster::Cluster;

/// Numbers that depend on the cluster's history.
fn normal(mut answer: Value) -> Value {
    if let Some(message) = answer.get("message").and_then(Value::as_str)
        && let Some((head, _)) = message.split_once(", current: ")
    {
        answer["message"] = head.into();
    }
    answer
}

#[tokio::test]
async fn every_refusal() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../../kinds/testdata/refusals.json")).unwrap();
    let cluster = Cluster::start().await;
    let mut wrong = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let text = |field: &str| case[field].as_str().unwrap_or_default();
        let body = match &case["send"] {
            Value::Null => String::new(),
            Value::String(raw) => raw.clone(),
            note if note.get("note").is_some() => {
                let mut pod = crate::cluster::pod("x");
                pod["metadata"]["annotations"] = serde_json::json!({ "a": "v".repeat(300_000) });
                pod.to_string()
            }
            object => object.to_string(),
        };
        let mut headers = vec![("content-type", text("contentType"))];
        let given = case["headers"].as_array().into_iter().flatten();
        headers.extend(given.filter_map(|h| h.as_str()?.split_once(": ")));
        let answer = cluster.admin.send(text("method"), text("path"), &headers, body).await;
        let same = match &case["answer"] {
            Value::String(text) => answer.text() == *text,
            expected if expected.get("note").is_some() => true,
            expected => serde_json::from_slice(&answer.bytes)
                .is_ok_and(|a: Value| normal(a) == normal(expected.clone())),
        };
        if u64::from(answer.code) != case["code"].as_u64().unwrap() || !same {
            wrong.push(format!(
                "{i}: {} {}\n  wanted {} {}\n  got    {} {}",
                text("method"),
                text("path"),
                case["code"],
                case["answer"],
                answer.code,
                answer.text()
            ));
        }
        if (200..300).contains(&answer.code)
            && text("method") == "POST"
            && !text("path").contains("dryRun")
        {
            let made = answer.json()["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let path = text("path").split('?').next().unwrap();
            cluster.admin.delete(&format!("{path}/{made}"), &Value::Null).await;
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
