//! Bodies of writes, decoded against the schema.

use bytes::Bytes;
use rimward_api::{Reason, Status};
use rimward_control_schema::{self as schema, Expected, FieldValidation, Format};
use serde_json::Value;

use crate::negotiate::{self, Sent};
use crate::protobuf;
use crate::request::Call;
use crate::served::{Registry, Served};

/// The body of a create or update of the kind itself, in normal form, with warnings put aside.
pub fn object(
    registry: &Registry,
    served: &Served,
    call: &mut Call,
    body: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let object = expected(registry, served.expected(), call, body, validation)?;
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
    expected(registry, expects, call, body, validation)
}

fn expected(
    registry: &Registry,
    expected: Option<Expected<'_>>,
    call: &mut Call,
    body: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let sent = negotiate::sent(&call.headers)?;
    let Some(expected) = expected else { return untyped(body, sent) };
    let model = registry.model;
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
    registry: &Registry,
    served: &Served,
    value: Value,
    strategic: Option<&[u8]>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let Some(expected) = served.expected() else { return Ok(value) };
    let model = registry.model;
    let decoded = match strategic {
        None => schema::patch::decode_patched(model, &expected, &value, validation)?,
        Some(patch) => {
            schema::patch::decode_strategic(model, &expected, &value, patch, validation)?
        }
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
