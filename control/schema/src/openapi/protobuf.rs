//! The protobuf form of a v2 document, the one that discovery clients ask for:
//! `openapi.v2.Document` of gnostic. Only the parts that our documents use are written.

use serde_json::Value;

/// A v2 document in the protobuf form that kubectl's discovery client asks for
/// (`application/com.github.proto-openapi.spec.v2@v1.0+protobuf`).
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.message(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    out.message(8, |paths| {
        for (path, item) in entries(&document["paths"]) {
            paths.named(2, path, |m| path_item(m, item));
        }
    });
    out.message(9, |definitions| {
        for (name, schema) in entries(&document["definitions"]) {
            definitions.named(1, name, |m| self::schema(m, schema));
        }
    });
    out.bytes
}

/// The contents of a message.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.bytes.push(n as u8);
    }

    fn tag(&mut self, field: u32, wire: u32) {
        self.varint(u64::from(field << 3 | wire));
    }

    fn string(&mut self, field: u32, text: &str) {
        self.tag(field, 2);
        self.varint(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Writes a text that is there.
    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.string(field, text);
        }
    }

    fn texts(&mut self, field: u32, value: &Value) {
        value.as_array().into_iter().flatten().for_each(|v| self.text(field, v));
    }

    fn flag(&mut self, field: u32, value: &Value) {
        if value == &Value::Bool(true) {
            self.tag(field, 0);
            self.varint(1);
        }
    }

    fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.tag(field, 2);
        self.varint(inner.bytes.len() as u64);
        self.bytes.extend_from_slice(&inner.bytes);
    }

    /// An entry of a map: name and value.
    fn named(&mut self, field: u32, name: &str, write: impl FnOnce(&mut Self)) {
        self.message(field, |entry| {
            entry.string(1, name);
            entry.message(2, write);
        });
    }

    /// Vendor extensions, as YAML text (JSON is YAML).
    fn extensions(&mut self, field: u32, object: &Value) {
        for (name, value) in entries(object).filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, |any| any.string(2, &value.to_string()));
        }
    }
}

fn entries(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

fn path_item(m: &mut Message, item: &Value) {
    for (method, field) in [
        ("get", 2),
        ("put", 3),
        ("post", 4),
        ("delete", 5),
        ("options", 6),
        ("head", 7),
        ("patch", 8),
    ] {
        if let Some(operation) = item.get(method) {
            m.message(field, |m| self::operation(m, operation));
        }
    }
    for parameter in item["parameters"].as_array().into_iter().flatten() {
        m.message(9, |m| self::parameter(m, parameter));
    }
}

fn operation(m: &mut Message, operation: &Value) {
    m.texts(1, &operation["tags"]);
    m.text(3, &operation["description"]);
    m.text(5, &operation["operationId"]);
    m.texts(6, &operation["produces"]);
    m.texts(7, &operation["consumes"]);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        m.message(8, |m| self::parameter(m, parameter));
    }
    m.message(9, |responses| {
        for (code, response) in entries(&operation["responses"]) {
            responses.named(1, code, |value| {
                value.message(1, |m| {
                    m.text(1, &response["description"]);
                    if let Some(schema) = response.get("schema") {
                        m.message(2, |item| item.message(1, |m| self::schema(m, schema)));
                    }
                });
            });
        }
    });
    m.texts(10, &operation["schemes"]);
    m.extensions(13, operation);
}

/// `ParametersItem`, which holds a `Parameter`.
fn parameter(m: &mut Message, parameter: &Value) {
    m.message(1, |m| match parameter["in"].as_str() {
        Some("body") => m.message(1, |m| {
            m.text(1, &parameter["description"]);
            m.text(2, &parameter["name"]);
            m.text(3, &parameter["in"]);
            m.flag(4, &parameter["required"]);
            m.message(5, |m| schema(m, &parameter["schema"]));
        }),
        place => m.message(2, |m| {
            let path = place == Some("path");
            m.message(if path { 4 } else { 3 }, |m| {
                m.flag(1, &parameter["required"]);
                m.text(2, &parameter["in"]);
                m.text(3, &parameter["description"]);
                m.text(4, &parameter["name"]);
                m.text(if path { 5 } else { 6 }, &parameter["type"]);
            });
        }),
    });
}

fn schema(m: &mut Message, schema: &Value) {
    m.text(1, &schema["$ref"]);
    m.text(2, &schema["format"]);
    m.text(4, &schema["description"]);
    if let Some(default) = schema.get("default") {
        m.message(5, |any| any.string(2, &default.to_string()));
    }
    m.texts(19, &schema["required"]);
    for value in schema["enum"].as_array().into_iter().flatten() {
        m.message(20, |any| any.string(2, &value.to_string()));
    }
    if let Some(additional) = schema.get("additionalProperties") {
        m.message(21, |item| item.message(1, |m| self::schema(m, additional)));
    }
    if let Some(ty) = schema["type"].as_str() {
        m.message(22, |m| m.string(1, ty));
    }
    if let Some(items) = schema.get("items") {
        m.message(23, |item| item.message(1, |m| self::schema(m, items)));
    }
    if let Some(properties) = schema.get("properties") {
        m.message(25, |m| {
            for (name, property) in entries(properties) {
                m.named(1, name, |m| self::schema(m, property));
            }
        });
    }
    m.extensions(31, schema);
}
