//! A new node takes no pods until its lifecycle controller has seen it ready.

use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub fn admit(node: &mut Value) {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    if !node["spec"]["taints"].is_array() {
        node["spec"]["taints"] = json!([]);
    }
    let taints = node["spec"]["taints"].as_array_mut().expect("was just made one");
    let there = |t: &Value| t["key"] == NOT_READY && t["effect"] == "NoSchedule";
    if !taints.iter().any(there) {
        taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
    }
}
