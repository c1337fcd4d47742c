//! How a stored record becomes an answer: spliced bytes for JSON, and what other forms need.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rimward_api::Status;
use rimward_control_kinds::Kind;
use rimward_control_store::Revision;
use serde_json::{Value, json};

use crate::body::{self, GZIP_BYTES_MIN, Response};
use crate::error;
use crate::negotiate::{self, Encoding, Form, Shape};
use crate::record::Record;
use crate::request::{Call, Query};
use crate::served::Served;
use crate::server::Inner;

/// Bytes of shared encodings that are kept.
const SHARED_BYTES_MAX: u64 = 32 << 20;

/// One encoding of one event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SharedKey {
    pub key: Arc<str>,
    pub revision: Revision,
    pub served: u32,
    pub metadata_only: bool,
    pub event: &'static str,
}

#[derive(Clone)]
pub struct ByBytes;

impl Weighter<SharedKey, Bytes> for ByBytes {
    fn weight(&self, _key: &SharedKey, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + 128
    }
}

/// Encodings that watchers share, bounded by bytes.
pub type Shared = Cache<SharedKey, Bytes, ByBytes>;

pub fn shared() -> Shared {
    Cache::with_weighter(8192, SHARED_BYTES_MAX, ByBytes)
}

/// A record and where it came from.
#[derive(Clone, Debug)]
pub struct Stored {
    pub key: Arc<str>,
    pub record: Record,
    pub revision: Revision,
}

impl Stored {
    pub fn open(entry: &rimward_control_store::Entry) -> Result<Self, Status> {
        let record = Record::open(&entry.value).map_err(error::damaged(&entry.key))?;
        Ok(Self { key: entry.key.clone(), record, revision: entry.revision })
    }

    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// The object in the form that it is stored in.
    pub fn stored_value(&self, served: &Served) -> Result<Value, Status> {
        self.record.to_value(&served.stored, self.revision).map_err(error::damaged(&self.key))
    }
}

impl Inner {
    /// The object in the form that it is served in.
    pub fn value(&self, served: &Served, stored: &Stored) -> Result<Value, Status> {
        let mut object = to_served(served, stored.stored_value(served)?);
        if let Some(time) = self.live_renew_time(served, stored) {
            object["spec"]["renewTime"] = time.into();
        }
        Ok(object)
    }

    /// Writes an object as JSON. `typed` is false for items of a typed list, which leave kind and
    /// apiVersion to the list.
    pub fn push_object(
        &self,
        served: &Served,
        stored: &Stored,
        shape: Shape,
        typed: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        if shape == Shape::Metadata {
            stored.record.splice_metadata(stored.revision, out);
        } else if served.kind.conversion.is_some() || self.live_renew_time(served, stored).is_some()
        {
            let mut object = self.value(served, stored)?;
            if !typed && let Some(map) = object.as_object_mut() {
                map.remove("kind");
                map.remove("apiVersion");
            }
            serde_json::to_writer(&mut *out, &object).expect("a Value is JSON");
        } else if typed {
            stored.record.splice(&served.head, stored.revision, out);
        } else {
            stored.record.splice(ITEM_HEAD, stored.revision, out);
        }
        Ok(())
    }

    /// A node's Lease shows when the node was last heard of, not when that was last written.
    fn live_renew_time(&self, served: &Served, stored: &Stored) -> Option<String> {
        if !served.is("coordination.k8s.io", "leases") {
            return None;
        }
        let name = stored.key.strip_prefix(&served.prefix("kube-node-lease"))?;
        let heard = self.nodes.read().as_ref()?.last_heard(name)?;
        Some(heard.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
    }

    /// The answer that carries one object, in the form that the client accepts.
    pub fn respond(
        &self,
        call: &Call,
        served: &Served,
        stored: &Stored,
        code: u16,
    ) -> Result<Response, Status> {
        let form = negotiate::accepted(&call.headers)?;
        if form.shape == Shape::Table {
            let table = self.table(
                served,
                std::slice::from_ref(stored),
                include(&call.query)?,
                ListMeta::none(stored.revision),
                true,
            )?;
            return Ok(encoded(code, form, &table.to_string()));
        }
        let mut out = Vec::with_capacity(stored.record.body().len() + 128);
        self.push_object(served, stored, form.shape, true, &mut out)?;
        if form.encoding == Encoding::Yaml {
            return Ok(encoded(code, form, std::str::from_utf8(&out).expect("JSON is UTF-8")));
        }
        if out.len() >= GZIP_BYTES_MIN && negotiate::gzip(&call.headers) {
            return Ok(gzipped(code, &out));
        }
        Ok(error::json(code, out))
    }

    /// A `meta.k8s.io/v1` Table of records.
    pub fn table(
        &self,
        served: &Served,
        rows: &[Stored],
        include: Include,
        meta: ListMeta,
        columns: bool,
    ) -> Result<Value, Status> {
        let now = Timestamp::now();
        let rows = rows.iter().map(|stored| {
            let object = self.value(served, stored)?;
            let mut row = json!({ "cells": served.kind.hooks.cells(&object, now) });
            row["object"] = match include {
                Include::Object => object,
                Include::Metadata => {
                    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] })
                }
                Include::None => Value::Null,
            };
            Ok(row)
        });
        let rows: Vec<Value> = rows.collect::<Result<_, Status>>()?;
        Ok(json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta.to_value(),
            "columnDefinitions": if columns { columns_of(&served.kind) } else { Value::Null },
            "rows": rows,
        }))
    }
}

const ITEM_HEAD: &[u8] = br#"{"metadata":{"resourceVersion":""#;

/// From the stored form to the served one.
pub fn to_served(served: &Served, stored: Value) -> Value {
    match &served.kind.conversion {
        None => stored,
        Some(conversion) => with_type(served, conversion.from_stored(stored)),
    }
}

/// From the served form to the stored one.
pub fn to_stored(served: &Served, object: Value) -> Value {
    match &served.kind.conversion {
        None => object,
        Some(conversion) => {
            let mut object = conversion.to_stored(object);
            object["kind"] = served.stored.kind.as_str().into();
            object["apiVersion"] = served.stored.api_version().into();
            object
        }
    }
}

fn with_type(served: &Served, mut object: Value) -> Value {
    object["kind"] = served.kind.kind.as_str().into();
    object["apiVersion"] = served.kind.api_version().into();
    object
}

fn columns_of(kind: &Kind) -> Value {
    let column = |c: &rimward_control_kinds::Column| json!({ "name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority });
    kind.columns.iter().map(column).collect()
}

/// `includeObject` of a Table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

pub fn include(query: &Query) -> Result<Include, Status> {
    match query.get("includeObject").unwrap_or_default() {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    }
}

/// `metav1.ListMeta`.
#[derive(Clone, Debug, Default)]
pub struct ListMeta {
    pub revision: Revision,
    pub token: Option<String>,
    pub remaining: Option<usize>,
}

impl ListMeta {
    pub fn none(revision: Revision) -> Self {
        Self { revision, ..Self::default() }
    }

    pub fn to_value(&self) -> Value {
        let mut meta = json!({ "resourceVersion": self.revision.to_string() });
        if let Some(token) = &self.token {
            meta["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

/// JSON text in the encoding that was asked for.
pub fn encoded(code: u16, form: Form, text: &str) -> Response {
    match form.encoding {
        Encoding::Json => error::json(code, text.to_owned()),
        Encoding::Yaml => error::typed(code, "application/yaml", yaml(text)),
    }
}

fn yaml(json: &str) -> String {
    let value: Value = serde_json::from_str(json).expect("an answer is JSON");
    // JSON is YAML too: the fallback stays readable to every client.
    serde_saphyr::to_string(&value).unwrap_or_else(|_| json.to_owned())
}

pub fn gzipped(code: u16, bytes: &[u8]) -> Response {
    let mut response = error::json(code, body::gzip(bytes));
    mark_gzip(&mut response);
    response
}

pub fn mark_gzip(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
    headers.insert(http::header::VARY, http::HeaderValue::from_static("Accept-Encoding"));
}
