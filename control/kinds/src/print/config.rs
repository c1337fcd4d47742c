//! Rows of configuration, identity and what happened: ConfigMap, Secret, bindings, quota, Event.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, name, since};
use crate::read::{Read, members};

fn count(object: &Value, field: &str) -> usize {
    object.entries(field).map_or(0, |m| m.len())
}

pub fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        (count(object, "data") + count(object, "binaryData")).into(),
        age(object, now),
    ]
}

pub fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.text("type").into(), count(object, "data").into(), age(object, now)]
}

pub fn role_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = object.at("roleRef");
    let subjects = |kind: &str| {
        let of_kind = object.list("subjects").iter().filter(|s| s.text("kind") == kind);
        let names: Vec<String> = of_kind
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", s.text("namespace"), s.text("name")),
                _ => s.text("name").to_owned(),
            })
            .collect();
        Value::from(names.join(", "))
    };
    vec![
        name(object),
        format!("{}/{}", role.text("kind"), role.text("name")).into(),
        age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

pub fn resource_quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = object.at("status");
    let mut hard: Vec<(&String, &Value)> = members(status.at("hard")).collect();
    hard.sort_by_key(|(key, _)| *key);
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, limit) in hard {
        let used = match status.at("used").text(resource) {
            "" => "0",
            used => used,
        };
        let shown = format!("{resource}: {used}/{}", limit.as_str().unwrap_or_default());
        if resource.starts_with("limits") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![name(object), requests.join(", ").into(), limits.join(", ").into(), age(object, now)]
}

/// An Event as core/v1 stores it.
pub fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_known =
        |times: [&str; 2]| times.into_iter().find(|t| !t.is_empty()).unwrap_or("").to_owned();
    let series = object.at("series");
    let first = first_known([object.text("firstTimestamp"), object.text("eventTime")]);
    let last = match series.is_object() {
        true => series.text("lastObservedTime").to_owned(),
        false => first_known([object.text("lastTimestamp"), &first]),
    };
    let count = match (series.int("count"), object.int("count").unwrap_or_default()) {
        (Some(n), _) => n,
        (None, 0) => 1,
        (None, n) => n,
    };
    let about = object.at("involvedObject");
    let kind = about.text("kind").to_lowercase();
    let target = match about.text("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        since(&last, now).into(),
        object.text("type").into(),
        object.text("reason").into(),
        target.into(),
        about.text("fieldPath").into(),
        source(object).into(),
        object.text("message").trim().into(),
        since(&first, now).into(),
        count.into(),
        name(object),
    ]
}

fn source(event: &Value) -> String {
    let either = |a: &str, b: &str| if a.is_empty() { b.to_owned() } else { a.to_owned() };
    let of = event.at("source");
    let component = either(of.text("component"), event.text("reportingComponent"));
    match either(of.text("host"), event.text("reportingInstance")).as_str() {
        "" => component,
        instance => format!("{component}, {instance}"),
    }
}

#[cfg(test)]
mod tests {
    use crate::print::tests::check;
    use serde_json::json;

    #[test]
    fn rows() {
        let meta = || json!({ "name": "x", "creationTimestamp": "2026-11-21T11:59:30Z" });
        check(
            "",
            "v1",
            "ConfigMap",
            json!({ "metadata": meta(), "data": { "a": "" }, "binaryData": { "b": "" } }),
            json!(["x", 2, "30s"]),
        );
        check(
            "",
            "v1",
            "Secret",
            json!({ "metadata": meta(), "type": "Opaque" }),
            json!(["x", "Opaque", 0, "30s"]),
        );
        check(
            "rbac.authorization.k8s.io",
            "v1",
            "RoleBinding",
            json!({ "metadata": meta(), "roleRef": { "kind": "ClusterRole", "name": "view" }, "subjects": [
                { "kind": "User", "name": "u" }, { "kind": "User", "name": "v" }, { "kind": "ServiceAccount", "namespace": "n", "name": "s" }] }),
            json!(["x", "ClusterRole/view", "30s", "u, v", "", "n/s"]),
        );
        check(
            "",
            "v1",
            "ResourceQuota",
            json!({ "metadata": meta(), "status": { "hard": { "pods": "3", "limits.cpu": "1" }, "used": { "pods": "1" } } }),
            json!(["x", "pods: 1/3", "limits.cpu: 0/1", "30s"]),
        );
        check(
            "",
            "v1",
            "Event",
            json!({ "metadata": meta(), "type": "Warning", "reason": "BackOff", "message": " m\n", "count": 4,
                    "involvedObject": { "kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}" },
                    "firstTimestamp": "2026-11-21T11:58:00Z", "lastTimestamp": "2026-11-21T11:59:50Z",
                    "source": { "component": "kubelet", "host": "n1" } }),
            json!([
                "10s",
                "Warning",
                "BackOff",
                "pod/p",
                "spec.containers{a}",
                "kubelet, n1",
                "m",
                "2m",
                4,
                "x"
            ]),
        );
        check(
            "",
            "v1",
            "Event",
            json!({ "metadata": meta(), "eventTime": "2026-11-21T11:59:50.000000Z", "reportingComponent": "c" }),
            json!(["10s", "", "", "", "", "c", "", "10s", 1, "x"]),
        );
    }
}
