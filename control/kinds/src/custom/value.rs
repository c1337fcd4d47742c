//! Whether a value is what its schema says; the complaints are those of kube-openapi, to the letter.
//!
//! An update is checked leniently, as Kubernetes does ("ratcheting"): what was wrong before and did not
//! change is not held against it. Items of lists are found again by their keys; where there are
//! none, a list did not change only when all of it did not.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-ratcheting>

use std::fmt::Write as _;

use rimward_api::FieldError;
use serde_json::{Map, Value};

use super::formats;
use super::schema::{Additional, Schema};
use crate::read::Read;

/// How many refusals are kept of one object.
const ERRORS_MAX: usize = 1000;

/// Checks a value; `prefix` is where it stands (empty for a whole object), `old` what stood there.
pub fn validate(
    value: &Value,
    old: Option<&Value>,
    schema: &Schema,
    prefix: &str,
) -> Vec<FieldError> {
    let mut check = Check { prefix, path: String::new() };
    check.value(value, old, schema).errors
}

struct Check<'p> {
    prefix: &'p str,
    /// Below the prefix: `spec.ports[0].name`.
    path: String,
}

/// What one schema says of a value. `matches` counts the checks that it passed: of several
/// alternatives, the one with most is taken to be meant.
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    matches: usize,
}

impl Outcome {
    fn of(error: Option<FieldError>) -> Self {
        Self { errors: error.into_iter().collect(), matches: 0 }
    }

    fn merge(&mut self, other: Self) {
        let room = ERRORS_MAX.saturating_sub(self.errors.len());
        self.errors.extend(other.errors.into_iter().take(room));
        self.matches += other.matches;
    }
}

impl Check<'_> {
    fn value(&mut self, value: &Value, old: Option<&Value>, schema: &Schema) -> Outcome {
        let mut outcome = self.checked(value, old, schema);
        if !outcome.errors.is_empty() && old == Some(value) {
            outcome.errors.clear();
        }
        outcome
    }

    fn checked(&mut self, value: &Value, old: Option<&Value>, schema: &Schema) -> Outcome {
        let mut all = Outcome::default();
        if value.is_null() {
            all.merge(self.of_type(value, schema));
            all.merge(Outcome::of(self.of_values(value, schema)));
            return all;
        }
        let has_type =
            !schema.kind.is_empty() || schema.int_or_string || !self.format(schema).is_empty();
        if has_type {
            all.merge(self.of_type(value, schema));
            all.matches += 1;
        }
        all.merge(self.junctors(value, old, schema));
        all.matches += 1;
        match value {
            Value::String(text) => {
                all.merge(Outcome::of(self.string(text, schema)));
                all.merge(Outcome::of(self.of_format(text, schema)));
                all.matches += 2;
            }
            Value::Number(_) => {
                all.merge(self.number(value, schema));
                all.matches += 1;
            }
            Value::Array(items) => {
                all.merge(self.list(items, old, schema));
                all.matches += 1;
            }
            Value::Object(map) => {
                all.merge(self.object(map, old, schema));
                all.matches += 1;
            }
            _ => {}
        }
        all.merge(Outcome::of(self.of_values(value, schema)));
        all.matches += 2;
        all
    }

    /// The format, where it means something.
    fn format<'s>(&self, schema: &'s Schema) -> &'s str {
        let kind = if schema.int_or_string { "" } else { &*schema.kind };
        if formats::is_known(kind, &schema.format) { &schema.format } else { "" }
    }

    /// Where the value stands, for a message: relative to the prefix.
    fn field(&self) -> String {
        match (self.prefix, self.path.trim_start_matches('.')) {
            // A field path that is nil prints so.
            ("", "") => "<nil>".to_owned(),
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}.{path}"),
        }
    }

    fn invalid(&self, value: impl Into<Value>, why: &str) -> FieldError {
        FieldError::invalid(self.field(), &value.into(), &format!("{} in body {why}", self.path))
    }

    /// A complaint that names no field of its own.
    fn composite(&self, why: &str) -> FieldError {
        let field = if self.prefix.is_empty() { "<nil>" } else { self.prefix };
        FieldError::invalid(field, &"".into(), why)
    }

    fn wrong_type(&self, expected: &str, found: &str) -> FieldError {
        let why = format!("{} in body must be of type {expected}: {found:?}", self.path);
        FieldError::type_invalid(self.field(), &found.into(), &why)
    }

    fn of_type(&self, value: &Value, schema: &Schema) -> Outcome {
        let good = Outcome { errors: Vec::new(), matches: 1 };
        let (kind, is_string) = (&*schema.kind, |t: &str| schema.int_or_string && t == "string");
        let wants = |t: &str| {
            is_string(t)
                || (schema.int_or_string && t == "integer")
                || (!schema.int_or_string && kind == t)
        };
        let expected = if schema.int_or_string { "integer,string" } else { kind };
        if value.is_null() {
            let typed = !expected.is_empty();
            return match typed && !schema.nullable {
                true => Outcome::of(Some(self.wrong_type(expected, "null"))),
                false => good,
            };
        }
        let (found, found_format) = type_of(value);
        let whole_float = found == "number" && is_whole(value) && wants("integer");
        let int_as_number = found == "integer" && wants("number");
        let format = self.format(schema);
        let is_text = matches!(value, Value::String(_) | Value::Array(_));
        let lower = format == "int64" && found_format == "int32";
        let fits = wants(found) || whole_float || int_as_number;
        let agrees = fits || found_format == format || lower;
        if !(is_text || format.is_empty() || agrees) {
            return Outcome::of(Some(self.wrong_type(format, found_format)));
        }
        if is_text && !format.is_empty() && !wants("number") && !wants("integer") {
            return good;
        }
        match fits || expected.is_empty() && format.is_empty() {
            true => good,
            false => Outcome::of(Some(self.wrong_type(expected, found))),
        }
    }

    fn of_values(&self, value: &Value, schema: &Schema) -> Option<FieldError> {
        let values = schema.limits.values.as_ref()?;
        if !value.is_null() && values.iter().any(|v| equal(v, value)) {
            return None;
        }
        let shown: Vec<String> = values
            .iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        Some(FieldError::not_supported(self.field(), value, &shown))
    }

    fn string(&self, text: &str, schema: &Schema) -> Option<FieldError> {
        let limits = &schema.limits;
        let length = || text.chars().count() as i64;
        if let Some(max) = limits.length_max
            && length() > max
        {
            return Some(FieldError::too_long(self.field(), max.max(0) as usize));
        }
        if let Some(min) = limits.length_min
            && length() < min
        {
            return Some(self.invalid(text, &format!("should be at least {min} chars long")));
        }
        let pattern = limits.pattern.as_ref()?;
        match &pattern.compiled {
            Ok(compiled) if compiled.is_match(text) => None,
            Ok(_) => Some(self.invalid(text, &format!("should match '{}'", pattern.text))),
            Err(why) => {
                let text_of = format!("{}, but pattern is invalid: {why}", pattern.text);
                Some(self.invalid(text, &format!("should match '{text_of}'")))
            }
        }
    }

    fn of_format(&self, text: &str, schema: &Schema) -> Option<FieldError> {
        let format = self.format(schema);
        let is_of_strings = !format.is_empty() && formats::is_known("string", format);
        (is_of_strings && !formats::matches(format, text)).then(|| self.wrong_type(format, text))
    }

    fn number(&self, value: &Value, schema: &Schema) -> Outcome {
        let mut all = Outcome::default();
        let number = value.as_f64().unwrap_or_default();
        let limits = &schema.limits;
        all.merge(Outcome::of(self.out_of_range(value, number, schema)));
        let whole = value.as_i64();
        // A bound is taken as a whole number where the value is one.
        let bound = |b: f64| if whole.is_some() { b.trunc() } else { b };
        if let Some(factor) = limits.multiple_of {
            let wrong = match (whole, factor) {
                (_, factor) if factor <= 0.0 => None,
                (Some(n), factor) if factor.fract() == 0.0 => Some(n % (factor as i64).max(1) != 0),
                _ => Some(!is_whole_float(if factor < 1.0 {
                    1.0 / factor * number
                } else {
                    number / factor
                })),
            };
            if wrong == Some(true) {
                let why = format!("should be a multiple of {}", go_float(factor));
                all.errors.push(self.invalid(value.clone(), &why));
            }
        }
        if let Some(min) = limits.minimum.map(bound)
            && (number < min || limits.exclusive_minimum && number <= min)
        {
            let how =
                if limits.exclusive_minimum { "greater than" } else { "greater than or equal to" };
            all.errors
                .push(self.invalid(value.clone(), &format!("should be {how} {}", go_float(min))));
        }
        if let Some(max) = limits.maximum.map(bound)
            && (number > max || limits.exclusive_maximum && number >= max)
        {
            let how = if limits.exclusive_maximum { "less than" } else { "less than or equal to" };
            all.errors
                .push(self.invalid(value.clone(), &format!("should be {how} {}", go_float(max))));
        }
        all.matches += 1;
        all
    }

    fn out_of_range(&self, value: &Value, number: f64, schema: &Schema) -> Option<FieldError> {
        let (kind, format) = (&*schema.kind, self.format(schema));
        let wrong = match (kind, format) {
            _ if schema.int_or_string => false,
            ("integer", "int32") => {
                value.as_i64().map_or(!in_i32(number), |n| i32::try_from(n).is_err())
            }
            ("integer", _) => {
                value.as_i64().is_none()
                    && !(-9.223_372_036_854_775e18..=9.223_372_036_854_775e18).contains(&number)
            }
            ("number", "float") => number.is_finite() && number.abs() > f64::from(f32::MAX),
            _ => false,
        };
        let of = match format {
            "" => "(default format)".to_owned(),
            format => format!("with format {format}"),
        };
        let why = format!("Checked value must be of type {kind} {of} in {}", self.path);
        wrong.then(|| self.composite(&why))
    }

    fn list(&mut self, items: &[Value], old: Option<&Value>, schema: &Schema) -> Outcome {
        let mut all = Outcome::default();
        if let Some(item_schema) = &schema.items {
            let was = OldItems::of(schema, old);
            for (i, item) in items.iter().enumerate() {
                let before = self.path.len();
                write!(self.path, "[{i}]").expect("writing to a String cannot fail");
                all.merge(self.value(item, was.find(schema, item), item_schema));
                self.path.truncate(before);
            }
        }
        let (size, limits) = (items.len() as i64, &schema.limits);
        if let Some(min) = limits.items_min
            && size < min
        {
            all.errors.push(self.invalid(size, &format!("should have at least {min} items")));
        }
        if let Some(max) = limits.items_max
            && size > max
        {
            let error = FieldError::too_many(self.field(), items.len(), max.max(0) as usize);
            all.errors.push(error);
        }
        all.matches += 1;
        all
    }

    fn object(
        &mut self,
        map: &Map<String, Value>,
        old: Option<&Value>,
        schema: &Schema,
    ) -> Outcome {
        let mut all = Outcome::default();
        let (size, limits) = (map.len() as i64, &schema.limits);
        if let Some(min) = limits.properties_min
            && size < min
        {
            all.errors.push(self.invalid(size, &format!("should have at least {min} properties")));
        }
        if let Some(max) = limits.properties_max
            && size > max
        {
            all.errors.push(FieldError::too_many(self.field(), map.len(), max.max(0) as usize));
        }
        for (key, member) in map {
            let property = match (schema.properties.get(key.as_str()), &schema.additional) {
                (Some(property), _) => property,
                (None, Some(Additional::Of(all))) => &**all,
                (None, Some(Additional::Any(false))) => {
                    let why = format!("{}.{key} in body is a forbidden property", self.path);
                    all.errors.push(FieldError::invalid(self.field(), &key.as_str().into(), &why));
                    continue;
                }
                _ => continue,
            };
            let before = self.enter(key);
            let was = old.and_then(|o| o.get(key));
            all.merge(self.value(member, was, property));
            self.path.truncate(before);
        }
        for name in schema.required.iter().filter(|n| !map.contains_key(&***n)) {
            let before = self.enter(name);
            all.errors.push(FieldError::required(self.field(), ""));
            self.path.truncate(before);
        }
        all
    }

    /// Goes one member down; answers how long the path was.
    fn enter(&mut self, key: &str) -> usize {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        before
    }

    fn junctors(&mut self, value: &Value, old: Option<&Value>, schema: &Schema) -> Outcome {
        let mut all = Outcome::default();
        if !schema.any_of.is_empty() {
            let tried = self.tried(value, old, &schema.any_of, true);
            if tried.valid == 0 {
                let why = format!("{:?} must validate at least one schema (anyOf)", self.path);
                all.errors.push(self.composite(&why));
            }
            all.merge(tried.best);
        }
        if !schema.one_of.is_empty() {
            let tried = self.tried(value, old, &schema.one_of, false);
            if tried.valid != 1 {
                let found = match tried.valid {
                    0 => "Found none valid".to_owned(),
                    n => format!("Found {n} valid alternatives"),
                };
                let why = format!(
                    "{:?} must validate one and only one schema (oneOf). {found}",
                    self.path
                );
                all.errors.push(self.composite(&why));
            }
            if tried.valid <= 1 {
                all.merge(tried.best);
            }
        }
        if !schema.all_of.is_empty() {
            let mut valid = 0;
            for one in &schema.all_of {
                let outcome = self.value(value, old, one);
                valid += usize::from(outcome.errors.is_empty());
                all.merge(outcome);
            }
            if valid != schema.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                let why = format!("{:?} must validate all the schemas (allOf){none}", self.path);
                all.errors.push(self.composite(&why));
            }
        }
        if let Some(not) = &schema.not
            && self.checked(value, None, not).errors.is_empty()
        {
            all.errors.push(
                self.composite(&format!("{:?} must not validate the schema (not)", self.path)),
            );
        }
        all.matches += 1;
        all
    }

    /// Tries alternatives, up to the first that fits if that is enough.
    fn tried(&mut self, value: &Value, old: Option<&Value>, of: &[Schema], first: bool) -> Tried {
        let mut tried = Tried { valid: 0, best: Outcome::default() };
        let mut best: Option<Outcome> = None;
        for one in of {
            let outcome = self.value(value, old, one);
            if outcome.errors.is_empty() {
                tried.valid += 1;
                if tried.valid == 1 {
                    best = Some(outcome);
                }
                if first {
                    break;
                }
            } else if tried.valid == 0 && best.as_ref().is_none_or(|b| outcome.matches > b.matches)
            {
                best = Some(outcome);
            }
        }
        tried.best = best.unwrap_or_default();
        tried
    }
}

struct Tried {
    valid: usize,
    /// The first that fits, or the one that comes nearest.
    best: Outcome,
}

/// The items of a list before an update, by their keys.
struct OldItems<'o>(std::collections::HashMap<String, &'o Value>);

impl<'o> OldItems<'o> {
    fn of(schema: &Schema, old: Option<&'o Value>) -> Self {
        let items = match schema.list_type.as_deref() {
            Some("map") => old.and_then(Value::as_array),
            _ => None,
        };
        Self(items.into_iter().flatten().map(|item| (key_of(schema, item), item)).collect())
    }

    fn find(&self, schema: &Schema, item: &Value) -> Option<&'o Value> {
        if self.0.is_empty() { None } else { self.0.get(&key_of(schema, item)).copied() }
    }
}

fn key_of(schema: &Schema, item: &Value) -> String {
    let keys: Vec<&Value> = schema.list_keys.iter().map(|k| item.at(k)).collect();
    serde_json::to_string(&keys).expect("a Value is JSON")
}

/// The type of a value, and the format that Go's own type of it has.
fn type_of(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(n) if n.is_f64() => ("number", "float64"),
        Value::Number(_) => ("integer", "int64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

fn is_whole(value: &Value) -> bool {
    value.as_f64().is_some_and(is_whole_float)
}

/// Whether a double stands for a whole number, as go-openapi's tolerance has it.
fn is_whole_float(n: f64) -> bool {
    const EPSILON: f64 = 1e-9;
    if !n.is_finite() || n.abs() > 9_007_199_254_740_991.0 {
        return false;
    }
    let diff = (n - n.trunc()).abs();
    diff == 0.0 || diff < EPSILON * n.abs().min(1.0)
}

fn in_i32(n: f64) -> bool {
    (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&n)
}

/// Equal, with whole numbers equal to doubles of the same value.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

/// A double as Go's `%v` prints it.
fn go_float(n: f64) -> String {
    if n != 0.0 && (n.abs() >= 1e21 || n.abs() < 1e-4) {
        let text = format!("{n:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{n}")
}

#[cfg(test)]
mod tests;
