//! The three patches that change an object by instruction: JSON patch, JSON merge patch and strategic
//! merge patch. (Apply is in [`crate::managed`].)
//!
//! Each takes an object and answers the patched one, which is not in normal form and not checked yet:
//! pass it through [`decode_patched`].

mod json;
mod restore;
mod strategic;

use rimward_api::status::Details;
use rimward_api::{FieldError, GroupKind, Reason, Status};
use serde_json::{Map, Value};

use crate::decode::{self, Decoded, Expected, FieldValidation};
use crate::managed::go_print;
use crate::model::{Model, Type};

pub use json::json_patch;
pub use strategic::strategic_merge_patch;

/// RFC 7386.
pub fn merge_patch(object: &Value, patch: &[u8]) -> Result<Value, Status> {
    let Value::Object(patch) = parse(patch)? else {
        return Err(Status::bad_request("Invalid JSON Patch"));
    };
    let mut patched = object.clone();
    merge(&mut patched, patch);
    Ok(patched)
}

fn merge(target: &mut Value, patch: Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(map.remove(&key)),
            Value::Object(below) => merge(map.entry(key).or_insert(Value::Null), below),
            value => drop(map.insert(key, value)),
        }
    }
}

/// Checks a patched object and brings it into normal form. What a patch makes wrong is 422, not 400:
/// the request was well formed, its outcome is not. `strict` is what [`strict_errors`] found in the patch.
pub fn decode_patched(
    model: &Model,
    expected: &Expected<'_>,
    patched: &Value,
    strict: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    decode_outcome(model, expected, patched, strict, validation, || patched.to_string())
}

/// As [`decode_patched`], of a strategic merge patch, whose refusal shows the patch.
pub fn decode_strategic(
    model: &Model,
    expected: &Expected<'_>,
    patched: &Value,
    patch: &[u8],
    strict: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let shown = || go_print(&parse(patch).unwrap_or_default());
    if let Some(why) = restore::refusal(model, &Type::Object(expected.definition), patched) {
        return Err(wrong_outcome(&shown(), &why));
    }
    decode_outcome(model, expected, patched, strict, validation, shown)
}

fn decode_outcome(
    model: &Model,
    expected: &Expected<'_>,
    patched: &Value,
    strict: Vec<String>,
    validation: FieldValidation,
    shown: impl FnOnce() -> String,
) -> Result<Decoded, Status> {
    decode::patched(model, expected, patched, strict, validation)
        .map_err(|status| of_outcome(status, expected.kind, shown))
}

/// The refusal of a patched object, of a body that was refused; `shown` is what the message shows.
pub fn of_outcome(status: Status, kind: &str, shown: impl FnOnce() -> String) -> Status {
    match status.message.split_once(&format!(" cannot be handled as a {kind}: ")) {
        Some((_, why)) => wrong_outcome(&shown(), why),
        None => status,
    }
}

fn wrong_outcome(shown: &str, why: &str) -> Status {
    let nobody = GroupKind { group: String::new(), kind: String::new() };
    Status::invalid(&nobody, "", &[FieldError::invalid("patch", &shown.into(), why)])
}

/// What is wrong with a merge or strategic merge patch before it is applied: fields that are there twice.
pub fn strict_errors(patch: &[u8]) -> Vec<String> {
    decode::repeated(patch)
}

/// What is wrong with a JSON patch before it is applied, in its operations.
pub fn strict_errors_of_operations(patch: &[u8]) -> Vec<String> {
    let all = decode::of_operations(patch).into_iter();
    all.map(|wrong| format!("json patch {wrong}")).collect()
}

/// Parses a patch that is JSON.
fn parse(patch: &[u8]) -> Result<Value, Status> {
    decode::any(patch, decode::Format::Json)
}

/// A patch that is well formed and does not fit the object. Kubernetes does not say why.
fn does_not_apply() -> Status {
    let mut status = Status::new(
        422,
        Reason::Invalid,
        "the server rejected our request due to an error in our request",
    );
    status.details = Some(Box::new(Details::default()));
    status
}

#[cfg(test)]
mod tests;
