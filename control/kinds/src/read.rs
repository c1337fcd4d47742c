//! Reading untyped objects without a match on every line: what is missing or of another type reads
//! as Go's zero value. The schema has refused wrong types before any rule runs.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Lookups on a JSON object.
pub trait Read {
    /// The member, or null.
    fn at(&self, key: &str) -> &Value;
    fn int(&self, key: &str) -> Option<i64>;
    fn entries(&self, key: &str) -> Option<&Map<String, Value>>;

    fn has(&self, key: &str) -> bool {
        !self.at(key).is_null()
    }
    fn text(&self, key: &str) -> &str {
        self.at(key).as_str().unwrap_or_default()
    }
    fn list(&self, key: &str) -> &[Value] {
        self.at(key).as_array().map_or(&[], Vec::as_slice)
    }
    fn flag(&self, key: &str) -> bool {
        self.at(key).as_bool().unwrap_or_default()
    }
    /// The member behind a path of keys, or null.
    fn deep(&self, path: &[&str]) -> &Value {
        match path {
            [] => &NULL,
            [first, rest @ ..] => rest.iter().fold(self.at(first), |v, key| v.at(key)),
        }
    }
}

impl Read for Value {
    fn at(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&NULL)
    }
    fn int(&self, key: &str) -> Option<i64> {
        self.at(key).as_i64()
    }
    fn entries(&self, key: &str) -> Option<&Map<String, Value>> {
        self.at(key).as_object()
    }
}

/// The members of an object, none for anything else.
pub fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Go's idea of empty for a struct or list member: missing, null, `{}` or `[]`, `""`.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

/// Sets a member that is missing or null.
pub fn fill(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets a string member that is missing or empty.
pub fn fill_text(object: &mut Value, key: &str, value: &str) {
    if let Value::Object(map) = object
        && map.get(key).is_none_or(|v| v.is_null() || v.as_str() == Some(""))
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// The member as an object, made when it is missing; None when `object` is no object.
pub fn member<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = object.as_object_mut()?;
    let value = map.entry(key.to_owned()).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    Some(value)
}

/// The items of a list member, to be changed in place.
pub fn items_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Removes a member.
pub fn remove(object: &mut Value, key: &str) {
    if let Value::Object(map) = object {
        map.remove(key);
    }
}

/// Makes `new[key]` what `old[key]` is, also when that is nothing.
pub fn keep(new: &mut Value, old: &Value, key: &str) {
    if let Value::Object(map) = new {
        match old.get(key) {
            Some(value) => map.insert(key.to_owned(), value.clone()),
            None => map.remove(key),
        };
    }
}

/// Equal as Go's `Semantic.DeepEqual` sees it: a member that is missing, null or empty is the same.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(key, value)| same(value, y.get(key).unwrap_or(&NULL)))
                && y.iter().all(|(key, value)| x.contains_key(key) || same(&NULL, value))
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y))
        }
        _ => a == b || (is_zero(a) && is_zero(b)),
    }
}

fn is_zero(value: &Value) -> bool {
    is_empty(value) || matches!(value, Value::Bool(false))
}
