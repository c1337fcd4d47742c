//! Rules that several kinds share, each written once, with Kubernetes' own texts.

pub mod meta;
pub mod net;
pub mod resources;
pub mod selector;
pub mod text;
pub mod webhook;

use std::collections::HashSet;
use std::hash::Hash;

use serde_json::Value;

use crate::path::{Errors, Path};

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const POSITIVE: &str = "must be greater than zero";
pub const IMMUTABLE: &str = "field is immutable";

/// Tells which items of a list repeat an earlier one, in one pass: a body may hold hundreds of
/// thousands of them.
pub struct Seen<K>(HashSet<K>);

impl<K: Hash + Eq> Default for Seen<K> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<K: Hash + Eq> Seen<K> {
    /// Whether the key was there before.
    pub fn again(&mut self, key: K) -> bool {
        !self.0.insert(key)
    }
}

/// A number that is there must not be below zero.
pub fn not_negative(value: &Value, path: &Path<'_>, e: &mut Errors) {
    if let Some(n) = value.as_i64()
        && n < 0
    {
        e.invalid(path, n, NOT_NEGATIVE);
    }
}

/// A value that is there must be one of a list; `listed` as Kubernetes shows it.
pub fn one_of(value: &Value, listed: &[&str], path: &Path<'_>, e: &mut Errors) {
    if let Some(text) = value.as_str()
        && !listed.contains(&text)
    {
        e.not_supported(path, text, listed);
    }
}

/// As [`one_of`], and the empty text is `Required`.
pub fn required_one_of(value: &Value, listed: &[&str], path: &Path<'_>, e: &mut Errors) {
    match value.as_str() {
        None | Some("") => e.required(path, ""),
        Some(_) => one_of(value, listed, path, e),
    }
}

/// A value that must not change; missing and null are the same.
pub fn immutable(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) {
    if new != old {
        e.invalid(path, new.clone(), IMMUTABLE);
    }
}

/// File modes: `0` to `0777`.
pub fn file_mode(value: &Value, path: &Path<'_>, e: &mut Errors) {
    if let Some(mode) = value.as_i64()
        && !(0..=0o777).contains(&mode)
    {
        e.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// A percentage such as `25%`, of digits only.
pub fn percentage(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// A count that is not negative, or a percentage.
pub fn count_or_percentage(value: &Value, path: &Path<'_>, e: &mut Errors) {
    match value {
        Value::String(text) if percentage(text).is_none() => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            e.invalid(path, text.as_str(), why);
        }
        Value::Number(_) => not_negative(value, path, e),
        _ => {}
    }
}

/// A percentage of at most 100.
pub fn at_most_all(value: &Value, path: &Path<'_>, e: &mut Errors) {
    if let Some(text) = value.as_str()
        && percentage(text).is_some_and(|p| p > 100)
    {
        e.invalid(path, text, "must not be greater than 100%");
    }
}

/// What a count or percentage comes to when it is zero in either form.
pub fn is_zero_count(value: &Value) -> bool {
    match value {
        // What is no percentage counts as none.
        Value::String(text) => percentage(text).unwrap_or_default() == 0,
        Value::Number(n) => n.as_i64() == Some(0),
        _ => true,
    }
}
