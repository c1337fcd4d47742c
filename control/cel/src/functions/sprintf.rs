//! `"%s is %d".format([…])`. <https://pkg.go.dev/github.com/google/cel-go/ext#hdr-Format>

use super::numbers::print_double;
use super::standard::{list_of, text_of};
use super::{Context, Out, Row};
use crate::error::{EvalError, other};
use crate::value::Value;

/// Digits after the point that may be asked for.
const PRECISION_MAX: usize = 1000;

pub const ROWS: &[Row] = &[("format", &["string.format(list<dyn>) -> string"], format_text)];

fn format_text<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let (pattern, values) = (text_of(&args[0])?, list_of(&args[1])?);
    cx.budget.traverse(pattern.len())?;
    let mut out = String::new();
    let mut next = 0;
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let (precision, after) = precision(rest)?;
        let Some(verb) = after.chars().next() else {
            return other("unexpected end of string");
        };
        rest = &after[verb.len_utf8()..];
        let Some(value) = values.get(next) else {
            return other(format!("index {next} out of range"));
        };
        next += 1;
        write(cx, &mut out, &value, verb, precision)?;
    }
    out.push_str(rest);
    cx.makes(out.len())?;
    Ok(Value::text(out))
}

/// `.3` before the verb.
fn precision(text: &str) -> Result<(Option<usize>, &str), EvalError> {
    let Some(rest) = text.strip_prefix('.') else { return Ok((None, text)) };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    match rest[..end].parse() {
        Ok(n) if n <= PRECISION_MAX => Ok((Some(n), &rest[end..])),
        _ => other("could not parse precision of a formatting clause"),
    }
}

fn write(
    cx: &mut Context<'_, '_>,
    out: &mut String,
    value: &Value<'_>,
    verb: char,
    precision: Option<usize>,
) -> Result<(), EvalError> {
    let wrong = |expected: &str| {
        EvalError::Other(format!(
            "error during formatting: {verb:?} clause can only be used on {expected}, was given {}",
            value.type_name()
        ))
    };
    match (verb, value) {
        ('s', value) => print(cx, out, value)?,
        ('d', Value::Int(n)) => out.push_str(&n.to_string()),
        ('d', Value::Uint(n)) => out.push_str(&n.to_string()),
        ('d', Value::Double(n)) if !n.is_finite() => out.push_str(&print_double(*n)),
        ('d', _) => return Err(wrong("integers")),
        ('f', value) => match double(value) {
            Some(n) if n.is_finite() => {
                out.push_str(&format!("{n:.*}", precision.unwrap_or(6)));
            }
            Some(n) => out.push_str(&print_double(n)),
            None => return Err(wrong("doubles")),
        },
        ('e', value) => match double(value) {
            Some(n) if n.is_finite() => out.push_str(&exponent(n, precision.unwrap_or(6))),
            Some(n) => out.push_str(&print_double(n)),
            None => return Err(wrong("doubles")),
        },
        ('b', Value::Int(n)) => out.push_str(&signed(*n, |n| format!("{n:b}"))),
        ('b', Value::Uint(n)) => out.push_str(&format!("{n:b}")),
        ('b', Value::Bool(b)) => out.push(if *b { '1' } else { '0' }),
        ('b', _) => return Err(wrong("integers and bools")),
        ('o', Value::Int(n)) => out.push_str(&signed(*n, |n| format!("{n:o}"))),
        ('o', Value::Uint(n)) => out.push_str(&format!("{n:o}")),
        ('o', _) => return Err(wrong("integers")),
        ('x' | 'X', value) => {
            let text = match value {
                Value::Int(n) => signed(*n, |n| format!("{n:x}")),
                Value::Uint(n) => format!("{n:x}"),
                Value::String(s) => hex(cx, s.as_bytes())?,
                Value::Bytes(b) => hex(cx, b)?,
                _ => return Err(wrong("integers, byte buffers, and strings")),
            };
            out.push_str(&if verb == 'X' { text.to_uppercase() } else { text });
        }
        (verb, _) => return other(format!("unrecognized formatting clause {verb:?}")),
    }
    if out.len() > crate::limits::STRING_BYTES_MAX {
        cx.makes(out.len())?;
    }
    Ok(())
}

fn double(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Double(n) => Some(*n),
        Value::Int(n) => Some(*n as f64),
        Value::Uint(n) => Some(*n as f64),
        _ => None,
    }
}

fn signed(n: i64, print: fn(u64) -> String) -> String {
    let sign = if n < 0 { "-" } else { "" };
    format!("{sign}{}", print(n.unsigned_abs()))
}

/// As C prints: at least two digits of exponent, with a sign.
fn exponent(n: f64, precision: usize) -> String {
    let text = format!("{n:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn hex(cx: &mut Context<'_, '_>, bytes: &[u8]) -> Result<String, EvalError> {
    cx.makes(bytes.len() * 2)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// `%s`: any value, maps with their keys in order.
fn print(cx: &mut Context<'_, '_>, out: &mut String, value: &Value<'_>) -> Result<(), EvalError> {
    cx.budget.charge(1)?;
    match value {
        Value::String(s) => {
            cx.makes(out.len() + s.len())?;
            out.push_str(s);
        }
        Value::Double(n) => out.push_str(&print_double(*n)),
        Value::Bytes(b) => {
            cx.makes(out.len() + b.len())?;
            out.push_str(&String::from_utf8_lossy(b));
        }
        Value::Timestamp(t) => out.push_str(&super::time::print_timestamp(*t)),
        Value::Duration(d) => out.push_str(&super::time::print_duration(*d)),
        Value::Type(name) => out.push_str(name),
        Value::List(list) => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                print(cx, out, &item)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            let mut entries = Vec::with_capacity(map.len());
            for (key, value) in map.entries() {
                let mut text = String::new();
                print(cx, &mut text, &value)?;
                entries.push((key.shown(), text));
            }
            entries.sort();
            let entries: Vec<String> = entries.iter().map(|(k, v)| format!("{k}: {v}")).collect();
            cx.makes(out.len() + entries.iter().map(String::len).sum::<usize>())?;
            out.push('{');
            out.push_str(&entries.join(", "));
            out.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Uint(_) => {
            out.push_str(&value.shown())
        }
        Value::Ip(ip) => out.push_str(&ip.to_string()),
        other_value => {
            return other(format!(
                "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {}",
                other_value.type_name()
            ));
        }
    }
    Ok(())
}
