//! Bodies of writes, decoded against the schema.

use bytes::Bytes;
use rimward_api::{Reason, Status};
use rimward_control_schema::{self as schema, Expected, FieldValidation, Format, Model};
use serde_json::Value;

use crate::definitions;
use crate::negotiate::{self, Sent};
use crate::protobuf;
use crate::request::Call;
use crate::served::{Registry, Served};

/// The body of a create or update of the kind itself, in normal form, with warnings put aside.
pub fn object(
    served: &Served,
    call: &mut Call,
    body: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Status> {
    if let Some(custom) = &served.custom {
        let sent = negotiate::sent(&call.headers)?;
        let (value, warnings) = definitions::body::decode(served, custom, body, sent, validation)?;
        call.warnings.extend(warnings);
        return Ok(value);
    }
    let object = expected(&served.model, served.expected(), call, body, validation)?;
    convertible(served, &object)?;
    Ok(object)
}

/// What the kind cannot take over into its internal form is no object of it.
fn convertible(served: &Served, object: &Value) -> Result<(), Status> {
    let Some(why) = served.kind.hooks.unconvertible(object) else { return Ok(()) };
    let (kind, version) = (&served.kind.kind, &served.kind.version);
    Err(Status::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
    )))
}

/// The body of a subresource that speaks a kind of its own.
pub fn spoken(
    registry: &Registry,
    (group, version, kind): (&str, &str, &str),
    call: &mut Call,
    body: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let definition = registry.model.of_kind(group, version, kind);
    let expects = definition.map(|definition| Expected { group, version, kind, definition });
    expected(registry.model, expects, call, body, validation)
}

fn expected(
    model: &Model,
    expected: Option<Expected<'_>>,
    call: &mut Call,
    body: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let sent = negotiate::sent(&call.headers)?;
    let Some(expected) = expected else { return untyped(body, sent) };
    let decoded = match sent {
        Sent::Json => schema::decode::object(model, &expected, body, Format::Json, validation)?,
        Sent::Yaml => schema::decode::object(model, &expected, body, Format::Yaml, validation)?,
        Sent::Protobuf => {
            let envelope = protobuf::envelope(body)?;
            let value = protobuf::decode(model, expected.definition, &envelope)?;
            schema::decode::value(model, &expected, &value, validation)?
        }
    };
    call.warnings.extend(decoded.warnings);
    Ok(decoded.value)
}

fn untyped(body: &Bytes, sent: Sent) -> Result<Value, Status> {
    match sent {
        Sent::Json => schema::decode::any(body, Format::Json),
        Sent::Yaml => schema::decode::any(body, Format::Yaml),
        Sent::Protobuf => Err(crate::error::unsupported_media()),
    }
}

/// Options that come as a body (DeleteOptions), as JSON; empty when there is none.
pub fn options(registry: &Registry, call: &Call, body: &Bytes) -> Result<Bytes, Status> {
    if body.is_empty() {
        // Without a body its type says nothing.
        return Ok(Bytes::new());
    }
    match negotiate::sent(&call.headers)? {
        Sent::Json => Ok(body.clone()),
        Sent::Yaml => Ok(schema::decode::any(body, Format::Yaml)?.to_string().into()),
        Sent::Protobuf => {
            let definition =
                registry.model.id("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
            let definition = definition.ok_or_else(crate::error::unsupported_media)?;
            let value = protobuf::decode(registry.model, definition, &protobuf::envelope(body)?)?;
            Ok(value.to_string().into())
        }
    }
}

/// The outcome of a patch, brought into normal form. `strategic` is the patch, if it was one of those.
pub fn patched(
    served: &Served,
    value: Value,
    patch: Option<(PatchKind, &[u8])>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let strict = match (patch, validation) {
        (None, _) | (_, FieldValidation::Ignore) => Vec::new(),
        (Some((PatchKind::Json, patch)), _) => schema::patch::strict_errors_of_operations(patch),
        (Some((_, patch)), _) => schema::patch::strict_errors(patch),
    };
    if let Some(custom) = &served.custom {
        let (value, more) = definitions::body::patched(served, custom, &value, strict, validation)?;
        warnings.extend(more);
        return Ok(value);
    }
    let Some(expected) = served.expected() else { return Ok(value) };
    let model = &served.model;
    let decoded = match patch {
        Some((PatchKind::Strategic, patch)) => {
            schema::patch::decode_strategic(model, &expected, &value, patch, strict, validation)?
        }
        _ => schema::patch::decode_patched(model, &expected, &value, strict, validation)?,
    };
    convertible(served, &decoded.value)?;
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
    model: &Model,
    definition: Option<schema::DefId>,
    kind: PatchKind,
    object: &Value,
    body: &[u8],
) -> Result<Value, Status> {
    match (kind, definition) {
        (PatchKind::Json, _) => schema::patch::json_patch(object, body),
        (PatchKind::Merge, _) => schema::patch::merge_patch(object, body),
        (PatchKind::Strategic, Some(definition)) => {
            schema::patch::strategic_merge_patch(model, definition, object, body)
        }
        (PatchKind::Strategic, None) => Err(crate::error::unsupported_media()),
        (PatchKind::Apply, _) => Err(Status::new(
            415,
            Reason::UnsupportedMediaType,
            "apply patches are not applied to this resource",
        )),
    }
}
