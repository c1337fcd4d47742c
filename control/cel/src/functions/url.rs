//! <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-url-library>

use std::sync::Arc;

use ::url::Url;

use super::standard::text_of;
use super::{Out, Row, no_overload};
use crate::error::other;
use crate::value::{Entries, Map, Value};

macro_rules! of_url {
    ($name:literal, $get:expr) => {
        ($name, &[concat!("URL.", $name, "() -> string")], |_, args| match &args[0] {
            Value::Url(url) => Ok(Value::text($get(url))),
            _ => no_overload(),
        })
    };
}

pub const ROWS: &[Row] = &[
    ("url", &["url(string) -> URL"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.budget.traverse(text.len())?;
        match parse(text) {
            Some(url) => Ok(Value::Url(Arc::new(url))),
            None => {
                let shown: String = text.chars().take(256).collect();
                other(format!(
                    "URL parse error during conversion from string: parse {shown:?}: invalid URI for request"
                ))
            }
        }
    }),
    ("isURL", &["isURL(string) -> bool"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.budget.traverse(text.len())?;
        Ok(Value::Bool(parse(text).is_some()))
    }),
    of_url!("getScheme", |url: &Url| match is_path(url) {
        true => String::new(),
        false => url.scheme().to_owned(),
    }),
    of_url!("getHost", |url: &Url| {
        let host = host(url);
        match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }),
    of_url!("getHostname", |url: &Url| {
        host(url).trim_start_matches('[').trim_end_matches(']').to_owned()
    }),
    of_url!("getPort", |url: &Url| url.port().map_or_else(String::new, |port| port.to_string())),
    of_url!("getEscapedPath", |url: &Url| url.path().to_owned()),
    ("getQuery", &["URL.getQuery() -> map<string, list<string>>"], |cx, args| match &args[0] {
        Value::Url(url) => {
            cx.budget.traverse(url.query().map_or(0, str::len))?;
            query(url)
        }
        _ => no_overload(),
    }),
];

/// What stands before a bare path, so that it parses; no URL of a user's has this scheme.
const PATH_BASE: &str = "rimward-path://x";

/// An absolute URI, or an absolute path.
fn parse(text: &str) -> Option<Url> {
    if text.starts_with('/') && !text.starts_with("//") {
        return Url::parse(&format!("{PATH_BASE}{text}")).ok();
    }
    if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return None;
    }
    Url::parse(text).ok()
}

fn is_path(url: &Url) -> bool {
    url.scheme() == "rimward-path"
}

fn host(url: &Url) -> String {
    match is_path(url) {
        true => String::new(),
        false => url.host_str().unwrap_or_default().to_owned(),
    }
}

fn query<'a>(url: &Url) -> Out<'a> {
    let mut grouped: Vec<(String, Vec<Value<'a>>)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for (key, value) in url.query_pairs() {
        let place = *places.entry(key.to_string()).or_insert_with(|| {
            grouped.push((key.to_string(), Vec::new()));
            grouped.len() - 1
        });
        grouped[place].1.push(Value::text(&*value));
    }
    let mut entries = Entries::default();
    for (key, values) in grouped {
        entries.insert(Value::text(key), Value::list(values))?;
    }
    Ok(Value::Map(Map::Made(Arc::new(entries))))
}
