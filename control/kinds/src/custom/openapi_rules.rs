//! What Kubernetes asks of each node of a schema, beyond that it is structural.

use serde_json::Value;

use super::schema::{Additional, Schema};
use crate::path::{Errors, Path};
use crate::read::{Read, members};

const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

/// Where in a schema a node stands.
#[derive(Clone, Copy)]
struct Place {
    root: bool,
    /// Why there must be no default here.
    no_default: Option<&'static str>,
    in_metadata: bool,
}

/// Checks a schema; `raw` is what `schema` was read from.
pub fn validate(raw: &Value, schema: &Schema, path: &Path<'_>, e: &mut Errors) {
    node(raw, schema, Place { root: true, no_default: None, in_metadata: false }, path, e);
}

fn node(raw: &Value, s: &Schema, place: Place, path: &Path<'_>, e: &mut Errors) {
    unsupported(raw, s, place, path, e);
    if s.limits.unique_items {
        let why =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        e.forbidden(&path.field("uniqueItems"), why);
    }
    below(raw, s, place, path, e);
    if raw.at("x-kubernetes-preserve-unknown-fields") == &Value::Bool(false) {
        let at = path.field("x-kubernetes-preserve-unknown-fields");
        e.invalid(&at, false, "must be true or undefined");
    }
    map_type(s, path, e);
    list_type(s, path, e);
    rules(s, path, e);
}

fn unsupported(raw: &Value, s: &Schema, place: Place, path: &Path<'_>, e: &mut Errors) {
    if !s.kind.is_empty() && !TYPES.contains(&&*s.kind) {
        e.not_supported(&path.field("type"), &s.kind, &TYPES);
    }
    if let Some(why) = place.no_default
        && s.default.is_some()
    {
        e.forbidden(&path.field("default"), &format!("must not be set {why}"));
    }
    let there = |field: &str| match raw.at(field) {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(map) if field != "additionalItems" => !map.is_empty(),
        _ => true,
    };
    for field in
        ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"]
    {
        if there(field) {
            e.forbidden(&path.field(field), &format!("{field} is not supported"));
        }
    }
    if &*s.kind == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        e.forbidden(&path.field("type"), why);
    }
    if raw.at("items").is_array() {
        e.forbidden(&path.field("items"), "items must be a schema object and not an array");
    }
    if place.in_metadata && s.embedded {
        let why = "must not be used inside of resource meta";
        e.forbidden(&path.field("x-kubernetes-embedded-resource"), why);
    }
}

/// Goes down, into structure and junctors alike.
fn below(raw: &Value, s: &Schema, place: Place, path: &Path<'_>, e: &mut Errors) {
    let inner = Place { root: false, ..place };
    if let Some(additional) = &s.additional {
        let at = path.field("additionalProperties");
        if !s.properties.is_empty() && !matches!(additional, Additional::Any(true)) {
            e.forbidden(&at, "additionalProperties and properties are mutual exclusive");
        }
        if let Additional::Of(schema) = additional {
            let no_default = place
                .in_metadata
                .then_some("inside additionalProperties applying to object metadata")
                .or(place.no_default);
            let inner = Place { no_default, ..inner };
            node(raw.at("additionalProperties"), schema, inner, &at, e);
        }
    }
    let properties = path.field("properties");
    for ((name, schema), (_, raw)) in s.properties.iter().zip(sorted(raw.at("properties"))) {
        let mut inner = inner;
        if (place.root || s.embedded) && matches!(&**name, "metadata" | "kind" | "apiVersion") {
            inner.in_metadata = true;
            if place.root {
                inner.no_default = Some(match &**name {
                    "metadata" => "in top-level metadata",
                    "kind" => "in top-level kind",
                    _ => "in top-level apiVersion",
                });
            }
        }
        node(raw, schema, inner, &properties.key(name), e);
    }
    if let Some(not) = &s.not {
        node(raw.at("not"), not, inner, &path.field("not"), e);
    }
    for (name, list) in [("allOf", &s.all_of), ("oneOf", &s.one_of), ("anyOf", &s.any_of)] {
        let at = path.field(name);
        for (i, (schema, raw)) in list.iter().zip(raw.list(name)).enumerate() {
            node(raw, schema, inner, &at.index(i), e);
        }
    }
    if let Some(items) = &s.items {
        node(raw.at("items"), items, inner, &path.field("items"), e);
    }
}

/// Members in the order of their names, which is that of [`Schema::properties`].
fn sorted(value: &Value) -> Vec<(&String, &Value)> {
    let mut all: Vec<(&String, &Value)> = members(value).collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

fn map_type(s: &Schema, path: &Path<'_>, e: &mut Errors) {
    let Some(map_type) = &s.map_type else { return };
    if &*s.kind != "object" {
        type_must_be(s, "must be object if x-kubernetes-map-type is specified", path, e);
    }
    let known = ["atomic", "granular"];
    if !known.contains(&&**map_type) {
        e.not_supported(&path.field("x-kubernetes-map-type"), map_type, &known);
    }
}

fn type_must_be(s: &Schema, must: &str, path: &Path<'_>, e: &mut Errors) {
    match &*s.kind {
        "" => e.required(&path.field("type"), must),
        kind => e.invalid(&path.field("type"), kind, must),
    }
}

fn list_type(s: &Schema, path: &Path<'_>, e: &mut Errors) {
    let at = path.field("x-kubernetes-list-type");
    let list_type = s.list_type.as_deref();
    if list_type.is_some() && &*s.kind != "array" {
        type_must_be(s, "must be array if x-kubernetes-list-type is specified", path, e);
    } else if let (Some("set"), Some(items)) = (list_type, &s.items) {
        let must = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let at = path.field("items");
        let of = |text: &Option<Box<str>>| text.as_deref().map_or(Value::Null, Value::from);
        match &*items.kind {
            "array" if !matches!(items.list_type.as_deref(), None | Some("atomic")) => {
                e.invalid(&at.field("x-kubernetes-list-type"), of(&items.list_type), must);
            }
            "object" if items.map_type.as_deref() != Some("atomic") => {
                e.invalid(&at.field("x-kubernetes-map-type"), of(&items.list_type), must);
            }
            _ => {}
        }
    }
    let known = ["atomic", "set", "map"];
    if let Some(text) = list_type
        && !known.contains(&text)
    {
        e.not_supported(&at, text, &known);
    }
    if !s.list_keys.is_empty() {
        let must = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => e.required(&at, must),
            Some("map") => {}
            Some(other) => e.invalid(&at, other, must),
        }
    }
    if list_type == Some("map") {
        map_keys(s, path, e);
    }
    if let (Some(kind @ ("set" | "map")), Some(items)) = (list_type, &s.items)
        && items.nullable
    {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
        e.forbidden(&path.field("items").field("nullable"), &why);
    }
}

fn map_keys(s: &Schema, path: &Path<'_>, e: &mut Errors) {
    let at = path.field("x-kubernetes-list-map-keys");
    if s.list_keys.is_empty() {
        e.required(&at, "must not be empty if x-kubernetes-list-type is map");
    }
    let items_at = path.field("items");
    let Some(items) = &s.items else {
        return e.required(&items_at, "must have a schema if x-kubernetes-list-type is map");
    };
    if &*items.kind != "object" {
        let must = "must be object if parent array's x-kubernetes-list-type is map";
        return e.invalid(&items_at.field("type"), &*items.kind, must);
    }
    let keys = || s.list_keys.iter().map(|k| Value::from(&**k)).collect::<Value>();
    let properties = items_at.field("properties");
    for (i, key) in s.list_keys.iter().enumerate() {
        match items.properties.get(key) {
            Some(p) if matches!(&*p.kind, "array" | "object") => {
                let must = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                e.invalid(&properties.key(key).field("type"), &*items.kind, must);
            }
            Some(_) => {}
            None => e.invalid(&at, keys(), "entries must all be names of item properties"),
        }
        if s.list_keys[..i].contains(key) {
            e.invalid(&at, keys(), "must not contain duplicate entries");
        }
        let Some(property) = items.properties.get(key) else { continue };
        if !items.required.contains(key) && property.default.is_none() {
            let must = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            e.required(&properties.key(key).field("default"), must);
        }
        if property.nullable {
            let must = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            e.forbidden(&properties.key(key).field("nullable"), must);
        }
    }
}

const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// The form of `x-kubernetes-validations`; what a rule says is for the CEL compiler.
fn rules(s: &Schema, path: &Path<'_>, e: &mut Errors) {
    let list = path.field("x-kubernetes-validations");
    for (i, rule) in s.validations.iter().enumerate() {
        let at = list.index(i);
        let (text, message) = (rule.text("rule").trim(), rule.text("message"));
        let breaks = |text: &str| text.contains(['\n', '\r']);
        if text.is_empty() {
            e.required(&at.field("rule"), "rule is not specified");
        } else if !message.is_empty() && message.trim().is_empty() {
            e.invalid(&at.field("message"), message, "must be non-empty if specified");
        } else if breaks(message.trim()) {
            e.invalid(&at.field("message"), message, "must not contain line breaks");
        } else if breaks(text) && message.is_empty() {
            let must = "message must be specified if rule contains line breaks";
            e.required(&at.field("message"), must);
        }
        let expression = rule.text("messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            let must = "messageExpression must be non-empty if specified";
            e.required(&at.field("messageExpression"), must);
        }
        let reason = rule.text("reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            e.not_supported(&at.field("reason"), reason, &REASONS);
        }
        let field = rule.text("fieldPath");
        if !field.is_empty() {
            let at = at.field("fieldPath");
            if field.trim().is_empty() {
                e.invalid(&at, field, "must be non-empty if specified");
            }
            if breaks(field) {
                e.invalid(&at, field, "must not contain line breaks");
            }
            if super::jsonpath::schema_at(field, s, true).is_err() {
                e.invalid(&at, field, "must be a valid path");
            }
        }
    }
}
