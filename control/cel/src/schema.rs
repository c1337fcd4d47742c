//! What a structural schema says about the values that expressions see.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

/// Levels of a schema that are looked at; what is deeper counts as anything.
const DEPTH_MAX: usize = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of any type; only in types of our own declaration.
    Any,
    Boolean,
    Integer,
    Number,
    String,
    Timestamp,
    Duration,
    Bytes,
    IntOrString,
    Array,
    Map,
    Object,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Elements are told apart by these keys.
    Map(Vec<String>),
}

#[derive(Clone, Debug)]
pub struct Schema {
    /// How types of it are named in messages.
    pub name: String,
    pub kind: Kind,
    /// By the name that expressions use, with the property's own name.
    pub properties: BTreeMap<String, Property>,
    pub items: Option<Arc<Schema>>,
    pub additional: Option<Arc<Schema>>,
    pub list_type: ListType,
    /// How many elements, entries or bytes a value may have at most.
    pub size_max: u64,
    /// Bytes of the smallest value as JSON.
    pub size_min: u64,
}

#[derive(Clone, Debug)]
pub struct Property {
    pub name: String,
    pub schema: Arc<Schema>,
}

impl Schema {
    /// Reads a schema as it is written in a CustomResourceDefinition. None if expressions cannot see
    /// values of it: nothing is said of their type. The root of a resource, and an embedded one, have
    /// `apiVersion`, `kind`, `metadata.name` and `metadata.generateName` whatever they say.
    pub fn read(schema: &Json, name: &str, resource: bool) -> Option<Arc<Self>> {
        read(schema, name, resource, 0).map(Arc::new)
    }

    pub fn property(&self, escaped: &str) -> Option<&Property> {
        self.properties.get(escaped)
    }

    /// An object type of our own declaration: its fields are named as they are.
    pub fn declare(name: &str, fields: Vec<(&str, Schema)>) -> Self {
        let fields = fields.into_iter().map(|(field, schema)| {
            (field.to_owned(), Property { name: field.to_owned(), schema: Arc::new(schema) })
        });
        Self { properties: fields.collect(), ..Self::plain(Kind::Object, name.to_owned()) }
    }

    pub fn simple(kind: Kind) -> Self {
        Self { size_max: REQUEST_BYTES_MAX, ..Self::plain(kind, String::new()) }
    }

    pub fn list_of(items: Schema) -> Self {
        Self { items: Some(Arc::new(items)), ..Self::simple(Kind::Array) }
    }

    pub fn map_of(values: Schema) -> Self {
        Self { additional: Some(Arc::new(values)), ..Self::simple(Kind::Map) }
    }

    fn plain(kind: Kind, name: String) -> Self {
        Self {
            name,
            kind,
            properties: BTreeMap::new(),
            items: None,
            additional: None,
            list_type: ListType::Atomic,
            size_max: 0,
            size_min: 0,
        }
    }
}

fn read(schema: &Json, name: &str, resource: bool, depth: usize) -> Option<Schema> {
    if depth >= DEPTH_MAX {
        return None;
    }
    let flag = |field: &str| schema.get(field).and_then(Json::as_bool).unwrap_or(false);
    let text = |field: &str| schema.get(field).and_then(Json::as_str).unwrap_or_default();
    let max = |field: &str| schema.get(field).and_then(Json::as_u64);
    let simple = |kind: Kind, size_min: u64, size_max: u64| {
        Some(Schema { size_min, size_max, ..Schema::plain(kind, name.to_owned()) })
    };
    // Of four bytes each: sizes are reckoned in bytes, and such may a character be.
    let characters = max("maxLength").map(|n| n.saturating_mul(4));
    if flag("x-kubernetes-int-or-string") {
        return simple(Kind::IntOrString, 1, characters.unwrap_or(REQUEST_BYTES_MAX - 2));
    }
    match text("type") {
        "boolean" => simple(Kind::Boolean, 4, 1),
        "integer" => simple(Kind::Integer, 1, 1),
        "number" => simple(Kind::Number, 1, 1),
        "string" => match text("format") {
            "date" => simple(Kind::Timestamp, 12, 1),
            "date-time" => simple(Kind::Timestamp, 21, 1),
            "duration" => simple(Kind::Duration, 3, 1),
            "byte" => simple(Kind::Bytes, 2, max("maxLength").unwrap_or(REQUEST_BYTES_MAX - 2)),
            _ => {
                let longest = characters.or_else(|| longest_choice(schema));
                simple(Kind::String, 2, longest.unwrap_or(REQUEST_BYTES_MAX - 2))
            }
        },
        "array" => {
            let items = schema.get("items")?;
            let embedded = embeds(items);
            let items = Arc::new(read(items, &format!("{name}.@idx"), embedded, depth + 1)?);
            // An element takes its own bytes and a comma.
            let most = max("maxItems").unwrap_or((REQUEST_BYTES_MAX - 2) / (items.size_min + 1));
            Some(Schema {
                items: Some(items),
                list_type: list_type(schema),
                size_max: most,
                size_min: 2,
                ..Schema::plain(Kind::Array, name.to_owned())
            })
        }
        "object" => read_object(schema, name, resource, depth),
        _ => None,
    }
}

fn embeds(schema: &Json) -> bool {
    schema.get("x-kubernetes-embedded-resource").and_then(Json::as_bool).unwrap_or(false)
}

fn read_object(schema: &Json, name: &str, resource: bool, depth: usize) -> Option<Schema> {
    if let Some(additional) = schema.get("additionalProperties").filter(|a| a.is_object()) {
        let embedded = embeds(additional);
        let additional = read(additional, &format!("{name}.@elem"), embedded, depth + 1)?;
        // A key takes two quotes, a colon and a comma.
        let most = schema.get("maxProperties").and_then(Json::as_u64);
        let most = most.unwrap_or((REQUEST_BYTES_MAX - 2) / (additional.size_min + 6));
        return Some(Schema {
            additional: Some(Arc::new(additional)),
            size_max: most,
            size_min: 2,
            ..Schema::plain(Kind::Map, name.to_owned())
        });
    }
    let mut object = Schema { size_min: 2, ..Schema::plain(Kind::Object, name.to_owned()) };
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
        .collect();
    for (property, of) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
        let Some(escaped) = escape(property) else { continue };
        let path = format!("{name}.{escaped}");
        let Some(read) = read(of, &path, embeds(of), depth + 1) else { continue };
        if required.contains(&property.as_str()) && of.get("default").is_none() {
            object.size_min += property.len() as u64 + read.size_min + 4;
        }
        object
            .properties
            .insert(escaped, Property { name: property.clone(), schema: Arc::new(read) });
    }
    if resource {
        add_type_and_metadata(name, &mut object);
    }
    Some(object)
}

/// Every resource has these, whether its schema says so or not.
fn add_type_and_metadata(name: &str, into: &mut Schema) {
    let string = |field: &str| {
        let schema = Schema {
            size_max: REQUEST_BYTES_MAX - 2,
            size_min: 2,
            ..Schema::plain(Kind::String, format!("{name}.{field}"))
        };
        (field.to_owned(), Property { name: field.to_owned(), schema: Arc::new(schema) })
    };
    for field in ["apiVersion", "kind"] {
        let (key, property) = string(field);
        into.properties.insert(key, property);
    }
    let mut metadata = Schema::plain(Kind::Object, format!("{name}.metadata"));
    if let Some(given) = into.properties.get("metadata") {
        metadata.properties = given.schema.properties.clone();
    }
    metadata.properties.extend(["name", "generateName"].map(string));
    let metadata = Property { name: "metadata".into(), schema: Arc::new(metadata) };
    into.properties.insert("metadata".into(), metadata);
}

/// The name of a resource's own type.
pub const ROOT: &str = "selfType";

/// The largest request that is taken to reckon with, whatever the server's own limit is, so that what
/// a rule may cost does not depend on a server's configuration.
pub const REQUEST_BYTES_MAX: u64 = 3 << 20;

fn list_type(schema: &Json) -> ListType {
    match schema.get("x-kubernetes-list-type").and_then(Json::as_str) {
        Some("set") => ListType::Set,
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
            let keys = keys.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned);
            ListType::Map(keys.collect())
        }
        _ => ListType::Atomic,
    }
}

fn longest_choice(schema: &Json) -> Option<u64> {
    let choices = schema.get("enum")?.as_array()?;
    choices.iter().filter_map(Json::as_str).map(|c| c.len() as u64).max()
}

/// Words that cannot be a field's name in CEL.
const KEYWORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as expressions write it; None if they cannot.
/// <https://kubernetes.io/docs/reference/using-api/cel/#escaping>
pub fn escape(name: &str) -> Option<String> {
    if KEYWORDS.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let (written, length) = match c {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            c if c.is_ascii_alphanumeric() || c == '_' => (&rest[..1], 1),
            _ => return None,
        };
        out.push_str(written);
        rest = &rest[length..];
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn escaping() {
        #[track_caller]
        fn check(name: &str, expected: Option<&str>) {
            assert_eq!(escape(name).as_deref(), expected, "{name}");
        }
        check("name", Some("name"));
        check("namespace", Some("__namespace__"));
        check("if", Some("__if__"));
        check("a-b", Some("a__dash__b"));
        check("a.b/c", Some("a__dot__b__slash__c"));
        check("a__b", Some("a__underscores__b"));
        check("a_b", Some("a_b"));
        check("1a", None);
        check("a b", None);
    }
}
