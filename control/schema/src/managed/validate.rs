//! Whether an applied object fits the schema. The complaints are those of structured-merge-diff, which
//! are what kubectl shows.

use std::collections::BTreeSet;

use serde_json::Value;

use super::shape::{Place, Shape};
use crate::decode::quote;
use crate::model::{ListKind, Type};

/// What is wrong with the object; None when it fits.
pub(crate) fn validate(place: Place<'_>, value: &Value) -> Option<String> {
    let mut errors = Vec::new();
    check(place, value, "", &mut errors);
    match errors.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("errors:\n  {}", many.join("\n  "))),
    }
}

fn check(place: Place<'_>, value: &Value, path: &str, errors: &mut Vec<String>) {
    let complaint = |text: String| if path.is_empty() { text } else { format!("{path}: {text}") };
    let mut complain = |text: String| errors.push(complaint(text));
    if value.is_null() {
        return;
    }
    match place.ty {
        Type::Object(_) | Type::Map(_) => {
            let Value::Object(map) = value else {
                return complain(format!("expected map, got &{{{}}}", go_print(value)));
            };
            // Also what is owned as a whole has a schema inside.
            let shape = match place.ty {
                Type::Object(id) => Shape::Object(place.model.get(*id)),
                Type::Map(map) => Shape::Map(&map.value),
                _ => Shape::Leaf,
            };
            for (key, value) in map {
                let (below, declared) = place.key(&shape, key);
                let path = format!("{path}.{key}");
                if !declared && matches!(shape, Shape::Object(definition) if !definition.open) {
                    errors.push(format!("{path}: field not declared in schema"));
                    return;
                }
                check(below, value, &path, errors);
            }
        }
        Type::List(list) => {
            let Value::Array(items) = value else {
                return complain(format!("expected list, got &{{{}}}", go_print(value)));
            };
            let mut seen = BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                let name = if list.kind == ListKind::Atomic {
                    format!("[{i}]")
                } else {
                    match place.item(&list.item, &list.kind, item) {
                        Some(element) => element.to_string(),
                        None => {
                            return errors.push(complaint(format!(
                                "element {i}: {}",
                                unnamed(&list.kind, item)
                            )));
                        }
                    }
                };
                if list.kind != ListKind::Atomic && !seen.insert(name.clone()) {
                    errors.push(complaint(format!("duplicate entries for key {name}")));
                }
                check(Place::new(place.model, &list.item), item, &format!("{path}{name}"), errors);
            }
        }
        Type::String | Type::Bytes | Type::Time | Type::MicroTime | Type::Duration
            if !value.is_string() =>
        {
            complain(format!(
                "expected string, got &value.valueUnstructured{{Value:{}}}",
                go_syntax(value)
            ));
        }
        Type::Int32 | Type::Int64 | Type::Number if !value.is_number() => {
            complain(format!("expected numeric (int or float), got {}", go_type(value)));
        }
        Type::Bool if !value.is_boolean() => {
            complain(format!("expected boolean, got &{{{}}}", go_print(value)))
        }
        Type::Quantity | Type::IntOrString if value.is_array() || value.is_object() => {
            complain(format!("expected any scalar, got &{{{}}}", go_print(value)));
        }
        _ => {}
    }
}

/// Why an item of a list has no name.
fn unnamed(kind: &ListKind, item: &Value) -> String {
    match (kind, item) {
        (ListKind::Map(_), Value::Null) => {
            "associative list with keys may not have a null element".to_owned()
        }
        (ListKind::Map(keys), Value::Object(_)) => {
            let keys: Vec<String> = keys.iter().map(|k| quote(k)).collect();
            format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                keys.join(" ")
            )
        }
        (ListKind::Map(_), _) => {
            "associative list with keys may not have non-map elements".to_owned()
        }
        (_, Value::Object(_)) => {
            "associative list without keys has an element that's a map type".to_owned()
        }
        (_, Value::Array(_)) => "not supported: associative list with lists as elements".to_owned(),
        _ => "associative list without keys has an element that's an explicit null".to_owned(),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go's `%v` prints it.
pub(crate) fn go_print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            format!("[{}]", list.iter().map(go_print).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let shown: Vec<String> =
                map.iter().map(|(k, v)| format!("{k}:{}", go_print(v))).collect();
            format!("map[{}]", shown.join(" "))
        }
        scalar => scalar.to_string(),
    }
}

/// A value as Go's `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::Array(list) => {
            format!(
                "[]interface {{}}{{{}}}",
                list.iter().map(go_syntax).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Object(map) => {
            let shown: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", quote(k), go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", shown.join(", "))
        }
        scalar => scalar.to_string(),
    }
}
