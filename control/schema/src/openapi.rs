//! OpenAPI v3 and v2 documents from the model. kubectl reads v3 for `explain`, to learn which query
//! parameters the server knows, and for the merge keys of `apply`; Helm and older clients read v2.
//!
//! Documents are made when somebody asks and kept by the caller: they are large, and the model in
//! memory holds no descriptions.

mod custom;
mod enums;
mod paths;
mod protobuf;
mod roots;
mod schema;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::builtin::descriptions;
use crate::model::{DefId, Model};

pub use custom::{CustomInfo, add_custom};
pub use protobuf::v2_protobuf;
pub use roots::{v3_root, v3_roots};

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
    /// Defined by a CustomResourceDefinition.
    pub custom: bool,
    /// A deletion answers the object, not a Status.
    pub returns_deleted: bool,
}

#[derive(Clone, Debug)]
pub struct SubresourceInfo {
    pub name: String,
    pub verbs: Vec<String>,
    /// (group, version, kind) of its bodies: the parent's, or Scale, Eviction …; of a connection, its
    /// options.
    pub speaks: (String, String, String),
    /// None for what is connected to.
    pub definition: Option<DefId>,
}

/// The version of OpenAPI that a document is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// A reference to a definition.
    pub fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({ "$ref": format!("#/definitions/{name}") }),
            Self::V3 => json!({ "$ref": format!("#/components/schemas/{name}") }),
        }
    }
}

const TITLE: &str = "Kubernetes";
const VERSION: &str = "v1.36.2";

/// The document of `/openapi/v3/apis/GROUP/VERSION` (`/openapi/v3/api/v1` for the core group):
/// the paths of the given resources, and every schema that they need.
pub fn v3_document(model: &Model, group: &str, version: &str, resources: &[ResourceInfo]) -> Value {
    let mut used = BTreeSet::new();
    let mut all = Map::new();
    let mut own = resources.iter().filter(|r| r.group == group && r.version == version).peekable();
    if own.peek().is_some() {
        roots::add_version(model, (group, version), Dialect::V3, &mut all, &mut used);
    }
    for resource in own {
        paths::add(model, resource, Dialect::V3, &mut all, &mut used);
    }
    v3(model, all, used)
}

fn v3(model: &Model, paths: Map<String, Value>, used: BTreeSet<DefId>) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": { "title": TITLE, "version": VERSION },
        "paths": paths,
        "components": {
            "schemas": schema::definitions(model, &descriptions(), Dialect::V3, used),
            "securitySchemes": { "BearerToken": bearer_token() },
        },
    })
}

/// The document of `/openapi/v2`, all groups in one.
pub fn v2_document(model: &Model, resources: &[ResourceInfo]) -> Value {
    let mut used = BTreeSet::new();
    let mut all = Map::new();
    for resource in resources {
        paths::add(model, resource, Dialect::V2, &mut all, &mut used);
    }
    roots::add_all(model, resources, &mut all, &mut used);
    let mut definitions = schema::definitions(model, &descriptions(), Dialect::V2, used);
    definitions.extend([roots::version_info()]);
    json!({
        "swagger": "2.0",
        "info": { "title": TITLE, "version": VERSION },
        "paths": all,
        "definitions": definitions,
        "securityDefinitions": { "BearerToken": bearer_token() },
        "security": [{ "BearerToken": [] }],
    })
}

fn bearer_token() -> Value {
    json!({ "type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication" })
}

#[cfg(test)]
mod tests;
