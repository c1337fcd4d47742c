//! <https://pkg.go.dev/github.com/google/cel-go/ext#Strings>, version 2, and the standard's own.
//! Positions count characters.

use super::standard::{int_of, list_of, text_of};
use super::{Context, Out, Row, no_overload};
use crate::error::{EvalError, other};
use crate::value::Value;

pub const ROWS: &[Row] = &[
    ("contains", &["string.contains(string) -> bool"], |cx, args| {
        let (text, part) = pair(args)?;
        cx.budget.traverse(text.len() + part.len())?;
        Ok(Value::Bool(text.contains(part)))
    }),
    ("startsWith", &["string.startsWith(string) -> bool"], |cx, args| {
        let (text, part) = pair(args)?;
        cx.budget.traverse(part.len())?;
        Ok(Value::Bool(text.starts_with(part)))
    }),
    ("endsWith", &["string.endsWith(string) -> bool"], |cx, args| {
        let (text, part) = pair(args)?;
        cx.budget.traverse(part.len())?;
        Ok(Value::Bool(text.ends_with(part)))
    }),
    ("charAt", &["string.charAt(int) -> string"], char_at),
    (
        "indexOf",
        &[
            "string.indexOf(string) -> int",
            "string.indexOf(string, int) -> int",
            "list<A>.indexOf(A) -> int",
        ],
        index_of,
    ),
    (
        "lastIndexOf",
        &[
            "string.lastIndexOf(string) -> int",
            "string.lastIndexOf(string, int) -> int",
            "list<A>.lastIndexOf(A) -> int",
        ],
        last_index_of,
    ),
    ("join", &["list<string>.join() -> string", "list<string>.join(string) -> string"], join),
    ("lowerAscii", &["string.lowerAscii() -> string"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.makes(text.len())?;
        Ok(Value::text(text.to_ascii_lowercase()))
    }),
    ("upperAscii", &["string.upperAscii() -> string"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.makes(text.len())?;
        Ok(Value::text(text.to_ascii_uppercase()))
    }),
    ("trim", &["string.trim() -> string"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.makes(text.len())?;
        Ok(Value::text(text.trim()))
    }),
    (
        "replace",
        &[
            "string.replace(string, string) -> string",
            "string.replace(string, string, int) -> string",
        ],
        replace,
    ),
    (
        "split",
        &["string.split(string) -> list<string>", "string.split(string, int) -> list<string>"],
        split,
    ),
    (
        "substring",
        &["string.substring(int) -> string", "string.substring(int, int) -> string"],
        substring,
    ),
    ("strings.quote", &["strings.quote(string) -> string"], quote),
    ("jsonpatch.escapeKey", &["jsonpatch.escapeKey(string) -> string"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.makes(text.len() * 2)?;
        Ok(Value::text(text.replace('~', "~0").replace('/', "~1")))
    }),
];

fn pair<'v>(args: &'v [Value<'_>]) -> Result<(&'v str, &'v str), EvalError> {
    Ok((text_of(&args[0])?, text_of(&args[1])?))
}

fn out_of_range<'a>(at: i64) -> Out<'a> {
    other(format!("index out of range: {at}"))
}

/// The byte offset of a character, up to the end.
fn offset(text: &str, at: i64) -> Option<usize> {
    let at = usize::try_from(at).ok()?;
    text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(at)
}

fn char_at<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let (text, at) = (text_of(&args[0])?, int_of(&args[1])?);
    cx.budget.traverse(text.len())?;
    match offset(text, at) {
        Some(from) => Ok(Value::text(text[from..].chars().take(1).collect::<String>())),
        None => out_of_range(at),
    }
}

fn index_of<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    if let Value::List(list) = &args[0] {
        return super::lists::index_of(cx, list, &args[1], false);
    }
    let (text, part) = pair(args)?;
    cx.budget.traverse(text.len() + part.len())?;
    let start = args.get(2).map(int_of).transpose()?.unwrap_or(0);
    let Some(from) = offset(text, start) else { return out_of_range(start) };
    let found = text[from..].find(part);
    Ok(Value::Int(found.map_or(-1, |i| text[..from + i].chars().count() as i64)))
}

fn last_index_of<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    if let Value::List(list) = &args[0] {
        return super::lists::index_of(cx, list, &args[1], true);
    }
    let (text, part) = pair(args)?;
    cx.budget.traverse(text.len() + part.len())?;
    let end = match args.get(2).map(int_of).transpose()? {
        None => text.len(),
        // The part may begin at that character at the latest.
        Some(last) => match offset(text, last) {
            Some(from) => text.len().min(from + part.len()),
            None => return out_of_range(last),
        },
    };
    let end = (end..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
    let found = text[..end].rfind(part);
    Ok(Value::Int(found.map_or(-1, |i| text[..i].chars().count() as i64)))
}

fn join<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let list = list_of(&args[0])?;
    let separator = args.get(1).map(text_of).transpose()?.unwrap_or_default();
    let mut joined = String::new();
    for (i, item) in list.iter().enumerate() {
        let item = text_of(&item)?.to_owned();
        let between = if i == 0 { "" } else { separator };
        cx.budget.charge(1)?;
        cx.budget.traverse(2 * (between.len() + item.len()))?;
        if joined.len() + between.len() + item.len() > crate::limits::STRING_BYTES_MAX {
            cx.makes(joined.len() + between.len() + item.len())?;
        }
        joined.push_str(between);
        joined.push_str(&item);
    }
    Ok(Value::text(joined))
}

fn replace<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let (text, from) = pair(args)?;
    let to = text_of(&args[2])?;
    cx.budget.traverse(2 * text.len())?;
    let limit = match args.get(3).map(int_of).transpose()? {
        Some(n) if n >= 0 => usize::try_from(n).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let times = text.matches(from).count().min(limit);
    cx.makes(text.len() + times.saturating_mul(to.len()))?;
    Ok(Value::text(text.replacen(from, to, limit)))
}

fn split<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let (text, separator) = pair(args)?;
    cx.budget.traverse(2 * text.len())?;
    let limit = args.get(2).map(int_of).transpose()?.unwrap_or(-1);
    let whole = |part: &str| Value::text(part);
    let parts: Vec<Value<'a>> = match (limit, separator) {
        (0, _) => Vec::new(),
        (limit, "") => {
            let most = usize::try_from(limit).unwrap_or(usize::MAX);
            let mut parts: Vec<Value<'a>> = Vec::new();
            let mut chars = text.chars();
            while parts.len() + 1 < most
                && let Some(c) = chars.next()
            {
                parts.push(whole(c.encode_utf8(&mut [0; 4])));
            }
            if !chars.as_str().is_empty() {
                parts.push(whole(chars.as_str()));
            }
            parts
        }
        (limit, separator) => match usize::try_from(limit) {
            Ok(most) => text.splitn(most, separator).map(whole).collect(),
            Err(_) => text.split(separator).map(whole).collect(),
        },
    };
    cx.budget.charge(parts.len() as u64)?;
    Ok(Value::list(parts))
}

fn substring<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let (text, start) = (text_of(&args[0])?, int_of(&args[1])?);
    cx.budget.traverse(text.len())?;
    let Some(from) = offset(text, start) else { return out_of_range(start) };
    let to = match args.get(2).map(int_of).transpose()? {
        None => text.len(),
        Some(end) if end < start => {
            return other(format!("invalid substring range. start: {start}, end: {end}"));
        }
        Some(end) => match offset(text, end) {
            Some(to) => to,
            None => return out_of_range(end),
        },
    };
    Ok(Value::text(&text[from..to]))
}

fn quote<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let Value::String(text) = &args[0] else { return no_overload() };
    cx.makes(text.len() * 2 + 2)?;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(Value::text(out))
}
