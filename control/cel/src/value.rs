//! Values: views of JSON where they come from outside, of their own where an expression makes them.
//!
//! JSON is wrapped, never converted as a whole: an expression pays for what it looks at. What the
//! schema says decides what a number or a text is; without one, numbers are what they look like.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rimward_api::quantity::Quantity;
use serde_json::{Map as JsonMap, Value as Json};

use crate::authorizer::Check;
use crate::error::{EvalError, other};
use crate::functions::format::Format;
use crate::limits::Budget;
use crate::schema::{Kind, ListType, Schema};

mod equality;
mod json;

pub use equality::position;
pub use json::to_json;

#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    List(List<'a>),
    Map(Map<'a>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    Optional(Option<Arc<Value<'a>>>),
    /// A type, by its name.
    Type(Text<'a>),
    Ip(IpAddr),
    Cidr(Cidr),
    Url(Arc<url::Url>),
    Quantity(Quantity),
    Semver(Arc<semver::Version>),
    Format(&'static Format),
    Check(Arc<Check>),
    /// What `Object{…}` or `JSONPatch{…}` made.
    Message(Arc<Message<'a>>),
    /// `variables` of a policy, whose fields are evaluated when they are asked for.
    Variables,
}

/// A string that is shared, not copied.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub ip: IpAddr,
    pub bits: u8,
}

#[derive(Clone, Debug)]
pub enum List<'a> {
    Json(&'a [Json], Option<&'a Schema>),
    Made(Arc<Vec<Value<'a>>>),
    /// A list that the schema declares a set or a map, after `+`.
    Merged(Arc<Vec<Value<'a>>>, &'a Schema),
}

#[derive(Clone, Debug)]
pub enum Map<'a> {
    Json(&'a JsonMap<String, Json>, Option<&'a Schema>),
    Made(Arc<Entries<'a>>),
}

/// A map that an expression made: in the order of making, found by key.
#[derive(Clone, Debug, Default)]
pub struct Entries<'a> {
    entries: Vec<(Value<'a>, Value<'a>)>,
    index: std::collections::HashMap<Key, usize>,
}

/// A key in a form that can be hashed. Whole numbers are one key, whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Bool(bool),
    Int(i128),
    String(Arc<str>),
}

#[derive(Clone, Debug)]
pub struct Message<'a> {
    pub type_name: &'a str,
    pub fields: Vec<(&'a str, Value<'a>)>,
}

impl Key {
    fn of(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Bool(b) => Some(Self::Bool(*b)),
            Value::Int(n) => Some(Self::Int(i128::from(*n))),
            Value::Uint(n) => Some(Self::Int(i128::from(*n))),
            Value::Double(n) if n.fract() == 0.0 && n.abs() < 1e18 => Some(Self::Int(*n as i128)),
            Value::String(s) => Some(Self::String(Arc::from(&**s))),
            _ => None,
        }
    }
}

impl<'a> Entries<'a> {
    /// Adds an entry; a key that is there already is refused.
    pub fn insert(&mut self, key: Value<'a>, value: Value<'a>) -> Result<(), EvalError> {
        let Some(found) = Key::of(&key) else {
            return other(format!("unsupported key type: {}", key.type_name()));
        };
        if self.index.contains_key(&found) {
            return other(format!("insert failed: key {} already exists", key.shown()));
        }
        self.index.insert(found, self.entries.len());
        self.entries.push((key, value));
        Ok(())
    }
}

impl<'a> Value<'a> {
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(text.into()))
    }

    pub fn list(items: Vec<Value<'a>>) -> Self {
        Self::List(List::Made(Arc::new(items)))
    }

    pub fn some(value: Value<'a>) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    pub fn none() -> Self {
        Self::Optional(None)
    }

    /// A view of JSON as its schema says it is.
    pub fn of(json: &'a Json, schema: Option<&'a Schema>) -> Self {
        match (json, schema.map(|s| s.kind)) {
            (Json::Null, _) => Self::Null,
            (Json::Bool(b), _) => Self::Bool(*b),
            (Json::Number(n), Some(Kind::Number)) => Self::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Json::Number(n), kind) => number(n, kind),
            (Json::String(s), Some(Kind::Timestamp)) => {
                timestamp(s).map_or_else(|| Self::borrowed(s), Self::Timestamp)
            }
            (Json::String(s), Some(Kind::Duration)) => crate::functions::time::parse_duration(s)
                .map_or_else(|| Self::borrowed(s), Self::Duration),
            (Json::String(s), Some(Kind::Bytes)) => decoded(s),
            (Json::String(s), _) => Self::borrowed(s),
            (Json::Array(items), _) => Self::List(List::Json(items, schema)),
            (Json::Object(map), _) => Self::Map(Map::Json(map, schema)),
        }
    }

    pub fn borrowed(text: &'a str) -> Self {
        Self::String(Text::Borrowed(text))
    }

    /// The name of its type, as `type(x)` gives it.
    pub fn type_name(&self) -> &'a str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(Map::Json(_, Some(schema))) if schema.kind == Kind::Object => &schema.name,
            Self::Map(_) => "map",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Check(check) => check.type_name(),
            Self::Message(message) => message.type_name,
            Self::Variables => "kubernetes.variables",
        }
    }

    /// For messages.
    pub fn shown(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bool(b) => b.to_string(),
            Self::Int(n) => n.to_string(),
            Self::Uint(n) => n.to_string(),
            Self::Double(n) => n.to_string(),
            Self::String(s) => s.to_string(),
            other => other.type_name().to_owned(),
        }
    }

    /// How much there is to look at, as costs count: bytes, elements, entries.
    pub fn size(&self) -> usize {
        match self {
            Self::String(s) | Self::Type(s) => s.len(),
            Self::Bytes(b) => b.len(),
            Self::List(list) => list.len(),
            Self::Map(map) => map.len(),
            Self::Ip(ip) => {
                if ip.is_ipv4() {
                    4
                } else {
                    16
                }
            }
            Self::Cidr(cidr) => {
                if cidr.ip.is_ipv4() {
                    4
                } else {
                    16
                }
            }
            _ => 1,
        }
    }

    /// Whether an optional made of it by `optional.ofNonZeroValue` has nothing.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(b) => !b,
            Self::Int(n) => *n == 0,
            Self::Uint(n) => *n == 0,
            Self::Double(n) => *n == 0.0,
            Self::String(s) => s.is_empty(),
            Self::Bytes(b) => b.is_empty(),
            Self::List(list) => list.is_empty(),
            Self::Map(map) => map.is_empty(),
            Self::Duration(d) => d.is_zero(),
            Self::Optional(o) => o.is_none(),
            _ => false,
        }
    }

    /// Whether the objects in it are named by where they stand: `Object.spec` only in the field `spec`
    /// of an `Object`.
    pub fn check_names(&self) -> Result<(), String> {
        match self {
            Self::Message(message) if message.type_name != "JSONPatch" => {
                names_below(self, message.type_name)
            }
            Self::List(list) => list.iter().try_for_each(|item| match &item {
                // A patch's own value begins a path of its own.
                Self::Message(patch) if patch.type_name == "JSONPatch" => patch
                    .fields
                    .iter()
                    .filter(|(name, _)| *name == "value")
                    .try_for_each(|(_, value)| value.check_names()),
                item => item.check_names(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether two values are equal; of different types, they are not. Pays for what it compares.
    pub fn equals(&self, other: &Value<'a>, budget: &mut Budget) -> Result<bool, EvalError> {
        equality::equal(self, other, budget)
    }

    /// Which is the lesser; None if they do not compare.
    pub fn compare(&self, other: &Value<'a>) -> Option<Ordering> {
        equality::compare(self, other)
    }
}

fn names_below(value: &Value<'_>, expected: &str) -> Result<(), String> {
    match value {
        Value::Message(message) => {
            if message.type_name != expected {
                return Err(format!(
                    "unexpected type name {:?}, expected {expected:?}, which matches field name path from root Object type",
                    message.type_name
                ));
            }
            message
                .fields
                .iter()
                .try_for_each(|(name, value)| names_below(value, &format!("{expected}.{name}")))
        }
        Value::List(List::Made(items)) => items.iter().try_for_each(|v| names_below(v, expected)),
        Value::Map(Map::Made(made)) => {
            made.entries.iter().try_for_each(|(_, value)| names_below(value, expected))
        }
        _ => Ok(()),
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

fn number<'a>(n: &serde_json::Number, kind: Option<Kind>) -> Value<'a> {
    if let Some(n) = n.as_i64() {
        return Value::Int(n);
    }
    match n.as_f64() {
        // 1.0 is a whole number where the schema asks for one.
        Some(n) if kind == Some(Kind::Integer) && n.fract() == 0.0 && n.abs() < 9.2e18 => {
            Value::Int(n as i64)
        }
        Some(n) => Value::Double(n),
        None => Value::Double(f64::NAN),
    }
}

/// A date, or a date and time.
fn timestamp(text: &str) -> Option<Timestamp> {
    if let Ok(date) = text.parse::<jiff::civil::Date>()
        && text.len() == 10
    {
        return Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp());
    }
    crate::functions::time::parse_timestamp(text)
}

fn decoded<'a>(text: &'a str) -> Value<'a> {
    use base64::Engine;
    match base64::engine::general_purpose::STANDARD.decode(text) {
        Ok(bytes) => Value::Bytes(bytes.into()),
        Err(_) => Value::borrowed(text),
    }
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json(items, _) => items.len(),
            Self::Made(items) | Self::Merged(items, _) => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Json(items, schema) => {
                let of = schema.and_then(|s| s.items.as_deref());
                items.get(index).map(|item| Value::of(item, of))
            }
            Self::Made(items) | Self::Merged(items, _) => items.get(index).cloned(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).map_while(|i| self.get(i))
    }

    /// How its elements are told apart.
    pub fn list_type(&self) -> &'a ListType {
        const ATOMIC: &ListType = &ListType::Atomic;
        match self {
            Self::Json(_, Some(schema)) | Self::Merged(_, schema) => &schema.list_type,
            _ => ATOMIC,
        }
    }

    pub(crate) fn schema(&self) -> Option<&'a Schema> {
        match self {
            Self::Json(_, schema) => *schema,
            Self::Merged(_, schema) => Some(schema),
            Self::Made(_) => None,
        }
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Json(map, _) => map.len(),
            Self::Made(made) => made.entries.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key; for an object, of a field by the name that expressions use.
    pub fn get(&self, key: &Value<'_>) -> Option<Value<'a>> {
        match self {
            Self::Json(..) => match key {
                Value::String(key) => self.field(key),
                _ => None,
            },
            Self::Made(made) => {
                let index = made.index.get(&Key::of(key)?)?;
                Some(made.entries[*index].1.clone())
            }
        }
    }

    pub fn field(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Self::Json(map, Some(schema)) if schema.kind == Kind::Object => {
                let property = schema.property(name)?;
                map.get(&property.name).map(|v| Value::of(v, Some(&property.schema)))
            }
            Self::Json(map, schema) => {
                let of = schema.and_then(|s| s.additional.as_deref());
                map.get(name).map(|v| Value::of(v, of))
            }
            Self::Made(made) => {
                let index = made.index.get(&Key::String(Arc::from(name)))?;
                Some(made.entries[*index].1.clone())
            }
        }
    }

    /// Keys and values; of an object, those that its schema names.
    pub fn entries(&self) -> Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + '_> {
        match self {
            Self::Json(map, Some(schema)) if schema.kind == Kind::Object => {
                let map: &'a JsonMap<String, Json> = map;
                Box::new(schema.properties.iter().filter_map(|(escaped, property)| {
                    let value = map.get(&property.name)?;
                    Some((Value::borrowed(escaped), Value::of(value, Some(&property.schema))))
                }))
            }
            Self::Json(map, schema) => {
                let of = schema.and_then(|s| s.additional.as_deref());
                Box::new(map.iter().map(move |(k, v)| (Value::borrowed(k), Value::of(v, of))))
            }
            Self::Made(made) => Box::new(made.entries.iter().cloned()),
        }
    }
}

impl<'a> From<Cow<'a, str>> for Text<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        match text {
            Cow::Borrowed(text) => Self::Borrowed(text),
            Cow::Owned(text) => Self::Shared(text.into()),
        }
    }
}
