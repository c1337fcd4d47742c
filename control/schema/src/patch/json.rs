//! JSON patch, RFC 6902, with the limits and liberties of Kubernetes' implementation.

use rimward_api::{Reason, Status};
use serde_json::{Map, Value};

use super::{does_not_apply, parse};

const OPERATIONS_MAX: usize = 10_000;
/// All that `copy` operations of one patch may copy, so that a small patch cannot make a huge object.
const COPIED_BYTES_MAX: usize = 3 << 20;

/// RFC 6902. `patch` is the body; a patch that does not apply answers 422 as Kubernetes does.
pub fn json_patch(object: &Value, patch: &[u8]) -> Result<Value, Status> {
    let operations = match parse(patch)? {
        Value::Array(operations) => operations,
        other => {
            let what = crate::decode::type_name(&other);
            return Err(Status::bad_request(format!(
                "json: cannot unmarshal {what} into Go value of type jsonpatch.Patch"
            )));
        }
    };
    if operations.len() > OPERATIONS_MAX {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        );
        return Err(Status::new(413, Reason::RequestEntityTooLarge, message));
    }
    let mut patched = object.clone();
    let mut copied = 0;
    for operation in &operations {
        let Value::Object(operation) = operation else {
            let what = crate::decode::type_name(operation);
            return Err(Status::bad_request(format!(
                "json: cannot unmarshal {what} into Go value of type jsonpatch.Operation"
            )));
        };
        perform(&mut patched, operation, &mut copied).ok_or_else(does_not_apply)?;
    }
    Ok(patched)
}

/// Performs one operation; None when it does not apply.
fn perform(object: &mut Value, operation: &Map<String, Value>, copied: &mut usize) -> Option<()> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let path = Pointer::parse(text("path")?)?;
    let value = || operation.get("value").cloned();
    match text("op")? {
        "add" => add(object, &path, value()?),
        "remove" => remove(object, &path).map(drop),
        "replace" => {
            *path.find_mut(object)? = value()?;
            Some(())
        }
        "move" => {
            let from = Pointer::parse(text("from")?)?;
            let value = remove(object, &from)?;
            add(object, &path, value)
        }
        "copy" => {
            let value = Pointer::parse(text("from")?)?.find(object)?.clone();
            *copied += value.to_string().len();
            if *copied > COPIED_BYTES_MAX {
                return None;
            }
            add(object, &path, value)
        }
        "test" => {
            let expected = operation.get("value").unwrap_or(&Value::Null);
            let found = path.find(object).unwrap_or(&Value::Null);
            same(found, expected).then_some(())
        }
        _ => None,
    }
}

/// Equality of JSON values: numbers by value.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

fn add(object: &mut Value, path: &Pointer, value: Value) -> Option<()> {
    match path.parent_mut(object)? {
        (Value::Object(map), key) => {
            map.insert(key.to_owned(), value);
        }
        (Value::Array(list), "-") => list.push(value),
        (Value::Array(list), key) => {
            let at = index(key, list.len() + 1)?;
            list.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(object: &mut Value, path: &Pointer) -> Option<Value> {
    match path.parent_mut(object)? {
        (Value::Object(map), key) => map.remove(key),
        (Value::Array(list), key) => {
            let at = index(key, list.len())?;
            Some(list.remove(at))
        }
        _ => None,
    }
}

/// A place in a list of `len` places; a negative one counts from the end.
fn index(key: &str, len: usize) -> Option<usize> {
    let at: i64 = key.parse().ok()?;
    let at = if at < 0 { at + i64::try_from(len).ok()? } else { at };
    usize::try_from(at).ok().filter(|at| *at < len)
}

/// RFC 6901. The whole document cannot be named: an object cannot be replaced by a patch.
struct Pointer(Vec<String>);

impl Pointer {
    fn parse(text: &str) -> Option<Self> {
        let steps = text.strip_prefix('/')?.split('/');
        Some(Self(steps.map(|step| step.replace("~1", "/").replace("~0", "~")).collect()))
    }

    fn find<'v>(&self, object: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(object, |at, step| match at {
            Value::Object(map) => map.get(step),
            Value::Array(list) => list.get(index(step, list.len())?),
            _ => None,
        })
    }

    fn find_mut<'v>(&self, object: &'v mut Value) -> Option<&'v mut Value> {
        descend(object, &self.0)
    }

    fn parent_mut<'v>(&self, object: &'v mut Value) -> Option<(&'v mut Value, &str)> {
        let (last, parents) = self.0.split_last()?;
        Some((descend(object, parents)?, last))
    }
}

fn descend<'v>(object: &'v mut Value, steps: &[String]) -> Option<&'v mut Value> {
    steps.iter().try_fold(object, |at, step| match at {
        Value::Object(map) => map.get_mut(step),
        Value::Array(list) => {
            let at = index(step, list.len())?;
            list.get_mut(at)
        }
        _ => None,
    })
}
