//! Bodies of custom resources: what decoding makes of them.

use bytes::Bytes;
use rimward_api::Status;
use rimward_control_kinds::custom::embedded::{self, Wrong};
use rimward_control_kinds::custom::schema::Schema;
use rimward_control_kinds::custom::{defaulting, pruning};
use rimward_control_schema::{FieldValidation, Format, decode as schema};
use serde_json::Value;

use super::Custom;
use crate::error;
use crate::negotiate::Sent;
use crate::served::Served;

/// The body of a create or update, pruned and with its metadata in form; warnings beside it.
pub fn decode(
    served: &Served,
    custom: &Custom,
    body: &Bytes,
    sent: Sent,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let format = match sent {
        Sent::Json => Format::Json,
        Sent::Yaml => Format::Yaml,
        Sent::Protobuf => return Err(error::unsupported_media()),
    };
    checked(served, custom, (body, format), Vec::new(), validation)
}

/// `strict` is what is known to be wrong with the body.
fn checked(
    served: &Served,
    custom: &Custom,
    (body, format): (&[u8], Format),
    strict: Vec<String>,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let expected = served.expected().expect("a custom kind has a schema");
    let mut decoded = schema::unstructured(&expected, body, format, validation)?;
    decoded.strict.splice(..0, strict);
    let check = validation != FieldValidation::Ignore;
    let mut unknown = Vec::new();
    let told = check.then_some(&mut unknown);
    let wrong = normalize(&mut decoded.value, &custom.version.schema, Wrong::Refuse, told).err();
    decoded.strict.extend(unknown.into_iter().map(|field| format!("unknown field \"{field}\"")));
    decoded.refuse(&expected, wrong, validation)
}

/// An object that is in memory: the outcome of a patch, and what is wrong with that.
pub fn patched(
    served: &Served,
    custom: &Custom,
    object: &Value,
    strict: Vec<String>,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let body = object.to_string();
    let json = (body.as_bytes(), Format::Json);
    checked(served, custom, json, strict, validation).map_err(|status| {
        rimward_control_schema::patch::of_outcome(status, &served.kind.kind, || object.to_string())
    })
}

/// Prunes an object, drops nulls that may not be, and brings metadata into form, its own and that of
/// resources within it. The error is that of a value of a wrong type in metadata.
pub fn normalize(
    object: &mut Value,
    schema: &Schema,
    wrong: Wrong,
    mut unknown: Option<&mut Vec<String>>,
) -> Result<(), String> {
    if let Some(metadata) = object.get_mut("metadata") {
        embedded::coerce_metadata(metadata, wrong, "metadata", unknown.as_deref_mut())?;
    }
    pruning::prune_resource(object, schema, unknown.as_deref_mut());
    let metadata = object.get_mut("metadata").map(Value::take);
    defaulting::drop_nulls(object, schema);
    let coerced = embedded::coerce(object, schema, wrong, "", &mut unknown);
    if let Some(metadata) = metadata {
        object["metadata"] = metadata;
    }
    coerced.map_err(|(field, value, why)| {
        rimward_api::FieldError::invalid(field, &value, &why).to_string()
    })
}
