//! Field ownership: who set what (`metadata.managedFields`), and server-side apply, which is built
//! on it. The algebra is that of structured-merge-diff.
//! <https://kubernetes.io/docs/reference/using-api/server-side-apply/>

use jiff::Timestamp;
use rimward_api::Status;
use serde_json::Value;

use crate::model::{DefId, Model};

/// Who writes what, for the record.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// `fieldManager`, or the part of the User-Agent before the first `/`.
    pub manager: &'a str,
    /// Of the object as written: `apps/v1`.
    pub api_version: &'a str,
    /// `status`, `scale`; empty for the object itself.
    pub subresource: &'a str,
    pub now: Timestamp,
    /// Paths that this write cannot change and so does not own, dotted: `status` for a write to the
    /// object itself, `spec` for one to `/status` (Kubernetes' GetResetFields).
    pub ignored: &'a [&'a str],
}

/// Records a create, update or patch: whoever changed a field owns it. `new` is the whole object after
/// defaulting and before admission; its `metadata.managedFields` are those that the client sent
/// (`[]` or `[{}]` clears them all; absent keeps the old ones) and are replaced by the new record.
/// Call it with `old: None` on create.
pub fn update(model: &Model, definition: DefId, old: Option<&Value>, new: &mut Value, write: &Write<'_>) {
    let _ = (model, definition, old, new, write);
}

/// Server-side apply. `applied` is the decoded body *as sent* (not in normal form, or it would own
/// zero values that the client did not say); `live` the stored object, None when it does not exist.
/// Answers the merged object with its new managedFields, not defaulted and not in normal form (pass
/// it through [`crate::decode::value`] and the kind's defaulting). 409 with one cause a conflict
/// unless `force`.
pub fn apply(
    model: &Model,
    definition: DefId,
    live: Option<&Value>,
    applied: &Value,
    write: &Write<'_>,
    force: bool,
) -> Result<Value, Status> {
    let _ = (model, definition, live, applied, write, force);
    Err(Status::internal("apply is not built in yet"))
}
