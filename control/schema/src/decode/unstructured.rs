//! Bodies of custom resources: any JSON of the right kind. What the schema of the kind makes of it is
//! for its owner; here are the rules that hold whatever it says.

use rimward_api::{FieldError, GroupKind, Status};
use serde_json::{Map, Value};

use super::scanner::{Scanner, SyntaxError, Token, number};
use super::{
    Expected, FieldValidation, Format, Sent, group_version, quote, unrecognized, within_limit, yaml,
};

/// Kubernetes stops counting strict errors here.
const STRICT_ERRORS_MAX: usize = 100;

/// A body of the right kind, as it was sent.
#[derive(Debug)]
pub struct Unstructured {
    pub value: Value,
    /// `duplicate field "spec.x"`, to be told or refused by [`Unstructured::refuse`].
    pub strict: Vec<String>,
}

/// Decodes the body of a create or update of a kind that is not built in.
pub fn unstructured(
    expected: &Expected<'_>,
    body: &[u8],
    format: Format,
    validation: FieldValidation,
) -> Result<Unstructured, Status> {
    within_limit(body)?;
    let mut strict = Vec::new();
    let value = match format {
        Format::Json => json(body, &mut strict).map_err(|e| {
            let why = format!("couldn't get version/kind; json parse error: {e}");
            unrecognized(expected, body, &why)
        })?,
        Format::Yaml => {
            let value = yaml::parse(body, &mut strict);
            strict = super::told(strict, validation);
            value.map_err(|e| unrecognized(expected, body, &e))?
        }
    };
    if validation == FieldValidation::Ignore {
        strict.clear();
    }
    check(expected, body, &value)?;
    Ok(Unstructured { value, strict })
}

/// Whether it says that it is what the URL says.
fn check(expected: &Expected<'_>, body: &[u8], value: &Value) -> Result<(), Status> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    if !value.is_object() || text("kind").is_empty() {
        let shown = String::from_utf8_lossy(body);
        let why = format!("Object 'Kind' is missing in '{shown}'");
        return Err(unrecognized(expected, body, &why));
    }
    let right = group_version(expected.group, expected.version);
    if text("apiVersion") != right {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({right})",
            text("apiVersion")
        )));
    }
    if text("kind") != expected.kind {
        let name = rimward_api::meta::str_at(value, &["metadata", "name"]).unwrap_or_default();
        let kind = GroupKind { group: expected.group.into(), kind: text("kind").into() };
        let why = format!("must be {}", expected.kind);
        let error = FieldError::invalid("kind", &text("kind").into(), &why);
        return Err(Status::invalid(&kind, name, &[error]));
    }
    Ok(())
}

impl Unstructured {
    /// Refuses the body by what is wrong with it, or answers the texts of Warnings.
    pub fn refuse(
        self,
        expected: &Expected<'_>,
        error: Option<String>,
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), Status> {
        let sent = Sent {
            group: expected.group.to_owned(),
            version: expected.version.to_owned(),
            kind: expected.kind.to_owned(),
        };
        sent.refuse(expected, error, &self.strict, validation)?;
        let warnings = if validation == FieldValidation::Warn { self.strict } else { Vec::new() };
        Ok((self.value, warnings))
    }
}

/// Parses JSON; `strict` hears `duplicate field "spec.x"` of each that is there twice.
pub(super) fn json(body: &[u8], strict: &mut Vec<String>) -> Result<Value, SyntaxError> {
    let mut reader = Reader { scanner: Scanner::new(body), path: String::new(), strict };
    let value = reader.value()?;
    reader.scanner.end()?;
    Ok(value)
}

/// What is wrong with the operations of a JSON patch: fields that none has, and those that are there twice.
pub(super) fn operations(patch: &[u8]) -> Result<Vec<String>, SyntaxError> {
    let mut strict = Vec::new();
    let mut reader =
        Reader { scanner: Scanner::new(patch), path: String::new(), strict: &mut strict };
    if reader.scanner.token()? != Token::Array {
        return Ok(strict);
    }
    reader.scanner.enter_array()?;
    let mut count = 0;
    while reader.scanner.item(count == 0)? {
        reader.path = format!("[{count}]");
        reader.operation()?;
        count += 1;
    }
    Ok(strict)
}

/// Reads a value and remembers where it is, for the names of keys that are there twice.
struct Reader<'b, 's> {
    scanner: Scanner<'b>,
    path: String,
    strict: &'s mut Vec<String>,
}

impl Reader<'_, '_> {
    /// An operation of a JSON patch.
    fn operation(&mut self) -> Result<(), SyntaxError> {
        if self.scanner.token()? != Token::Object {
            return self.scanner.skip().map(drop);
        }
        self.scanner.enter_object()?;
        let mut seen: Vec<String> = Vec::new();
        let mut first = true;
        while let Some(key) = self.scanner.key(first)? {
            first = false;
            let before = self.path.len();
            self.path.push('.');
            self.path.push_str(&key);
            let known = matches!(key.as_ref(), "op" | "path" | "from" | "value");
            let again = seen.iter().any(|s| *s == key);
            if known == again && self.strict.len() < STRICT_ERRORS_MAX {
                let what = if known { "duplicate" } else { "unknown" };
                self.strict.push(format!("{what} field {}", quote(&self.path)));
            }
            match known {
                true => drop(self.value()?),
                false => drop(self.scanner.skip()?),
            }
            self.path.truncate(before);
            if !again && seen.len() < STRICT_ERRORS_MAX {
                seen.push(key.into_owned());
            }
        }
        Ok(())
    }

    fn value(&mut self) -> Result<Value, SyntaxError> {
        Ok(match self.scanner.token()? {
            Token::String => Value::String(self.scanner.string()?.into_owned()),
            Token::Number => number(self.scanner.number()?),
            Token::Bool => Value::Bool(self.scanner.bool()?),
            Token::Null => {
                self.scanner.null()?;
                Value::Null
            }
            Token::Object => {
                self.scanner.enter_object()?;
                let mut map = Map::new();
                while let Some(key) = self.scanner.key(map.is_empty())? {
                    let before = self.path.len();
                    if before > 0 {
                        self.path.push('.');
                    }
                    self.path.push_str(&key);
                    if map.contains_key(key.as_ref()) && self.strict.len() < STRICT_ERRORS_MAX {
                        self.strict.push(format!("duplicate field {}", quote(&self.path)));
                    }
                    let value = self.value()?;
                    self.path.truncate(before);
                    map.insert(key.into_owned(), value);
                }
                Value::Object(map)
            }
            Token::Array => {
                self.scanner.enter_array()?;
                let mut list = Vec::new();
                while self.scanner.item(list.is_empty())? {
                    let before = self.path.len();
                    self.path.push_str(&format!("[{}]", list.len()));
                    let value = self.value()?;
                    self.path.truncate(before);
                    list.push(value);
                }
                Value::Array(list)
            }
        })
    }
}
