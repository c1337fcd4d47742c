//! Values as JSON: what a mutation puts into an object.

use base64::Engine;
use serde_json::{Map as JsonMap, Value as Json};

use super::Value;
use crate::error::{EvalError, other};
use crate::limits::Budget;

/// The JSON of a value. Optional values that have nothing are left out by their maker; here they are
/// null. Pays for every element: what a mutation makes is bounded as everything else is.
pub fn to_json(value: &Value<'_>, budget: &mut Budget) -> Result<Json, EvalError> {
    budget.charge(1)?;
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(n) => Json::from(*n),
        Value::Uint(n) => Json::from(*n),
        Value::Double(n) => match serde_json::Number::from_f64(*n) {
            Some(number) => Json::Number(number),
            None => return other(format!("{n} has no JSON form")),
        },
        Value::String(s) => {
            budget.traverse(s.len())?;
            Json::from(&**s)
        }
        Value::Bytes(b) => {
            budget.traverse(b.len())?;
            Json::from(base64::engine::general_purpose::STANDARD.encode(b))
        }
        Value::Timestamp(t) => Json::from(crate::functions::time::print_timestamp(*t)),
        Value::Duration(d) => Json::from(crate::functions::time::print_duration(*d)),
        Value::List(list) => {
            let mut items = Vec::with_capacity(list.len());
            for item in list.iter() {
                items.push(to_json(&item, budget)?);
            }
            Json::Array(items)
        }
        Value::Map(map) => {
            let mut object = JsonMap::new();
            for (key, value) in map.entries() {
                let Value::String(key) = key else {
                    return other(format!("a key of type {} has no JSON form", key.type_name()));
                };
                object.insert(key.to_string(), to_json(&value, budget)?);
            }
            Json::Object(object)
        }
        Value::Message(message) => {
            let mut object = JsonMap::new();
            for (name, value) in &message.fields {
                object.insert((*name).to_owned(), to_json(value, budget)?);
            }
            Json::Object(object)
        }
        Value::Optional(Some(value)) => to_json(value, budget)?,
        Value::Optional(None) => Json::Null,
        unsupported => {
            return other(format!("a value of type {} has no JSON form", unsupported.type_name()));
        }
    })
}
