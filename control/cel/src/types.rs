//! The types that the checker reckons with.

use std::fmt;
use std::sync::Arc;

use crate::schema::{Kind, Schema};

#[derive(Clone, Debug)]
pub enum Type {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    /// The type of types.
    Type,
    /// An object with known properties.
    Object(Arc<Schema>),
    /// One of Kubernetes' own: an address, a quantity.
    Named(&'static str),
    /// What `Object{…}`, `Object.spec{…}` and `JSONPatch{…}` make.
    Message(String),
    /// `variables` of a policy: names and types in the order of their declaration.
    Variables(Arc<Vec<(String, Type)>>),
    /// Stands for any one type within a signature.
    Param(char),
}

impl Type {
    pub fn list(of: Type) -> Self {
        Self::List(Arc::new(of))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new(key), Arc::new(value))
    }

    pub fn optional(of: Type) -> Self {
        Self::Optional(Arc::new(of))
    }

    /// The type of a value with that schema.
    /// <https://kubernetes.io/docs/reference/using-api/cel/#type-system-integration>
    pub fn of(schema: &Arc<Schema>) -> Self {
        match schema.kind {
            Kind::Any | Kind::IntOrString => Self::Dyn,
            Kind::Boolean => Self::Bool,
            Kind::Integer => Self::Int,
            Kind::Number => Self::Double,
            Kind::String => Self::String,
            Kind::Timestamp => Self::Timestamp,
            Kind::Duration => Self::Duration,
            Kind::Bytes => Self::Bytes,
            Kind::Array => Self::list(schema.items.as_ref().map_or(Self::Dyn, Self::of)),
            Kind::Map => {
                let value = schema.additional.as_ref().map_or(Self::Dyn, Self::of);
                Self::map(Self::String, value)
            }
            Kind::Object => Self::Object(schema.clone()),
        }
    }

    pub fn same(&self, other: &Type) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) | (Self::Optional(a), Self::Optional(b)) => a.same(b),
            (Self::Map(a, b), Self::Map(c, d)) => a.same(c) && b.same(d),
            (Self::Object(a), Self::Object(b)) => Arc::ptr_eq(a, b) || a.name == b.name,
            (Self::Named(a), Self::Named(b)) => a == b,
            (Self::Message(a), Self::Message(b)) => a == b,
            (Self::Param(a), Self::Param(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

/// What the parameters of a signature turn out to stand for.
#[derive(Default)]
pub struct Bound(Vec<(char, Type)>);

impl Bound {
    /// Whether a value of one type may stand where another is wanted.
    pub fn accepts(&mut self, want: &Type, have: &Type) -> bool {
        match (want, have) {
            (Type::Param(p), have) => self.binds(*p, have),
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::List(w), Type::List(h)) | (Type::Optional(w), Type::Optional(h)) => {
                self.accepts(w, h)
            }
            (Type::Map(wk, wv), Type::Map(hk, hv)) => self.accepts(wk, hk) && self.accepts(wv, hv),
            (
                Type::Object(_)
                | Type::Named(_)
                | Type::Timestamp
                | Type::Duration
                | Type::Message(_)
                | Type::Null,
                Type::Null,
            ) => true,
            (want, have) => want.same(have),
        }
    }

    fn binds(&mut self, param: char, have: &Type) -> bool {
        let Some(i) = self.0.iter().position(|(p, _)| *p == param) else {
            self.0.push((param, have.clone()));
            return true;
        };
        let bound = self.0[i].1.clone();
        if self.accepts(&bound, have) {
            return true;
        }
        // The other way round: null came first, or the elements of the first are not known.
        let accepted = self.accepts(have, &bound);
        if accepted {
            self.0[i].1 = have.clone();
        }
        accepted
    }

    /// A type with its parameters replaced.
    pub fn fill(&self, of: &Type) -> Type {
        match of {
            Type::Param(p) => {
                self.0.iter().find(|(q, _)| q == p).map_or(Type::Dyn, |(_, t)| t.clone())
            }
            Type::List(t) => Type::list(self.fill(t)),
            Type::Optional(t) => Type::optional(self.fill(t)),
            Type::Map(k, v) => Type::map(self.fill(k), self.fill(v)),
            other => other.clone(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(of) => write!(f, "list({of})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Optional(of) => write!(f, "optional_type({of})"),
            Self::Type => f.write_str("type"),
            Self::Object(schema) => f.write_str(&schema.name),
            Self::Named(name) => f.write_str(name),
            Self::Message(name) => f.write_str(name),
            Self::Variables(_) => f.write_str("kubernetes.variables"),
            Self::Param(p) => write!(f, "{p}"),
        }
    }
}

/// Kubernetes' own types: the short name used in signatures, and the full one.
pub const NAMED: [(&str, &str); 11] = [
    ("IP", "net.IP"),
    ("CIDR", "net.CIDR"),
    ("URL", "kubernetes.URL"),
    ("Quantity", "kubernetes.Quantity"),
    ("Semver", "kubernetes.Semver"),
    ("Format", "kubernetes.NamedFormat"),
    ("Authorizer", "kubernetes.authorization.Authorizer"),
    ("PathCheck", "kubernetes.authorization.PathCheck"),
    ("GroupCheck", "kubernetes.authorization.GroupCheck"),
    ("ResourceCheck", "kubernetes.authorization.ResourceCheck"),
    ("Decision", "kubernetes.authorization.Decision"),
];

/// Reads a type of a signature: `list<A>`, `map<string, int>`, `optional<IP>`.
pub fn parse_type(text: &str) -> Type {
    let text = text.trim();
    if let Some((head, inner)) = text.strip_suffix('>').and_then(|t| t.split_once('<')) {
        let parts: Vec<Type> = split_types(inner).into_iter().map(parse_type).collect();
        return match (head, parts.as_slice()) {
            ("list", [of]) => Type::list(of.clone()),
            ("optional", [of]) => Type::optional(of.clone()),
            ("map", [key, value]) => Type::map(key.clone(), value.clone()),
            _ => unreachable!("signatures are written by us: {text}"),
        };
    }
    match text {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        _ if text.len() == 1 => Type::Param(text.chars().next().expect("one character")),
        _ => {
            let (_, full) = NAMED
                .iter()
                .find(|(short, _)| *short == text)
                .expect("signatures name types of ours");
            Type::Named(full)
        }
    }
}

/// Splits at the commas that stand in no bracket.
pub fn split_types(text: &str) -> Vec<&str> {
    let (mut parts, mut open, mut start) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '<' => open += 1,
            '>' => open -= 1,
            ',' if open == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        parts.push(&text[start..]);
    }
    parts
}
