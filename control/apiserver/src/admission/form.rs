//! A request's objects as reviewers see them: in one served version, or in the form that a
//! subresource speaks.

use rimward_api::Status;
use serde_json::Value;

use super::{Operation, Review};
use crate::decode;
use crate::definitions::conversion;
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
///
/// # Errors
/// When a custom resource cannot be converted to the version that the reviewer reads.
pub async fn shown(
    server: &Inner,
    review: &Review<'_>,
    served: &Served,
    object: &Value,
) -> Result<Value, Status> {
    if object.is_null() || review.operation == Operation::Connect {
        return Ok(object.clone());
    }
    if review.subresource == "scale" {
        let paths = scale::Paths::of(review.served);
        return Ok(scale::scale_of(&to_served(review.served, object.clone()), &paths));
    }
    if foreign(review, served) {
        return Ok(object.clone());
    }
    if is_other_version(review, served) {
        return converted(server, review.served, served, object.clone()).await;
    }
    Ok(typed(served, to_served(served, object.clone())))
}

/// Makes what a reviewer changed the object under review: decoded as if it had been sent, with
/// defaults.
///
/// # Errors
/// When it is no such object any more.
pub async fn take(
    server: &Inner,
    review: &mut Review<'_>,
    served: &Served,
    changed: Value,
) -> Result<(), Status> {
    if review.subresource == "scale" {
        let replicas = changed["spec"]["replicas"].as_i64().unwrap_or(0);
        scale::Paths::of(review.served).set(review.object, replicas);
        return Ok(());
    }
    if foreign(review, served) {
        *review.object = changed;
        return Ok(());
    }
    let (mut changed, mut of) = (changed, served);
    if is_other_version(review, served) {
        server.apply_defaults(served, &mut changed);
        changed = converted(server, served, review.served, changed).await?;
        of = review.served;
    }
    let lenient = rimward_control_schema::FieldValidation::Ignore;
    let mut object = decode::patched(of, changed, None, lenient, &mut Vec::new())?;
    server.apply_defaults(of, &mut object);
    *review.object = to_stored(of, object);
    Ok(())
}

fn typed(served: &Served, mut object: Value) -> Value {
    object["kind"] = served.kind.kind.as_str().into();
    object["apiVersion"] = served.kind.api_version().into();
    object
}

/// Whether the reviewer reads a custom resource in another version than it was sent in. (Built-in kinds
/// have one stored form, from which every version is made.)
fn is_other_version(review: &Review<'_>, served: &Served) -> bool {
    served.custom.is_some() && served.kind.version != review.served.kind.version
}

/// A custom resource in another version. It is not pruned: what one version does not know must survive
/// the way there and back.
async fn converted(
    server: &Inner,
    from: &Served,
    to: &Served,
    object: Value,
) -> Result<Value, Status> {
    let Some(custom) = &to.custom else { return Ok(object) };
    let objects = vec![typed(from, object)];
    let mut all = conversion::convert_whole(server, custom, &custom.version, objects).await?;
    Ok(all.pop().expect("as many as were given"))
}
