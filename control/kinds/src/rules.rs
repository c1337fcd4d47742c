//! [`Rules`]: what a kind does, as a row of plain functions over the defaults that most kinds share.

use std::borrow::Cow;

use jiff::Timestamp;
use rimward_api::{FieldError, names};
use serde_json::Value;

use crate::kind::{Hooks, Write};
use crate::path::Errors;
use crate::read::{Read, keep, remove};

/// How a selectable field is read.
#[derive(Clone, Copy)]
pub enum Field {
    Text(&'static [&'static str]),
    /// Missing reads as `false`.
    Flag(&'static [&'static str]),
    /// Missing reads as `0`.
    Number(&'static [&'static str]),
    /// The first of two texts that is not empty.
    Either(&'static [&'static str], &'static [&'static str]),
}

/// A field label and where its value is.
pub type Selectable = (&'static str, Field);

/// What a kind does. `Rules { cells, ..Rules::PLAIN }` is a kind without status, generation,
/// defaults or rules of its own, whose names are DNS subdomains.
#[derive(Clone, Copy)]
pub struct Rules {
    pub unconvertible: fn(&Value) -> Option<String>,
    pub default: fn(&mut Value),
    /// Beyond dropping or resetting the status.
    pub prepare_create: fn(&mut Value),
    /// Beyond keeping the status (Main) or everything else (`status`).
    pub prepare_update: fn(Write<'_>, &mut Value, &Value),
    pub create: fn(&Value, &mut Errors),
    pub update: fn(&Value, &Value, &mut Errors),
    /// Of a subresource write.
    pub update_sub: fn(&str, &Value, &Value, &mut Errors),
    pub name: fn(&str) -> Vec<String>,
    /// Whether `status` is a subresource: a write to the object then leaves it alone, and the other
    /// way round.
    pub status: bool,
    pub generation: bool,
    /// Whether an update may come without a resourceVersion.
    pub unconditional: bool,
    pub fields: &'static [Selectable],
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
    pub warnings: fn(&Value) -> Vec<String>,
    /// Of which updates it warns too.
    pub warns_of_updates: Updates,
    pub grace_period: fn(&Value) -> Option<i64>,
}

/// The updates that warnings are for. What controllers write all day has nobody to read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updates {
    All,
    /// Those that make a new generation.
    OfSpec,
    None,
}

impl Rules {
    pub const PLAIN: Self = Self {
        unconvertible: |_| None,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _, _| {},
        create: |_, _| {},
        update: |_, _, _| {},
        update_sub: |_, _, _, _| {},
        name: names::dns1123_subdomain,
        status: false,
        generation: false,
        unconditional: true,
        fields: &[],
        cells: |object, _| vec![object.at("metadata").at("name").clone()],
        warnings: |_| Vec::new(),
        warns_of_updates: Updates::All,
        grace_period: |_| None,
    };
}

impl Hooks for Rules {
    fn unconvertible(&self, object: &Value) -> Option<String> {
        (self.unconvertible)(object)
    }

    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.status {
            remove(object, "status");
        }
        (self.prepare_create)(object);
    }

    fn prepare_update(&self, write: Write<'_>, new: &mut Value, old: &Value) {
        match write {
            Write::Main if self.status => keep(new, old, "status"),
            Write::Sub("status") => keep_all_but_status(new, old),
            _ => {}
        }
        (self.prepare_update)(write, new, old);
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        (self.create)(object, &mut errors);
        errors.into_vec()
    }

    fn validate_update(&self, write: Write<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        match write {
            Write::Main => (self.update)(new, old, &mut errors),
            Write::Sub(name) => (self.update_sub)(name, new, old, &mut errors),
        }
        errors.into_vec()
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        if prefix { (self.name)(&as_if_completed(name)) } else { (self.name)(name) }
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn allows_unconditional_update(&self) -> bool {
        self.unconditional
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        let how = match field {
            "metadata.name" => Field::Text(&["metadata", "name"]),
            "metadata.namespace" => Field::Text(&["metadata", "namespace"]),
            _ => self.fields.iter().find(|(label, _)| *label == field)?.1,
        };
        let text = |path: &[&str]| object.deep(path).as_str().unwrap_or_default();
        Some(match how {
            Field::Text(path) => text(path).into(),
            Field::Flag(path) => {
                if object.deep(path) == &Value::Bool(true) { "true" } else { "false" }.into()
            }
            Field::Number(path) => {
                object.deep(path).as_i64().unwrap_or_default().to_string().into()
            }
            Field::Either(first, second) => match text(first) {
                "" => text(second).into(),
                found => found.into(),
            },
        })
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        (self.cells)(object, now)
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        (self.warnings)(object)
    }

    fn update_warnings(&self, new: &Value, old: &Value) -> Vec<String> {
        let generation = |object: &Value| object.at("metadata").int("generation");
        let wanted = match self.warns_of_updates {
            Updates::All => true,
            Updates::OfSpec => generation(new) != generation(old),
            Updates::None => false,
        };
        if !wanted {
            return Vec::new();
        }
        // A name is what it is.
        let mut found = self.warnings(new);
        found.retain(|text| !text.starts_with("metadata.name:"));
        found
    }

    fn grace_period(&self, object: &Value) -> Option<i64> {
        (self.grace_period)(object)
    }
}

/// A status write changes the status and, of the metadata, what the engine lets it change.
fn keep_all_but_status(new: &mut Value, old: &Value) {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return };
    new.retain(|key, _| matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind"));
    for (key, value) in old {
        if !matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind") {
            new.insert(key.clone(), value.clone());
        }
    }
}

/// A generateName may end in a dash, since something follows it. As Kubernetes' `maskTrailingDash` does,
/// the character before the dash is not looked at.
pub(crate) fn as_if_completed(prefix: &str) -> Cow<'_, str> {
    let masked = prefix.ends_with('-').then(|| prefix.get(..prefix.len().saturating_sub(2)));
    match masked.flatten() {
        Some(rest) if prefix.len() > 1 => format!("{rest}a").into(),
        _ => prefix.into(),
    }
}
