//! When two values are equal, and which comes first.
//!
//! Numbers compare across their types. Lists that the schema declares sets or maps are equal whatever
//! the order of their elements, as Kubernetes merges them.

use std::cmp::Ordering;

use super::{List, Map, Value};
use crate::error::EvalError;
use crate::limits::Budget;
use crate::schema::ListType;

pub fn equal(a: &Value<'_>, b: &Value<'_>, budget: &mut Budget) -> Result<bool, EvalError> {
    if let Some(order) = numbers(a, b) {
        return Ok(order == Some(Ordering::Equal));
    }
    Ok(match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => {
            budget.traverse(a.len().min(b.len()))?;
            **a == **b
        }
        (Value::Type(a), Value::Type(b)) => **a == **b,
        (Value::Bytes(a), Value::Bytes(b)) => {
            budget.traverse(a.len().min(b.len()))?;
            a == b
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Ip(a), Value::Ip(b)) => a == b,
        (Value::Cidr(a), Value::Cidr(b)) => a == b,
        (Value::Url(a), Value::Url(b)) => a == b,
        (Value::Quantity(a), Value::Quantity(b)) => a == b,
        (Value::Semver(a), Value::Semver(b)) => a.cmp_precedence(b) == Ordering::Equal,
        (Value::Format(a), Value::Format(b)) => a.name == b.name,
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => equal(a, b, budget)?,
            (a, b) => a.is_none() && b.is_none(),
        },
        (Value::List(a), Value::List(b)) => lists(a, b, budget)?,
        (Value::Map(a), Value::Map(b)) => maps(a, b, budget)?,
        (Value::Message(a), Value::Message(b)) => {
            let mut same = a.type_name == b.type_name && a.fields.len() == b.fields.len();
            for (name, value) in &a.fields {
                budget.charge(1)?;
                same = same
                    && match b.fields.iter().find(|(n, _)| n == name) {
                        Some((_, other)) => equal(value, other, budget)?,
                        None => false,
                    };
            }
            same
        }
        _ => false,
    })
}

fn lists(a: &List<'_>, b: &List<'_>, budget: &mut Budget) -> Result<bool, EvalError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    match (a.list_type(), b.list_type()) {
        (ListType::Atomic, ListType::Atomic) => {
            for (a, b) in a.iter().zip(b.iter()) {
                budget.charge(1)?;
                if !equal(&a, &b, budget)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (ListType::Atomic, kind) | (kind, _) => {
            for item in a.iter() {
                match position(b, &item, kind, budget)? {
                    None => return Ok(false),
                    Some(at) => {
                        let found = b.get(at).unwrap_or(Value::Null);
                        if !equal(&item, &found, budget)? {
                            return Ok(false);
                        }
                    }
                }
            }
            Ok(true)
        }
    }
}

/// Where a list that is a set or a map has the element.
pub fn position(
    list: &List<'_>,
    wanted: &Value<'_>,
    kind: &ListType,
    budget: &mut Budget,
) -> Result<Option<usize>, EvalError> {
    for (i, item) in list.iter().enumerate() {
        budget.charge(1)?;
        let same = match kind {
            ListType::Map(keys) => same_keys(&item, wanted, keys, budget)?,
            _ => equal(&item, wanted, budget)?,
        };
        if same {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

fn same_keys(
    a: &Value<'_>,
    b: &Value<'_>,
    keys: &[String],
    budget: &mut Budget,
) -> Result<bool, EvalError> {
    let (Value::Map(a), Value::Map(b)) = (a, b) else { return Ok(false) };
    for key in keys {
        let escaped = crate::schema::escape(key).unwrap_or_else(|| key.clone());
        let same = match (a.field(&escaped), b.field(&escaped)) {
            (Some(a), Some(b)) => equal(&a, &b, budget)?,
            (a, b) => a.is_none() && b.is_none(),
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn maps(a: &Map<'_>, b: &Map<'_>, budget: &mut Budget) -> Result<bool, EvalError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (key, value) in a.entries() {
        budget.charge(1)?;
        match b.get(&key) {
            Some(other) if equal(&value, &other, budget)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The order of two numbers; the outer None says that they are not both numbers.
fn numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Option<Ordering>> {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Double(b)) => whole_and_double(i128::from(*a), *b),
        (Value::Uint(a), Value::Double(b)) => whole_and_double(i128::from(*a), *b),
        (Value::Double(a), Value::Int(b)) => {
            whole_and_double(i128::from(*b), *a).map(Ordering::reverse)
        }
        (Value::Double(a), Value::Uint(b)) => {
            whole_and_double(i128::from(*b), *a).map(Ordering::reverse)
        }
        _ => return None,
    })
}

/// Exact: a whole number beyond 2^53 must not be rounded to compare.
fn whole_and_double(whole: i128, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    if double >= 1e30 {
        return Some(Ordering::Less);
    }
    if double <= -1e30 {
        return Some(Ordering::Greater);
    }
    let floor = double.floor();
    Some(match whole.cmp(&(floor as i128)) {
        Ordering::Equal if double > floor => Ordering::Less,
        order => order,
    })
}

pub fn compare(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    if let Some(order) = numbers(a, b) {
        return order;
    }
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::String(a), Value::String(b)) => Some((**a).cmp(&**b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Quantity(a), Value::Quantity(b)) => a.partial_cmp(b),
        (Value::Semver(a), Value::Semver(b)) => Some(a.cmp_precedence(b)),
        _ => None,
    }
}
