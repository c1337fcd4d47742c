//! What Kubernetes says when the outcome of a strategic merge patch does not fit the kind's types: it is
//! restored from a map, not decoded from JSON, and the two word their complaints differently.

use serde_json::Value;

use crate::decode::type_name;
use crate::model::{Alternative, Model, Type};

/// The first value that cannot be restored; None when all can.
pub fn refusal(model: &Model, ty: &Type, value: &Value) -> Option<String> {
    let cannot = |what: &str| Some(format!("cannot restore {what} from {}", go_kind(value)));
    match (ty, value) {
        (_, Value::Null) => None,
        (Type::Object(id), Value::Object(map)) => {
            // Go goes through the fields as they stand in the struct, which is how they are numbered.
            let mut fields: Vec<_> = model.get(*id).fields.iter().collect();
            fields.sort_by_key(|f| f.proto.as_ref().map_or(0, |p| p.number));
            fields.iter().find_map(|f| refusal(model, &f.ty, map.get(&*f.name)?))
        }
        (Type::Object(_), _) => Some(format!("cannot restore struct from: {}", go_kind(value))),
        (Type::Map(of), Value::Object(map)) => {
            map.values().find_map(|v| refusal(model, &of.value, v))
        }
        (Type::Map(_), _) => cannot("map"),
        (Type::List(of), Value::Array(list)) => {
            list.iter().find_map(|v| refusal(model, &of.item, v))
        }
        (Type::List(_), _) => cannot("slice"),
        (Type::Bytes, Value::String(_)) => None,
        (Type::Bytes, _) => cannot("slice"),
        (Type::String | Type::Duration, _) => scalar(value, value.is_string(), "string"),
        (Type::Bool, _) => scalar(value, value.is_boolean(), "bool"),
        (Type::Int32, _) => scalar(value, value.as_i64().is_some(), "int32"),
        (Type::Int64, _) => scalar(value, value.as_i64().is_some(), "int64"),
        (Type::Number, _) => scalar(value, value.is_number(), "float64"),
        (Type::SchemaOr(Alternative::Bool | Alternative::List | Alternative::Strings, _), _) => {
            None
        }
        // These read themselves, and complain as in a body.
        (
            Type::Quantity
            | Type::IntOrString
            | Type::Time
            | Type::MicroTime
            | Type::Raw
            | Type::Any,
            _,
        ) => None,
    }
}

/// Go turns a number into a string if it is let to; Kubernetes does not, and says so. Others it could not.
fn scalar(value: &Value, fits: bool, wanted: &str) -> Option<String> {
    if fits {
        return None;
    }
    match value {
        Value::Number(n) if wanted != "bool" && !(n.is_f64() && wanted == "string") => {
            let is = if n.is_f64() { "float64" } else { "int64" };
            Some(format!("cannot convert {is} to {wanted}"))
        }
        _ => Some(format!("unrecognized type: {wanted}")),
    }
}

/// The name of a value's reflect.Kind.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
        other => type_name(other),
    }
}
