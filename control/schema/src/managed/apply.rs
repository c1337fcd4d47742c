//! Server-side apply.

use rimward_api::{Cause, CauseReason, GroupVersion, Reason, Status, meta};
use serde_json::Value;

use super::compare::{compare, said};
use super::merge::{merge, remove};
use super::record::{Entry, Manager, Operation, Record};
use super::set::Set;
use super::shape::Place;
use super::validate::validate;
use super::{Changed, UNMANAGED, Write, lose, put_managed_fields, take_managed_fields, updated};
use crate::decode;
use crate::model::{DefId, Model, Type};

/// The updater that owns what was there before anything was recorded.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// What `kubectl apply` without `--server-side` leaves behind.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Server-side apply. `applied` is the body as sent ([`crate::decode::applied`]: in normal form it would
/// own zero values that the client did not say); `live` the stored object, None when it does not
/// exist. Answers the merged object with its new managedFields, not defaulted and not in normal form
/// (pass it through [`crate::decode::value`] and the kind's defaulting). 409 with one cause a conflict
/// unless `force`.
pub fn apply(
    model: &Model,
    definition: DefId,
    live: Option<&Value>,
    applied: &Value,
    write: &Write<'_>,
    force: bool,
) -> Result<Value, Status> {
    check_identity(model, definition, applied, write)?;
    let ty = Type::Object(definition);
    let place = Place::new(model, &ty);
    if let Some(wrong) = validate(place, applied) {
        let shown = shown(applied);
        let message = format!("failed to create typed patch object ({shown}): {wrong}");
        return Err(Status::new(500, Reason::Unknown, message));
    }
    let nothing = decode::zero(model, definition);
    let mut bare = live.cloned().unwrap_or_else(|| nothing.clone());
    let recorded = take_managed_fields(&mut bare);
    let mut record = Record::decode(recorded.as_ref()).map_err(|e| {
        Status::new(500, Reason::Unknown, format!("failed to decode managed fields: {e}"))
    })?;
    if record.entries.is_empty() && live.is_some() {
        let before = Write { manager: BEFORE_FIRST_APPLY, ..*write };
        let changed = Changed::of(compare(place, Some(&nothing), Some(&bare)), &before);
        record = updated(record, changed, &before);
    }
    let act = Act { place, live: &bare, applied, write };
    let outcome = match act.apply(record.clone(), force) {
        Err(conflicts) if write.manager == "kubectl" => {
            let allowed = act.allowed_by_last_applied();
            let rest = conflicts.without(&allowed);
            if !rest.0.is_empty() {
                return Err(rest.into_status());
            }
            act.apply(record, true).map_err(Conflicts::into_status)?
        }
        outcome => outcome.map_err(Conflicts::into_status)?,
    };
    let encoded = outcome.record.encode();
    let mut merged = outcome.merged;
    if write.manager == "kubectl" {
        refresh_last_applied(&mut merged, applied);
    }
    put_managed_fields(&mut merged, encoded);
    Ok(merged)
}

/// What must hold before anything is merged.
fn check_identity(
    model: &Model,
    definition: DefId,
    applied: &Value,
    write: &Write<'_>,
) -> Result<(), Status> {
    let text = |name| meta::str_at(applied, &[name]).unwrap_or_default();
    let kinds = &model.get(definition).kinds;
    let right_kind = kinds.is_empty() || kinds.iter().any(|k| k.kind == text("kind"));
    if text("apiVersion") != write.api_version || !right_kind {
        return Err(Status::bad_request(format!("invalid object type: {}", kind_shown(applied))));
    }
    if meta::at(applied, &["metadata", "managedFields"]).is_some_and(|v| !v.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    Ok(())
}

fn kind_shown(object: &Value) -> String {
    let text = |name| meta::str_at(object, &[name]).unwrap_or_default();
    let (group, version) = GroupVersion::parse(text("apiVersion"))
        .map_or_else(Default::default, |gv| (gv.group, gv.version));
    format!("{group}/{version}, Kind={}", text("kind"))
}

fn shown(object: &Value) -> String {
    let part = |name| meta::str_at(object, &["metadata", name]).unwrap_or_default();
    format!("{}/{}; {}", part("namespace"), part("name"), kind_shown(object))
}

/// One apply.
struct Act<'a, 'm> {
    place: Place<'m>,
    /// Without managedFields.
    live: &'a Value,
    applied: &'a Value,
    write: &'a Write<'a>,
}

struct Outcome<'a> {
    merged: Value,
    record: Record<'a>,
}

impl<'a> Act<'a, '_> {
    fn apply(&self, mut record: Record<'a>, force: bool) -> Result<Outcome<'a>, Conflicts> {
        let Write { manager, api_version, subresource, .. } = *self.write;
        let manager = Manager::new(manager, Operation::Apply, api_version, subresource);
        let mut merged = merge(self.place, Some(self.live), Some(self.applied)).unwrap_or_default();
        let ignored = Set::of_paths(self.write.ignored);
        let set = said(self.place, self.applied).children.recursive_difference(&ignored);
        let last = record.get(&manager).map(|e| e.set.clone()).unwrap_or_default();
        let time = record.get(&manager).and_then(|e| e.time.clone());
        record.entries.retain(|e| e.manager != manager);
        let api_version = api_version.to_owned();
        record.entries.push(Entry { manager: manager.clone(), api_version, time, set });
        if !last.is_empty() {
            merged = self.prune(&merged, &last, &record);
        }
        let change = compare(self.place, Some(self.live), Some(&merged));
        let changed = Changed::of(change, self.write);
        let conflicts = Conflicts::find(&record, &manager, &changed.set);
        if !force && !conflicts.0.is_empty() {
            return Err(conflicts);
        }
        let record =
            recorded(record, &manager, &changed, (merged != *self.live).then(|| self.write.time()));
        Ok(Outcome { merged, record })
    }

    /// Takes away what this manager applied last time, does not apply now, and nobody else owns.
    fn prune(&self, merged: &Value, last: &Set<'_>, record: &Record<'_>) -> Value {
        let (model, ty) = (self.place.model, self.place.ty);
        let named = |set: &Set<'_>| set.clone().with_named_fields(model, ty).into_owned();
        let said_by = |value: &Value| named(&said(self.place, value).children);
        let last = named(last);
        let of_merged = said_by(merged);
        let pruned = remove(self.place, merged, &last);
        // What was removed with its parent but is owned by somebody comes back.
        let owned = record
            .entries
            .iter()
            .fold(Set::default(), |all, e| all.union(e.set.clone().into_owned()));
        let stays = said_by(&pruned).union(named(&owned));
        let pruned = remove(self.place, merged, &of_merged.clone().difference(&stays));
        // So does what this manager never owned.
        let gone = of_merged.difference(&said_by(&pruned)).intersection(&last);
        remove(self.place, merged, &gone)
    }

    /// The fields that the last client-side apply set and that nobody changed since: `kubectl apply
    /// --server-side` may take them over without force.
    fn allowed_by_last_applied(&self) -> Set<'static> {
        let annotation = meta::str_at(self.live, &["metadata", "annotations", LAST_APPLIED]);
        let Some(last) = annotation.and_then(|text| serde_json::from_str::<Value>(text).ok())
        else {
            return Set::default();
        };
        let change = compare(self.place, Some(&last), Some(self.live));
        let changed =
            change.modified.children.union(change.added.children).union(change.removed.children);
        said(self.place, &last).children.difference(&changed).into_owned()
    }
}

/// The record after an apply that is allowed.
fn recorded<'a>(
    mut record: Record<'a>,
    manager: &Manager,
    changed: &Changed<'_>,
    changed_at: Option<String>,
) -> Record<'a> {
    lose(&mut record, changed, Some(manager));
    if let Some(at) = record.position(manager) {
        let entry = &mut record.entries[at];
        entry.set = std::mem::take(&mut entry.set).difference(&UNMANAGED);
        if changed_at.is_some() {
            entry.time = changed_at;
        }
        if entry.set.is_empty() {
            record.entries.remove(at);
        }
    }
    record
}

/// Brings the annotation of client-side apply up to date, so that going back to it stays possible.
fn refresh_last_applied(merged: &mut Value, applied: &Value) {
    let annotations = merged.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    let Some(annotations) = annotations.filter(|a| a.contains_key(LAST_APPLIED)) else { return };
    let mut applied = applied.clone();
    if let Some(own) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        own.remove(LAST_APPLIED);
    }
    annotations.insert(LAST_APPLIED.to_owned(), format!("{applied}\n").into());
}

/// Fields that others own and that this apply would change: manager as shown, and path.
#[derive(Debug)]
struct Conflicts(Vec<Conflict>);

#[derive(Debug)]
struct Conflict {
    manager: String,
    path: String,
}

impl Conflicts {
    fn find(record: &Record<'_>, manager: &Manager, changed: &Set<'_>) -> Self {
        let mut entries: Vec<&Entry<'_>> =
            record.entries.iter().filter(|e| e.manager != *manager).collect();
        entries.sort_by(|a, b| a.manager.cmp(&b.manager));
        let mut found = Vec::new();
        for entry in entries {
            let manager = entry.manager.shown();
            entry
                .set
                .intersection(changed)
                .paths("", &mut |path| found.push(Conflict { manager: manager.clone(), path }));
        }
        Self(found)
    }

    fn without(self, allowed: &Set<'_>) -> Self {
        let mut paths = std::collections::BTreeSet::new();
        allowed.paths("", &mut |path| {
            paths.insert(path);
        });
        Self(self.0.into_iter().filter(|c| !paths.contains(&c.path)).collect())
    }

    fn into_status(self) -> Status {
        let causes = self.0.iter().map(|c| Cause {
            reason: CauseReason::FieldManagerConflict,
            message: format!("conflict with {}", c.manager),
            field: c.path.clone(),
        });
        Status::new(409, Reason::Conflict, self.message()).with_causes(causes.collect())
    }

    fn message(&self) -> String {
        if let [one] = self.0.as_slice() {
            return format!(
                "Apply failed with 1 conflict: conflict with {}: {}",
                one.manager, one.path
            );
        }
        let mut lines: Vec<String> = Vec::new();
        let mut last = None;
        for conflict in &self.0 {
            if last != Some(&conflict.manager) {
                lines.push(format!("conflicts with {}:", conflict.manager));
                last = Some(&conflict.manager);
            }
            lines.push(format!("- {}", conflict.path));
        }
        format!("Apply failed with {} conflicts: {}", self.0.len(), lines.join("\n"))
    }
}
