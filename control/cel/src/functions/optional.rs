//! <https://pkg.go.dev/github.com/google/cel-go/cel#OptionalTypes>. `optMap` and `optFlatMap` are macros;
//! the alternatives of `or` and `orValue` are evaluated by the evaluator only when they are needed.

use super::{Out, Row, no_overload};
use crate::error::other;
use crate::value::Value;

pub const ROWS: &[Row] = &[
    ("optional.of", &["optional.of(A) -> optional<A>"], |_, args| Ok(Value::some(args[0].clone()))),
    ("optional.none", &["optional.none() -> optional<A>"], |_, _| Ok(Value::none())),
    (
        "optional.ofNonZeroValue",
        &["optional.ofNonZeroValue(A) -> optional<A>"],
        |_, args| match args[0].is_zero() {
            true => Ok(Value::none()),
            false => Ok(Value::some(args[0].clone())),
        },
    ),
    ("hasValue", &["optional<A>.hasValue() -> bool"], |_, args| match &args[0] {
        Value::Optional(inner) => Ok(Value::Bool(inner.is_some())),
        _ => no_overload(),
    }),
    ("value", &["optional<A>.value() -> A"], |_, args| match &args[0] {
        Value::Optional(Some(inner)) => Ok((**inner).clone()),
        Value::Optional(None) => other("optional.none() dereference"),
        _ => no_overload(),
    }),
    ("or", &["optional<A>.or(optional<A>) -> optional<A>"], |_, args| choose(args, false)),
    ("orValue", &["optional<A>.orValue(A) -> A"], |_, args| choose(args, true)),
    ("optional.unwrap", &["optional.unwrap(list<optional<A>>) -> list<A>"], |cx, args| {
        unwrap_all(cx, args)
    }),
    ("unwrapOpt", &["list<optional<A>>.unwrapOpt() -> list<A>"], |cx, args| unwrap_all(cx, args)),
];

fn choose<'a>(args: &[Value<'a>], unwrap: bool) -> Out<'a> {
    match &args[0] {
        Value::Optional(Some(inner)) if unwrap => Ok((**inner).clone()),
        Value::Optional(Some(_)) => Ok(args[0].clone()),
        Value::Optional(None) => Ok(args[1].clone()),
        _ => no_overload(),
    }
}

fn unwrap_all<'a>(cx: &mut super::Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let mut out = Vec::new();
    for item in super::standard::list_of(&args[0])?.iter() {
        cx.budget.charge(1)?;
        match item {
            Value::Optional(Some(inner)) => out.push((*inner).clone()),
            Value::Optional(None) => {}
            _ => return no_overload(),
        }
    }
    Ok(Value::list(out))
}
