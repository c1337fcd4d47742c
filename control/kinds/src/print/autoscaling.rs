//! Rows of autoscalers and disruption budgets.

use jiff::Timestamp;
use serde_json::Value;

use super::{UNKNOWN, UNSET, age, int_or_string, name, number};
use crate::read::Read;

/// An autoscaler as autoscaling/v2 stores it.
pub fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let target = spec.at("scaleTargetRef");
    vec![
        name(object),
        format!("{}/{}", target.text("kind"), target.text("name")).into(),
        metrics(spec.list("metrics"), status.list("currentMetrics")).into(),
        int_or_string(spec.at("minReplicas"), UNSET),
        number(spec.at("maxReplicas")),
        number(status.at("currentReplicas")),
        age(object, now),
    ]
}

/// At most two metrics are shown, each as `current/target`.
fn metrics(specs: &[Value], statuses: &[Value]) -> String {
    if specs.is_empty() {
        return super::NONE.to_owned();
    }
    let shown: Vec<String> =
        specs.iter().enumerate().map(|(i, s)| metric(s, statuses.get(i))).collect();
    let text = shown[..shown.len().min(2)].join(", ");
    if shown.len() > 2 { format!("{text} + {} more...", shown.len() - 2) } else { text }
}

fn metric(spec: &Value, status: Option<&Value>) -> String {
    let (field, label) = match spec.text("type") {
        "Resource" => ("resource", spec.deep(&["resource", "name"])),
        "ContainerResource" => ("containerResource", spec.deep(&["containerResource", "name"])),
        "Pods" => ("pods", &Value::Null),
        "Object" => ("object", &Value::Null),
        "External" => ("external", &Value::Null),
        _ => return "<unknown type>".to_owned(),
    };
    let target = spec.at(field).at("target");
    let current = status.map_or(&Value::Null, |s| s.at(field).at("current"));
    let shown = if let Some(average) = target.at("averageValue").as_str() {
        let now = current.at("averageValue").as_str().unwrap_or(UNKNOWN);
        let suffix = if matches!(field, "object" | "external") { " (avg)" } else { "" };
        format!("{now}/{average}{suffix}")
    } else if let Some(value) = target.at("value").as_str() {
        format!("{}/{value}", current.at("value").as_str().unwrap_or(UNKNOWN))
    } else {
        let now = current.int("averageUtilization").map_or(UNKNOWN.to_owned(), |n| format!("{n}%"));
        let goal =
            target.int("averageUtilization").map_or("<auto>".to_owned(), |n| format!("{n}%"));
        format!("{now}/{goal}")
    };
    match label.as_str() {
        Some(label) => format!("{label}: {shown}"),
        None => shown,
    }
}

pub fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    vec![
        name(object),
        int_or_string(spec.at("minAvailable"), "N/A"),
        int_or_string(spec.at("maxUnavailable"), "N/A"),
        number(object.deep(&["status", "disruptionsAllowed"])),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use crate::print::tests::check;
    use serde_json::json;

    #[test]
    fn rows() {
        check(
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            json!({ "metadata": { "name": "h" }, "spec": { "minReplicas": 1, "maxReplicas": 3, "scaleTargetRef": { "kind": "Deployment", "name": "d" },
                "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } }] } }),
            json!(["h", "Deployment/d", "cpu: <unknown>/80%", "1", 3, 0, "<unknown>"]),
        );
        check(
            "policy",
            "v1",
            "PodDisruptionBudget",
            json!({ "metadata": { "name": "h" }, "spec": { "minAvailable": "50%" } }),
            json!(["h", "50%", "N/A", 0, "<unknown>"]),
        );
    }
}
