//! `x-kubernetes-validations`: what is refused of a definition, and what of an object.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use rimward_control_cel::limits::PER_REQUEST;
use rimward_control_cel::{Budget, Rules};
use serde_json::{Value, json};

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": { "spec": {
            "type": "object",
            "x-kubernetes-validations": [
                { "rule": "self.min <= self.max", "message": "min must not exceed max" },
                { "rule": "self.max < 100", "messageExpression": "'max is ' + string(self.max)", "fieldPath": ".max", "reason": "FieldValueForbidden" },
                { "rule": "!has(self.name) || self.name.startsWith('a')" },
            ],
            "properties": {
                "min": { "type": "integer" },
                "max": { "type": "integer" },
                "name": { "type": "string", "maxLength": 20, "x-kubernetes-validations": [
                    { "rule": "self == oldSelf", "message": "name is immutable" },
                ] },
                "first": { "type": "string", "maxLength": 20, "x-kubernetes-validations": [
                    { "rule": "oldSelf.hasValue() || self == 'new'", "optionalOldSelf": true, "message": "must begin as new" },
                ] },
                "items": { "type": "array", "maxItems": 10, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key"],
                    "items": { "type": "object", "required": ["key"], "properties": {
                        "key": { "type": "string", "maxLength": 10 },
                        "value": { "type": "integer", "x-kubernetes-validations": [{ "rule": "self >= oldSelf", "message": "must not sink" }] },
                    } } },
                "labels": { "type": "object", "maxProperties": 10, "additionalProperties": { "type": "string", "maxLength": 10,
                    "x-kubernetes-validations": [{ "rule": "self != 'bad'", "message": "must not be bad" }] } },
            },
        } },
    })
}

#[track_caller]
fn check(new: Value, old: Option<Value>, expected: &[&str]) {
    let rules = Rules::compile(&schema(), "spec.validation.openAPIV3Schema").unwrap();
    let found = rules.validate(&new, old.as_ref(), &mut Budget::new(PER_REQUEST));
    let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{new}");
}

#[test]
fn objects() {
    check(json!({ "spec": { "min": 1, "max": 2 } }), None, &[]);
    check(json!({}), None, &[]);
    check(
        json!({ "spec": { "min": 3, "max": 2 } }),
        None,
        &["spec: Invalid value: min must not exceed max"],
    );
    check(json!({ "spec": { "min": 3, "max": 200 } }), None, &["spec.max: Forbidden: max is 200"]);
    check(
        json!({ "spec": { "min": 1, "max": 2, "name": "b" } }),
        None,
        &["spec: Invalid value: failed rule: !has(self.name) || self.name.startsWith('a')"],
    );
    check(
        json!({ "spec": { "min": 1, "max": 2, "labels": { "x": "bad" } } }),
        None,
        &["spec.labels[x]: Invalid value: \"bad\": must not be bad"],
    );
    check(
        json!({ "spec": { "max": 2 } }),
        None,
        &[
            "spec: Invalid value: \"object\": no such key: min evaluating rule: min must not exceed max",
        ],
    );
}

#[test]
fn transitions() {
    let spec = |more: Value| {
        let mut spec = json!({ "min": 1, "max": 2 });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "spec": spec })
    };
    check(spec(json!({ "name": "a" })), None, &[]);
    check(spec(json!({ "name": "a" })), Some(spec(json!({}))), &[]);
    check(
        spec(json!({ "name": "ab" })),
        Some(spec(json!({ "name": "a" }))),
        &["spec.name: Invalid value: \"ab\": name is immutable"],
    );
    check(
        spec(json!({ "first": "old" })),
        None,
        &["spec.first: Invalid value: \"old\": must begin as new"],
    );
    check(spec(json!({ "first": "old" })), Some(spec(json!({ "first": "new" }))), &[]);
    // Elements are followed by their keys, not by their places.
    let items = |a: i64, b: i64| json!({ "items": [{ "key": "a", "value": a }, { "key": "b", "value": b }] });
    let turned = json!({ "items": [{ "key": "b", "value": 1 }, { "key": "a", "value": 5 }] });
    check(spec(turned.clone()), Some(spec(items(5, 1))), &[]);
    check(
        spec(turned),
        Some(spec(items(6, 1))),
        &["spec.items[1].value: Invalid value: 5: must not sink"],
    );
}

/// An old fault is a warning as long as nobody touches it.
#[test]
fn old_faults() {
    let rules = Rules::compile(&schema(), "").unwrap();
    let old = json!({ "spec": { "min": 3, "max": 2 } });
    let mut new = old.clone();
    new["metadata"] = json!({ "labels": { "a": "b" } });
    let found = rules.validate(&new, Some(&old), &mut Budget::new(PER_REQUEST));
    assert_eq!(found.errors, []);
    assert_eq!(found.warnings, ["spec: Invalid value: min must not exceed max"]);
}

#[test]
fn wrong_definitions() {
    #[track_caller]
    fn check(rule: Value, expected: &[&str]) {
        let schema = json!({ "type": "object", "properties": {
            "a": { "type": "integer" },
            "l": { "type": "array", "items": { "type": "string", "x-kubernetes-validations": [rule] } },
        } });
        let errors = Rules::compile(&schema, "s").unwrap_err();
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.contains(expected), "{error}");
        }
    }
    let at = "s.properties[l].items.x-kubernetes-validations[0]";
    check(json!({ "rule": " " }), &[&format!("{at}.rule: Required value: rule is not specified")]);
    check(json!({ "rule": "self" }), &["cel expression must evaluate to a bool"]);
    check(
        json!({ "rule": "self.x" }),
        &["\"Rule\":\"self.x\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null"],
    );
    check(json!({ "rule": "true", "reason": "Because" }), &["Unsupported value: \"Because\""]);
    check(json!({ "rule": "true", "fieldPath": ".x" }), &["must be a valid path"]);
    check(json!({ "rule": "true", "message": " " }), &["must be non-empty if specified"]);
    check(
        json!({ "rule": "true", "messageExpression": "1" }),
        &["messageExpression must evaluate to a string"],
    );
    check(
        json!({ "rule": "true", "optionalOldSelf": true }),
        &["may not be set if oldSelf is not used in rule"],
    );
    check(
        json!({ "rule": "size(self) == size(oldSelf)" }),
        &[
            "oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]",
        ],
    );
    // An unbounded list of unbounded texts: what each costs, as often as they fit into a request.
    check(
        json!({ "rule": "self.matches('^a*b*c*d*e*$')" }),
        &[
            "estimated rule cost exceeds budget by factor of more than 100x",
            "contributed to",
            "estimated rule cost total",
        ],
    );
}

#[test]
fn budgets() {
    let schema = json!({ "type": "object", "properties": { "l": {
        "type": "array", "maxItems": 30, "items": { "type": "integer" },
        "x-kubernetes-validations": [{ "rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))" }],
    } } });
    let rules = Rules::compile(&schema, "s").unwrap();
    // Stored by a server whose limits on the list were others.
    let object = json!({ "l": (0..1000).collect::<Vec<i32>>() });
    let found = rules.validate(&object, None, &mut Budget::new(PER_REQUEST));
    assert!(
        found.errors[0]
            .message
            .contains("no further validation rules will be run due to call cost exceeds limit"),
        "{:?}",
        found.errors
    );
    let found = rules.validate(&object, None, &mut Budget::new(100));
    assert!(found.errors[0].message.contains("running out of cost budget"), "{:?}", found.errors);
}
