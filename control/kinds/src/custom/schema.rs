//! A schema of a CustomResourceDefinition (`JSONSchemaProps`), read once.
//!
//! One type stands for both halves of a structural schema, the structure and the value validations
//! nested under `allOf`, `anyOf`, `oneOf` and `not`: what may stand where is [`super::structural`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::{Map, Value};

use super::pattern;
use crate::read::Read;

/// Nodes below one another beyond this are not read: recursion must fit a thread's stack. As many as a
/// body that is read at all can hold. Schemas that embed a whole pod come to about twenty.
pub const DEPTH_MAX: usize = 120;

/// One node of a schema.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// `type`; empty when it is not said.
    pub kind: Box<str>,
    pub format: Box<str>,
    pub default: Option<Value>,
    pub nullable: bool,
    pub items: Option<Box<Schema>>,
    pub properties: BTreeMap<Box<str>, Schema>,
    pub additional: Option<Additional>,
    /// `x-kubernetes-preserve-unknown-fields: true`
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`
    pub list_type: Option<Box<str>>,
    pub list_keys: Vec<Box<str>>,
    /// `x-kubernetes-map-type`
    pub map_type: Option<Box<str>>,
    /// `x-kubernetes-validations`, as they were sent.
    pub validations: Vec<Value>,
    pub limits: Limits,
    pub required: Vec<Box<str>>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    /// It, or a node below it, is nested too deep to be read.
    pub cut: bool,
}

/// `additionalProperties`.
#[derive(Clone, Debug)]
pub enum Additional {
    Any(bool),
    Of(Box<Schema>),
}

/// What a value must keep within.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub length_max: Option<i64>,
    pub length_min: Option<i64>,
    pub items_max: Option<i64>,
    pub items_min: Option<i64>,
    pub properties_max: Option<i64>,
    pub properties_min: Option<i64>,
    pub unique_items: bool,
    pub pattern: Option<Pattern>,
    pub values: Option<Vec<Value>>,
}

/// A pattern as it was written, and compiled; Err says why it is none.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub text: Box<str>,
    pub compiled: Result<Arc<Regex>, Box<str>>,
}

impl Schema {
    /// Reads a schema. What is of a wrong type reads as not said: decoding refused it before.
    pub fn read(raw: &Value) -> Self {
        Self::node(raw, 0)
    }

    fn node(raw: &Value, depth: usize) -> Self {
        if depth >= DEPTH_MAX {
            return Self { cut: true, ..Self::default() };
        }
        let below = |raw: &Value| Self::node(raw, depth + 1);
        let boxed = |key: &str| raw.at(key).is_object().then(|| Box::new(below(raw.at(key))));
        let list = |key: &str| raw.list(key).iter().map(below).collect();
        let texts = |key: &str| {
            raw.list(key)
                .iter()
                .filter_map(Value::as_str)
                .map(Into::into)
                .collect::<Vec<Box<str>>>()
        };
        let text = |key: &str| raw.at(key).as_str().map(Into::into);
        let empty = Map::new();
        let properties = raw.at("properties").as_object().unwrap_or(&empty);
        let mut read = Self {
            kind: raw.text("type").into(),
            format: raw.text("format").into(),
            default: raw.get("default").filter(|d| !d.is_null()).cloned(),
            nullable: raw.flag("nullable"),
            items: boxed("items"),
            properties: properties
                .iter()
                .map(|(name, schema)| (name.as_str().into(), below(schema)))
                .collect(),
            additional: match raw.at("additionalProperties") {
                Value::Bool(any) => Some(Additional::Any(*any)),
                schema @ Value::Object(_) => Some(Additional::Of(Box::new(below(schema)))),
                _ => None,
            },
            preserve: raw.flag("x-kubernetes-preserve-unknown-fields"),
            embedded: raw.flag("x-kubernetes-embedded-resource"),
            int_or_string: raw.flag("x-kubernetes-int-or-string"),
            list_type: text("x-kubernetes-list-type"),
            list_keys: texts("x-kubernetes-list-map-keys"),
            map_type: text("x-kubernetes-map-type"),
            validations: raw.list("x-kubernetes-validations").to_vec(),
            limits: Limits::read(raw),
            required: texts("required"),
            all_of: list("allOf"),
            any_of: list("anyOf"),
            one_of: list("oneOf"),
            not: boxed("not"),
            cut: false,
        };
        let cut = read.children().chain(read.junctors()).any(|s| s.cut);
        read.cut = cut;
        read
    }

    /// The schema of a member: its property's, or that of additional properties.
    pub fn member(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or(match &self.additional {
            Some(Additional::Of(schema)) => Some(schema),
            _ => None,
        })
    }

    /// Whether there is a default in it or below.
    pub fn has_defaults(&self) -> bool {
        self.default.is_some() || self.children().any(Self::has_defaults)
    }

    /// Whether there is a CEL rule in it or below.
    pub fn has_validations(&self) -> bool {
        !self.validations.is_empty() || self.children().any(Self::has_validations)
    }

    /// The nodes below that describe structure.
    pub fn children(&self) -> impl Iterator<Item = &Schema> {
        let additional = match &self.additional {
            Some(Additional::Of(schema)) => Some(&**schema),
            _ => None,
        };
        self.properties.values().chain(self.items.as_deref()).chain(additional)
    }

    /// The nodes below that only validate.
    pub fn junctors(&self) -> impl Iterator<Item = &Schema> {
        self.all_of.iter().chain(&self.any_of).chain(&self.one_of).chain(self.not.as_deref())
    }
}

impl Limits {
    fn read(raw: &Value) -> Self {
        let number = |key: &str| raw.at(key).as_f64();
        let whole = |key: &str| raw.at(key).as_i64();
        Self {
            maximum: number("maximum"),
            exclusive_maximum: raw.flag("exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: raw.flag("exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            length_max: whole("maxLength"),
            length_min: whole("minLength"),
            items_max: whole("maxItems"),
            items_min: whole("minItems"),
            properties_max: whole("maxProperties"),
            properties_min: whole("minProperties"),
            unique_items: raw.flag("uniqueItems"),
            pattern: Some(raw.text("pattern")).filter(|p| !p.is_empty()).map(Pattern::new),
            values: raw.at("enum").as_array().filter(|e| !e.is_empty()).cloned(),
        }
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        let compiled = pattern::compile(text).map(Arc::new).map_err(Into::into);
        Self { text: text.into(), compiled }
    }
}
