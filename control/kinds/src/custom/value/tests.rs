//! What Kubernetes says of values that a schema refuses.

use super::*;
use serde_json::json;

#[track_caller]
fn check(schema: Value, object: Value, expected: &[&str]) {
    let errors = validate(&object, None, &Schema::read(&schema), "");
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(shown, expected);
}

fn x(schema: Value) -> Value {
    json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": { "x": schema } } } })
}

#[test]
fn kubernetes_words() {
    let at = |v: Value| json!({ "spec": { "x": v } });
    check(
        x(json!({ "type": "integer" })),
        at(json!("a")),
        &[r#"spec.x: Invalid value: "string": spec.x in body must be of type integer: "string""#],
    );
    check(x(json!({ "type": "integer" })), at(json!(1.0)), &[]);
    check(
        x(json!({ "type": "integer" })),
        at(json!(1.5)),
        &[r#"spec.x: Invalid value: "number": spec.x in body must be of type integer: "number""#],
    );
    check(
        x(json!({ "type": "string" })),
        at(Value::Null),
        &[r#"spec.x: Invalid value: "null": spec.x in body must be of type string: "null""#],
    );
    check(x(json!({ "type": "string", "nullable": true })), at(Value::Null), &[]);
    check(
        x(json!({ "type": "string", "pattern": "^a$" })),
        at(json!("b")),
        &[r#"spec.x: Invalid value: "b": spec.x in body should match '^a$'"#],
    );
    check(
        x(json!({ "type": "string", "maxLength": 1 })),
        at(json!("éé")),
        &["spec.x: Too long: may not be more than 1 bytes"],
    );
    check(
        x(json!({ "type": "string", "minLength": 3 })),
        at(json!("éé")),
        &[r#"spec.x: Invalid value: "éé": spec.x in body should be at least 3 chars long"#],
    );
    check(
        x(json!({ "type": "string", "enum": ["a", "b"] })),
        at(json!("c")),
        &[r#"spec.x: Unsupported value: "c": supported values: "a", "b""#],
    );
    check(
        x(json!({ "type": "integer", "minimum": 1, "maximum": 3 })),
        at(json!(0)),
        &["spec.x: Invalid value: 0: spec.x in body should be greater than or equal to 1"],
    );
    check(
        x(json!({ "type": "integer", "maximum": 3, "exclusiveMaximum": true })),
        at(json!(3)),
        &["spec.x: Invalid value: 3: spec.x in body should be less than 3"],
    );
    check(
        x(json!({ "type": "number", "multipleOf": 0.5 })),
        at(json!(0.75)),
        &["spec.x: Invalid value: 0.75: spec.x in body should be a multiple of 0.5"],
    );
    check(
        x(json!({ "type": "integer", "format": "int32" })),
        at(json!(3_000_000_000_i64)),
        &[
            r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.x"#,
        ],
    );
    check(
        x(json!({ "type": "string", "format": "date-time" })),
        at(json!("x")),
        &[r#"spec.x: Invalid value: "x": spec.x in body must be of type date-time: "x""#],
    );
    check(x(json!({ "x-kubernetes-int-or-string": true })), at(json!("a")), &[]);
    check(
        x(json!({ "x-kubernetes-int-or-string": true })),
        at(json!(true)),
        &[
            r#"spec.x: Invalid value: "boolean": spec.x in body must be of type integer,string: "boolean""#,
        ],
    );
    check(
        x(json!({ "type": "array", "maxItems": 1, "items": { "type": "string" } })),
        at(json!(["a", 1])),
        &[
            r#"spec.x[1]: Invalid value: "integer": spec.x[1] in body must be of type string: "integer""#,
            "spec.x: Too many: 2: must have at most 1 items",
        ],
    );
    check(
        x(
            json!({ "type": "object", "required": ["a"], "additionalProperties": { "type": "boolean" } }),
        ),
        at(json!({ "b": 1 })),
        &[
            r#"spec.x.b: Invalid value: "integer": spec.x.b in body must be of type boolean: "integer""#,
            "spec.x.a: Required value",
        ],
    );
    check(
        x(json!({ "type": "object", "oneOf": [{ "required": ["a"] }, { "required": ["b"] }] })),
        at(json!({})),
        &[
            r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found none valid"#,
            "spec.x.a: Required value",
        ],
    );
    check(json!({ "type": "object", "required": ["spec"] }), json!({}), &["spec: Required value"]);
}

#[test]
fn what_did_not_change_is_not_held_against_an_update() {
    let schema = Schema::read(&json!({ "type": "object", "properties": {
        "a": { "type": "string", "maxLength": 1 }, "b": { "type": "integer" },
        "l": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": { "type": "object", "properties": { "k": { "type": "string" }, "v": { "type": "integer", "maximum": 1 } } } },
    } }));
    let old = json!({ "a": "too long", "l": [{ "k": "x", "v": 5 }] });
    let new = json!({ "a": "too long", "b": 1, "l": [{ "k": "y" }, { "k": "x", "v": 5 }] });
    assert_eq!(validate(&new, Some(&old), &schema, "").len(), 0);
    assert_eq!(validate(&new, None, &schema, "").len(), 2);
    let worse = json!({ "a": "longer yet", "l": [{ "k": "x", "v": 6 }] });
    assert_eq!(validate(&worse, Some(&old), &schema, "").len(), 2);
}
