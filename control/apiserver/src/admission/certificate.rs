//! A request for a certificate says who sent it; nobody else is asked. What is said about it afterwards
//! carries the time at which it was said.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Operation, Review};
use crate::meta;

pub fn admit(review: &mut Review<'_>) {
    match review.operation {
        Operation::Create => requester(review),
        Operation::Update => stamp(review, &meta::time(Timestamp::now())),
        Operation::Delete | Operation::Connect => {}
    }
}

fn requester(review: &mut Review<'_>) {
    let user = review.user;
    let Some(spec) = review.object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    spec.insert("username".into(), user.name.as_str().into());
    if !user.uid.is_empty() {
        spec.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        spec.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

fn conditions(object: &Value) -> &[Value] {
    object.pointer("/status/conditions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// When each condition was said last, and when it last changed.
fn stamp(review: &mut Review<'_>, now: &str) {
    let before = review.old.map(conditions).unwrap_or_default();
    let place = review.object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in place.into_iter().flatten() {
        let unset = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().is_empty();
        let same = before
            .iter()
            .find(|b| b["type"] == condition["type"] && b["status"] == condition["status"]);
        if unset(condition, "lastUpdateTime") {
            condition["lastUpdateTime"] = now.into();
        }
        if unset(condition, "lastTransitionTime") {
            let since = same.and_then(|b| b["lastTransitionTime"].as_str()).unwrap_or(now);
            condition["lastTransitionTime"] = since.into();
        }
    }
}
