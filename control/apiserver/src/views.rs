//! How a stored record becomes an answer: spliced bytes for JSON, and what other forms need, made
//! once per revision and shared.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rimward_api::Status;
use rimward_control_schema::DefId;
use rimward_control_store::Revision;
use serde_json::{Value, json};

use crate::body::{self, GZIP_BYTES_MIN, Response};
use crate::error;
use crate::negotiate::{self, Encoding, Form, Shape};
use crate::protobuf;
use crate::record::Record;
use crate::request::Call;
use crate::served::Served;
use crate::server::Inner;
use crate::table::include;

/// Bytes of shared encodings that are kept.
const SHARED_BYTES_MAX: u64 = 32 << 20;

/// One encoding of one revision of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SharedKey {
    pub key: Arc<str>,
    pub revision: Revision,
    pub served: u32,
    pub form: Form,
    /// As which event of a watch; empty for the object by itself.
    pub event: &'static str,
}

#[derive(Clone)]
pub struct ByBytes;

impl Weighter<SharedKey, Bytes> for ByBytes {
    fn weight(&self, _key: &SharedKey, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + 128
    }
}

/// Encodings that readers share, bounded by bytes.
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
    /// Whether the store holds just this under the key at the revision, so that what is made of it
    /// may be kept: not what a dry run made, nor the last form of what is gone.
    pub kept: bool,
}

impl Stored {
    pub fn open(entry: &rimward_control_store::Entry) -> Result<Self, Status> {
        let record = Record::open(&entry.value).map_err(error::damaged(&entry.key))?;
        Ok(Self { key: entry.key.clone(), record, revision: entry.revision, kept: true })
    }

    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// The metadata alone, with its resourceVersion.
    pub fn metadata_value(&self) -> Result<Value, Status> {
        let mut meta: Value = serde_json::from_slice(self.record.metadata()).map_err(|e| {
            tracing::error!(key = %self.key, error = %e, "stored metadata cannot be read");
            Status::internal(format!("{}: its metadata is not JSON", self.key))
        })?;
        if self.revision > 0 {
            meta["resourceVersion"] = self.revision.to_string().into();
        }
        Ok(meta)
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

    /// The object in the form that it is served in; of a built-in kind without its managedFields, which
    /// are half of what there is to parse, and nothing that is shown.
    pub fn lean_value(&self, served: &Served, stored: &Stored) -> Result<Value, Status> {
        let built_in = served.custom.is_none() && served.kind.conversion.is_none();
        if !built_in || served.is("coordination.k8s.io", "leases") {
            return self.value(served, stored);
        }
        let mut text = Vec::with_capacity(stored.record.body().len() + 128);
        stored.record.splice_lean(&served.head, stored.revision, &mut text);
        // What serde_json refuses for its depth our own reader takes.
        serde_json::from_slice(&text).or_else(|_| self.value(served, stored))
    }

    /// Writes an object as JSON. `typed` is whether it says its kind and apiVersion, which the items of
    /// most lists leave to the list.
    pub fn push_object(
        &self,
        served: &Served,
        stored: &Stored,
        form: Form,
        typed: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let splice = if form.lean { Record::splice_lean } else { Record::splice };
        if form.shape == Shape::Metadata {
            stored.record.splice_metadata(stored.revision, form.lean, out);
        } else if served.kind.conversion.is_some() || self.live_renew_time(served, stored).is_some()
        {
            let mut object = self.value(served, stored)?;
            if !typed && let Some(map) = object.as_object_mut() {
                map.remove("kind");
                map.remove("apiVersion");
            }
            serde_json::to_writer(&mut *out, &object).expect("a Value is JSON");
        } else if typed {
            splice(&stored.record, &served.head, stored.revision, out);
        } else {
            splice(&stored.record, ITEM_HEAD, stored.revision, out);
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

    /// The protobuf message of an object (or of its PartialObjectMetadata), without its envelope.
    pub fn message(&self, served: &Served, stored: &Stored, shape: Shape) -> Result<Bytes, Status> {
        let key = SharedKey {
            key: stored.key.clone(),
            revision: stored.revision,
            served: served.index,
            form: Form::of(Encoding::Protobuf, shape),
            event: "",
        };
        // What is overlaid changes without a revision.
        let shareable = stored.kept && self.live_renew_time(served, stored).is_none();
        if shareable && let Some(message) = self.shared.get(&key) {
            return Ok(message);
        }
        let (object, definition) = match (shape, served.definition) {
            (Shape::Metadata, _) | (_, None) => {
                let meta = stored.metadata_value()?;
                (json!({ "metadata": meta }), self.registry().model.expect(PARTIAL))
            }
            (_, Some(definition)) => (self.value(served, stored)?, definition),
        };
        let mut out = Vec::with_capacity(stored.record.body().len());
        protobuf::message(self.registry().model, definition, &object, &mut out);
        let message = Bytes::from(out);
        if shareable {
            self.shared.insert(key, message.clone());
        }
        Ok(message)
    }

    /// The protobuf body of an object.
    pub fn body(&self, served: &Served, stored: &Stored, shape: Shape) -> Result<Vec<u8>, Status> {
        let message = self.message(served, stored, shape)?;
        Ok(match shape {
            Shape::Object => {
                protobuf::enveloped(&served.kind.api_version(), &served.kind.kind, &[&message])
            }
            _ => protobuf::enveloped("meta.k8s.io/v1", "PartialObjectMetadata", &[&message]),
        })
    }

    /// The answer that carries one object, in the form that the client accepts.
    pub fn respond(
        &self,
        call: &Call,
        served: &Served,
        stored: &Stored,
        code: u16,
    ) -> Result<Response, Status> {
        let form = Form { lean: call.lean, ..negotiate::accepted(&call.headers, served)? };
        if form.shape == Shape::Table {
            let rows = std::slice::from_ref(stored);
            let meta = ListMeta::none(stored.revision);
            let table = self.table(served, rows, include(&call.query)?, &meta, true)?;
            return Ok(finished(call, code, form, table));
        }
        if form.encoding == Encoding::Protobuf {
            return Ok(finished(call, code, form, self.body(served, stored, form.shape)?));
        }
        let mut out = Vec::with_capacity(stored.record.body().len() + 128);
        self.push_object(served, stored, form, true, &mut out)?;
        Ok(finished(call, code, form, out))
    }
}

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const PARTIAL: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";

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

    /// The protobuf message.
    pub fn message(&self, server: &Inner) -> Vec<u8> {
        let mut out = Vec::new();
        let model = server.registry().model;
        protobuf::message(model, model.expect(LIST_META), &self.to_value(), &mut out);
        out
    }
}

/// An answer made of an object that is not stored, in any encoding. Kinds without wire numbers are
/// answered in JSON.
pub fn encoded(call: &Call, code: u16, form: Form, object: &Value) -> Response {
    if form.encoding == Encoding::Protobuf {
        return match protobuf_body(object) {
            body if body.is_empty() => {
                finished(call, code, negotiate::PLAIN, object.to_string().into_bytes())
            }
            body => finished(call, code, form, body),
        };
    }
    finished(call, code, form, object.to_string().into_bytes())
}

/// The protobuf body of an object that says its kind; empty for a kind without wire numbers.
pub fn protobuf_body(object: &Value) -> Vec<u8> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let Some(definition) = definition_of(api_version, kind) else { return Vec::new() };
    let mut message = Vec::new();
    protobuf::message(rimward_control_schema::builtin(), definition, object, &mut message);
    protobuf::enveloped(api_version, kind, &[&message])
}

/// The schema of a kind by the names in its envelope; Status and its like belong to every group.
fn definition_of(api_version: &str, kind: &str) -> Option<DefId> {
    let model = rimward_control_schema::builtin();
    // The documents of the core group say no version.
    let gv = rimward_api::GroupVersion::parse(api_version);
    let found = gv
        .and_then(|gv| model.of_kind(&gv.group, &gv.version, kind))
        .or_else(|| model.id(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")))?;
    (!model.get(found).message().is_empty()).then_some(found)
}

/// An answer whose bytes are made: JSON text (made YAML here, if that is asked for) or a protobuf
/// body. Large ones are compressed for those who take that.
pub fn finished(call: &Call, code: u16, form: Form, bytes: Vec<u8>) -> Response {
    let bytes = if form.beta { as_beta(bytes, form) } else { bytes };
    let bytes = match form.encoding {
        Encoding::Yaml => yaml(&bytes).into_bytes(),
        Encoding::Json | Encoding::Protobuf => bytes,
    };
    let content_type = form.encoding.media_type();
    if bytes.len() >= GZIP_BYTES_MIN && negotiate::gzip(&call.headers) {
        let mut response = error::typed(code, content_type, body::gzip(&bytes));
        mark_gzip(&mut response);
        return response;
    }
    error::typed(code, content_type, bytes)
}

const META: &str = "meta.k8s.io/v1";
const META_BETA: &str = "meta.k8s.io/v1beta1";

/// What was made in a shape of `meta.k8s.io/v1`, named as v1beta1. Asked for by few, so it is made of
/// the finished answer instead of being a case everywhere.
pub fn as_beta(bytes: Vec<u8>, form: Form) -> Vec<u8> {
    if form.encoding == Encoding::Protobuf {
        return protobuf::renamed(bytes, META, META_BETA);
    }
    let Ok(mut object) = serde_json::from_slice::<Value>(&bytes) else { return bytes };
    let ours = |o: &Value| o.get("apiVersion").is_some_and(|v| v == META);
    let partial = |o: &Value| ours(o) && o["kind"] == "PartialObjectMetadata";
    let rename = |o: &mut Value| o["apiVersion"] = META_BETA.into();
    for (list, inner) in [("items", None), ("rows", Some("object"))] {
        for item in object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let item = match inner {
                Some(inner) => item.get_mut(inner),
                None => Some(item),
            };
            item.filter(|i| partial(i)).map(rename);
        }
    }
    if ours(&object) {
        rename(&mut object);
    }
    object.to_string().into_bytes()
}

fn yaml(json: &[u8]) -> String {
    let value: Value = serde_json::from_slice(json).expect("an answer is JSON");
    // JSON is YAML too: the fallback stays readable to every client.
    serde_saphyr::to_string(&value).unwrap_or_else(|_| value.to_string())
}

pub fn mark_gzip(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
    headers.insert(http::header::VARY, http::HeaderValue::from_static("Accept-Encoding"));
}
