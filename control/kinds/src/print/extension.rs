//! Rows of what extends the API: services behind it, webhooks, policies, flow control, devices.

use jiff::Timestamp;
use serde_json::Value;

use super::{NONE, UNSET, age, deleted, int_or_string, name, number};
use crate::read::Read;

pub fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = object.deep(&["spec", "service"]);
    let behind = match service.is_object() {
        true => format!("{}/{}", service.text("namespace"), service.text("name")),
        false => "Local".to_owned(),
    };
    let available =
        object.at("status").list("conditions").iter().find(|c| c.text("type") == "Available");
    let state = match available {
        None => "Unknown".to_owned(),
        Some(c) if c.text("status") == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", c.text("status"), c.text("reason")),
    };
    vec![name(object), behind.into(), state.into(), age(object, now)]
}

pub fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.list("webhooks").len().into(), age(object, now)]
}

pub fn validating_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    policy(object, "validations", now)
}

pub fn mutating_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    policy(object, "mutations", now)
}

fn policy(object: &Value, rules: &str, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let kind = spec.at("paramKind");
    let shown = match kind.is_object() {
        true => format!("{}/{}", kind.text("apiVersion"), kind.text("kind")),
        false => UNSET.to_owned(),
    };
    vec![name(object), spec.list(rules).len().into(), shown.into(), age(object, now)]
}

pub fn policy_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let param = spec.at("paramRef");
    let shown = match (param.is_object(), param.text("namespace"), param.text("name")) {
        (false, ..) => UNSET.to_owned(),
        (_, _, "") => UNSET.to_owned(),
        (_, "", name) => name.to_owned(),
        (_, namespace, name) => format!("{namespace}/{name}"),
    };
    vec![name(object), spec.text("policyName").into(), shown.into(), age(object, now)]
}

pub fn flow_schema(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let distinguisher = match spec.at("distinguisherMethod").text("type") {
        "" => NONE,
        kind => kind,
    };
    vec![
        name(object),
        spec.at("priorityLevelConfiguration").text("name").into(),
        number(spec.at("matchingPrecedence")),
        distinguisher.into(),
        age(object, now),
        super::condition(object.at("status"), "Dangling").unwrap_or("?").into(),
    ]
}

pub fn priority_level(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let limited = match spec.has("limited") {
        true => spec.at("limited"),
        false => spec.at("exempt"),
    };
    let queuing = limited.deep(&["limitResponse", "queuing"]);
    vec![
        name(object),
        spec.text("type").into(),
        int_or_string(limited.at("nominalConcurrencyShares"), NONE),
        int_or_string(queuing.at("queues"), NONE),
        int_or_string(queuing.at("handSize"), NONE),
        int_or_string(queuing.at("queueLengthLimit"), NONE),
        age(object, now),
    ]
}

pub fn resource_claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = object.at("status");
    let mut states = Vec::new();
    if deleted(object) {
        states.push("deleted");
    }
    if !status.has("allocation") {
        if !deleted(object) {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !status.list("reservedFor").is_empty() {
            states.push("reserved");
        }
    }
    vec![name(object), states.join(",").into(), age(object, now)]
}

pub fn resource_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    vec![
        name(object),
        spec.text("nodeName").into(),
        spec.text("driver").into(),
        spec.at("pool").text("name").into(),
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
            "apiregistration.k8s.io",
            "v1",
            "APIService",
            json!({ "metadata": { "name": "a" }, "spec": { "service": { "namespace": "n", "name": "s" } },
                    "status": { "conditions": [{ "type": "Available", "status": "False", "reason": "R" }] } }),
            json!(["a", "n/s", "False (R)", "<unknown>"]),
        );
        check(
            "flowcontrol.apiserver.k8s.io",
            "v1",
            "PriorityLevelConfiguration",
            json!({ "metadata": { "name": "a" }, "spec": { "type": "Limited", "limited": { "nominalConcurrencyShares": 5, "limitResponse": { "queuing": { "queues": 64 } } } } }),
            json!(["a", "Limited", "5", "64", "<none>", "<none>", "<unknown>"]),
        );
        check(
            "resource.k8s.io",
            "v1",
            "ResourceClaim",
            json!({ "metadata": { "name": "a" }, "status": { "allocation": {}, "reservedFor": [{}] } }),
            json!(["a", "allocated,reserved", "<unknown>"]),
        );
        check(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicyBinding",
            json!({ "metadata": { "name": "a" }, "spec": { "policyName": "p", "paramRef": { "name": "n", "namespace": "s" } } }),
            json!(["a", "p", "s/n", "<unknown>"]),
        );
    }
}
