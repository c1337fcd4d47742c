//! Any text as a rule of a schema that has every type, and any JSON as a schema with rules; then objects of it.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rimward_control_cel::limits::PER_CALL;
use rimward_control_cel::{Budget, Rules};
use serde_json::{Value, json};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    rule: &'a str,
    message: &'a str,
    /// Where the rule stands.
    place: u8,
    new: u8,
    old: u8,
    /// Instead of the schema that has every type.
    schema: Option<&'a str>,
    object: Option<&'a str>,
}

fn schema(rule: &str, message: &str, place: u8) -> Value {
    let rules = json!([{ "rule": rule, "messageExpression": message }]);
    let mut schema = json!({ "type": "object", "properties": {
        "i": { "type": "integer" }, "n": { "type": "number" }, "b": { "type": "boolean" },
        "s": { "type": "string", "maxLength": 64 }, "t": { "type": "string", "format": "date-time" },
        "d": { "type": "string", "format": "duration" }, "x": { "x-kubernetes-int-or-string": true },
        "l": { "type": "array", "maxItems": 8, "items": { "type": "string", "maxLength": 8 } },
        "m": { "type": "object", "additionalProperties": { "type": "integer" } },
        "o": { "type": "object", "properties": { "k": { "type": "string" } } },
        "k": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": { "type": "object", "required": ["k"], "properties": { "k": { "type": "string" } } } } } });
    let places = ["", "/properties/s", "/properties/l", "/properties/m", "/properties/o", "/properties/k",
        "/properties/l/items", "/properties/k/items", "/properties/i", "/properties/t"];
    let place = places[usize::from(place) % places.len()];
    schema.pointer_mut(place).expect("it is there")["x-kubernetes-validations"] = rules;
    schema
}

fn object(which: u8) -> Value {
    match which % 4 {
        0 => json!({}),
        1 => json!({ "i": 1, "n": 1.5, "b": true, "s": "text", "t": "2026-01-01T00:00:00Z", "d": "1h",
            "x": 5, "l": ["a", "b"], "m": { "a": 1 }, "o": { "k": "v" }, "k": [{ "k": "a" }, { "k": "b" }] }),
        2 => json!({ "i": -1, "s": "", "x": "50%", "l": [], "m": {}, "o": {}, "k": [{ "k": "b" }] }),
        _ => json!({ "i": i64::MAX, "n": -0.0, "s": "\u{1F600}", "l": ["a"], "k": [{ "k": "a" }, { "k": "c" }] }),
    }
}

fuzz_target!(|input: Input| {
    let parsed = |text: Option<&str>| text.and_then(|t| serde_json::from_str::<Value>(t).ok());
    let schema = parsed(input.schema)
        .unwrap_or_else(|| schema(input.rule, input.message, input.place));
    let Ok(rules) = Rules::compile(&schema, "schema") else { return };
    let new = parsed(input.object).unwrap_or_else(|| object(input.new));
    let old = (input.old % 5 > 0).then(|| object(input.old));
    let began = Instant::now();
    let _ = rules.validate(&new, old.as_ref(), &mut Budget::new(PER_CALL));
    assert!(began.elapsed() < Duration::from_secs(10), "{}", input.rule);
});
