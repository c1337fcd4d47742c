//! OpenAPI v3 and v2 documents from the model.

use serde_json::Value;

use crate::model::{DefId, Model};

/// A resource as the documents show it.
#[derive(Clone, Debug)]
pub struct ResourceInfo {
    pub group: String,
    pub version: String,
    pub kind: String,
    /// Plural: the URL segment.
    pub resource: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub definition: DefId,
    pub subresources: Vec<SubresourceInfo>,
}

#[derive(Clone, Debug)]
pub struct SubresourceInfo {
    pub name: String,
    pub verbs: Vec<String>,
    /// (group, version, kind) and definition of its bodies: the parent's, or Scale, Eviction …
    pub speaks: (String, String, String),
    pub definition: Option<DefId>,
}

/// The document of `/openapi/v3/apis/GROUP/VERSION` (`/openapi/v3/api/v1` for the core group):
/// the paths of the given resources, and every schema that they need.
pub fn v3_document(model: &Model, group: &str, version: &str, resources: &[ResourceInfo]) -> Value {
    let _ = (model, group, version, resources);
    Value::Null
}

/// The document of `/openapi/v2`, all groups in one.
pub fn v2_document(model: &Model, resources: &[ResourceInfo]) -> Value {
    let _ = (model, resources);
    Value::Null
}

/// A v2 document in the protobuf form that kubectl's discovery client asks for
/// (`application/com.github.proto-openapi.spec.v2@v1.0+protobuf`).
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    let _ = document;
    Vec::new()
}
