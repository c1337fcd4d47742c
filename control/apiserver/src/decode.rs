//! Bodies of writes, decoded against the schema.

use bytes::Bytes;
use rimward_api::{Reason, Status};
use rimward_control_schema::{self as schema, Expected, FieldValidation, Format};
use serde_json::Value;

use crate::negotiate::{self, Encoding};
use crate::request::Call;
use crate::served::{Registry, Served};

fn format(call: &Call) -> Result<Format, Status> {
    Ok(match negotiate::sent(&call.headers)? {
        Encoding::Json => Format::Json,
        Encoding::Yaml => Format::Yaml,
    })
}

/// The body of a create or update of the kind itself, in normal form, with warnings put aside.
pub fn object(
    registry: &Registry,
    served: &Served,
    call: &mut Call,
    body: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let format = format(call)?;
    let Some(expected) = served.expected() else {
        return schema::decode::any(body, format);
    };
    let decoded = schema::decode::object(registry.model, &expected, body, format, validation)?;
    call.warnings.extend(decoded.warnings);
    Ok(decoded.value)
}

/// The body of a subresource that speaks a kind of its own.
pub fn spoken(
    registry: &Registry,
    (group, version, kind): (&str, &str, &str),
    call: &mut Call,
    body: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let format = format(call)?;
    let Some(definition) = registry.model.of_kind(group, version, kind) else {
        return schema::decode::any(body, format);
    };
    let expected = Expected { group, version, kind, definition };
    let decoded = schema::decode::object(registry.model, &expected, body, format, validation)?;
    call.warnings.extend(decoded.warnings);
    Ok(decoded.value)
}

/// The outcome of a patch, brought into normal form.
pub fn patched(
    registry: &Registry,
    served: &Served,
    value: Value,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let Some(expected) = served.expected() else { return Ok(value) };
    let decoded = schema::decode::value(registry.model, &expected, &value, validation)?;
    warnings.extend(decoded.warnings);
    Ok(decoded.value)
}

/// The kinds of patch, by Content-Type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

pub fn patch_kind(call: &Call) -> Result<PatchKind, Status> {
    match call.header("content-type").split(';').next().unwrap_or_default().trim() {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        _ => Err(crate::error::unsupported_media()),
    }
}

/// Applies a patch to an object; the outcome is neither checked nor in normal form.
pub fn apply_patch(
    registry: &Registry,
    definition: Option<schema::DefId>,
    kind: PatchKind,
    object: &Value,
    body: &[u8],
) -> Result<Value, Status> {
    match (kind, definition) {
        (PatchKind::Json, _) => schema::patch::json_patch(object, body),
        (PatchKind::Merge, _) => schema::patch::merge_patch(object, body),
        (PatchKind::Strategic, Some(definition)) => {
            schema::patch::strategic_merge_patch(registry.model, definition, object, body)
        }
        (PatchKind::Strategic, None) => Err(crate::error::unsupported_media()),
        (PatchKind::Apply, _) => Err(Status::new(
            415,
            Reason::UnsupportedMediaType,
            "apply patches are not applied to this resource",
        )),
    }
}
