//! From a message to the JSON form that everything else works on.

use base64::Engine as _;
use jiff::Timestamp;
use rimward_api::Status;
use rimward_control_schema::model::Alternative;
use rimward_control_schema::{DefId, Definition, Model, Part, Type};
use serde_json::{Map, Value};

use crate::duration;

use super::wire::{Malformed, Parts, Wire, text};
use super::{Envelope, refused};

/// Deeper than any built-in kind nests, and far from the end of the stack.
const DEPTH_MAX: usize = 64;

/// The JSON form of a message, neither checked nor in normal form.
pub fn decode(model: &Model, definition: DefId, envelope: &Envelope<'_>) -> Result<Value, Status> {
    let mut object = Decoder { model }.object(definition, envelope.raw, 0).map_err(refused)?;
    object["apiVersion"] = envelope.api_version.into();
    object["kind"] = envelope.kind.into();
    Ok(object)
}

struct Decoder<'m> {
    model: &'m Model,
}

impl Decoder<'_> {
    /// Decodes parts of a definition's message: all of them, or those of an embedded one.
    fn message(
        &self,
        definition: &Definition,
        parts: &[Part],
        bytes: &[u8],
        depth: usize,
        out: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed("it nests too deeply"));
        }
        for part in Parts(bytes) {
            let (number, wire) = part?;
            match (Part::find(parts, number), wire) {
                (Some(Part::Field { index, .. }), wire) => {
                    let field = &definition.fields[usize::from(*index)];
                    self.field(
                        &field.ty,
                        wire,
                        depth,
                        out.entry(&*field.name).or_insert(Value::Null),
                    )?;
                }
                // JSON shows the fields of an embedded message as if they were the outer one's.
                (Some(Part::Embedded { parts, .. }), Wire::Bytes(inner)) => {
                    self.message(definition, parts, inner, depth + 1, out)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn object(&self, id: DefId, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
        let mut out = Map::new();
        let definition = self.model.get(id);
        self.message(definition, definition.message(), bytes, depth, &mut out)?;
        Ok(Value::Object(out))
    }

    /// Sets a field, or adds to it when it is repeated.
    fn field(
        &self,
        ty: &Type,
        wire: Wire<'_>,
        depth: usize,
        out: &mut Value,
    ) -> Result<(), Malformed> {
        match (ty, wire) {
            (Type::List(list), Wire::Bytes(packed)) if is_number(&list.item) => {
                let mut rest = Parts(packed);
                while !rest.0.is_empty() {
                    let number = rest.varint()?;
                    push(out, self.value(&list.item, Wire::Varint(number), depth)?);
                }
            }
            (Type::List(list), wire) => push(out, self.value(&list.item, wire, depth)?),
            (Type::Map(map), Wire::Bytes(entry)) => {
                let (mut key, mut value) = (String::new(), None);
                for part in Parts(entry) {
                    match part? {
                        (1, Wire::Bytes(b)) => key = text(b)?.to_owned(),
                        (2, wire) => value = Some(self.value(&map.value, wire, depth + 1)?),
                        _ => {}
                    }
                }
                let value = match value {
                    Some(value) => value,
                    None => self.value(&map.value, Wire::Bytes(b""), depth + 1)?,
                };
                if !out.is_object() {
                    *out = Value::Object(Map::new());
                }
                out.as_object_mut().expect("was just made one").insert(key, value);
            }
            (ty, wire) => *out = self.value(ty, wire, depth)?,
        }
        Ok(())
    }

    fn value(&self, ty: &Type, wire: Wire<'_>, depth: usize) -> Result<Value, Malformed> {
        let wrong = Malformed("a field has another wire type than its own");
        Ok(match (ty, wire) {
            (Type::Bool, Wire::Varint(n)) => (n != 0).into(),
            // Negative numbers are sign-extended to 64 bits.
            (Type::Int32 | Type::Int64, Wire::Varint(n)) => (n as i64).into(),
            (Type::Number, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
            (Type::Number, Wire::Fixed32(bits)) => f64::from(f32::from_bits(bits)).into(),
            (Type::String, Wire::Bytes(b)) => text(b)?.into(),
            (Type::Bytes, Wire::Bytes(b)) => {
                base64::engine::general_purpose::STANDARD.encode(b).into()
            }
            (Type::Quantity, Wire::Bytes(b)) => match first_bytes(b)? {
                Some(quantity) => text(quantity)?.into(),
                None => "0".into(),
            },
            (Type::IntOrString, Wire::Bytes(b)) => int_or_string(b)?,
            (Type::Time, Wire::Bytes(b)) => time(b, "%Y-%m-%dT%H:%M:%SZ")?,
            (Type::MicroTime, Wire::Bytes(b)) => time(b, "%Y-%m-%dT%H:%M:%S.%6fZ")?,
            (Type::Duration, Wire::Bytes(b)) => {
                let mut nanos = 0;
                for part in Parts(b) {
                    if let (1, Wire::Varint(n)) = part? {
                        nanos = n as i64;
                    }
                }
                duration::print(nanos).into()
            }
            (Type::Raw | Type::Any, Wire::Bytes(b)) => match first_bytes(b)? {
                Some(json) => serde_json::from_slice(json)
                    .map_err(|_| Malformed("an embedded object is not JSON"))?,
                None => Value::Null,
            },
            (Type::Object(definition), Wire::Bytes(b)) => self.object(*definition, b, depth + 1)?,
            // A list as the value of a map is a message of its own.
            (Type::List(list), Wire::Bytes(b)) => {
                let mut items = Value::Array(Vec::new());
                for part in Parts(b) {
                    let (_, wire) = part?;
                    push(&mut items, self.value(&list.item, wire, depth + 1)?);
                }
                items
            }
            (Type::SchemaOr(alternative, definition), Wire::Bytes(b)) => {
                self.schema_or(*alternative, *definition, b, depth + 1)?
            }
            _ => return Err(wrong),
        })
    }

    fn schema_or(
        &self,
        alternative: Alternative,
        definition: DefId,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Value, Malformed> {
        let schema = |b: &[u8]| self.value(&Type::Object(definition), Wire::Bytes(b), depth);
        let mut out = match alternative {
            Alternative::Bool => Value::Bool(false),
            _ => Value::Null,
        };
        for part in Parts(bytes) {
            match (alternative, part?) {
                (Alternative::Bool, (1, Wire::Varint(n))) if !out.is_object() => {
                    out = (n != 0).into()
                }
                (Alternative::Bool, (2, Wire::Bytes(b))) => out = schema(b)?,
                (Alternative::List | Alternative::Strings, (1, Wire::Bytes(b))) => out = schema(b)?,
                (Alternative::List, (2, Wire::Bytes(b))) => push(&mut out, schema(b)?),
                (Alternative::Strings, (2, Wire::Bytes(b))) => push(&mut out, text(b)?.into()),
                _ => {}
            }
        }
        Ok(out)
    }
}

fn is_number(ty: &Type) -> bool {
    matches!(ty, Type::Int32 | Type::Int64 | Type::Bool)
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = Value::Array(vec![item]),
    }
}

/// Field 1 of a message that has no other.
fn first_bytes(message: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut found = None;
    for part in Parts(message) {
        if let (1, Wire::Bytes(b)) = part? {
            found = Some(b);
        }
    }
    Ok(found)
}

fn int_or_string(message: &[u8]) -> Result<Value, Malformed> {
    let (mut is_string, mut int, mut string) = (false, 0, "");
    for part in Parts(message) {
        match part? {
            (1, Wire::Varint(n)) => is_string = n == 1,
            (2, Wire::Varint(n)) => int = n as i64,
            (3, Wire::Bytes(b)) => string = text(b)?,
            _ => {}
        }
    }
    Ok(if is_string { string.into() } else { int.into() })
}

fn time(message: &[u8], format: &str) -> Result<Value, Malformed> {
    // No bytes at all are Go's zero time.
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    for part in Parts(message) {
        match part? {
            (1, Wire::Varint(n)) => seconds = n as i64,
            (2, Wire::Varint(n)) => nanos = n as i32,
            _ => {}
        }
    }
    let at = Timestamp::new(seconds, nanos).map_err(|_| Malformed("a time is out of range"))?;
    Ok(at.strftime(format).to_string().into())
}
