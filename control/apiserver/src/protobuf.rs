//! Kubernetes' protobuf, by the numbers of the schema model: an envelope (`k8s\0` and a
//! `runtime.Unknown`, which names the type) around the message of the object.
//!
//! Requests are [decoded](decode) into the JSON form that everything else works on; answers are made
//! of it once per revision (see [`crate::views`]). Watches are frames of a length and a
//! `meta.v1.WatchEvent`, whose object is such an envelope again.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>

mod decode;
mod encode;
mod wire;

use rimward_api::Status;

use wire::{Malformed, Parts, Wire, put_bytes, put_head, text, varint_len};

pub use decode::decode;
pub use encode::message;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every body starts with; a `runtime.Unknown` follows.
const MAGIC: &[u8] = b"k8s\0";
/// The fields of an `Unknown` behind the message: content encoding and type, both empty.
const UNKNOWN_TAIL: &[u8] = &[0x1a, 0, 0x22, 0];

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

/// A whole body around the parts of a message.
pub fn enveloped(api_version: &str, kind: &str, message: &[&[u8]]) -> Vec<u8> {
    let len: usize = message.iter().map(|part| part.len()).sum();
    let mut meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(MAGIC.len() + meta.len() + len + 16 + UNKNOWN_TAIL.len());
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &meta);
    put_head(&mut out, 2, len);
    message.iter().for_each(|part| out.extend_from_slice(part));
    out.extend_from_slice(UNKNOWN_TAIL);
    out
}

/// A body of one version as that of another, if it is of that one.
pub fn renamed(body: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    let ours = envelope(&body).ok().filter(|e| e.api_version == from);
    let renamed = ours.map(|e| enveloped(to, e.kind, &[e.raw]));
    renamed.unwrap_or(body)
}

/// A `…List` body: field 1 is the list's metadata, field 2 each item.
pub fn list(api_version: &str, kind: &str, meta: &[u8], items: &[bytes::Bytes]) -> Vec<u8> {
    let len = |b: &[u8]| 1 + varint_len(b.len() as u64) + b.len();
    let mut raw = Vec::with_capacity(len(meta) + items.iter().map(|i| len(i)).sum::<usize>());
    put_bytes(&mut raw, 1, meta);
    items.iter().for_each(|item| put_bytes(&mut raw, 2, item));
    enveloped(api_version, kind, &[&raw])
}

/// One event of a watch: a big-endian length, and a WatchEvent around the body of its object.
pub fn event(event: &str, object: &[u8]) -> Vec<u8> {
    let mut extension = Vec::with_capacity(object.len() + 8);
    put_bytes(&mut extension, 1, object);
    let mut out = vec![0; 4];
    out.reserve(extension.len() + event.len() + 16);
    put_bytes(&mut out, 1, event.as_bytes());
    put_bytes(&mut out, 2, &extension);
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

fn refused(e: Malformed) -> Status {
    Status::bad_request(format!("the body of the request is not a valid protobuf object: {e}"))
}

#[cfg(test)]
mod tests;
