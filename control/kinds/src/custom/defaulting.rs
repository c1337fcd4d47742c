//! Defaults of a schema, and nulls that it does not allow.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#defaulting>

use serde_json::Value;

use super::schema::{Additional, Schema};

/// Fills defaults into objects that are there. A null where none may be counts as missing when there
/// is a default, see [`drop_nulls`].
pub fn default(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                let there = map.get(&**name);
                if there.is_none_or(|v| v.is_null() && !property.nullable) {
                    map.insert(name.to_string(), default.clone());
                }
            }
            for (key, member) in map.iter_mut() {
                match (schema.properties.get(key.as_str()), &schema.additional) {
                    (Some(property), _) => default(member, property),
                    (None, Some(Additional::Of(all))) => {
                        replace_null(member, all);
                        default(member, all);
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for item in items {
                replace_null(item, schema);
                default(item, schema);
            }
        }
        _ => {}
    }
}

fn replace_null(value: &mut Value, schema: &Schema) {
    if value.is_null()
        && !schema.nullable
        && let Some(default) = &schema.default
    {
        *value = default.clone();
    }
}

/// Drops nulls that the schema neither allows nor replaces by a default.
pub fn drop_nulls(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => map.retain(|key, member| match schema.member(key) {
            Some(s) if member.is_null() => s.nullable || s.default.is_some(),
            Some(s) => {
                drop_nulls(member, s);
                true
            }
            None => true,
        }),
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            items.iter_mut().for_each(|item| drop_nulls(item, schema));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_and_nulls() {
        let schema = Schema::read(&json!({ "type": "object", "properties": {
            "a": { "type": "integer", "default": 1 },
            "b": { "type": "integer", "nullable": true, "default": 2 },
            "c": { "type": "string" },
            "d": { "type": "object", "default": {}, "properties": { "e": { "type": "string", "default": "x" } } },
            "l": { "type": "array", "items": { "type": "object", "properties": { "p": { "type": "string", "default": "TCP" } } } },
            "m": { "type": "object", "additionalProperties": { "type": "object", "properties": { "p": { "type": "string", "default": "y" } } } },
        } }));
        #[track_caller]
        fn check(schema: &Schema, mut object: Value, expected: Value) {
            drop_nulls(&mut object, schema);
            default(&mut object, schema);
            assert_eq!(object, expected);
            default(&mut object, schema);
            assert_eq!(object, expected, "defaulting is idempotent");
        }
        check(&schema, json!({}), json!({ "a": 1, "b": 2, "d": { "e": "x" } }));
        check(
            &schema,
            json!({ "a": null, "b": null, "c": null, "d": { "e": "z" }, "l": [{}, { "p": "UDP" }], "m": { "k": {} }, "u": null }),
            json!({ "a": 1, "b": null, "d": { "e": "z" }, "l": [{ "p": "TCP" }, { "p": "UDP" }], "m": { "k": { "p": "y" } }, "u": null }),
        );
    }
}
