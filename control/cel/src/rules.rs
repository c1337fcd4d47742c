//! `x-kubernetes-validations`: the rules that a CustomResourceDefinition's schema sets for its objects.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules>
//!
//! Compiled once, when the definition becomes known; nodes of the schema that have no rule below them
//! are not kept, so that an object is only walked where there is something to say.

use std::sync::Arc;

use rimward_api::FieldError;
use rimward_api::status::CauseReason;
use serde_json::Value as Json;

use crate::environment::Program;
use crate::error::EvalError;
use crate::eval::Bindings;
use crate::limits::{Budget, MESSAGE_BYTES_MAX};
use crate::schema::{ListType, ROOT, Schema};
use crate::value::Value;

mod compile;
mod path;

/// All rules of a schema.
#[derive(Debug)]
pub struct Rules {
    root: Option<Node>,
}

/// What validation finds.
#[derive(Debug, Default, PartialEq)]
pub struct Findings {
    pub errors: Vec<FieldError>,
    /// What would be an error if the value were not what it was before: an old fault does not keep
    /// other fields from being changed. Texts for Warning headers.
    pub warnings: Vec<String>,
}

/// A part of a schema that has rules, or whose parts have.
#[derive(Debug)]
struct Node {
    schema: Arc<Schema>,
    rules: Vec<Rule>,
    properties: Vec<(String, Node)>,
    items: Option<Box<Node>>,
    additional: Option<Box<Node>>,
}

#[derive(Debug)]
struct Rule {
    text: String,
    program: Program,
    uses_old: bool,
    optional_old: bool,
    message: String,
    message_program: Option<Program>,
    reason: CauseReason,
    /// Appended to the path of the value.
    field_path: String,
}

impl Rules {
    /// Compiles all rules of a schema as it is written in a CustomResourceDefinition. `path` is where the
    /// schema stands, for messages: `spec.versions[0].schema.openAPIV3Schema`.
    pub fn compile(schema: &Json, path: &str) -> Result<Self, Vec<FieldError>> {
        let mut compiler = compile::Compiler::default();
        let seen = Schema::read(schema, ROOT, true);
        let root = seen.and_then(|seen| compiler.node(schema, &seen, path, compile::Place::root()));
        compiler.finish(path)?;
        Ok(Self { root })
    }

    /// Whether there is anything to validate.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Validates an object, and how it changed if it was there before. Use a budget of
    /// [`PER_REQUEST`](crate::limits::PER_REQUEST). Takes time in proportion to the budget: not for an
    /// async thread when the object is large.
    pub fn validate(&self, new: &Json, old: Option<&Json>, budget: &mut Budget) -> Findings {
        let mut found = Findings::default();
        if let Some(root) = &self.root {
            let here = Here { path: String::new(), new, old, parent: None };
            // What ends the walk early has said so in an error.
            let _ = root.validate(&here, budget, &mut found);
        }
        found
    }
}

/// A value on the walk.
struct Here<'v> {
    path: String,
    new: &'v Json,
    /// The value that this one was, if that can be told.
    old: Option<&'v Json>,
    /// The nearest value above that can be told, new and old.
    parent: Option<(&'v Json, &'v Json)>,
}

impl<'v> Here<'v> {
    fn below(&self, path: String, new: &'v Json, old: Option<&'v Json>) -> Self {
        let parent = self.old.map(|old| (self.new, old)).or(self.parent);
        Here { path, new, old, parent }
    }

    /// Compared only when there is an error to forgive.
    fn is_unchanged(&self) -> bool {
        let pair = self.old.map(|old| (self.new, old)).or(self.parent);
        pair.is_some_and(|(new, old)| new == old)
    }

    fn child(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }
}

/// The budget is used up: nothing more is evaluated.
struct Ended;

impl Node {
    fn validate(
        &self,
        here: &Here<'_>,
        budget: &mut Budget,
        found: &mut Findings,
    ) -> Result<(), Ended> {
        if here.new.is_null() {
            return Ok(());
        }
        for rule in &self.rules {
            rule.validate(&self.schema, here, budget, found)?;
        }
        match here.new {
            Json::Object(map) => {
                let old = |key: &str| here.old.and_then(|old| old.get(key));
                for (name, node) in &self.properties {
                    let Some(value) = map.get(name) else { continue };
                    let below = here.below(here.child(name), value, old(name));
                    node.validate(&below, budget, found)?;
                }
                if let Some(node) = &self.additional {
                    for (key, value) in map {
                        let path = format!("{}[{key}]", here.path);
                        node.validate(&here.below(path, value, old(key)), budget, found)?;
                    }
                }
            }
            Json::Array(items) => {
                let Some(node) = &self.items else { return Ok(()) };
                let olds = by_keys(&self.schema.list_type, here.old);
                for (i, item) in items.iter().enumerate() {
                    let old = olds.as_ref().and_then(|olds| olds.find(item));
                    let path = format!("{}[{i}]", here.path);
                    node.validate(&here.below(path, item, old), budget, found)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The elements of a list map, by their keys.
struct ByKeys<'v> {
    keys: &'v [String],
    items: std::collections::HashMap<Vec<String>, &'v Json>,
}

fn by_keys<'v>(kind: &'v ListType, list: Option<&'v Json>) -> Option<ByKeys<'v>> {
    let ListType::Map(keys) = kind else { return None };
    let items = list?.as_array()?;
    let items = items.iter().filter_map(|item| Some((keys_of(item, keys)?, item))).collect();
    Some(ByKeys { keys, items })
}

impl<'v> ByKeys<'v> {
    fn find(&self, item: &Json) -> Option<&'v Json> {
        self.items.get(&keys_of(item, self.keys)?).copied()
    }
}

fn keys_of(item: &Json, keys: &[String]) -> Option<Vec<String>> {
    let scalar = |value: &Json| match value {
        Json::Object(_) | Json::Array(_) | Json::Null => None,
        value => Some(value.to_string()),
    };
    keys.iter().map(|key| item.get(key).and_then(scalar)).collect()
}

impl Rule {
    fn validate(
        &self,
        schema: &Schema,
        here: &Here<'_>,
        budget: &mut Budget,
        found: &mut Findings,
    ) -> Result<(), Ended> {
        let kind = Json::from(compile::type_name(schema));
        let say = |found: &mut Findings, detail: String| {
            found.errors.push(FieldError::invalid(here.path.as_str(), &kind, &detail));
        };
        if self.uses_old && here.old.is_none() && !self.optional_old {
            return Ok(());
        }
        if budget.left() == 0 {
            say(found, format!("{OUT_OF_BUDGET}, no further validation rules will be run"));
            return Err(Ended);
        }
        let mut bindings = Bindings::new().with("self", Value::of(here.new, Some(schema)));
        if self.uses_old {
            let old = here.old.map(|old| Value::of(old, Some(schema)));
            bindings = bindings.with(
                "oldSelf",
                match (self.optional_old, old) {
                    (true, Some(old)) => Value::some(old),
                    (true, None) => Value::none(),
                    (false, old) => old.unwrap_or(Value::Null),
                },
            );
        }
        let described = self.described();
        match self.program.eval(&bindings, budget) {
            Ok(Value::Bool(true)) => return Ok(()),
            Ok(_) => {}
            Err(e @ EvalError::NoSuchOverload) => {
                say(
                    found,
                    format!(
                        "'{e}': call arguments did not match a supported operator, function or macro signature for rule: {described}"
                    ),
                );
                return Ok(());
            }
            Err(e) if e.is_final() => {
                say(
                    found,
                    match budget.left() {
                        0 => format!("{OUT_OF_BUDGET}, no further validation rules will be run"),
                        _ => format!(
                            "'{e}': no further validation rules will be run due to call cost exceeds limit for rule: {described}"
                        ),
                    },
                );
                return Err(Ended);
            }
            Err(e) => {
                say(found, format!("{e} evaluating rule: {described}"));
                return Ok(());
            }
        }
        let message = self.message(&bindings, budget);
        let error = self.error(here, &message);
        match !self.uses_old && here.is_unchanged() {
            true => found.warnings.push(error.to_string()),
            false => found.errors.push(error),
        }
        Ok(())
    }

    fn described(&self) -> &str {
        match self.message.trim() {
            "" => self.text.trim(),
            message => message,
        }
    }

    fn message<'a>(&'a self, bindings: &Bindings<'a>, budget: &mut Budget) -> String {
        let computed = self.message_program.as_ref().and_then(|program| {
            match program.eval(bindings, budget) {
                Ok(Value::String(text)) => usable_message(&text),
                _ => None,
            }
        });
        computed.unwrap_or_else(|| match self.message.trim() {
            "" => format!("failed rule: {}", self.text.trim()),
            message => message.to_owned(),
        })
    }

    fn error(&self, here: &Here<'_>, message: &str) -> FieldError {
        let field = match self.field_path.as_str() {
            "" => here.path.clone(),
            below if below.starts_with('[') => format!("{}{below}", here.path),
            below => here.child(below),
        };
        // Objects and lists are too much to repeat.
        let shown = Some(here.new).filter(|v| !v.is_object() && !v.is_array());
        let head = |what: &str| match shown {
            Some(value) => format!("{what}: {}", rimward_api::status::go_value(value)),
            None => what.to_owned(),
        };
        let message = match self.reason {
            CauseReason::FieldValueForbidden => format!("Forbidden: {message}"),
            CauseReason::FieldValueRequired => format!("Required value: {message}"),
            CauseReason::FieldValueDuplicate => head("Duplicate value"),
            _ => format!("{}: {message}", head("Invalid value")),
        };
        FieldError { field, reason: self.reason, message }
    }
}

const OUT_OF_BUDGET: &str = "validation failed due to running out of cost budget";

/// A computed message, if it can be shown: one line, not blank, not too long.
pub fn usable_message(text: &str) -> Option<String> {
    let text = text.trim();
    let usable = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
    usable.then(|| text.to_owned())
}
