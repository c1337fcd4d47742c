//! From the JSON form to a message: the very bytes that Go's generated code writes. Fields go out in
//! the order of their numbers, maps in the order of their keys, and what is no pointer in Go is
//! written even when it is zero.

use base64::Engine as _;
use jiff::Timestamp;
use rimward_control_schema::model::{Alternative, MapType, Presence};
use rimward_control_schema::{DefId, Definition, Field, Model, Part, Type};
use serde_json::{Map, Value};

use crate::duration;

use super::wire::{put_bytes, put_double, put_int, put_nested};

/// Writes the message of an object; whatever is not as the model says is written as zero.
pub fn message(model: &Model, definition: DefId, object: &Value, out: &mut Vec<u8>) {
    let definition = model.get(definition);
    let none = Map::new();
    let fields = object.as_object().unwrap_or(&none);
    Encoder { model }.parts(definition, definition.message(), fields, out);
}

struct Encoder<'m> {
    model: &'m Model,
}

impl Encoder<'_> {
    fn parts(
        &self,
        definition: &Definition,
        parts: &[Part],
        object: &Map<String, Value>,
        out: &mut Vec<u8>,
    ) {
        for part in parts {
            match part {
                Part::Field { number, index } => {
                    let field = &definition.fields[usize::from(*index)];
                    match object.get(&*field.name).filter(|v| !v.is_null()) {
                        Some(value) => self.field(*number, &field.ty, value, out),
                        None if !is_pointer(field) => self.zero(*number, &field.ty, out),
                        None => {}
                    }
                }
                Part::Embedded { number, parts } => {
                    put_nested(out, *number, |out| self.parts(definition, parts, object, out));
                }
            }
        }
    }

    /// A field that is there: one occurrence, or as many as it has items.
    fn field(&self, number: u32, ty: &Type, value: &Value, out: &mut Vec<u8>) {
        match ty {
            Type::List(list) => {
                for item in value.as_array().into_iter().flatten() {
                    self.value(number, &list.item, item, out);
                }
            }
            Type::Map(map) => self.entries(number, map, value, out),
            ty => self.value(number, ty, value, out),
        }
    }

    fn entries(&self, number: u32, map: &MapType, value: &Value, out: &mut Vec<u8>) {
        // In the order of keys: that is how this Map iterates.
        for (key, value) in value.as_object().into_iter().flatten() {
            put_nested(out, number, |out| {
                put_bytes(out, 1, key.as_bytes());
                match &map.value {
                    // A list as the value of a map is a message of its own.
                    list @ Type::List(_) => {
                        put_nested(out, 2, |out| self.field(1, list, value, out));
                    }
                    ty => self.value(2, ty, value, out),
                }
            });
        }
    }

    fn value(&self, number: u32, ty: &Type, value: &Value, out: &mut Vec<u8>) {
        let text = value.as_str().unwrap_or_default();
        let int = || match value.as_i64() {
            Some(n) => n,
            None => value.as_f64().unwrap_or_default() as i64,
        };
        match ty {
            Type::Bool => put_int(out, number, value.as_bool().unwrap_or_default().into()),
            Type::Int32 | Type::Int64 => put_int(out, number, int()),
            Type::Number => put_double(out, number, value.as_f64().unwrap_or_default()),
            Type::String => put_bytes(out, number, text.as_bytes()),
            Type::Bytes => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text);
                put_bytes(out, number, &bytes.unwrap_or_default());
            }
            Type::Quantity => {
                let shown = value.to_string();
                let shown = value.as_str().unwrap_or(&shown);
                put_nested(out, number, |out| put_bytes(out, 1, shown.as_bytes()));
            }
            Type::IntOrString => put_nested(out, number, |out| {
                put_int(out, 1, value.is_string().into());
                put_int(out, 2, if value.is_string() { 0 } else { int() });
                put_bytes(out, 3, text.as_bytes());
            }),
            Type::Time | Type::MicroTime => put_nested(out, number, |out| {
                if let Ok(at) = text.parse::<Timestamp>() {
                    put_int(out, 1, at.as_second());
                    put_int(out, 2, at.subsec_nanosecond().into());
                }
            }),
            Type::Duration => put_nested(out, number, |out| put_int(out, 1, duration::nanos(text))),
            Type::Raw | Type::Any => {
                put_nested(out, number, |out| put_bytes(out, 1, value.to_string().as_bytes()));
            }
            Type::Object(id) => {
                put_nested(out, number, |out| message(self.model, *id, value, out));
            }
            Type::SchemaOr(alternative, id) => {
                put_nested(out, number, |out| self.schema_or(*alternative, *id, value, out));
            }
            // Lists and maps of lists and maps do not exist in the built-in kinds.
            Type::List(_) | Type::Map(_) => {
                put_nested(out, number, |out| self.field(1, ty, value, out))
            }
        }
    }

    fn schema_or(&self, alternative: Alternative, id: DefId, value: &Value, out: &mut Vec<u8>) {
        let schema = |out: &mut Vec<u8>, number, value: &Value| {
            put_nested(out, number, |out| message(self.model, id, value, out));
        };
        match (alternative, value) {
            (Alternative::Bool, Value::Bool(allows)) => put_int(out, 1, (*allows).into()),
            (Alternative::Bool, value) => {
                put_int(out, 1, 1);
                schema(out, 2, value);
            }
            (Alternative::List, Value::Array(items)) => {
                items.iter().for_each(|item| schema(out, 2, item))
            }
            (Alternative::Strings, Value::Array(items)) => {
                for item in items {
                    put_bytes(out, 2, item.as_str().unwrap_or_default().as_bytes());
                }
            }
            (_, value) => schema(out, 1, value),
        }
    }

    /// The zero value of what cannot be absent in Go.
    fn zero(&self, number: u32, ty: &Type, out: &mut Vec<u8>) {
        match ty {
            Type::Bool | Type::Int32 | Type::Int64 => put_int(out, number, 0),
            Type::Number => put_double(out, number, 0.0),
            Type::String | Type::Time | Type::MicroTime | Type::Raw | Type::Any => {
                put_bytes(out, number, b"")
            }
            Type::Quantity => self.value(number, ty, &Value::from("0"), out),
            Type::Duration => self.value(number, ty, &Value::from("0s"), out),
            Type::IntOrString => self.value(number, ty, &Value::from(0), out),
            Type::Object(id) => {
                put_nested(out, number, |out| message(self.model, *id, &Value::Null, out));
            }
            Type::SchemaOr(..) => put_bytes(out, number, b""),
            // Nil in Go.
            Type::Bytes | Type::List(_) | Type::Map(_) => {}
        }
    }
}

fn is_pointer(field: &Field) -> bool {
    matches!(field.presence, Presence::Pointer | Presence::PointerOrNull)
}
