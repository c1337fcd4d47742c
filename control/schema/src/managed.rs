//! Field ownership: who set what (`metadata.managedFields`), and server-side apply, which is built
//! on it. The algebra is that of structured-merge-diff.
//! <https://kubernetes.io/docs/reference/using-api/server-side-apply/>
//!
//! A manager's set holds the fields that it set last. A write takes what it changed from everyone else;
//! an apply may do so only by force, and removes what its manager applied before, does not apply now
//! and nobody else claims.

mod apply;
mod compare;
mod merge;
mod overlay;
mod record;
mod set;
mod shape;
mod validate;

pub use apply::apply;
pub use overlay::overlay;
pub(crate) use validate::go_print;

use std::sync::LazyLock;

use jiff::Timestamp;
use rimward_api::meta;
use serde_json::Value;

use crate::decode;
use crate::model::{DefId, Model, Type};
use compare::{Change, compare};
use record::{Entry, Manager, Operation, Record};
use set::Set;
use shape::Place;

/// Fields that nobody manages: the server's own, and the object's identity.
static UNMANAGED: LazyLock<Set<'static>> = LazyLock::new(|| {
    Set::of_paths(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

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

impl Write<'_> {
    fn time(&self) -> String {
        Timestamp::from_second(self.now.as_second()).expect("it was a time before").to_string()
    }
}

/// Records a create, update or patch: whoever changed a field owns it. `new` is the whole object after
/// defaulting and before admission; its `metadata.managedFields` are those that the client sent
/// (`[]` or `[{}]` clears them all; absent keeps the old ones) and are replaced by the new record.
/// Call it with `old: None` on create.
pub fn update(
    model: &Model,
    definition: DefId,
    old: Option<&Value>,
    new: &mut Value,
    write: &Write<'_>,
) {
    let recorded = old.and_then(|o| meta::at(o, &["metadata", "managedFields"]));
    // A client that sends back what it read says nothing about the record.
    let sent = take_managed_fields(new).filter(|sent| Some(sent) != recorded);
    let nothing;
    let before = match old {
        Some(old) => old,
        None => {
            nothing = decode::zero(model, definition);
            &nothing
        }
    };
    let ty = Type::Object(definition);
    let changed = Changed::of(compare(Place::new(model, &ty), Some(before), Some(&*new)), write);
    if sent.is_none() && changed.is_nothing() {
        put_managed_fields(new, recorded.cloned());
        return;
    }
    let record = record_before(old, sent.as_ref(), write);
    let untracked = record.entries.is_empty()
        && old.is_some_and(|o| meta::str_at(o, &["metadata", "uid"]).is_some());
    if untracked {
        return;
    }
    let encoded = updated(record, changed, write).encode();
    put_managed_fields(new, encoded);
}

/// The record that [`update`] makes of a create, as the JSON text that its Value would have. Most
/// objects are never looked at between this and the store; the text is a tenth of the work. `new` must
/// not say anything of its managedFields itself.
pub fn created(model: &Model, definition: DefId, new: &Value, write: &Write<'_>) -> Option<String> {
    let zero = decode::zero(model, definition);
    let ty = Type::Object(definition);
    let place = Place::new(model, &ty);
    let changed = Changed::of(compare(place, Some(&zero), Some(new)), write);
    updated(Record::default(), changed, write).encode_text()
}

/// What an update makes of a record that stays text.
#[derive(Debug, PartialEq)]
pub enum Recorded {
    /// It stays as it is.
    Same,
    /// It is this text now; None when nobody manages anything.
    New(Option<String>),
}

/// As [`update`], for objects that were parsed without their managedFields: they are half of most
/// objects, and text on both sides. `recorded` is the old one's; the client must not have sent any of
/// its own. None when the text is not as this server writes it: [`update`] can tell then.
pub fn updated_text(
    model: &Model,
    definition: DefId,
    old: &Value,
    recorded: Option<&str>,
    new: &Value,
    write: &Write<'_>,
) -> Option<Recorded> {
    let ty = Type::Object(definition);
    let changed = Changed::of(compare(Place::new(model, &ty), Some(old), Some(new)), write);
    if changed.is_nothing() {
        return Some(Recorded::Same);
    }
    let record = match recorded {
        Some(text) => Record::decode_text(text)?,
        None => Record::default(),
    };
    let untracked = record.entries.is_empty() && meta::str_at(old, &["metadata", "uid"]).is_some();
    if untracked {
        return Some(Recorded::New(None));
    }
    Some(Recorded::New(updated(record, changed, write).encode_text()))
}

/// What a write changed, without what it does not own.
struct Changed<'a> {
    /// Added or modified.
    set: Set<'a>,
    removed: Set<'a>,
}

impl<'a> Changed<'a> {
    fn of(change: Change<'a>, write: &Write<'_>) -> Self {
        let ignored = Set::of_paths(write.ignored);
        let set = change.modified.children.union(change.added.children);
        let mut removed = change.removed.children.recursive_difference(&ignored);
        removed = removed.difference(&UNMANAGED);
        Self { set: set.recursive_difference(&ignored).difference(&UNMANAGED), removed }
    }

    fn is_nothing(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}

/// The record that a write starts from: the one that the client sent if it is one, else the old one.
fn record_before<'a>(
    old: Option<&'a Value>,
    sent: Option<&'a Value>,
    write: &Write<'_>,
) -> Record<'a> {
    let of_old = || {
        Record::decode(old.and_then(|o| meta::at(o, &["metadata", "managedFields"])))
            .unwrap_or_default()
    };
    if !write.subresource.is_empty() {
        return of_old();
    }
    match sent.and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => return Record::default(),
        Some([Value::Object(one)]) if one.is_empty() => return Record::default(),
        _ => {}
    }
    match Record::decode(sent) {
        Ok(record) if !record.entries.is_empty() => record,
        _ => of_old(),
    }
}

/// The record after a change: everyone loses what was changed, the writer gains it.
fn updated<'a>(mut record: Record<'a>, changed: Changed<'a>, write: &Write<'_>) -> Record<'a> {
    lose(&mut record, &changed, None);
    let gained = changed.set;
    if !gained.is_empty() {
        let manager =
            Manager::new(write.manager, Operation::Update, write.api_version, write.subresource);
        let time = Some(write.time());
        let api_version = write.api_version.to_owned();
        match record.position(&manager) {
            Some(at) => {
                let entry = &mut record.entries[at];
                entry.set = std::mem::take(&mut entry.set).union(gained);
                (entry.time, entry.api_version) = (time, api_version);
            }
            None => record.entries.push(Entry { manager, api_version, time, set: gained }),
        }
    }
    record.cap();
    record
}

/// Takes the changed and removed fields from everyone but `except`.
fn lose(record: &mut Record<'_>, changed: &Changed<'_>, except: Option<&Manager>) {
    for entry in record.entries.iter_mut().filter(|e| Some(&e.manager) != except) {
        let set = std::mem::take(&mut entry.set);
        entry.set = set.difference(&changed.set).difference(&changed.removed);
    }
    record.entries.retain(|e| !e.set.is_empty());
}

fn take_managed_fields(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

fn put_managed_fields(object: &mut Value, fields: Option<Value>) {
    let Some(fields) = fields else { return };
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("managedFields".to_owned(), fields);
    }
}

#[cfg(test)]
mod tests;
