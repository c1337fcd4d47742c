//! Decoding by the model: one pass over the bytes, which leaves the normal form.
//!
//! Go reports in this order, and so does this: bad syntax; the first complaint of a type that decodes
//! itself (a quantity, a time), which ends Go's decoding; the first value of a wrong type, which does
//! not; fields that nobody knows or that are there twice.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::scalar;
use super::scanner::{Scanner, SyntaxError, Token, number};
use crate::model::{Alternative, DefId, Definition, Field, Model, Presence, Type};

/// Kubernetes stops counting strict errors here.
const STRICT_ERRORS_MAX: usize = 100;

/// What a body decodes to, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub value: Value,
    /// The root's `apiVersion` or `kind` is not a string.
    pub wrong_type_meta: Option<String>,
    pub error: Option<String>,
    /// `unknown field "x"`, `duplicate field "y"`.
    pub strict: Vec<String>,
}

pub(crate) fn decode(
    model: &Model,
    definition: DefId,
    body: &[u8],
    strict: bool,
) -> Result<Outcome, SyntaxError> {
    let mut decoder = Decoder {
        model,
        scanner: Scanner::new(body),
        path: Vec::new(),
        check: strict,
        strict: Vec::new(),
        first_wrong_type: None,
        first_refusal: None,
        wrong_type_meta: None,
    };
    let definition = model.get(definition);
    let go_type = format!("v1.{}", definition.go_name());
    let value = match decoder.scanner.token()? {
        Token::Object => Value::Object(decoder.object(definition)?),
        Token::Null => {
            decoder.scanner.null()?;
            zero_object(model, definition)
        }
        other => {
            decoder.scanner.skip()?;
            decoder.wrong_type(other.go_name(), &go_type);
            Value::Null
        }
    };
    decoder.scanner.end()?;
    Ok(Outcome {
        value,
        wrong_type_meta: decoder.wrong_type_meta,
        error: decoder.first_refusal.or(decoder.first_wrong_type),
        strict: decoder.strict,
    })
}

/// The zero value of a type, as Go encodes it.
pub(crate) fn zero(model: &Model, ty: &Type) -> Value {
    match ty {
        Type::Bool => Value::Bool(false),
        Type::String => Value::String(String::new()),
        Type::Int32 | Type::Int64 | Type::Number | Type::IntOrString => Value::from(0),
        Type::Quantity => Value::from("0"),
        Type::Duration => Value::from("0s"),
        Type::Object(id) => zero_object(model, model.get(*id)),
        Type::Bytes
        | Type::Time
        | Type::MicroTime
        | Type::Raw
        | Type::Any
        | Type::Map(_)
        | Type::List(_)
        | Type::SchemaOr(..) => Value::Null,
    }
}

/// An object of which nothing was said.
pub(crate) fn zero_object(model: &Model, definition: &Definition) -> Value {
    let mut map = Map::new();
    fill(model, definition, &mut map);
    Value::Object(map)
}

/// Adds the fields that are there even when nobody said them.
fn fill(model: &Model, definition: &Definition, map: &mut Map<String, Value>) {
    for index in &definition.constant {
        let field = &definition.fields[usize::from(*index)];
        if !map.contains_key(&*field.name) {
            map.insert((*field.name).to_owned(), unsaid(model, field));
        }
    }
}

fn unsaid(model: &Model, field: &Field) -> Value {
    if field.presence == Presence::PointerOrNull { Value::Null } else { zero(model, &field.ty) }
}

/// Where the decoder is.
enum Step<'m, 'b> {
    Field(&'m Definition, &'m str),
    Key(Cow<'b, str>),
    Index(usize),
}

struct Decoder<'m, 'b> {
    model: &'m Model,
    scanner: Scanner<'b>,
    path: Vec<Step<'m, 'b>>,
    /// Whether strict errors are wanted.
    check: bool,
    strict: Vec<String>,
    first_wrong_type: Option<String>,
    first_refusal: Option<String>,
    wrong_type_meta: Option<String>,
}

type Result<T, E = SyntaxError> = std::result::Result<T, E>;

impl<'m, 'b> Decoder<'m, 'b> {
    fn object(&mut self, definition: &'m Definition) -> Result<Map<String, Value>> {
        self.scanner.enter_object()?;
        let mut map = Map::new();
        let mut seen = 0u128;
        let mut unknown: Vec<Cow<'b, str>> = Vec::new();
        let mut first = true;
        while let Some(key) = self.scanner.key(first)? {
            first = false;
            let Some(index) = definition.index(&key) else {
                // Told once, however often it is there.
                if self.check && !unknown.contains(&key) && unknown.len() < STRICT_ERRORS_MAX {
                    self.strict_error("unknown", &key);
                    unknown.push(key);
                }
                self.scanner.skip()?;
                continue;
            };
            let field = &definition.fields[index];
            if seen & (1 << index) != 0 {
                self.strict_error("duplicate", &field.name);
            }
            seen |= 1 << index;
            self.path.push(Step::Field(definition, &field.name));
            let value = self.value(&field.ty, &field.go_type)?;
            self.path.pop();
            self.keep(&mut map, definition, field, value);
        }
        fill(self.model, definition, &mut map);
        Ok(map)
    }

    /// Puts a field's value into the normal form. None is null.
    fn keep(
        &self,
        map: &mut Map<String, Value>,
        definition: &Definition,
        field: &Field,
        value: Option<Value>,
    ) {
        let value = match (field.presence, value) {
            (Presence::Pointer | Presence::NonZero, None) => None,
            (Presence::Pointer, value) => value,
            // An empty record is how a client resets field ownership; `managed::update` replaces it.
            (Presence::NonZero, Some(value)) if &*field.name == "managedFields" => Some(value),
            (Presence::NonZero, Some(value)) => (!is_zero(&value, &field.ty)).then_some(value),
            (Presence::Always | Presence::PointerOrNull, None) => Some(unsaid(self.model, field)),
            (Presence::Always, Some(value))
                if is_empty(&value) && !is_raw(&field.ty) && stored_as_protobuf(definition) =>
            {
                Some(zero(self.model, &field.ty))
            }
            (Presence::Always | Presence::PointerOrNull, value) => value,
            (Presence::AsSent, value) => Some(value.unwrap_or(Value::Null)),
        };
        match value {
            Some(value) => map.insert((*field.name).to_owned(), value),
            None => map.remove(&*field.name),
        };
    }

    /// Decodes the value that comes next; None for null and for what is of a wrong type.
    fn value(&mut self, ty: &'m Type, go_type: &'m str) -> Result<Option<Value>> {
        let token = self.scanner.token()?;
        if token == Token::Null {
            self.scanner.null()?;
            return Ok(None);
        }
        Ok(match (ty, token) {
            (Type::Object(id), Token::Object) => {
                Some(Value::Object(self.object(self.model.get(*id))?))
            }
            (Type::String | Type::Duration, Token::String) => {
                Some(Value::String(self.scanner.string()?.into_owned()))
            }
            (Type::List(list), Token::Array) => {
                Some(self.list(&list.item, item_go_type(go_type, &list.item))?)
            }
            (Type::Map(map), Token::Object) => {
                Some(self.map(&map.value, item_go_type(go_type, &map.value))?)
            }
            (Type::Bool, Token::Bool) => Some(Value::Bool(self.scanner.bool()?)),
            (Type::Int32 | Type::Int64, Token::Number) => {
                let literal = self.scanner.number()?;
                self.integer(literal, *ty == Type::Int32, go_type)
            }
            (Type::Number, Token::Number) => Some(double(self.scanner.number()?)),
            (Type::Bytes, Token::String) => {
                let text = self.scanner.string()?;
                match scalar::base64(&text) {
                    Ok(text) => Some(Value::String(text)),
                    Err(wrong) => {
                        self.first_wrong_type.get_or_insert(wrong);
                        None
                    }
                }
            }
            (Type::IntOrString, Token::String) => {
                Some(Value::String(self.scanner.string()?.into_owned()))
            }
            (Type::IntOrString, Token::Number) => {
                let literal = self.scanner.number()?;
                let n = self.integer(literal, true, "int32");
                if n.is_none() {
                    self.refuse_wrong_type(&format!("number {literal}"), "int32");
                }
                n
            }
            (Type::IntOrString, _) => {
                self.scanner.skip()?;
                self.refuse_wrong_type(token.go_name(), "int32");
                None
            }
            (Type::Quantity, _) => {
                let raw = self.scanner.skip()?;
                let text = String::from_utf8_lossy(raw);
                let text =
                    text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(&text);
                self.canonical(scalar::quantity(text))
            }
            (Type::Time | Type::MicroTime, Token::String) => {
                let text = self.scanner.string()?;
                self.canonical(if *ty == Type::Time {
                    scalar::time(&text)
                } else {
                    scalar::micro_time(&text)
                })
            }
            (Type::Time | Type::MicroTime, _) => {
                self.scanner.skip()?;
                self.refuse_wrong_type(token.go_name(), "string");
                None
            }
            (Type::Raw | Type::Any, _) => Some(self.scanner.any(&mut |_, _| {})?),
            (Type::SchemaOr(alternative, id), _) => {
                Some(self.schema_or(*alternative, *id, token)?)
            }
            (Type::Number, Token::String) | (_, _) => {
                self.scanner.skip()?;
                self.wrong_type(token.go_name(), go_type);
                None
            }
        })
    }

    fn list(&mut self, item: &'m Type, go_type: &'m str) -> Result<Value> {
        self.scanner.enter_array()?;
        let mut list = Vec::new();
        while self.scanner.item(list.is_empty())? {
            self.path.push(Step::Index(list.len()));
            let value = self.value(item, go_type)?;
            self.path.pop();
            list.push(value.unwrap_or_else(|| zero(self.model, item)));
        }
        Ok(Value::Array(list))
    }

    fn map(&mut self, ty: &'m Type, go_type: &'m str) -> Result<Value> {
        self.scanner.enter_object()?;
        let mut map = Map::new();
        let mut first = true;
        while let Some(key) = self.scanner.key(first)? {
            first = false;
            if map.contains_key(key.as_ref()) {
                self.strict_error("duplicate", &key);
            }
            self.path.push(Step::Key(key));
            let value = self.value(ty, go_type)?;
            let Some(Step::Key(key)) = self.path.pop() else {
                unreachable!("the step that was pushed")
            };
            let value = value.unwrap_or_else(|| match ty {
                // A nil slice of bytes comes back from storage as an empty one.
                Type::Bytes => Value::String(String::new()),
                _ => zero(self.model, ty),
            });
            map.insert(key.into_owned(), value);
        }
        Ok(Value::Object(map))
    }

    /// The unions of apiextensions decode their parts without strictness, as in Go.
    fn schema_or(&mut self, alternative: Alternative, id: DefId, token: Token) -> Result<Value> {
        let check = std::mem::replace(&mut self.check, false);
        let value = match (alternative, token) {
            (_, Token::Object) => Value::Object(self.object(self.model.get(id))?),
            (Alternative::List, Token::Array) => {
                self.scanner.enter_array()?;
                let mut list = Vec::new();
                while self.scanner.item(list.is_empty())? {
                    list.push(match self.scanner.token()? {
                        Token::Object => Value::Object(self.object(self.model.get(id))?),
                        other => {
                            self.scanner.skip()?;
                            self.refuse_wrong_type(other.go_name(), "v1.JSONSchemaProps");
                            Value::Null
                        }
                    });
                }
                Value::Array(list)
            }
            (Alternative::Strings, Token::Array) => self.list(&Type::String, "string")?,
            (Alternative::Bool, Token::Bool) => Value::Bool(self.scanner.bool()?),
            _ => {
                self.scanner.skip()?;
                let expected = match alternative {
                    Alternative::Bool => "boolean or JSON schema expected",
                    Alternative::List => "array or JSON schema expected",
                    Alternative::Strings => "array of strings or JSON schema expected",
                };
                self.first_refusal.get_or_insert_with(|| expected.to_owned());
                Value::Null
            }
        };
        self.check = check;
        Ok(value)
    }

    fn integer(&mut self, literal: &str, narrow: bool, go_type: &str) -> Option<Value> {
        let n = literal.parse::<i64>().ok().filter(|n| !narrow || i32::try_from(*n).is_ok());
        if n.is_none() {
            self.wrong_type(&format!("number {literal}"), go_type);
        }
        n.map(Value::from)
    }

    fn canonical(&mut self, text: Result<String, String>) -> Option<Value> {
        match text {
            Ok(text) => Some(Value::String(text)),
            Err(wrong) => {
                self.first_refusal.get_or_insert(wrong);
                None
            }
        }
    }

    fn wrong_type(&mut self, value: &str, go_type: &str) {
        if let [Step::Field(_, field @ ("apiVersion" | "kind"))] = self.path.as_slice() {
            let message = format!(
                "json: cannot unmarshal {value} into Go struct field .{field} of type string"
            );
            self.wrong_type_meta.get_or_insert(message);
        }
        if self.first_wrong_type.is_none() {
            self.first_wrong_type = Some(self.wrong_type_message(value, go_type));
        }
    }

    fn refuse_wrong_type(&mut self, value: &str, go_type: &str) {
        if self.first_refusal.is_none() {
            self.first_refusal = Some(self.wrong_type_message(value, go_type));
        }
    }

    /// Go names the innermost struct and the whole path, without indices and map keys.
    fn wrong_type_message(&self, value: &str, go_type: &str) -> String {
        let mut fields = self.path.iter().filter_map(|step| match step {
            Step::Field(definition, name) => Some((definition, *name)),
            _ => None,
        });
        let names: Vec<&str> = fields.clone().map(|(_, name)| name).collect();
        match fields.next_back() {
            None => format!("json: cannot unmarshal {value} into Go value of type {go_type}"),
            Some((definition, _)) => format!(
                "json: cannot unmarshal {value} into Go struct field {}.{} of type {go_type}",
                definition.go_name(),
                names.join(".")
            ),
        }
    }

    fn strict_error(&mut self, what: &str, key: &str) {
        if !self.check || self.strict.len() >= STRICT_ERRORS_MAX {
            return;
        }
        let mut at = String::new();
        for step in &self.path {
            match step {
                Step::Index(index) => at += &format!("[{index}]"),
                Step::Field(_, name) => push_name(&mut at, name),
                Step::Key(name) => push_name(&mut at, name),
            }
        }
        push_name(&mut at, key);
        let error = format!("{what} field {}", scalar::quote(&at));
        if !self.strict.contains(&error) {
            self.strict.push(error);
        }
    }
}

fn push_name(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// The Go type of an item: `[]v1.Container` → `v1.Container`. A named list or map hides it.
fn item_go_type<'t>(go_type: &'t str, item: &Type) -> &'t str {
    if let Some(item) = go_type.strip_prefix("[]") {
        return item;
    }
    match (go_type.strip_prefix("map[").and_then(|rest| rest.split_once(']')), item) {
        (Some((_, value)), _) => value,
        (None, Type::Quantity) => "resource.Quantity",
        (None, _) => "string",
    }
}

/// Whether Go's omitempty drops the value. Objects are dropped by omitzero only.
fn is_zero(value: &Value, ty: &Type) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty() && !matches!(ty, Type::IntOrString),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && !is_raw(ty),
    }
}

/// What is kept as sent is bytes to Go: `{}` says something.
fn is_raw(ty: &Type) -> bool {
    matches!(ty, Type::Raw | Type::Any)
}

fn is_empty(value: &Value) -> bool {
    matches!(value, Value::Array(list) if list.is_empty())
        || matches!(value, Value::Object(map) if map.is_empty())
}

/// Kubernetes stores its own groups as protobuf, which knows no empty list: it comes back as null.
fn stored_as_protobuf(definition: &Definition) -> bool {
    definition.name.starts_with("io.k8s.api.")
        || definition.name.starts_with("io.k8s.apimachinery.")
}

/// A double in the form in which Go prints it: whole numbers without a fraction.
fn double(literal: &str) -> Value {
    match literal.parse::<f64>() {
        Ok(n) if n.fract() == 0.0 && n.abs() < 9.0e15 => Value::from(n as i64),
        _ => number(literal),
    }
}
