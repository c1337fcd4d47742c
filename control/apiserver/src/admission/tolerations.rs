//! A pod stays for five minutes on a node that is not ready or unreachable, unless it says otherwise.

use serde_json::{Value, json};

const SECONDS: i64 = 300;

pub fn admit(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let given = spec.get("tolerations").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    fn text<'t>(toleration: &'t Value, field: &str) -> &'t str {
        toleration.get(field).and_then(Value::as_str).unwrap_or_default()
    }
    let tolerated = |key: &str| {
        given.iter().any(|t| {
            (text(t, "key").is_empty() || text(t, "key") == key)
                && matches!(text(t, "effect"), "" | "NoExecute")
        })
    };
    let keys = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
    let missing: Vec<Value> = keys
        .into_iter()
        .filter(|key| !tolerated(key))
        .map(|key| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS }))
        .collect();
    match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
        Some(tolerations) => tolerations.extend(missing),
        None if !missing.is_empty() => spec["tolerations"] = missing.into(),
        None => {}
    }
}
