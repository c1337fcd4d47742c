//! The language's own functions on any type: equality, order, conversion.
//! <https://github.com/google/cel-spec/blob/master/doc/langdef.md#standard-definitions>

use std::cmp::Ordering;

use super::{Context, Out, Row, no_overload};
use crate::error::{EvalError, other};
use crate::value::{List, Text, Value};

/// The signatures of a comparison; a macro, since rows are constant.
macro_rules! ordered {
    ($name:literal) => {
        &[
            concat!($name, "(bool, bool) -> bool"),
            concat!($name, "(int, int) -> bool"),
            concat!($name, "(int, uint) -> bool"),
            concat!($name, "(int, double) -> bool"),
            concat!($name, "(uint, uint) -> bool"),
            concat!($name, "(uint, int) -> bool"),
            concat!($name, "(uint, double) -> bool"),
            concat!($name, "(double, double) -> bool"),
            concat!($name, "(double, int) -> bool"),
            concat!($name, "(double, uint) -> bool"),
            concat!($name, "(string, string) -> bool"),
            concat!($name, "(bytes, bytes) -> bool"),
            concat!($name, "(timestamp, timestamp) -> bool"),
            concat!($name, "(duration, duration) -> bool"),
        ]
    };
}

pub const ROWS: &[Row] = &[
    ("_==_", &["_==_(A, A) -> bool"], |cx, args| equal(cx, args, true)),
    ("_!=_", &["_!=_(A, A) -> bool"], |cx, args| equal(cx, args, false)),
    ("_<_", ordered!("_<_"), |cx, args| ordered(cx, args, Ordering::is_lt)),
    ("_<=_", ordered!("_<=_"), |cx, args| ordered(cx, args, Ordering::is_le)),
    ("_>_", ordered!("_>_"), |cx, args| ordered(cx, args, Ordering::is_gt)),
    ("_>=_", ordered!("_>=_"), |cx, args| ordered(cx, args, Ordering::is_ge)),
    ("!_", &["!_(bool) -> bool"], not),
    ("dyn", &["dyn(A) -> dyn"], |_, args| Ok(args[0].clone())),
    ("type", &["type(A) -> type"], |_, args| Ok(Value::Type(Text::Borrowed(args[0].type_name())))),
    ("bool", &["bool(bool) -> bool", "bool(string) -> bool"], to_bool),
    (
        "string",
        &[
            "string(string) -> string",
            "string(bool) -> string",
            "string(int) -> string",
            "string(uint) -> string",
            "string(double) -> string",
            "string(bytes) -> string",
            "string(timestamp) -> string",
            "string(duration) -> string",
            "string(IP) -> string",
            "string(CIDR) -> string",
        ],
        to_string,
    ),
    ("bytes", &["bytes(string) -> bytes", "bytes(bytes) -> bytes"], to_bytes),
    (
        "size",
        &[
            "size(string) -> int",
            "size(bytes) -> int",
            "size(list<A>) -> int",
            "size(map<A, B>) -> int",
            "string.size() -> int",
            "bytes.size() -> int",
            "list<A>.size() -> int",
            "map<A, B>.size() -> int",
        ],
        size,
    ),
];

fn equal<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>], wanted: bool) -> Out<'a> {
    Ok(Value::Bool(args[0].equals(&args[1], cx.budget)? == wanted))
}

fn ordered<'a>(
    cx: &mut Context<'_, 'a>,
    args: &[Value<'a>],
    holds: fn(Ordering) -> bool,
) -> Out<'a> {
    cx.budget.traverse(match &args[0] {
        Value::String(_) | Value::Bytes(_) => args[0].size().min(args[1].size()),
        _ => 0,
    })?;
    match args[0].compare(&args[1]) {
        Some(order) => Ok(Value::Bool(holds(order))),
        None if matches!(args, [Value::Double(_), _] | [_, Value::Double(_)]) => {
            other("NaN values cannot be ordered")
        }
        None => no_overload(),
    }
}

fn not<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match args {
        [Value::Bool(b)] => Ok(Value::Bool(!b)),
        _ => no_overload(),
    }
}

fn to_bool<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[0] {
        Value::Bool(b) => Ok(Value::Bool(*b)),
        Value::String(s) => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => other(format!("type conversion error from 'string' to 'bool': {:?}", &**s)),
        },
        _ => no_overload(),
    }
}

fn to_string<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    Ok(match &args[0] {
        Value::String(_) => args[0].clone(),
        Value::Bool(b) => Value::text(b.to_string()),
        Value::Int(n) => Value::text(n.to_string()),
        Value::Uint(n) => Value::text(n.to_string()),
        Value::Double(n) => Value::text(super::numbers::print_double(*n)),
        Value::Bytes(bytes) => {
            cx.makes(bytes.len())?;
            match std::str::from_utf8(bytes) {
                Ok(text) => Value::text(text),
                Err(_) => return other("invalid UTF-8 in bytes, cannot convert to string"),
            }
        }
        Value::Timestamp(t) => Value::text(super::time::print_timestamp(*t)),
        Value::Duration(d) => Value::text(super::time::print_duration(*d)),
        Value::Ip(ip) => Value::text(ip.to_string()),
        Value::Cidr(cidr) => Value::text(format!("{}/{}", cidr.ip, cidr.bits)),
        Value::Type(name) => Value::text(&**name),
        _ => return no_overload(),
    })
}

fn to_bytes<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[0] {
        Value::String(s) => {
            cx.makes(s.len())?;
            Ok(Value::Bytes(s.as_bytes().into()))
        }
        Value::Bytes(_) => Ok(args[0].clone()),
        _ => no_overload(),
    }
}

fn size<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let size = match &args[0] {
        // Characters, not bytes: they have to be counted.
        Value::String(s) => {
            cx.budget.traverse(s.len() / 16)?;
            s.chars().count()
        }
        Value::Bytes(b) => b.len(),
        Value::List(list) => list.len(),
        Value::Map(map) => map.len(),
        _ => return no_overload(),
    };
    Ok(Value::Int(size as i64))
}

/// The list that an argument is.
pub fn list_of<'v, 'a>(value: &'v Value<'a>) -> Result<&'v List<'a>, EvalError> {
    match value {
        Value::List(list) => Ok(list),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// The text that an argument is.
pub fn text_of<'v>(value: &'v Value<'_>) -> Result<&'v str, EvalError> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn int_of(value: &Value<'_>) -> Result<i64, EvalError> {
    match value {
        Value::Int(n) => Ok(*n),
        _ => Err(EvalError::NoSuchOverload),
    }
}
