//! `x-kubernetes-embedded-resource`: whole resources within a custom one. Their type and metadata are
//! those of any resource, whatever the schema says.

use rimward_control_schema::{DefId, Model, builtin, decode};
use serde_json::Value;

use super::schema::{Additional, Schema};
use crate::check::meta;
use crate::path::{Errors, Path};
use crate::read::{Read, members};

/// The definition of metadata.
pub fn object_meta() -> (&'static Model, DefId) {
    let model = builtin();
    (model, model.expect("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"))
}

/// How metadata is brought into its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// What is of a wrong type is an error: bodies of requests.
    Refuse,
    /// It is dropped, field by field: what was stored long ago.
    Drop,
}

/// Brings `metadata` into the form of ObjectMeta. Unknown and repeated fields are told in `unknown`
/// behind `at` (`spec.template.metadata`); the error is Go's.
pub fn coerce_metadata(
    metadata: &mut Value,
    wrong: Wrong,
    at: &str,
    unknown: Option<&mut Vec<String>>,
) -> Result<(), String> {
    let (model, definition) = object_meta();
    let part = decode::part(model, definition, metadata, unknown.is_some());
    if let Some(unknown) = unknown {
        // `unknown field "x"` of the part is a field behind its place here.
        let name = |text: &String| Some(text.split_once('"')?.1.strip_suffix('"')?.to_owned());
        let names = part.strict.iter().filter_map(name);
        unknown.extend(names.map(|name| format!("{at}.{name}")));
    }
    *metadata = match (part.error, wrong) {
        (None, _) => part.value,
        (Some(error), Wrong::Refuse) => return Err(error),
        (Some(_), Wrong::Drop) => drop_wrong(metadata),
    };
    Ok(())
}

/// Keeps the fields that read well each by itself.
fn drop_wrong(metadata: &Value) -> Value {
    let (model, definition) = object_meta();
    let reads = |key: &str, value: &Value| {
        let alone = serde_json::json!({ key: value });
        decode::part(model, definition, &alone, false).error.is_none()
    };
    let kept = members(metadata).filter(|(k, v)| reads(k, v)).map(|(k, v)| (k.clone(), v.clone()));
    decode::part(model, definition, &Value::Object(kept.collect()), false).value
}

/// Brings the metadata of embedded resources into form; the error is of the first that is wrong.
pub fn coerce(
    value: &mut Value,
    schema: &Schema,
    wrong: Wrong,
    at: &str,
    unknown: &mut Option<&mut Vec<String>>,
) -> Result<(), (String, Value, String)> {
    let below = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match value {
        Value::Object(map) => {
            if schema.embedded {
                for key in ["apiVersion", "kind"] {
                    if map.get(key).is_some_and(|v| !v.is_string()) {
                        let Some(bad) = map.remove(key) else { continue };
                        if wrong == Wrong::Refuse {
                            return Err((below(key), bad, "must be a string".to_owned()));
                        }
                    }
                }
                if let Some(metadata) = map.get_mut("metadata") {
                    let told = unknown.as_deref_mut();
                    coerce_metadata(metadata, wrong, &below("metadata"), told)
                        .map_err(|why| (below("metadata"), metadata.clone(), why))?;
                }
            }
            for (key, member) in map.iter_mut() {
                let next = match (schema.properties.get(key.as_str()), &schema.additional) {
                    (Some(property), _) => property,
                    (None, Some(Additional::Of(all))) => &**all,
                    _ => continue,
                };
                if member.is_object() || member.is_array() {
                    coerce(member, next, wrong, &below(key), unknown)?;
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return Ok(()) };
            for (i, item) in items.iter_mut().enumerate() {
                if item.is_object() || item.is_array() {
                    coerce(item, schema, wrong, &format!("{at}[{i}]"), unknown)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// What must hold of every embedded resource.
pub fn validate(value: &Value, schema: &Schema, path: &Path<'_>, e: &mut Errors) {
    match value {
        Value::Object(map) => {
            if schema.embedded {
                resource(value, path, e);
            }
            for (key, member) in map {
                match (schema.properties.get(key.as_str()), &schema.additional) {
                    (Some(property), _) => validate(member, property, &path.field(key), e),
                    (None, Some(Additional::Of(all))) => validate(member, all, &path.key(key), e),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for (i, item) in items.iter().enumerate() {
                validate(item, schema, &path.index(i), e);
            }
        }
        _ => {}
    }
}

/// The type and metadata of one embedded resource.
pub fn resource(value: &Value, path: &Path<'_>, e: &mut Errors) {
    for key in ["apiVersion", "kind"] {
        if value.get(key).is_none() {
            e.required(&path.field(key), "");
        }
    }
    let (api_version, kind) = (value.at("apiVersion"), value.at("kind"));
    match api_version.as_str() {
        None if api_version.is_null() && value.get("apiVersion").is_none() => {}
        None => e.invalid(&path.field("apiVersion"), api_version.clone(), "must be a string"),
        Some("") => e.invalid(&path.field("apiVersion"), "", "must not be empty"),
        Some(text) if rimward_api::GroupVersion::parse(text).is_none() => {
            let why = format!("unexpected GroupVersion string: {text}");
            e.invalid(&path.field("apiVersion"), text, &why);
        }
        Some(_) => {}
    }
    match kind.as_str() {
        None if value.get("kind").is_none() => {}
        None => e.invalid(&path.field("kind"), kind.clone(), "must be a string"),
        Some("") => e.invalid(&path.field("kind"), "", "must not be empty"),
        Some(text) => {
            let wrong = rimward_api::names::dns1035_label(&text.to_lowercase());
            if !wrong.is_empty() {
                let why =
                    format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                e.invalid(&path.field("kind"), text, &why);
            }
        }
    }
    if let Some(metadata) = value.get("metadata").filter(|m| m.is_object()) {
        let mut named = metadata.clone();
        crate::read::fill_text(&mut named, "name", "fakename");
        let namespaced = !metadata.text("namespace").is_empty();
        let rule = |name: &str, _prefix: bool| path_segment(name);
        meta::object_meta_with(
            &named,
            namespaced,
            &rule,
            meta::Finalizers::Any,
            &path.field("metadata"),
            e,
        );
    }
}

/// `content.IsPathSegmentName`.
pub fn path_segment(name: &str) -> Vec<String> {
    match name {
        "." | ".." => vec![format!("may not be '{name}'")],
        name => ["/", "%"]
            .iter()
            .filter(|c| name.contains(**c))
            .map(|c| format!("may not contain '{c}'"))
            .collect(),
    }
}
