//! Decoding of a request's body: what Go's decode and encode would make of it.
//!
//! One pass over the bytes checks the syntax, the types and the fields, and builds the normal form:
//! zero values dropped or filled in, quantities and times in canonical form, unknown fields pruned.

mod scalar;
pub(crate) mod scanner;
mod typed;
mod unstructured;
mod yaml;

use rimward_api::{GroupVersion, Status};
use serde_json::Value;

use crate::model::{DefId, Model};
pub(crate) use scalar::quote;
use scanner::{Scanner, SyntaxError};
pub use unstructured::{Unstructured, unstructured};

/// The largest body that is decoded, as Kubernetes' request limit.
pub const BODY_BYTES_MAX: usize = 3 << 20;

/// The `fieldValidation` query parameter. Kubernetes' default for a request without it is Warn
/// (kubectl asks for Strict).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// The encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

/// What the URL says about the body.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub definition: DefId,
}

/// A decoded object in normal form, `apiVersion` and `kind` filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// Texts for Warning headers: `unknown field "spec.x"`. Empty unless validation is Warn.
    pub warnings: Vec<String>,
}

impl FieldValidation {
    /// Reads the query parameter; None for a value that Kubernetes refuses. Empty is Warn.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            "Ignore" => Some(Self::Ignore),
            _ => None,
        }
    }
}

/// Decodes the body of a create, update or apply. The Status is the very one that Kubernetes answers:
/// bad syntax, wrong type, unknown or duplicate field (Strict), another kind than the URL's.
pub fn object(
    model: &Model,
    expected: &Expected<'_>,
    body: &[u8],
    format: Format,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let (json, strict) = as_json(expected, body, format, validation)?;
    checked(model, expected, (body, &json), strict, validation)
}

/// Decodes a body that is JSON by now; `strict` is what is known to be wrong with it.
fn checked(
    model: &Model,
    expected: &Expected<'_>,
    (body, json): (&[u8], &[u8]),
    mut strict: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let unrecognized = |why: &str| unrecognized(expected, body, why);
    let syntax =
        |e: SyntaxError| unrecognized(&format!("couldn't get version/kind; json parse error: {e}"));
    let check = validation != FieldValidation::Ignore;
    let mut outcome = typed::decode(model, expected.definition, json, check).map_err(syntax)?;
    if let Some(wrong) = &outcome.wrong_type_meta {
        return Err(unrecognized(&format!("couldn't get version/kind; json parse error: {wrong}")));
    }
    let Value::Object(map) = &mut outcome.value else {
        let what = outcome
            .error
            .unwrap_or_default()
            .replace(&format!("v1.{}", go_name(model, expected)), TYPE_META);
        return Err(unrecognized(&format!("couldn't get version/kind; json parse error: {what}")));
    };
    let text = |name: &str| map.get(name).and_then(Value::as_str).unwrap_or_default();
    let sent = Sent::read(text("apiVersion"), text("kind"), expected)
        .map_err(|wrong| unrecognized(&wrong))?;
    if let Some(why) = sent.mismatch(model, expected) {
        // What is wrong with the body comes before what is wrong with its kind, if the kind is known.
        if let Some(other) = model.of_kind(&sent.group, &sent.version, &sent.kind) {
            let outcome = typed::decode(model, other, json, check).map_err(syntax)?;
            strict.extend(outcome.strict);
            sent.refuse(expected, outcome.error, &strict, validation)?;
        }
        return Err(match why {
            Mismatch::Version => Status::bad_request(format!(
                "the API version in the data ({}) does not match the expected API version ({})",
                group_version(&sent.group, &sent.version),
                group_version(expected.group, expected.version)
            )),
            Mismatch::Kind(why) => sent.cannot_be_handled(expected, &why),
        });
    }
    strict.extend(outcome.strict);
    sent.refuse(expected, outcome.error, &strict, validation)?;
    map.insert("apiVersion".into(), group_version(expected.group, expected.version).into());
    map.insert("kind".into(), expected.kind.into());
    let warnings = if validation == FieldValidation::Warn { strict } else { Vec::new() };
    Ok(Decoded { value: outcome.value, warnings })
}

/// Brings an object that is in memory (the outcome of a patch) into normal form, with the same checks.
pub fn value(
    model: &Model,
    expected: &Expected<'_>,
    value: &Value,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    patched(model, expected, value, Vec::new(), validation)
}

/// As [`value`], of the outcome of a patch; `strict` is what is wrong with the patch itself.
pub(crate) fn patched(
    model: &Model,
    expected: &Expected<'_>,
    value: &Value,
    strict: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let body = value.to_string();
    within_limit(body.as_bytes())?;
    checked(model, expected, (body.as_bytes(), body.as_bytes()), strict, validation)
}

/// Decodes the body of a server-side apply: as it was sent, since what it does not say it does not own.
/// Types and fields are [`crate::managed::apply`]'s to check.
pub fn applied(body: &[u8], validation: FieldValidation) -> Result<Decoded, Status> {
    within_limit(body)?;
    let mut strict = Vec::new();
    let value = yaml::parse(body, &mut strict)
        .map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?;
    if !value.is_object() {
        let what = type_name(&value);
        return Err(Status::bad_request(format!(
            "error decoding YAML: error unmarshaling JSON: json: cannot unmarshal {what} into Go value of type map[string]interface {{}}"
        )));
    }
    match validation {
        FieldValidation::Strict if !strict.is_empty() => {
            let why = yaml::complaint(&strict);
            Err(Status::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: {why}"
            )))
        }
        FieldValidation::Warn => Ok(Decoded { value, warnings: strict }),
        _ => Ok(Decoded { value, warnings: Vec::new() }),
    }
}

/// A part of an object, in normal form.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub value: Value,
    /// The first value of a wrong type, in Go's words.
    pub error: Option<String>,
    /// `unknown field "x"`; empty unless asked for.
    pub strict: Vec<String>,
}

/// Brings a part of an object into the form of its definition: metadata of a custom resource.
pub fn part(model: &Model, definition: DefId, value: &Value, strict: bool) -> Part {
    match typed::decode(model, definition, value.to_string().as_bytes(), strict) {
        Ok(outcome) => Part { value: outcome.value, error: outcome.error, strict: outcome.strict },
        // Deeper than a body may be.
        Err(e) => Part { value: Value::Null, error: Some(e.to_string()), strict: Vec::new() },
    }
}

/// Decodes JSON or YAML without a schema: bounded in size, depth and aliases.
pub fn any(body: &[u8], format: Format) -> Result<Value, Status> {
    within_limit(body)?;
    match format {
        Format::Json => json(body).map_err(|e| Status::bad_request(e.to_string())),
        Format::Yaml => yaml::parse(body, &mut Vec::new()).map_err(Status::bad_request),
    }
}

/// Parses JSON without a schema.
pub(crate) fn json(body: &[u8]) -> Result<Value, SyntaxError> {
    let mut scanner = Scanner::new(body);
    let value = scanner.any(&mut |_, _| {})?;
    scanner.end()?;
    Ok(value)
}

/// `duplicate field "spec.x"` of what a patch says twice. One that is not JSON is refused elsewhere.
pub(crate) fn repeated(patch: &[u8]) -> Vec<String> {
    let mut strict = Vec::new();
    match unstructured::json(patch, &mut strict) {
        Ok(_) => strict,
        Err(_) => Vec::new(),
    }
}

/// As [`repeated`], of the operations of a JSON patch, whose fields are known.
pub(crate) fn of_operations(patch: &[u8]) -> Vec<String> {
    unstructured::operations(patch).unwrap_or_default()
}

/// The normal form of an object of which nothing was said: what Kubernetes compares a new object with.
pub(crate) fn zero(model: &Model, definition: DefId) -> Value {
    typed::zero_object(model, model.get(definition))
}

pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The Go type into which Kubernetes reads the kind before anything else.
const TYPE_META: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";

fn go_name<'m>(model: &'m Model, expected: &Expected<'_>) -> &'m str {
    model.get(expected.definition).go_name()
}

fn within_limit(body: &[u8]) -> Result<(), Status> {
    if body.len() > BODY_BYTES_MAX {
        let message = format!("Request entity too large: limit is {BODY_BYTES_MAX}");
        return Err(Status::new(413, rimward_api::Reason::RequestEntityTooLarge, message));
    }
    Ok(())
}

/// The body as JSON, and the keys that its YAML repeats.
fn as_json<'b>(
    expected: &Expected<'_>,
    body: &'b [u8],
    format: Format,
    validation: FieldValidation,
) -> Result<(std::borrow::Cow<'b, [u8]>, Vec<String>), Status> {
    within_limit(body)?;
    let mut strict = Vec::new();
    if format == Format::Json {
        return Ok((body.into(), strict));
    }
    let value = yaml::parse(body, &mut strict).map_err(|e| unrecognized(expected, body, &e))?;
    let strict = told(strict, validation);
    Ok((value.to_string().into_bytes().into(), strict))
}

/// What of the lines of [`yaml::parse`] is told: each in a warning of its own, all in one refusal.
fn told(lines: Vec<String>, validation: FieldValidation) -> Vec<String> {
    match validation {
        FieldValidation::Strict if !lines.is_empty() => vec![yaml::complaint(&lines)],
        FieldValidation::Ignore => Vec::new(),
        _ => lines,
    }
}

fn unrecognized(expected: &Expected<'_>, body: &[u8], why: &str) -> Status {
    let kind = expected.kind;
    let summary = summary(body);
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({summary})"
    ))
}

/// The beginning of a body, in hexadecimal unless it looks like JSON.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let (shown, more) = if body.len() > SHOWN { (&body[..SHOWN], " ...") } else { (body, "") };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(shown).into_owned() + more,
        Some(_) => shown.iter().map(|b| format!("{b:02x}")).collect::<String>() + more,
    }
}

/// The kind that a body says it is, completed by the URL's where it says nothing.
struct Sent {
    group: String,
    version: String,
    kind: String,
}

enum Mismatch {
    /// The same kind in another version.
    Version,
    Kind(String),
}

impl Sent {
    fn read(api_version: &str, kind: &str, expected: &Expected<'_>) -> Result<Self, String> {
        let or = |text: &str, default: &str| {
            if text.is_empty() { default.to_owned() } else { text.to_owned() }
        };
        let (group, version) = if api_version.is_empty() {
            (expected.group.to_owned(), expected.version.to_owned())
        } else if let Some(sent) = GroupVersion::parse(api_version) {
            (sent.group, sent.version)
        } else {
            return Err(format!("unexpected GroupVersion string: {api_version}"));
        };
        Ok(Self { group, version, kind: or(kind, expected.kind) })
    }

    fn mismatch(&self, model: &Model, expected: &Expected<'_>) -> Option<Mismatch> {
        let same_kind = self.kind == expected.kind && self.group == expected.group;
        if same_kind && self.version == expected.version {
            return None;
        }
        if model.of_kind(&self.group, &self.version, &self.kind).is_none() {
            return Some(Mismatch::Kind(format!(
                "no kind {} is registered for version {} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
                quote(&self.kind),
                quote(&group_version(&self.group, &self.version))
            )));
        }
        if same_kind {
            return Some(Mismatch::Version);
        }
        Some(Mismatch::Kind(format!(
            "converting ({}.{}) to ({}.{}): unknown conversion",
            self.version,
            self.kind,
            internal_package(expected.group),
            expected.kind
        )))
    }

    /// Refuses a body by what is wrong with it.
    fn refuse(
        &self,
        expected: &Expected<'_>,
        error: Option<String>,
        strict: &[String],
        validation: FieldValidation,
    ) -> Result<(), Status> {
        match error {
            Some(error) => Err(self.cannot_be_handled(expected, &error)),
            None if validation == FieldValidation::Strict && !strict.is_empty() => Err(self
                .cannot_be_handled(
                    expected,
                    &format!("strict decoding error: {}", strict.join(", ")),
                )),
            None => Ok(()),
        }
    }

    fn cannot_be_handled(&self, expected: &Expected<'_>, why: &str) -> Status {
        Status::bad_request(format!(
            "{} in version {} cannot be handled as a {}: {why}",
            self.kind,
            quote(&self.version),
            expected.kind
        ))
    }
}

fn group_version(group: &str, version: &str) -> String {
    GroupVersion { group: group.into(), version: version.into() }.to_string()
}

/// The Go package that holds a group's internal types, which conversion errors name.
fn internal_package(group: &str) -> &str {
    match group.split('.').next() {
        None | Some("" | "events") => "core",
        Some(first) => first,
    }
}

#[cfg(test)]
mod tests;
