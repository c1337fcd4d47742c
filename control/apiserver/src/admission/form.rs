//! A request's objects as reviewers see them: in one served version, or in the form that a
//! subresource speaks.

use rimward_api::Status;
use serde_json::Value;

use super::{Operation, Review};
use crate::decode;
use crate::rest::scale;
use crate::served::Served;
use crate::server::Inner;
use crate::views::{to_served, to_stored};

/// Group, version and kind of what is shown.
pub fn kind(review: &Review<'_>, served: &Served) -> (String, String, String) {
    let own = || (served.kind.group.clone(), served.kind.version.clone(), served.kind.kind.clone());
    match served.kind.subresource(review.subresource) {
        Some(sub) => sub.speaks.clone().unwrap_or_else(own),
        None => own(),
    }
}

/// Whether the review's object is not of the resource's own kind.
fn foreign(review: &Review<'_>, served: &Served) -> bool {
    served.kind.subresource(review.subresource).is_some_and(|s| s.speaks.is_some())
}

/// An object of the review as the reviewer sees it; null stays null.
pub fn shown(review: &Review<'_>, served: &Served, object: &Value) -> Value {
    if object.is_null() || review.operation == Operation::Connect {
        return object.clone();
    }
    if review.subresource == "scale" {
        return scale::scale_of(&to_served(served, object.clone()), &scale::Paths::of(served));
    }
    if foreign(review, served) {
        return object.clone();
    }
    let mut shown = to_served(served, object.clone());
    shown["kind"] = served.kind.kind.as_str().into();
    shown["apiVersion"] = served.kind.api_version().into();
    shown
}

/// Makes what a reviewer changed the object under review: decoded as if it had been sent, with
/// defaults.
///
/// # Errors
/// When it is no such object any more.
pub fn take(
    server: &Inner,
    review: &mut Review<'_>,
    served: &Served,
    changed: Value,
) -> Result<(), Status> {
    if review.subresource == "scale" {
        let replicas = changed["spec"]["replicas"].as_i64().unwrap_or(0);
        scale::Paths::of(served).set(review.object, replicas);
        return Ok(());
    }
    if foreign(review, served) {
        *review.object = changed;
        return Ok(());
    }
    let lenient = rimward_control_schema::FieldValidation::Ignore;
    let mut object = decode::patched(served, changed, None, lenient, &mut Vec::new())?;
    server.apply_defaults(served, &mut object);
    *review.object = to_stored(served, object);
    Ok(())
}
