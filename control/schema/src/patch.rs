//! The three patches that change an object by instruction: JSON patch, JSON merge patch and strategic
//! merge patch. (Apply is in [`crate::managed`].)
//!
//! Each takes an object and answers the patched one, which is not in normal form and not checked yet:
//! pass it through [`crate::decode::value`].

use rimward_api::Status;
use serde_json::Value;

use crate::model::{DefId, Model};

/// RFC 6902. `patch` is the body; a patch that does not apply answers 422 as Kubernetes does.
pub fn json_patch(object: &Value, patch: &[u8]) -> Result<Value, Status> {
    let _ = (object, patch);
    Err(Status::internal("patching is not built in yet"))
}

/// RFC 7386.
pub fn merge_patch(object: &Value, patch: &[u8]) -> Result<Value, Status> {
    let _ = (object, patch);
    Err(Status::internal("patching is not built in yet"))
}

/// A strategic merge patch, driven by the merge keys of the model.
pub fn strategic_merge_patch(
    model: &Model,
    definition: DefId,
    object: &Value,
    patch: &[u8],
) -> Result<Value, Status> {
    let _ = (model, definition, object, patch);
    Err(Status::internal("patching is not built in yet"))
}
