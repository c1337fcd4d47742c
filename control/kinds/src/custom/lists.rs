//! `x-kubernetes-list-type`: items of sets and keys of maps do not repeat.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::schema::{Additional, Schema};
use crate::path::{Errors, Path};

/// Checks every list of an object.
pub fn validate(object: &Value, schema: &Schema, path: &Path<'_>, e: &mut Errors) {
    match object {
        Value::Object(map) => members(map, schema, path, e),
        Value::Array(items) => list(items, schema, path, e),
        _ => {}
    }
}

fn members(map: &Map<String, Value>, schema: &Schema, path: &Path<'_>, e: &mut Errors) {
    if let Some(Additional::Of(all)) = &schema.additional {
        map.iter().for_each(|(key, value)| validate(value, all, &path.key(key), e));
    }
    for (key, value) in map {
        if let Some(property) = schema.properties.get(key.as_str()) {
            validate(value, property, &path.field(key), e);
        }
    }
}

fn list(items: &[Value], schema: &Schema, path: &Path<'_>, e: &mut Errors) {
    match schema.list_type.as_deref() {
        Some("set") => {
            for i in repeated(items.iter().map(Value::to_string)) {
                e.duplicate(&path.index(i), items[i].clone());
            }
        }
        Some("map") => by_key(items, &schema.list_keys, path, e),
        _ => {}
    }
    if let Some(schema) = &schema.items {
        for (i, item) in items.iter().enumerate() {
            validate(item, schema, &path.index(i), e);
        }
    }
}

fn by_key(items: &[Value], keys: &[Box<str>], path: &Path<'_>, e: &mut Errors) {
    if let Some(i) = items.iter().position(|i| !i.is_object() && !i.is_null()) {
        e.invalid(
            &path.index(i),
            items[i].clone(),
            "must be an object for an array of list-type map",
        );
        return;
    }
    let key_of = |item: &Value| {
        let said = keys.iter().filter_map(|k| Some((k.to_string(), item.get(&**k)?.clone())));
        Value::Object(said.collect())
    };
    let named: Vec<Value> = items.iter().map(key_of).collect();
    for i in repeated(named.iter().map(Value::to_string)) {
        e.duplicate(&path.index(i), named[i].clone());
    }
}

/// The second of each that is there more than once.
fn repeated(items: impl Iterator<Item = String>) -> Vec<usize> {
    let mut seen: HashMap<String, bool> = HashMap::new();
    let mut found = Vec::new();
    for (i, item) in items.enumerate() {
        match seen.get_mut(&item) {
            None => drop(seen.insert(item, false)),
            Some(told @ false) => {
                *told = true;
                found.push(i);
            }
            Some(true) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn repeated_items() {
        let schema = Schema::read(
            &json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": {
            "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
            "map": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"],
                "items": { "type": "object" } },
        } } } }),
        );
        let mut errors = Errors::new();
        let object = json!({ "spec": { "set": ["x", "y", "x", "x"], "map": [{ "a": 1, "b": 2, "c": 3 }, { "a": 1 }, { "a": 1, "b": 2 }] } });
        validate(&object, &schema, &Path::Root, &mut errors);
        let shown: Vec<String> = errors.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "spec.map[2]: Duplicate value: {\"a\":1,\"b\":2}",
                "spec.set[2]: Duplicate value: \"x\""
            ]
        );
    }
}
