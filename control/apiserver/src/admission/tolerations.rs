//! A pod stays for five minutes on a node that is not ready or unreachable, unless it says otherwise.

use serde_json::{Value, json};

const SECONDS: i64 = 300;

pub fn admit(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let given = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |t: &Value, field: &str| {
        t.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut all = given.clone();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = given.iter().any(|t| {
            let (k, effect) = (text(t, "key"), text(t, "effect"));
            (k == key || k.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            all.push(json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS }));
        }
    }
    if !all.is_empty() {
        spec["tolerations"] = all.into();
    }
}
