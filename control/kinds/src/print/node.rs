//! Rows of what the cluster itself consists of: nodes, namespaces, leases, classes, certificates.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{NONE, UNKNOWN, age, condition, human_duration, name, number, text_or};
use crate::read::{Read, members};

pub fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = object.at("status");
    let info = status.at("nodeInfo");
    let address = |kind: &str| {
        let found = status.list("addresses").iter().find(|a| a.text("type") == kind);
        found.map_or(NONE, |a| a.text("address"))
    };
    let known = |field: &str| match info.text(field) {
        "" => UNKNOWN,
        text => text,
    };
    let ready = match condition(status, "Ready") {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let state = if object.at("spec").flag("unschedulable") {
        format!("{ready},SchedulingDisabled")
    } else {
        ready.to_owned()
    };
    vec![
        name(object),
        state.into(),
        roles(object).into(),
        age(object, now),
        info.text("kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        known("osImage").into(),
        known("kernelVersion").into(),
        known("containerRuntimeVersion").into(),
    ]
}

fn roles(node: &Value) -> String {
    let labels = members(node.deep(&["metadata", "labels"]));
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    super::or_none(roles.into_iter().collect::<Vec<_>>().join(","))
}

pub fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.at("status").text("phase").into(), age(object, now)]
}

pub fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.at("spec").text("holderIdentity").into(), age(object, now)]
}

pub fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.text("handler").into(), age(object, now)]
}

pub fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        number(object.at("value")),
        object.flag("globalDefault").into(),
        age(object, now),
        text_or(object.at("preemptionPolicy"), ""),
    ]
}

pub fn certificate_signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let duration = spec.int("expirationSeconds").map_or(NONE.to_owned(), human_duration);
    let has = |kind: &str| status.list("conditions").iter().any(|c| c.text("type") == kind);
    let mut state = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state += ",Failed";
    }
    if !status.text("certificate").is_empty() {
        state += ",Issued";
    }
    vec![
        name(object),
        age(object, now),
        spec.text("signerName").into(),
        spec.text("username").into(),
        duration.into(),
        state.into(),
    ]
}

#[cfg(test)]
mod tests {
    use crate::print::tests::check;
    use serde_json::json;

    #[test]
    fn rows() {
        check(
            "",
            "v1",
            "Node",
            json!({ "metadata": { "name": "n", "creationTimestamp": "2026-11-21T11:59:30Z", "labels": { "node-role.kubernetes.io/edge": "", "a": "b" } },
                    "spec": { "unschedulable": true },
                    "status": { "conditions": [{ "type": "Ready", "status": "Unknown" }], "addresses": [{ "type": "InternalIP", "address": "10.1.1.1" }],
                                "nodeInfo": { "kubeletVersion": "v1.36.2+rimward", "osImage": "Debian" } } }),
            json!([
                "n",
                "NotReady,SchedulingDisabled",
                "edge",
                "30s",
                "v1.36.2+rimward",
                "10.1.1.1",
                "<none>",
                "Debian",
                "<unknown>",
                "<unknown>"
            ]),
        );
        check(
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            json!({ "metadata": { "name": "c" }, "spec": { "signerName": "s", "username": "u", "expirationSeconds": 600 },
                    "status": { "certificate": "x", "conditions": [{ "type": "Approved" }] } }),
            json!(["c", "<unknown>", "s", "u", "10m", "Approved,Issued"]),
        );
        check(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            json!({ "metadata": { "name": "c" }, "value": 10, "preemptionPolicy": "Never" }),
            json!(["c", 10, false, "<unknown>", "Never"]),
        );
    }
}
