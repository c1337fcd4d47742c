//! What is published of a custom kind's schema.

use rimward_control_schema::openapi::Dialect;
use serde_json::{Map, Value, json};

use super::Custom;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values.";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to.";
const METADATA: &str = "Standard object's metadata.";

/// The schema of a version, with what every resource has.
pub fn schema(custom: &Custom, dialect: Dialect) -> Value {
    let raw = &custom.version.raw_schema;
    // kubectl takes a schema with properties to forbid all others.
    let free = custom.version.schema.preserve && dialect == Dialect::V2;
    let mut schema = match raw.as_object() {
        Some(_) if !free => raw.clone(),
        _ => json!({ "type": "object" }),
    };
    if raw.is_object() && !free {
        if dialect == Dialect::V2 {
            for_v2(&mut schema);
        }
        embedded(&mut schema, dialect);
        resource(&mut schema, dialect);
    }
    schema["x-kubernetes-group-version-kind"] = json!([{
        "group": custom.definition.group, "version": custom.version.name, "kind": custom.definition.kind,
    }]);
    schema
}

/// The type and metadata that a resource has whatever its schema says.
fn resource(schema: &mut Value, dialect: Dialect) {
    let metadata = match dialect {
        Dialect::V2 => {
            let mut reference = dialect.reference(OBJECT_META);
            reference["description"] = METADATA.into();
            reference
        }
        Dialect::V3 => {
            json!({ "description": METADATA, "allOf": [dialect.reference(OBJECT_META)], "default": {} })
        }
    };
    let properties = member(schema, "properties");
    properties.insert("apiVersion".into(), json!({ "type": "string", "description": API_VERSION }));
    properties.insert("kind".into(), json!({ "type": "string", "description": KIND }));
    properties.insert("metadata".into(), metadata);
}

/// A member that is an object, made when it is not there.
fn member<'v>(value: &'v mut Value, name: &str) -> &'v mut Map<String, Value> {
    if !value[name].is_object() {
        value[name] = json!({});
    }
    value[name].as_object_mut().expect("was just made one")
}

/// Resources within resources have a type and metadata too.
fn embedded(schema: &mut Value, dialect: Dialect) {
    structure(schema, &mut |below| embedded(below, dialect));
    let flag = |name: &str| schema.get(name) == Some(&Value::Bool(true));
    let free = flag("x-kubernetes-preserve-unknown-fields") && dialect == Dialect::V2;
    if flag("x-kubernetes-embedded-resource") && !free {
        resource(schema, dialect);
        let mut required = schema["required"].as_array().cloned().unwrap_or_default();
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|r| r == name) {
                required.push(name.into());
            }
        }
        schema["required"] = required.into();
    }
}

fn structure(schema: &mut Value, each: &mut dyn FnMut(&mut Value)) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(&mut *each);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(name).filter(|s| s.is_object()) {
            each(below);
        }
    }
}

/// Takes away what OpenAPI v2, and kubectl's reading of it, cannot say.
fn for_v2(schema: &mut Value) {
    let nullable = |s: &Value| s.get("nullable") == Some(&Value::Bool(true));
    let null_members: Vec<String> = match schema.get("properties").and_then(Value::as_object) {
        Some(properties) => {
            properties.iter().filter(|(_, s)| nullable(s)).map(|(k, _)| k.clone()).collect()
        }
        None => Vec::new(),
    };
    let null_values = schema.get("additionalProperties").is_some_and(nullable);
    let Value::Object(map) = schema else { return };
    for junctor in ["allOf", "anyOf", "oneOf", "not"] {
        map.remove(junctor);
    }
    let free = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    let null = map.remove("nullable") == Some(Value::Bool(true));
    if null || free {
        map.remove("items");
        map.remove("properties");
    }
    let untyped_list = map.get("type") == Some(&"array".into()) && !map.contains_key("items");
    let free_object = free && map.get("type") == Some(&"object".into());
    if null || untyped_list || free_object {
        map.remove("type");
    }
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|r| !null_members.iter().any(|m| *r == **m) && !null_values);
        if required.is_empty() {
            map.remove("required");
        }
    }
    structure(schema, &mut for_v2);
}
