//! Arithmetic, and conversions between numbers. What overflows is an error, never a wrapped result.

use super::{Context, Out, Row, no_overload};
use crate::error::{EvalError, other};
use crate::value::{Text, Value};

macro_rules! arithmetic {
    ($name:literal $(, $more:literal)*) => {
        &[
            concat!($name, "(int, int) -> int"),
            concat!($name, "(uint, uint) -> uint"),
            concat!($name, "(double, double) -> double"),
            $(concat!($name, $more)),*
        ]
    };
}

pub const ROWS: &[Row] = &[
    (
        "_+_",
        arithmetic!(
            "_+_",
            "(string, string) -> string",
            "(bytes, bytes) -> bytes",
            "(list<A>, list<A>) -> list<A>",
            "(timestamp, duration) -> timestamp",
            "(duration, timestamp) -> timestamp",
            "(duration, duration) -> duration"
        ),
        add,
    ),
    (
        "_-_",
        arithmetic!(
            "_-_",
            "(timestamp, timestamp) -> duration",
            "(timestamp, duration) -> timestamp",
            "(duration, duration) -> duration"
        ),
        subtract,
    ),
    ("_*_", arithmetic!("_*_"), multiply),
    ("_/_", arithmetic!("_/_"), divide),
    ("_%_", &["_%_(int, int) -> int", "_%_(uint, uint) -> uint"], remainder),
    ("-_", &["-_(int) -> int", "-_(double) -> double"], negate),
    (
        "int",
        &[
            "int(int) -> int",
            "int(uint) -> int",
            "int(double) -> int",
            "int(string) -> int",
            "int(timestamp) -> int",
            "int(duration) -> int",
        ],
        to_int,
    ),
    (
        "uint",
        &[
            "uint(uint) -> uint",
            "uint(int) -> uint",
            "uint(double) -> uint",
            "uint(string) -> uint",
        ],
        to_uint,
    ),
    (
        "double",
        &[
            "double(double) -> double",
            "double(int) -> double",
            "double(uint) -> double",
            "double(string) -> double",
        ],
        to_double,
    ),
];

fn overflow(what: &str) -> EvalError {
    EvalError::Other(format!("{what} overflow"))
}

fn int<'a>(result: Option<i64>) -> Out<'a> {
    result.map(Value::Int).ok_or_else(|| overflow("integer"))
}

fn uint<'a>(result: Option<u64>) -> Out<'a> {
    result.map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
}

fn add<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => int(a.checked_add(*b)),
        (Value::Uint(a), Value::Uint(b)) => uint(a.checked_add(*b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => {
            cx.makes(a.len() + b.len())?;
            let mut joined = String::with_capacity(a.len() + b.len());
            joined.push_str(a);
            joined.push_str(b);
            Ok(Value::String(Text::Shared(joined.into())))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            cx.makes(a.len() + b.len())?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        (Value::List(a), Value::List(b)) => super::lists::concatenate(cx, a, b),
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) => {
            super::time::in_range(t.checked_add(*d).ok())
        }
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(|| overflow("duration"))
        }
        _ => no_overload(),
    }
}

fn subtract<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => int(a.checked_sub(*b)),
        (Value::Uint(a), Value::Uint(b)) => uint(a.checked_sub(*b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(Value::Duration(a.duration_since(*b))),
        (Value::Timestamp(t), Value::Duration(d)) => super::time::in_range(t.checked_sub(*d).ok()),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(|| overflow("duration"))
        }
        _ => no_overload(),
    }
}

fn multiply<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => int(a.checked_mul(*b)),
        (Value::Uint(a), Value::Uint(b)) => uint(a.checked_mul(*b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        _ => no_overload(),
    }
}

fn divide<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => {
            other("division by zero")
        }
        (Value::Int(a), Value::Int(b)) => int(a.checked_div(*b)),
        (Value::Uint(a), Value::Uint(b)) => uint(a.checked_div(*b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        _ => no_overload(),
    }
}

fn remainder<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => {
            other("modulus by zero")
        }
        (Value::Int(a), Value::Int(b)) => int(a.checked_rem(*b)),
        (Value::Uint(a), Value::Uint(b)) => uint(a.checked_rem(*b)),
        _ => no_overload(),
    }
}

fn negate<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[0] {
        Value::Int(a) => int(a.checked_neg()),
        Value::Double(a) => Ok(Value::Double(-a)),
        Value::Duration(d) => {
            d.checked_neg().map(Value::Duration).ok_or_else(|| overflow("duration"))
        }
        _ => no_overload(),
    }
}

fn unreadable<'a>(text: &str, to: &str) -> Out<'a> {
    let shown: String = text.chars().take(64).collect();
    other(format!("type conversion error from 'string' to '{to}': {shown:?}"))
}

fn to_int<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[0] {
        Value::Int(n) => Ok(Value::Int(*n)),
        Value::Uint(n) => int(i64::try_from(*n).ok()),
        Value::Double(n) if n.abs() < 9_223_372_036_854_775_807.0 => Ok(Value::Int(*n as i64)),
        Value::Double(_) => int(None),
        Value::String(s) => match s.parse() {
            Ok(n) => Ok(Value::Int(n)),
            Err(_) => unreadable(s, "int"),
        },
        Value::Timestamp(t) => Ok(Value::Int(t.as_second())),
        Value::Duration(d) => int(i64::try_from(d.as_nanos()).ok()),
        _ => no_overload(),
    }
}

fn to_uint<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[0] {
        Value::Uint(n) => Ok(Value::Uint(*n)),
        Value::Int(n) => uint(u64::try_from(*n).ok()),
        Value::Double(n) if (0.0..18_446_744_073_709_551_615.0).contains(n) => {
            Ok(Value::Uint(*n as u64))
        }
        Value::Double(_) => uint(None),
        Value::String(s) => match s.parse() {
            Ok(n) => Ok(Value::Uint(n)),
            Err(_) => unreadable(s, "uint"),
        },
        _ => no_overload(),
    }
}

fn to_double<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[0] {
        Value::Double(n) => Ok(Value::Double(*n)),
        Value::Int(n) => Ok(Value::Double(*n as f64)),
        Value::Uint(n) => Ok(Value::Double(*n as f64)),
        Value::String(s) => match s.parse() {
            Ok(n) => Ok(Value::Double(n)),
            Err(_) => unreadable(s, "double"),
        },
        _ => no_overload(),
    }
}

/// As Go's `%g` prints: an exponent from 10^21 on and below 10^-4.
pub fn print_double(n: f64) -> String {
    if n.is_nan() {
        return "NaN".into();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let magnitude = n.abs();
    if magnitude != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{n:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = match exponent.strip_prefix('-') {
            Some(digits) => ('-', digits),
            None => ('+', exponent),
        };
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    n.to_string()
}
