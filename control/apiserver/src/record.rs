//! What is stored of an object: a versioned header, the facts that selection needs, and the finished
//! JSON body.
//!
//! The body lacks `kind`, `apiVersion` and `metadata.resourceVersion`, and starts with its metadata:
//! reading splices the three in front of bytes that nobody parses. The rejected design, storing the
//! whole answer, would write the revision before it is known.
//!
//! ```text
//! 1 byte version │ u32 length of facts │ facts │ {"metadata":{…},"spec":…}
//! facts: u32 length of the metadata object │ u8 flags │ uid
//!        │ u16 n × (label, value) │ u16 n × (field, value) │ u16 n × owner uid
//! ```
//! Strings are a u16 length and bytes; a value too long for that is refused when it is written.

use std::ops::Range;

use bytes::{BufMut as _, Bytes};
use rimward_api::meta::str_at;
use rimward_control_kinds::Kind;
use rimward_control_schema::{Format, decode};
use rimward_control_store::Revision;
use serde_json::{Map, Value};

const VERSION: u8 = 1;
const HEADER: usize = 5;
/// `{"metadata":`
const BODY_HEAD: &[u8] = b"{\"metadata\":";
const DELETING: u8 = 1;

/// A stored record does not read as one.
#[derive(Debug, thiserror::Error)]
#[error("the stored record is damaged: {0}")]
pub struct Damaged(&'static str);

/// An object cannot be stored.
#[derive(Debug, thiserror::Error)]
#[error("{field} is too long to be stored: {len} bytes")]
pub struct TooLong {
    pub field: &'static str,
    pub len: usize,
}

/// A stored object, read in place.
#[derive(Clone, Debug)]
pub struct Record {
    bytes: Bytes,
    body: usize,
    metadata: Range<usize>,
}

impl Record {
    pub fn open(bytes: &Bytes) -> Result<Self, Damaged> {
        if *bytes.first().ok_or(Damaged("it is empty"))? != VERSION {
            return Err(Damaged("its version is unknown"));
        }
        let facts = u32_at(bytes, 1).ok_or(Damaged("its header is cut short"))? as usize;
        let body = HEADER.checked_add(facts).filter(|b| *b < bytes.len());
        let body = body.ok_or(Damaged("its facts are cut short"))?;
        let metadata = u32_at(bytes, HEADER).ok_or(Damaged("its facts are cut short"))? as usize;
        let start = body + BODY_HEAD.len();
        if start + metadata > bytes.len() || metadata < 2 {
            return Err(Damaged("its metadata is cut short"));
        }
        Ok(Self { bytes: bytes.clone(), body, metadata: start..start + metadata })
    }

    /// The record of an object.
    pub fn encode(object: &Value, kind: &Kind) -> Result<Bytes, TooLong> {
        Self::encode_with(object, kind, "", None)
    }

    /// The record of an object, marked: see [`Record::mark`].
    pub fn encode_marked(object: &Value, kind: &Kind, mark: &str) -> Result<Bytes, TooLong> {
        Self::encode_with(object, kind, mark, None)
    }

    /// The record of an object whose managedFields are this text and not in the object.
    pub fn encode_managed(object: &Value, kind: &Kind, fields: &str) -> Result<Bytes, TooLong> {
        Self::encode_with(object, kind, "", Some(fields))
    }

    fn encode_with(
        object: &Value,
        kind: &Kind,
        mark: &str,
        managed_fields: Option<&str>,
    ) -> Result<Bytes, TooLong> {
        let mut body = Vec::with_capacity(1024);
        body.extend_from_slice(BODY_HEAD);
        body.push(b'{');
        let metadata = object.get("metadata").and_then(Value::as_object);
        match managed_fields {
            None => write_members(&mut body, metadata, &["resourceVersion"]),
            Some(fields) => {
                // Where a Value would have it: members are in the order of their names.
                let members = || metadata.into_iter().flatten();
                let before = members().filter(|(key, _)| key.as_str() < "managedFields");
                write_pairs(&mut body, before);
                if body.last() != Some(&b'{') {
                    body.push(b',');
                }
                body.extend_from_slice(b"\"managedFields\":");
                body.extend_from_slice(fields.as_bytes());
                let behind = |key: &str| key > "managedFields" && key != "resourceVersion";
                let mut after = members().filter(|(key, _)| behind(key)).peekable();
                if after.peek().is_some() {
                    body.push(b',');
                }
                write_pairs(&mut body, after);
            }
        }
        body.push(b'}');
        let metadata_len = body.len() - BODY_HEAD.len();
        if object.as_object().is_some_and(|o| o.keys().any(|k| !OUTSIDE.contains(&k.as_str()))) {
            body.push(b',');
            write_members(&mut body, object.as_object(), OUTSIDE);
        }
        body.push(b'}');

        let mut out = Vec::with_capacity(body.len() + 256);
        out.push(VERSION);
        out.put_u32_le(0);
        out.put_u32_le(metadata_len as u32);
        let deleting = str_at(object, &["metadata", "deletionTimestamp"]).is_some();
        out.push(if deleting { DELETING } else { 0 });
        put_str(
            &mut out,
            "metadata.uid",
            str_at(object, &["metadata", "uid"]).unwrap_or_default(),
        )?;
        let labels = metadata.and_then(|m| m.get("labels")).and_then(Value::as_object);
        out.put_u16_le(labels.map_or(0, Map::len) as u16);
        for (key, value) in labels.into_iter().flatten() {
            put_str(&mut out, "metadata.labels", key)?;
            put_str(&mut out, "metadata.labels", value.as_str().unwrap_or_default())?;
        }
        out.put_u16_le(kind.selectable_fields.len() as u16 + u16::from(!mark.is_empty()));
        if !mark.is_empty() {
            put_str(&mut out, "a field label", "")?;
            put_str(&mut out, "the mark", mark)?;
        }
        for field in &kind.selectable_fields {
            put_str(&mut out, "a field label", field)?;
            put_str(
                &mut out,
                "a selectable field",
                &kind.hooks.field(object, field).unwrap_or_default(),
            )?;
        }
        let owners = metadata.and_then(|m| m.get("ownerReferences")).and_then(Value::as_array);
        out.put_u16_le(owners.map_or(0, Vec::len) as u16);
        for owner in owners.into_iter().flatten() {
            put_str(
                &mut out,
                "metadata.ownerReferences",
                str_at(owner, &["uid"]).unwrap_or_default(),
            )?;
        }
        let facts = (out.len() - HEADER) as u32;
        out[1..5].copy_from_slice(&facts.to_le_bytes());
        out.extend_from_slice(&body);
        Ok(out.into())
    }

    /// `{"metadata":{…},…}` without type and resourceVersion.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body..]
    }

    /// The metadata object alone: `{…}`, without resourceVersion.
    pub fn metadata(&self) -> &[u8] {
        &self.bytes[self.metadata.clone()]
    }

    /// The text of managedFields, where it stands as this server writes it.
    pub fn managed_fields(&self) -> Option<&str> {
        let metadata = self.metadata();
        let range = managed_fields(metadata)?;
        // Without its name before it and the comma behind it.
        let list = &metadata[range.start + MANAGED_FIELDS.len() - 1..range.end - 1];
        std::str::from_utf8(list).ok()
    }

    pub fn deleting(&self) -> bool {
        self.bytes[HEADER + 4] & DELETING != 0
    }

    fn facts(&self) -> Facts<'_> {
        Facts { rest: &self.bytes[HEADER + 5..self.body] }
    }

    pub fn uid(&self) -> &str {
        self.facts().string()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        let mut facts = self.facts();
        facts.string();
        facts.find(key)
    }

    /// The value of a selectable field of the kind.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut facts = self.facts();
        facts.string();
        facts.skip_pairs();
        facts.find(name)
    }

    /// The version and schema that a custom resource was written under, `v1#…`; it stands among the
    /// selectable fields, under no name. Empty for built-in kinds.
    pub fn mark(&self) -> &str {
        self.field("").unwrap_or_default()
    }

    /// Uids of the owners. (Stored for whoever collects garbage from records; today's collector reads
    /// whole objects.)
    #[cfg(test)]
    pub fn owners(&self) -> Vec<&str> {
        let mut facts = self.facts();
        facts.string();
        facts.skip_pairs();
        facts.skip_pairs();
        let n = facts.count();
        (0..n).map(|_| facts.string()).collect()
    }

    /// Writes the object as it is served; `head` is [`head`]'s.
    pub fn splice(&self, head: &[u8], revision: Revision, out: &mut Vec<u8>) {
        out.extend_from_slice(head);
        push_revision(revision, out);
        // After `{"metadata":{`: metadata is never empty, so a comma joins.
        out.extend_from_slice(&self.bytes[self.metadata.start + 1..]);
    }

    /// As [`Record::splice`], without managedFields.
    pub fn splice_lean(&self, head: &[u8], revision: Revision, out: &mut Vec<u8>) {
        out.extend_from_slice(head);
        push_revision(revision, out);
        self.push_lean_metadata(out);
        out.extend_from_slice(&self.bytes[self.metadata.end..]);
    }

    /// Writes the object's metadata as a `PartialObjectMetadata`.
    pub fn splice_metadata(&self, revision: Revision, lean: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(PARTIAL_HEAD);
        push_revision(revision, out);
        match lean {
            true => self.push_lean_metadata(out),
            false => out.extend_from_slice(&self.metadata()[1..]),
        }
        out.push(b'}');
    }

    /// The metadata from behind its bracket, without managedFields.
    fn push_lean_metadata(&self, out: &mut Vec<u8>) {
        let metadata = self.metadata();
        let Some(gone) = managed_fields(metadata) else {
            return out.extend_from_slice(&metadata[1..]);
        };
        out.extend_from_slice(&metadata[1..gone.start]);
        out.extend_from_slice(&metadata[gone.end..]);
    }

    /// The body, parsed: the object without its type and resourceVersion.
    pub fn parsed(&self) -> Result<Value, Damaged> {
        // serde_json stops at 128 levels; our own reader, which let the body in, goes deeper.
        serde_json::from_slice(self.body())
            .or_else(|_| decode::any(self.body(), Format::Json))
            .map_err(|_| Damaged("its body is not JSON"))
    }

    /// The whole object, parsed.
    pub fn to_value(&self, kind: &Kind, revision: Revision) -> Result<Value, Damaged> {
        let mut object = self.parsed()?;
        object["kind"] = kind.kind.as_str().into();
        object["apiVersion"] = kind.api_version().into();
        if revision > 0 {
            object["metadata"]["resourceVersion"] = revision.to_string().into();
        }
        Ok(object)
    }
}

/// No text can hold this: a quotation mark within a text has a backslash before it.
const MANAGED_FIELDS: &[u8] = b"\"managedFields\":[";

/// Where `"managedFields":[…]` stands in a metadata object, with the comma behind it. None when it is
/// not there, or last: our own encoding puts the name and the uid behind it.
fn managed_fields(metadata: &[u8]) -> Option<Range<usize>> {
    let start = metadata.windows(MANAGED_FIELDS.len()).position(|w| w == MANAGED_FIELDS)?;
    let (mut at, mut depth) = (start + MANAGED_FIELDS.len(), 1);
    while depth > 0 {
        match metadata.get(at)? {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            b'"' => {
                at += 1;
                while *metadata.get(at)? != b'"' {
                    at += if metadata[at] == b'\\' { 2 } else { 1 };
                }
            }
            _ => {}
        }
        at += 1;
    }
    (metadata.get(at) == Some(&b',')).then_some(start..at + 1)
}

/// Members that are not part of the stored body, or stand before it.
const OUTSIDE: &[&str] = &["kind", "apiVersion", "metadata"];
const PARTIAL_HEAD: &[u8] = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":""#;

/// What stands before the resourceVersion of an object of that kind.
pub fn head(api_version: &str, kind: &str) -> Bytes {
    format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":""#)
        .into()
}

/// How every head ends.
const REVISION: &[u8] = br#""resourceVersion":""#;

fn push_revision(revision: Revision, out: &mut Vec<u8>) {
    use std::io::Write as _;
    // What a dry run would have created has none.
    if revision == 0 {
        out.truncate(out.len() - REVISION.len());
        return;
    }
    write!(out, "{revision}\",").expect("writing to a Vec cannot fail");
}

fn write_members(out: &mut Vec<u8>, object: Option<&Map<String, Value>>, without: &[&str]) {
    let all = object.into_iter().flatten();
    write_pairs(out, all.filter(|(key, _)| !without.contains(&key.as_str())));
}

fn write_pairs<'a>(out: &mut Vec<u8>, pairs: impl Iterator<Item = (&'a String, &'a Value)>) {
    let mut first = true;
    for (key, value) in pairs {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key).expect("a string is JSON");
        out.push(b':');
        serde_json::to_writer(&mut *out, value).expect("a Value is JSON");
    }
}

fn put_str(out: &mut Vec<u8>, field: &'static str, text: &str) -> Result<(), TooLong> {
    let len = u16::try_from(text.len()).map_err(|_| TooLong { field, len: text.len() })?;
    out.put_u16_le(len);
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Walks the facts. A damaged one reads as empty strings, never out of bounds.
struct Facts<'a> {
    rest: &'a [u8],
}

impl<'a> Facts<'a> {
    fn count(&mut self) -> usize {
        let Some((n, rest)) = self.rest.split_first_chunk::<2>() else { return 0 };
        self.rest = rest;
        u16::from_le_bytes(*n).into()
    }

    fn string(&mut self) -> &'a str {
        let len = self.count().min(self.rest.len());
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        std::str::from_utf8(text).unwrap_or_default()
    }

    fn skip_pairs(&mut self) {
        for _ in 0..self.count() {
            self.string();
            self.string();
        }
    }

    fn find(&mut self, wanted: &str) -> Option<&'a str> {
        for _ in 0..self.count() {
            let (key, value) = (self.string(), self.string());
            if key == wanted {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pods() -> std::sync::Arc<Kind> {
        let catalog = rimward_control_kinds::Catalog::builtin();
        catalog.by_resource("", "v1", "pods").expect("pods are served").clone()
    }

    #[test]
    fn round_trip() {
        let kind = pods();
        let object = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "name": "x", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "labels": { "a": "1", "b": "" }, "ownerReferences": [{ "uid": "o" }],
            },
            "spec": { "nodeName": "node-1", "text": "ü\"\\" },
        });
        let bytes = Record::encode(&object, &kind).expect("fits");
        let record = Record::open(&bytes).expect("reads");
        assert_eq!(record.uid(), "u");
        assert_eq!(record.label("b"), Some(""));
        assert_eq!(record.label("c"), None);
        assert_eq!(record.owners(), ["o"]);
        assert!(!record.deleting());
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(record.to_value(&kind, 42).expect("parses"), expected);
        let mut served = Vec::new();
        record.splice(&head("v1", "Pod"), 42, &mut served);
        assert_eq!(serde_json::from_slice::<Value>(&served).expect("is JSON"), expected);
        let mut partial = Vec::new();
        record.splice_metadata(42, false, &mut partial);
        let partial: Value = serde_json::from_slice(&partial).expect("is JSON");
        assert_eq!(partial["metadata"], expected["metadata"]);
        assert_eq!(partial["kind"], "PartialObjectMetadata");
    }

    #[test]
    fn managed_fields_as_text() {
        #[track_caller]
        fn check(metadata: Value) {
            let kind = pods();
            let fields = json!([{ "manager": "m\"", "fieldsV1": { "f:x": {} } }]);
            let plain = json!({ "metadata": metadata, "spec": {} });
            let mut whole = plain.clone();
            whole["metadata"]["managedFields"] = fields.clone();
            let made = Record::encode_managed(&plain, &kind, &fields.to_string()).expect("fits");
            assert_eq!(made, Record::encode(&whole, &kind).expect("fits"));
        }
        check(
            json!({ "name": "x", "annotations": { "a": "b" }, "resourceVersion": "1", "uid": "u" }),
        );
        check(json!({ "name": "x", "resourceVersion": "1" }));
        check(json!({ "annotations": {} }));
        check(json!({ "resourceVersion": "1" }));
    }

    #[test]
    fn without_managed_fields() {
        #[track_caller]
        fn check(metadata: Value) {
            let kind = pods();
            let object = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": { "managedFields": [1] } });
            let bytes = Record::encode(&object, &kind).expect("fits");
            let record = Record::open(&bytes).expect("reads");
            let mut expected = object.clone();
            expected["metadata"]["resourceVersion"] = "7".into();
            expected["metadata"].as_object_mut().expect("an object").remove("managedFields");
            let mut lean = Vec::new();
            record.splice_lean(&head("v1", "Pod"), 7, &mut lean);
            assert_eq!(serde_json::from_slice::<Value>(&lean).expect("is JSON"), expected);
            let fields = object["metadata"].get("managedFields");
            assert_eq!(record.managed_fields(), fields.map(ToString::to_string).as_deref());
            let mut partial = Vec::new();
            record.splice_metadata(7, true, &mut partial);
            let partial: Value = serde_json::from_slice(&partial).expect("is JSON");
            assert_eq!(partial["metadata"], expected["metadata"]);
        }
        check(json!({ "name": "x" }));
        check(json!({ "name": "x", "managedFields": [] }));
        let fields = json!([{ "manager": "a]\"}\\", "fieldsV1": { "f:spec": { "k:{\"name\":\"[\"}": { ".": {} } } } }, {}]);
        check(json!({ "name": "x", "managedFields": fields }));
        let annotations = json!({ "a": "\"managedFields\":[", "managedFields": "[", "b": "{\"managedFields\":[{" });
        check(
            json!({ "name": "x", "annotations": annotations, "managedFields": fields, "uid": "u" }),
        );
        check(json!({ "name": "x", "annotations": annotations }));
    }

    #[test]
    fn damaged_records_are_errors() {
        let bytes = Record::encode(&json!({ "metadata": { "name": "x" } }), &pods()).expect("fits");
        for cut in 0..bytes.len() {
            if let Ok(record) = Record::open(&bytes.slice(..cut)) {
                // Whatever still opens reads without a panic.
                let _any = (record.uid().len(), record.owners().len(), record.metadata().len());
            }
        }
        let mut wrong = bytes.to_vec();
        wrong[0] = 9;
        assert!(Record::open(&wrong.into()).is_err());
    }
}
