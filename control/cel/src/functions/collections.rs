//! Membership and sets. Indexing is the evaluator's own.
//! <https://pkg.go.dev/github.com/google/cel-go/ext#Sets>

use super::standard::list_of;
use super::{Context, Out, Row, no_overload};
use crate::error::EvalError;
use crate::value::{List, Value};

pub const ROWS: &[Row] = &[
    ("@in", &["@in(A, list<A>) -> bool", "@in(A, map<A, B>) -> bool"], within),
    ("sets.contains", &["sets.contains(list<A>, list<A>) -> bool"], |cx, args| {
        let (list, sub) = (list_of(&args[0])?, list_of(&args[1])?);
        Ok(Value::Bool(contains_all(cx, list, sub)?))
    }),
    ("sets.equivalent", &["sets.equivalent(list<A>, list<A>) -> bool"], |cx, args| {
        let (a, b) = (list_of(&args[0])?, list_of(&args[1])?);
        Ok(Value::Bool(contains_all(cx, a, b)? && contains_all(cx, b, a)?))
    }),
    ("sets.intersects", &["sets.intersects(list<A>, list<A>) -> bool"], |cx, args| {
        let (a, b) = (list_of(&args[0])?, list_of(&args[1])?);
        for item in b.iter() {
            if has(cx, a, &item)? {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
    }),
];

fn within<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[1] {
        Value::List(list) => Ok(Value::Bool(has(cx, list, &args[0])?)),
        Value::Map(map) => Ok(Value::Bool(map.get(&args[0]).is_some())),
        _ => no_overload(),
    }
}

fn has<'a>(
    cx: &mut Context<'_, 'a>,
    list: &List<'a>,
    wanted: &Value<'a>,
) -> Result<bool, EvalError> {
    for item in list.iter() {
        cx.budget.charge(1)?;
        if item.equals(wanted, cx.budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn contains_all<'a>(
    cx: &mut Context<'_, 'a>,
    list: &List<'a>,
    sub: &List<'a>,
) -> Result<bool, EvalError> {
    for item in sub.iter() {
        cx.budget.charge(1)?;
        if !has(cx, list, &item)? {
            return Ok(false);
        }
    }
    Ok(true)
}
