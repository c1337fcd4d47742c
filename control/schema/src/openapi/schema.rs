//! Schemas of definitions.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Dialect, enums};
use crate::builtin::Descriptions;
use crate::model::{DefId, Definition, Field, ListKind, Model, Type};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";
const FIELDS_V1: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";

/// The schemas of the given definitions and of all that they refer to.
pub(super) fn definitions(
    model: &Model,
    texts: &Descriptions,
    dialect: Dialect,
    roots: BTreeSet<DefId>,
) -> Map<String, Value> {
    let mut schemas = Map::new();
    let mut open: Vec<DefId> = roots.iter().copied().collect();
    let mut seen = roots;
    let mut special = BTreeSet::new();
    while let Some(id) = open.pop() {
        let definition = model.get(id);
        for field in &definition.fields {
            if is_field_set(field) {
                special.insert(FIELDS_V1);
                continue;
            }
            refer(
                &field.ty,
                &mut |id| {
                    if seen.insert(id) {
                        open.push(id)
                    }
                },
                &mut special,
            );
        }
        schemas.insert((*definition.name).to_owned(), object(model, definition, texts, dialect));
    }
    for name in special {
        let mut schema = special_schema(name, dialect);
        if let Some((Some(text), _)) = texts.get(name) {
            schema["description"] = json!(text);
        }
        schemas.insert(name.to_owned(), schema);
    }
    schemas
}

/// `FieldsV1` is a raw object to the model, and has a name of its own only here.
fn is_field_set(field: &Field) -> bool {
    &*field.go_type == "v1.FieldsV1"
}

fn refer(ty: &Type, object: &mut impl FnMut(DefId), special: &mut BTreeSet<&'static str>) {
    match ty {
        Type::Object(id) | Type::SchemaOr(_, id) => object(*id),
        Type::List(list) => refer(&list.item, object, special),
        Type::Map(map) => refer(&map.value, object, special),
        other => special.extend(special_name(other)),
    }
}

fn special_name(ty: &Type) -> Option<&'static str> {
    Some(match ty {
        Type::Quantity => QUANTITY,
        Type::IntOrString => INT_OR_STRING,
        Type::Time => TIME,
        Type::MicroTime => MICRO_TIME,
        Type::Raw => RAW,
        Type::Any => JSON,
        _ => return None,
    })
}

fn special_schema(name: &str, dialect: Dialect) -> Value {
    match (name, dialect) {
        (QUANTITY, Dialect::V3) => json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }),
        (INT_OR_STRING, Dialect::V3) => {
            json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] })
        }
        (INT_OR_STRING, Dialect::V2) => json!({ "type": "string", "format": "int-or-string" }),
        (QUANTITY, Dialect::V2) => json!({ "type": "string" }),
        (TIME | MICRO_TIME, _) => json!({ "type": "string", "format": "date-time" }),
        (RAW | FIELDS_V1, _) => json!({ "type": "object" }),
        _ => json!({}),
    }
}

fn object(model: &Model, definition: &Definition, texts: &Descriptions, dialect: Dialect) -> Value {
    let none = Default::default();
    let (own, of_fields) = texts.get(&*definition.name).unwrap_or(&none);
    let mut schema = json!({ "type": "object" });
    if let Some(text) = own {
        schema["description"] = json!(text);
    }
    let mut properties = Map::new();
    for field in &definition.fields {
        let text = of_fields.get(&*field.name).map(String::as_str);
        properties
            .insert((*field.name).to_owned(), property(model, definition, field, text, dialect));
    }
    if !properties.is_empty() {
        schema["properties"] = Value::Object(properties);
    }
    let required: Vec<&str> =
        definition.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if definition.atomic {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    if !definition.kinds.is_empty() {
        let kinds = definition
            .kinds
            .iter()
            .map(|k| json!({ "group": k.group, "version": k.version, "kind": k.kind }));
        schema["x-kubernetes-group-version-kind"] = kinds.collect();
    }
    schema
}

fn property(
    model: &Model,
    definition: &Definition,
    field: &Field,
    text: Option<&str>,
    dialect: Dialect,
) -> Value {
    let mut schema = match is_field_set(field) {
        true => dialect.reference(FIELDS_V1),
        false => value(model, &field.ty, dialect),
    };
    let values = enums::values(&definition.name, &field.go_type);
    if let Some(values) = values {
        let place =
            if matches!(field.ty, Type::List(_)) { &mut schema["items"] } else { &mut schema };
        place["enum"] = json!(values);
    }
    let text = match (text, values) {
        (Some(text), Some(values)) => {
            let listed: Vec<String> = values.iter().map(|v| format!(" - `{v:?}`")).collect();
            Some(format!("{text}\n\nPossible enum values:\n{}", listed.join("\n")))
        }
        (text, _) => text.map(str::to_owned),
    };
    let mut beside = Map::new();
    if let Some(text) = text {
        beside.insert("description".into(), text.into());
    }
    if let Some(default) = &field.default {
        beside.insert("default".into(), (**default).clone());
    }
    if field.atomic {
        beside.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if let Type::List(list) = &field.ty {
        let kind = match &list.kind {
            ListKind::Atomic => "atomic",
            ListKind::Set => "set",
            ListKind::Map(keys) => {
                beside.insert("x-kubernetes-list-map-keys".into(), json!(keys));
                "map"
            }
        };
        beside.insert("x-kubernetes-list-type".into(), kind.into());
    }
    if let Some(key) = &field.merge_key {
        beside.insert("x-kubernetes-patch-merge-key".into(), json!(key));
    }
    let strategies = [
        (field.patch.merge, "merge"),
        (field.patch.replace, "replace"),
        (field.patch.retain_keys, "retainKeys"),
    ];
    let strategies: Vec<&str> =
        strategies.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
    if !strategies.is_empty() {
        beside.insert("x-kubernetes-patch-strategy".into(), strategies.join(",").into());
    }
    // OpenAPI 3.0 passes over whatever stands beside a reference, hence the wrapper.
    if dialect == Dialect::V3 && schema.get("$ref").is_some() && !beside.is_empty() {
        schema = json!({ "allOf": [schema] });
    }
    if let Value::Object(map) = &mut schema {
        map.extend(beside);
    }
    schema
}

fn value(model: &Model, ty: &Type, dialect: Dialect) -> Value {
    match ty {
        Type::Bool => json!({ "type": "boolean" }),
        Type::String | Type::Duration => json!({ "type": "string" }),
        Type::Bytes => json!({ "type": "string", "format": "byte" }),
        Type::Int32 => json!({ "type": "integer", "format": "int32" }),
        Type::Int64 => json!({ "type": "integer", "format": "int64" }),
        Type::Number => json!({ "type": "number", "format": "double" }),
        Type::List(list) => json!({ "type": "array", "items": value(model, &list.item, dialect) }),
        Type::Map(map) => {
            json!({ "type": "object", "additionalProperties": value(model, &map.value, dialect) })
        }
        Type::Object(id) => dialect.reference(&model.get(*id).name),
        // Unions have no type in either version; their schema is known to be self-describing.
        Type::SchemaOr(..) => json!({}),
        special => special_name(special).map_or_else(|| json!({}), |name| dialect.reference(name)),
    }
}
