//! <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-semver-library>

use std::sync::Arc;

use ::semver::Version;

use super::standard::text_of;
use super::{Row, no_overload};
use crate::error::EvalError;
use crate::value::Value;

macro_rules! of_version {
    ($name:literal, $get:expr) => {
        ($name, &[concat!("Semver.", $name, "() -> int")], |_, args| match &args[0] {
            Value::Semver(version) => Ok(Value::Int($get(version) as i64)),
            _ => no_overload(),
        })
    };
}

pub const ROWS: &[Row] = &[
    ("semver", &["semver(string) -> Semver", "semver(string, bool) -> Semver"], |cx, args| {
        cx.budget.traverse(args[0].size())?;
        match parse(args)? {
            Ok(version) => Ok(Value::Semver(Arc::new(version))),
            Err(e) => Err(EvalError::Other(e)),
        }
    }),
    ("isSemver", &["isSemver(string) -> bool", "isSemver(string, bool) -> bool"], |cx, args| {
        cx.budget.traverse(args[0].size())?;
        Ok(Value::Bool(parse(args)?.is_ok()))
    }),
    of_version!("major", |v: &Version| v.major),
    of_version!("minor", |v: &Version| v.minor),
    of_version!("patch", |v: &Version| v.patch),
];

fn parse(args: &[Value<'_>]) -> Result<Result<Version, String>, EvalError> {
    let text = text_of(&args[0])?;
    let normalize = match args.get(1) {
        None => false,
        Some(Value::Bool(b)) => *b,
        Some(_) => return Err(EvalError::NoSuchOverload),
    };
    let text = if normalize { normalized(text) } else { text.to_owned() };
    Ok(Version::parse(&text).map_err(|e| e.to_string()))
}

/// `v1.02` is taken as `1.2.0`.
fn normalized(text: &str) -> String {
    let text = text.trim().trim_start_matches('v');
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut parts: Vec<&str> = numbers
        .split('.')
        .map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0",
            trimmed => trimmed,
        })
        .collect();
    while parts.len() < 3 && rest.is_empty() {
        parts.push("0");
    }
    format!("{}{rest}", parts.join("."))
}
