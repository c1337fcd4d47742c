//! Bodies in Kubernetes' protobuf: decoded by the schema model into the JSON form that everything
//! else works on. Answers are JSON; clients that send protobuf accept both.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>

use base64::Engine as _;
use jiff::Timestamp;
use rimward_api::Status;
use rimward_control_schema::model::{Alternative, Field};
use rimward_control_schema::{DefId, Model, Type};
use serde_json::{Map, Value};

/// What every body starts with; a `runtime.Unknown` follows.
const MAGIC: &[u8] = b"k8s\0";
/// Deeper than any built-in kind nests, and far from the end of the stack.
const DEPTH_MAX: usize = 64;

/// The bytes are not what they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct Malformed(&'static str);

/// The type and the message in a body.
#[derive(Debug)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
}

/// Opens a body.
pub fn envelope(body: &[u8]) -> Result<Envelope<'_>, Status> {
    let open = || {
        let rest = body
            .strip_prefix(MAGIC)
            .ok_or(Malformed("it does not start with the bytes of Kubernetes' protobuf"))?;
        let mut envelope = Envelope { api_version: "", kind: "", raw: b"" };
        for part in Parts(rest) {
            match part? {
                (1, Wire::Bytes(meta)) => {
                    for part in Parts(meta) {
                        match part? {
                            (1, Wire::Bytes(b)) => envelope.api_version = text(b)?,
                            (2, Wire::Bytes(b)) => envelope.kind = text(b)?,
                            _ => {}
                        }
                    }
                }
                (2, Wire::Bytes(raw)) => envelope.raw = raw,
                _ => {}
            }
        }
        Ok(envelope)
    };
    open().map_err(refused)
}

/// The JSON form of a message, neither checked nor in normal form.
pub fn decode(model: &Model, definition: DefId, envelope: &Envelope<'_>) -> Result<Value, Status> {
    let mut out = Map::new();
    let decoder = Decoder { model };
    decoder.message(definition, &[], envelope.raw, 0, &mut out).map_err(refused)?;
    out.insert("apiVersion".into(), envelope.api_version.into());
    out.insert("kind".into(), envelope.kind.into());
    Ok(Value::Object(out))
}

fn refused(e: Malformed) -> Status {
    Status::bad_request(format!("the body of the request is not a valid protobuf object: {e}"))
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("a string is not UTF-8"))
}

enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a message as they come.
struct Parts<'a>(&'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.0 = b"";
        }
        Some(part)
    }
}

impl<'a> Parts<'a> {
    fn part(&mut self) -> Result<(u32, Wire<'a>), Malformed> {
        let tag = self.varint()?;
        let number =
            u32::try_from(tag >> 3).map_err(|_| Malformed("a field number is too large"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?)
                    .map_err(|_| Malformed("a length is too large"))?;
                let (bytes, rest) =
                    self.0.split_at_checked(len).ok_or(Malformed("it is cut short"))?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            _ => return Err(Malformed("a wire type is unknown")),
        };
        Ok((number, wire))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed("it is cut short"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too long"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(*bytes)
    }
}

struct Decoder<'m> {
    model: &'m Model,
}

impl Decoder<'_> {
    /// Decodes the fields of a definition that stand in the embedded message `within`.
    fn message(
        &self,
        definition: DefId,
        within: &[u32],
        bytes: &[u8],
        depth: usize,
        out: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed("it nests too deeply"));
        }
        let definition_of = self.model.get(definition);
        let fields = &definition_of.fields;
        // The type of a whole object stands in the envelope; in the message its numbers are others'.
        let is_kind = !definition_of.kinds.is_empty();
        let hidden = |f: &Field| is_kind && matches!(&*f.name, "kind" | "apiVersion");
        let proto = |f: &Field| f.proto.clone();
        for part in Parts(bytes) {
            let (number, wire) = part?;
            let own = fields.iter().filter(|f| !hidden(f)).find(|f| {
                f.proto.as_ref().is_some_and(|p| p.number == number && *p.within == *within)
            });
            if let Some(field) = own {
                self.field(&field.ty, wire, depth, out.entry(&*field.name).or_insert(Value::Null))?;
                continue;
            }
            // JSON shows the fields of an embedded message as if they were the outer one's.
            let mut deeper = within.to_vec();
            deeper.push(number);
            let embeds = fields.iter().filter_map(proto).any(|p| p.within.starts_with(&deeper));
            if let (true, Wire::Bytes(inner)) = (embeds, wire) {
                self.message(definition, &deeper, inner, depth + 1, out)?;
            }
        }
        Ok(())
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
            (Type::Raw | Type::Any, Wire::Bytes(b)) => match first_bytes(b)? {
                Some(json) => serde_json::from_slice(json)
                    .map_err(|_| Malformed("an embedded object is not JSON"))?,
                None => Value::Null,
            },
            (Type::Object(definition), Wire::Bytes(b)) => {
                let mut out = Map::new();
                self.message(*definition, &[], b, depth + 1, &mut out)?;
                Value::Object(out)
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn varint(mut n: u64) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let byte = (n & 0x7f) as u8;
            n >>= 7;
            if n == 0 {
                out.push(byte);
                return out;
            }
            out.push(byte | 0x80);
        }
    }

    fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
    }

    fn int(number: u64, n: i64) -> Vec<u8> {
        [varint(number << 3), varint(n as u64)].concat()
    }

    fn body(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, message)].concat()
    }

    #[test]
    fn a_pod() {
        let model = rimward_control_schema::builtin();
        let label = bytes(11, &[bytes(1, b"a"), bytes(2, b"b")].concat());
        let created = bytes(8, &int(1, 1_000_000_000));
        let meta = bytes(1, &[bytes(1, b"x"), label, created].concat());
        // A volume's source is embedded: field 2 of the volume, emptyDir (2) within.
        let volume = bytes(1, &[bytes(1, b"v"), bytes(2, &bytes(2, b""))].concat());
        let limit = bytes(1, &[bytes(1, b"cpu"), bytes(2, &bytes(1, b"1"))].concat());
        let container = bytes(2, &[bytes(1, b"c"), bytes(2, b"img"), bytes(8, &limit)].concat());
        let spec = bytes(2, &[volume, container, int(4, -1)].concat());
        let body = body("v1", "Pod", &[meta, spec].concat());
        let envelope = envelope(&body).expect("opens");
        let pod =
            decode(model, model.expect("io.k8s.api.core.v1.Pod"), &envelope).expect("decodes");
        assert_eq!(
            pod,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": "x", "labels": { "a": "b" }, "creationTimestamp": "2001-09-09T01:46:40Z" },
                "spec": {
                    "volumes": [{ "name": "v", "emptyDir": {} }],
                    "containers": [{ "name": "c", "image": "img", "resources": { "limits": { "cpu": "1" } } }],
                    "terminationGracePeriodSeconds": -1,
                },
            })
        );
        for cut in 0..body.len() {
            // Whatever is cut off: an answer, never a panic.
            let _either = super::envelope(&body[..cut])
                .and_then(|e| decode(model, model.expect("io.k8s.api.core.v1.Pod"), &e));
        }
    }
}
