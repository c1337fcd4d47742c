//! Where in an object a rule looks, and the refusals that it collects.
//!
//! A [`Path`] is a chain of borrowed steps on the stack: it becomes a string only when there is
//! something to complain about, which on almost every write there is not.

use std::fmt;

use rimward_api::FieldError;
use serde_json::Value;

/// A place in an object: `spec.containers[0].resources.limits[cpu]`.
#[derive(Clone, Copy)]
pub enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    Key(&'a Path<'a>, &'a str),
}

impl<'a> Path<'a> {
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }
    pub fn index(&'a self, i: usize) -> Path<'a> {
        Path::Index(self, i)
    }
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, i) => write!(f, "{parent}[{i}]"),
            Path::Key(parent, key) => write!(f, "{parent}[{key}]"),
        }
    }
}

/// How many refusals are kept of one object: enough for anyone who reads them, and no way to make
/// the server hold a refusal for each of the items of a large body.
const KEPT_MAX: usize = 1000;

/// The refusals so far, in the order in which they were found.
#[derive(Default, Debug)]
pub struct Errors {
    kept: Vec<FieldError>,
    found: usize,
}

impl Errors {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn into_vec(self) -> Vec<FieldError> {
        self.kept
    }
    pub fn len(&self) -> usize {
        self.found
    }
    pub fn is_empty(&self) -> bool {
        self.found == 0
    }
    pub fn push(&mut self, error: FieldError) {
        self.add(|| error);
    }

    fn add(&mut self, make: impl FnOnce() -> FieldError) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(make());
        }
        self.found += 1;
    }
    /// Runs `rule` and keeps its refusals aside: for rules whose outcome decides on others.
    pub fn count(&mut self, rule: impl FnOnce(&mut Self)) -> usize {
        let before = self.len();
        rule(self);
        self.len() - before
    }

    pub fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.add(|| FieldError::required(path.to_string(), detail));
    }
    pub fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: &str) {
        self.add(|| FieldError::invalid(path.to_string(), &value.into(), detail));
    }
    /// One refusal for each text of what is wrong.
    pub fn invalid_each(&mut self, path: &Path<'_>, value: &str, details: Vec<String>) {
        for detail in details {
            self.invalid(path, value, &detail);
        }
    }
    pub fn not_supported(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        self.add(|| FieldError::not_supported(path.to_string(), &value.into(), supported));
    }
    pub fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.add(|| FieldError::duplicate(path.to_string(), &value.into()));
    }
    pub fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        self.add(|| FieldError::forbidden(path.to_string(), detail));
    }
    pub fn not_found(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.add(|| FieldError::not_found(path.to_string(), &value.into()));
    }
    pub fn too_long(&mut self, path: &Path<'_>, max_bytes: usize) {
        self.add(|| FieldError::too_long(path.to_string(), max_bytes));
    }
    pub fn too_many(&mut self, path: &Path<'_>, actual: usize, max: usize) {
        self.add(|| FieldError::too_many(path.to_string(), actual, max));
    }
    pub fn type_invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: &str) {
        self.add(|| FieldError::type_invalid(path.to_string(), &value.into(), detail));
    }
}
