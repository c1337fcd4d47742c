//! What a custom kind does: the hooks of [`crate::Hooks`], driven by its schema.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use rimward_api::{CauseReason, FieldError, names};
use rimward_control_cel::Budget;
use rimward_control_cel::limits::PER_REQUEST;
use serde_json::Value;

use super::schema::Schema;
use super::version::Version;
use super::{defaulting, embedded, jsonpath, lists, value};
use crate::kind::{Column, Hooks, Write};
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, keep, remove};

/// The hooks of one version of a custom kind.
pub struct CustomRules {
    version: Arc<Version>,
}

impl CustomRules {
    pub fn new(version: Arc<Version>) -> Self {
        Self { version }
    }

    fn schema(&self) -> &Schema {
        &self.version.schema
    }

    /// `/scale`'s fields must be what they are taken for.
    fn scale(&self, object: &Value, spec_too: bool) -> Vec<FieldError> {
        let Some(scale) = &self.version.scale else { return Vec::new() };
        let mut errors = Vec::new();
        let mut replicas = |path: &str| {
            let found = jsonpath::simple(object, path).unwrap_or(&Value::Null);
            let mut wrong =
                |shown: i64, why: &str| errors.push(FieldError::invalid(path, &shown.into(), why));
            match found.as_i64() {
                None if found.is_null() => {}
                None => wrong(0, &not_of_type(path, found, "int64")),
                Some(n) if n < 0 => wrong(n, "should be a non-negative integer"),
                Some(n) if n > i64::from(i32::MAX) => {
                    wrong(n, &format!("should be less than or equal to {}", i32::MAX));
                }
                Some(_) => {}
            }
        };
        if spec_too {
            replicas(&scale.spec_replicas);
        }
        replicas(&scale.status_replicas);
        if !scale.selector.is_empty()
            && let Some(found) =
                jsonpath::simple(object, &scale.selector).filter(|v| !v.is_string())
        {
            let why = not_of_type(&scale.selector, found, "string");
            errors.push(FieldError::invalid(scale.selector.as_str(), &"".into(), &why));
        }
        errors
    }

    /// What the lists and embedded resources must keep, and the rules in CEL.
    fn common(&self, new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        let mut more = Errors::new();
        embedded::validate(new, self.schema(), &Path::Root, &mut more);
        let lists = |object: &Value| {
            let mut found = Errors::new();
            lists::validate(object, self.schema(), &Path::Root, &mut found);
            found.into_vec()
        };
        let of_lists = lists(new);
        errors.extend(more.into_vec());
        // What was wrong before is not held against a change.
        if !of_lists.is_empty() && old.is_none_or(|old| lists(old).is_empty()) {
            errors.extend(of_lists);
        }
        let Some(rules) = &self.version.rules else { return };
        if errors.iter().any(blocks_rules) {
            let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid("<nil>", &Value::Null, why));
            return;
        }
        let mut budget = Budget::new(PER_REQUEST);
        errors.extend(rules.validate(new, old, &mut budget).errors);
    }
}

fn not_of_type(path: &str, value: &Value, wanted: &str) -> String {
    let (shown, found) = match value {
        Value::Null => ("<nil>".to_owned(), "<nil>"),
        Value::Bool(b) => (b.to_string(), "bool"),
        Value::Number(n) if n.is_f64() => (n.to_string(), "float64"),
        Value::Number(n) => (n.to_string(), "int64"),
        Value::String(s) => (s.clone(), "string"),
        Value::Array(_) => (value.to_string(), "[]interface {}"),
        Value::Object(_) => (value.to_string(), "map[string]interface {}"),
    };
    format!("{path} accessor error: {shown} is of the type {found}, expected {wanted}")
}

/// Whether rules in CEL cannot be asked about an object with such a refusal.
pub fn blocks_rules(error: &FieldError) -> bool {
    matches!(
        error.reason,
        CauseReason::FieldValueNotSupported
            | CauseReason::FieldValueRequired
            | CauseReason::FieldValueTooLong
            | CauseReason::FieldValueTooMany
            | CauseReason::FieldValueTypeInvalid
    )
}

impl Hooks for CustomRules {
    fn default(&self, object: &mut Value) {
        defaulting::default(object, self.schema());
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.version.has_status {
            remove(object, "status");
        }
    }

    fn prepare_update(&self, write: Write<'_>, new: &mut Value, old: &Value) {
        match write {
            Write::Sub("status") => {
                let mut kept = old.clone();
                keep(&mut kept, new, "status");
                keep(&mut kept["metadata"], new.at("metadata"), "managedFields");
                remove(&mut kept["metadata"], "resourceVersion");
                *new = kept;
            }
            _ if self.version.has_status => keep(new, old, "status"),
            _ => {}
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = value::validate(object, None, self.schema(), "");
        errors.extend(self.scale(object, true));
        self.common(object, None, &mut errors);
        errors
    }

    fn validate_update(&self, write: Write<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = match write {
            Write::Sub("status") => {
                match (new.get("status"), self.schema().properties.get("status")) {
                    (Some(status), Some(schema)) => {
                        value::validate(status, old.get("status"), schema, "status")
                    }
                    _ => Vec::new(),
                }
            }
            _ => value::validate(new, Some(old), self.schema(), ""),
        };
        errors.extend(self.scale(new, write != Write::Sub("status")));
        self.common(new, Some(old), &mut errors);
        errors
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        match prefix {
            // Something follows a prefix, so it may end in a dash.
            true => names::dns1123_subdomain(&format!("{}a", name.trim_end_matches('-'))),
            false => names::dns1123_subdomain(name),
        }
    }

    fn any_finalizer(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        if let Some(name) = field.strip_prefix("metadata.") {
            return Some(object.at("metadata").text(name).into());
        }
        self.version.selectable.iter().find(|f| *f == field)?;
        Some(match jsonpath::simple(object, field) {
            None | Some(Value::Null) => "".into(),
            Some(Value::String(text)) => text.as_str().into(),
            Some(other) => other.to_string().into(),
        })
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let name = object.at("metadata").at("name").clone();
        let columns = self.version.columns().iter().map(|(column, path)| {
            let found = path.as_ref().and_then(|p| p.find(object).first().copied());
            found.map_or(Value::Null, |value| cell(column, value, now))
        });
        std::iter::once(name).chain(columns).collect()
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        finalizer_warnings(object.at("metadata").list("finalizers").iter())
    }

    fn update_warnings(&self, new: &Value, old: &Value) -> Vec<String> {
        let had = old.at("metadata").list("finalizers");
        finalizer_warnings(
            new.at("metadata").list("finalizers").iter().filter(|f| !had.contains(f)),
        )
    }
}

fn cell(column: &Column, value: &Value, now: Timestamp) -> Value {
    match (&*column.kind, value) {
        (_, Value::Null) => Value::Null,
        ("string", Value::String(text)) => text.as_str().into(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(n)) => {
            n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(_) => print::since(text, now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

fn finalizer_warnings<'a>(finalizers: impl Iterator<Item = &'a Value>) -> Vec<String> {
    const STANDARD: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
    let plain = |f: &&str| !f.contains('/') && !STANDARD.contains(f);
    let warn = |f: &str| {
        let how = match f.contains('.') {
            true => "a domain-qualified finalizer name including a path (/)",
            false => "a domain-qualified finalizer name",
        };
        format!(
            "metadata.finalizers: {f:?}: prefer {how} to avoid accidental conflicts with other finalizer writers"
        )
    };
    finalizers.filter_map(Value::as_str).filter(plain).map(warn).collect()
}
