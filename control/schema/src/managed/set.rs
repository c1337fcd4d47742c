//! Sets of fields: a tree of path elements, and the algebra on it.
//!
//! The text form is `FieldsV1`: `f:name` a field or map key, `k:{…}` a list item by its keys, `v:…` an
//! item of a set, `i:…` an index, `.` the node itself beside its children.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::model::{Model, Type};

/// One step of a path. The order is that in which conflicts are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element<'a> {
    Field(Cow<'a, str>),
    /// The keys of a list item as a JSON object, keys sorted.
    Key(Box<str>),
    /// An item of a set as JSON.
    Value(Box<str>),
    Index(u64),
}

impl<'a> Element<'a> {
    pub fn field(name: &'a str) -> Self {
        Self::Field(Cow::Borrowed(name))
    }

    /// As [`Element::parse`], of a text that may have been unescaped.
    fn parse_read(text: Cow<'a, str>) -> Option<Self> {
        match text {
            Cow::Borrowed(text) => Self::parse(text),
            Cow::Owned(text) => match text.strip_prefix("f:") {
                Some(name) => Some(Self::Field(Cow::Owned(name.to_owned()))),
                None => Some(match Element::parse(&text)? {
                    Element::Field(_) => unreachable!("it has no `f:` before it"),
                    Element::Key(keys) => Self::Key(keys),
                    Element::Value(value) => Self::Value(value),
                    Element::Index(index) => Self::Index(index),
                }),
            },
        }
    }

    /// Reads `f:name`; None for a kind of element that we do not know.
    fn parse(text: &'a str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let canonical =
            || serde_json::from_str::<Value>(rest).ok().map(|v| v.to_string().into_boxed_str());
        match kind {
            "f" => Some(Self::field(rest)),
            "k" => canonical().filter(|k| k.starts_with('{')).map(Self::Key),
            "v" => canonical().map(Self::Value),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }

    fn encode(&self) -> String {
        match self {
            Self::Field(name) => ["f:", name].concat(),
            Self::Key(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }
}

impl fmt::Display for Element<'_> {
    /// As conflicts show it: `.spec`, `[name="c"]`, `[="x"]`, `[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let shown: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", shown.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A set of fields below some point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set<'a> {
    /// Sorted by element, each either a member or with children.
    nodes: Vec<Node<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node<'a> {
    element: Element<'a>,
    /// Whether the element itself is in the set.
    member: bool,
    children: Set<'a>,
}

/// What a walk finds at one point: whether the point itself is in the set, and what is below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part<'a> {
    pub member: bool,
    pub children: Set<'a>,
}

impl<'a> Set<'a> {
    pub fn with_capacity(nodes: usize) -> Self {
        Self { nodes: Vec::with_capacity(nodes) }
    }

    /// The set of dotted paths of fields.
    pub fn of_paths(paths: &[&'a str]) -> Self {
        let mut set = Self::default();
        paths.iter().for_each(|path| set.insert_path(path));
        set
    }

    fn insert_path(&mut self, path: &'a str) {
        let (name, rest) =
            path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let element = Element::field(name);
        let at = self.nodes.binary_search_by(|n| n.element.cmp(&element)).unwrap_or_else(|at| {
            self.nodes.insert(at, Node { element, member: false, children: Set::default() });
            at
        });
        match rest {
            Some(rest) => self.nodes[at].children.insert_path(rest),
            None => self.nodes[at].member = true,
        }
    }

    /// Adds what a walk found; elements come in any order until [`Set::sort`], each once.
    pub fn push(&mut self, element: Element<'a>, part: Part<'a>) {
        if part.member || !part.children.is_empty() {
            self.nodes.push(Node { element, member: part.member, children: part.children });
        }
    }

    pub fn sort(&mut self) {
        self.nodes.sort_by(|a, b| a.element.cmp(&b.element));
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn find(&self, element: &Element<'_>) -> Option<&Node<'a>> {
        let found = self.nodes.binary_search_by(|n| compare(&n.element, element)).ok()?;
        Some(&self.nodes[found])
    }

    /// Whether the element itself is in the set.
    pub fn has(&self, element: &Element<'_>) -> bool {
        self.find(element).is_some_and(|node| node.member)
    }

    /// What is in the set below an element.
    pub fn below(&self, element: &Element<'_>) -> Option<&Set<'a>> {
        self.find(element).map(|node| &node.children).filter(|set| !set.is_empty())
    }

    /// Joins two sets node by node; `join` answers None for a node that does not stay.
    fn zip(
        self,
        other: Self,
        join: &impl Fn(Option<Node<'a>>, Option<Node<'a>>) -> Option<Node<'a>>,
    ) -> Self {
        let mut nodes = Vec::with_capacity(self.nodes.len().max(other.nodes.len()));
        let (mut left, mut right) =
            (self.nodes.into_iter().peekable(), other.nodes.into_iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Self { nodes },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(l), Some(r)) => l.element.cmp(&r.element),
            };
            let l = if order.is_le() { left.next() } else { None };
            let r = if order.is_ge() { right.next() } else { None };
            nodes.extend(join(l, r).filter(|node| node.member || !node.children.is_empty()));
        }
    }

    pub fn union(self, other: Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other } else { self };
        }
        self.zip(other, &|l, r| match (l, r) {
            (Some(l), Some(r)) => Some(Node {
                element: l.element,
                member: l.member || r.member,
                children: l.children.union(r.children),
            }),
            (l, r) => l.or(r),
        })
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let both = self.nodes.iter().filter_map(|l| {
            let r = other.find(&l.element)?;
            let member = l.member && r.member;
            let children = l.children.intersection(&r.children);
            (member || !children.is_empty()).then(|| Node {
                element: l.element.clone(),
                member,
                children,
            })
        });
        Self { nodes: both.collect() }
    }

    /// What is here and not there; a child stays when only its parent is there.
    pub fn difference(mut self, other: &Set<'_>) -> Self {
        self.subtract(other, false);
        self
    }

    /// As [`Set::difference`], but a parent there takes all its children away.
    pub fn recursive_difference(mut self, other: &Set<'_>) -> Self {
        self.subtract(other, true);
        self
    }

    fn subtract(&mut self, other: &Set<'_>, recursive: bool) {
        if other.is_empty() {
            return;
        }
        self.nodes.retain_mut(|node| {
            let Some(taken) = other.find(&node.element) else { return true };
            node.member &= !taken.member;
            if recursive && taken.member {
                node.children = Set::default();
            } else {
                node.children.subtract(&taken.children, recursive);
            }
            node.member || !node.children.is_empty()
        });
    }

    /// Adds the fields of objects on the way to each member: `a.b.c` then owns `a` if that is a field,
    /// but not `a.b` if that is a map's key.
    pub fn with_named_fields(&self, model: &Model, ty: &Type) -> Self {
        let nodes = self.nodes.iter().map(|node| {
            let (below, declared) = match (&node.element, ty) {
                (Element::Field(name), Type::Object(id)) => match model.get(*id).field(name) {
                    Some(field) => (&field.ty, true),
                    None => (&Type::Any, false),
                },
                (Element::Field(_), Type::Map(map)) => (&map.value, false),
                (_, Type::List(list)) => (&list.item, false),
                _ => (&Type::Any, false),
            };
            Node {
                element: node.element.clone(),
                member: node.member || (declared && !node.children.is_empty()),
                children: node.children.with_named_fields(model, below),
            }
        });
        Self { nodes: nodes.collect() }
    }

    /// The same set, borrowing nothing.
    pub fn into_owned(self) -> Set<'static> {
        let nodes = self.nodes.into_iter().map(|node| Node {
            element: match node.element {
                Element::Field(name) => Element::Field(Cow::Owned(name.into_owned())),
                Element::Key(keys) => Element::Key(keys),
                Element::Value(value) => Element::Value(value),
                Element::Index(index) => Element::Index(index),
            },
            member: node.member,
            children: node.children.into_owned(),
        });
        Set { nodes: nodes.collect() }
    }

    /// Calls `tell` with each member's path, a node's own members before those below it.
    pub fn paths(&self, prefix: &str, tell: &mut impl FnMut(String)) {
        for node in self.nodes.iter().filter(|n| n.member) {
            tell(format!("{prefix}{}", node.element));
        }
        for node in &self.nodes {
            node.children.paths(&format!("{prefix}{}", node.element), tell);
        }
    }

    /// Reads `fieldsV1`. Elements of unknown kinds are dropped.
    pub fn decode(fields: &'a Value) -> Option<Self> {
        match fields {
            Value::Null => Some(Self::default()),
            Value::Object(map) => Some(Self::decode_map(map).children),
            _ => None,
        }
    }

    fn decode_map(map: &'a Map<String, Value>) -> Part<'a> {
        let mut part = Part { member: map.contains_key("."), children: Set::default() };
        for (key, below) in map.iter().filter(|(key, _)| *key != ".") {
            let Some(element) = Element::parse(key) else { continue };
            let below = below
                .as_object()
                .map_or(Part { member: true, ..Part::default() }, Self::decode_map);
            part.children.push(element, below);
        }
        part.children.sort();
        // An element that says nothing about what is below it is meant itself.
        part.member |= part.children.is_empty();
        part
    }

    /// Writes `fieldsV1`.
    pub fn encode(&self) -> Value {
        let mut map = Map::new();
        for node in &self.nodes {
            let mut below = match node.children.encode() {
                Value::Object(map) => map,
                _ => Map::new(),
            };
            if node.member && !below.is_empty() {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(node.element.encode(), Value::Object(below));
        }
        Value::Object(map)
    }
}

/// Reads `fieldsV1` from its text, as [`Set::decode`] does from a Value.
impl<'de: 'a, 'a> Deserialize<'de> for Part<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PartVisitor)
    }
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = Part<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a set of fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Part<'de>, A::Error> {
        let mut part = Part::default();
        while let Some(Text(key)) = map.next_key()? {
            if key == "." {
                part.member = true;
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            match Element::parse_read(key) {
                Some(element) => part.children.push(element, map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        part.children.sort();
        part.member |= part.children.is_empty();
        Ok(part)
    }
}

/// A text that is borrowed where nothing in it was escaped.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

impl Set<'_> {
    /// Writes `fieldsV1` as JSON text; `member` says that the node whose children these are is in the
    /// set itself. What has no order as text that it has as a tree is written by way of a Value.
    pub fn write(&self, member: bool, out: &mut String) {
        if self.nodes.iter().any(|n| matches!(n.element, Element::Index(_))) {
            let mut value = self.encode();
            if member && let Some(map) = value.as_object_mut() {
                map.insert(".".to_owned(), Value::Object(Map::new()));
            }
            return out.push_str(&value.to_string());
        }
        out.push('{');
        if member && !self.nodes.is_empty() {
            out.push_str("\".\":{}");
        }
        for (i, node) in self.nodes.iter().enumerate() {
            if i > 0 || member {
                out.push(',');
            }
            match &node.element {
                Element::Field(name) if is_plain(name) => {
                    out.push_str("\"f:");
                    out.push_str(name);
                    out.push('"');
                }
                element => push_text(out, &element.encode()),
            }
            out.push(':');
            node.children.write(node.member, out);
        }
        out.push('}');
    }
}

/// Whether a text stands in JSON as it is.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\')
}

/// Appends a text as JSON has it.
pub(crate) fn push_text(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&serde_json::to_string(text).expect("a text is JSON"));
    }
}

/// Orders elements of different lifetimes.
fn compare(a: &Element<'_>, b: &Element<'_>) -> Ordering {
    let rank = |e: &Element<'_>| match e {
        Element::Field(_) => 0,
        Element::Key(_) => 1,
        Element::Value(_) => 2,
        Element::Index(_) => 3,
    };
    match (a, b) {
        (Element::Field(a), Element::Field(b)) => a.cmp(b),
        (Element::Key(a), Element::Key(b)) | (Element::Value(a), Element::Value(b)) => a.cmp(b),
        (Element::Index(a), Element::Index(b)) => a.cmp(b),
        _ => rank(a).cmp(&rank(b)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn algebra() {
        #[track_caller]
        fn check(op: for<'a> fn(Set<'a>, Set<'a>) -> Set<'a>, a: Value, b: Value, expected: Value) {
            let set = |v| Set::decode(v).expect("an object");
            assert_eq!(op(set(&a), set(&b)).encode(), expected, "{a} {b}");
        }
        let (parent, child) = (json!({"f:a": {}}), json!({"f:a": {"f:b": {}}}));
        let both = json!({"f:a": {".": {}, "f:b": {}}});
        check(|a, b| a.union(b), parent.clone(), child.clone(), both.clone());
        check(|a, b| a.intersection(&b), both.clone(), child.clone(), child.clone());
        check(|a, b| a.intersection(&b), parent.clone(), child.clone(), json!({}));
        check(|a, b| a.difference(&b), both.clone(), parent.clone(), child.clone());
        check(|a, b| a.difference(&b), parent.clone(), child.clone(), parent.clone());
        check(|a, b| a.recursive_difference(&b), both.clone(), parent.clone(), json!({}));
        let many = json!({"f:z": {}, "k:{\"name\":\"c\"}": {".": {}, "f:x": {}}, "v:\"s\"": {}, "i:3": {}});
        check(|a, b| a.union(b), many.clone(), json!({}), many.clone());
        for set in
            [&parent, &child, &both, &many, &json!({"f:\"\\": {".": {}, "f:ü\n": {}}, "f:x": {}})]
        {
            let mut text = String::new();
            Set::decode(set).expect("a set").write(false, &mut text);
            assert_eq!(text, set.to_string());
            let read: Part<'_> = serde_json::from_str(&text).expect("a set");
            assert_eq!(Some(read.children), Set::decode(set), "{text}");
        }
        check(|a, b| a.union(b), json!({"f:z": {}, "q:new": {}}), json!({}), json!({"f:z": {}}));
    }

    #[test]
    fn paths() {
        let fields =
            json!({"f:spec": {".": {}, "f:l": {"k:{\"p\":80,\"q\":\"T\"}": {}, "v:\"x\"": {}}}});
        let mut told = Vec::new();
        Set::decode(&fields).expect("a set").paths("", &mut |path| told.push(path));
        assert_eq!(told, [".spec", r#".spec.l[p=80,q="T"]"#, r#".spec.l[="x"]"#]);
        assert_eq!(
            Set::of_paths(&["a.b", "a", "c"]).encode(),
            json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}})
        );
    }
}
