//! Deletion: preconditions, grace, finalizers, and what remains when all are done.

use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rimward_api::meta::str_at;
use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_kinds::custom::definition::CLEANUP;
use rimward_control_kinds::custom::names::set_condition;
use rimward_control_store::{CommitError, Expect, Op};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::admission::{self, Operation, Review};
use crate::audit;
use crate::body::Response;
use crate::decode;
use crate::definitions::stored::Encoded;
use crate::error;
use crate::meta;
use crate::negotiate;
use crate::options::{DeleteOptions, ListOptions, Propagation};
use crate::quotas::Counted;
use crate::request::Call;
use crate::rest::list::{self, Reader};
use crate::served::Served;
use crate::server::Inner;
use crate::views::{self, Stored};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const ATTEMPTS_MAX: usize = 64;
/// Deletes of a collection that run at a time.
const COLLECTION_WIDTH: usize = 16;

/// What became of the object.
pub struct Deleted {
    /// The object as last stored, or as marked.
    pub stored: Stored,
    /// It is no longer there.
    pub gone: bool,
}

/// What a delete does to an object now.
#[derive(Debug, PartialEq)]
enum Plan {
    Remove,
    /// Store this instead, and leave the rest to grace and finalizers.
    Mark(Box<Value>),
    /// It is on its way already.
    Wait,
}

/// Decides, without touching anything.
fn plan(served: &Served, object: &Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    let mut new = object.clone();
    let deleting = str_at(object, &["metadata", "deletionTimestamp"]).map(str::to_owned);
    let marked_grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let grace = grace_seconds(served, object, options);
    let finalizers = finalizers_after(served, object, options);
    let changed_finalizers = finalizers != finalizers_of(object);
    set_finalizers(&mut new, &finalizers);
    // A namespace is finalized through its own subresource too.
    let held = served.is(DEFINITIONS.0, DEFINITIONS.1) && deleting.is_none()
        || !finalizers.is_empty()
        || !own_finalizers(served, object).is_empty();

    match (&deleting, grace) {
        (None, grace) => {
            let seconds = grace.unwrap_or(0);
            if seconds == 0 && !held {
                return Plan::Remove;
            }
            mark(&mut new, now + SignedDuration::from_secs(seconds), seconds);
            if let Some(generation) = object["metadata"]["generation"].as_i64().filter(|g| *g > 0) {
                meta::metadata(&mut new).insert("generation".into(), (generation + 1).into());
            }
            if served.is(DEFINITIONS.0, DEFINITIONS.1) {
                hold_definition(&mut new, now);
            }
            if served.is("", "namespaces") {
                new["status"]["phase"] = "Terminating".into();
            }
            Plan::Mark(Box::new(new))
        }
        (Some(when), Some(seconds))
            if options.grace_seconds.is_some() && seconds < marked_grace.unwrap_or(0) =>
        {
            if seconds == 0 && !held {
                return Plan::Remove;
            }
            // The shorter period counts from when the longer one began.
            let end: Timestamp = when.parse().unwrap_or(now);
            let began = end - SignedDuration::from_secs(marked_grace.unwrap_or(0));
            mark(&mut new, began + SignedDuration::from_secs(seconds), seconds);
            Plan::Mark(Box::new(new))
        }
        (Some(_), _) if marked_grace.unwrap_or(0) == 0 && !held => Plan::Remove,
        (Some(_), _) if changed_finalizers => Plan::Mark(Box::new(new)),
        (Some(_), _) => Plan::Wait,
    }
}

const DEFINITIONS: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");

/// A definition stays until its objects are gone: the keeper lets it go.
fn hold_definition(object: &mut Value, now: Timestamp) {
    let mut finalizers = finalizers_of(object);
    if !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(CLEANUP.to_owned());
    }
    set_finalizers(object, &finalizers);
    let message =
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    let pending = ("InstanceDeletionPending", true, message.to_owned());
    set_condition(&mut object["status"], "Terminating", pending, now);
}

/// The grace period that counts; None for kinds that have none.
fn grace_seconds(served: &Served, object: &Value, options: &DeleteOptions) -> Option<i64> {
    let default = served.stored.hooks.grace_period(object)?;
    // A pod that no node has, or that ended, needs nobody's grace.
    let unassigned = str_at(object, &["spec", "nodeName"]).unwrap_or_default().is_empty();
    let ended = matches!(str_at(object, &["status", "phase"]), Some("Succeeded" | "Failed"));
    if served.is("", "pods") && (unassigned || ended) {
        return Some(0);
    }
    Some(options.grace_seconds.unwrap_or(default).max(0))
}

fn mark(object: &mut Value, at: Timestamp, grace: i64) {
    let meta = meta::metadata(object);
    meta.insert("deletionTimestamp".into(), meta::time(at).into());
    meta.insert("deletionGracePeriodSeconds".into(), grace.into());
}

fn finalizers_of(object: &Value) -> Vec<String> {
    let list = object["metadata"].get("finalizers").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `spec.finalizers` of a namespace.
fn own_finalizers<'a>(served: &Served, object: &'a Value) -> &'a [Value] {
    match served.is("", "namespaces") {
        true => {
            object["spec"].get("finalizers").and_then(Value::as_array).map_or(&[], Vec::as_slice)
        }
        false => &[],
    }
}

fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    let meta = meta::metadata(object);
    match finalizers {
        [] => meta.remove("finalizers"),
        list => meta.insert("finalizers".into(), json!(list)),
    };
}

fn finalizers_after(served: &Served, object: &Value, options: &DeleteOptions) -> Vec<String> {
    let present = finalizers_of(object);
    let has = |name: &str| present.iter().any(|f| f == name);
    let (orphan, foreground) = match options.propagation {
        Some(policy) => (policy == Propagation::Orphan, policy == Propagation::Foreground),
        None => {
            let orphan = has(ORPHAN) || (!has(FOREGROUND) && served.rules.orphans_by_default);
            (orphan, has(FOREGROUND))
        }
    };
    let collected = |f: &String| f == ORPHAN || f == FOREGROUND;
    let mut after: Vec<String> = present.iter().filter(|f| !collected(f)).cloned().collect();
    if orphan {
        after.push(ORPHAN.into());
    }
    if foreground {
        after.push(FOREGROUND.into());
    }
    // The order that clients saw stays when the set did not change.
    let same = after.len() == present.len() && after.iter().all(|f| present.contains(f));
    if same { present } else { after }
}

/// Whether an updated object has nothing left that holds it: then the update is its end.
pub fn finalized(served: &Served, object: &Value) -> bool {
    let meta = &object["metadata"];
    meta.get("deletionTimestamp").is_some()
        && meta.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
        && finalizers_of(object).is_empty()
        && own_finalizers(served, object).is_empty()
}

impl Inner {
    pub async fn delete(
        &self,
        served: &Arc<Served>,
        key: &ObjectKey,
        options: &DeleteOptions,
        user: &UserInfo,
        warnings: &mut Vec<String>,
    ) -> Result<Deleted, Status> {
        let store_key = served.key(key);
        let resource = served.group_resource();
        for _ in 0..ATTEMPTS_MAX {
            let entry = self.store.get(&store_key, None).await.map_err(error::store)?;
            let Some(entry) = entry else { return Err(Status::not_found(&resource, &key.name)) };
            let stored = self.present_one(served, Stored::open(&entry)?).await?;
            check_preconditions(served, key, &stored, options)?;
            let object = stored.stored_value(served)?;
            let mut review = Review {
                served,
                subresource: "",
                operation: Operation::Delete,
                user,
                options: admission::Options::Delete(options),
                key: key.clone(),
                object: &mut Value::Null,
                old: Some(&object),
                warnings,
            };
            admission::pass(self, &mut review).await?;
            let plan = plan(served, &object, options, Timestamp::now());
            let (op, after) = match &plan {
                Plan::Wait => return Ok(Deleted { stored, gone: false }),
                Plan::Remove => {
                    let op =
                        Op::Delete { key: store_key.clone(), expect: Expect::At(entry.revision) };
                    (op, None)
                }
                Plan::Mark(new) => {
                    let Encoded { bytes, answer: record } = self.encode(served, new).await?;
                    let expect = Expect::At(entry.revision);
                    (Op::Put { key: store_key.clone(), value: bytes, expect }, Some(record))
                }
            };
            let gone = after.is_none();
            let record = after.unwrap_or_else(|| stored.record.clone());
            if options.dry_run {
                return Ok(Deleted { stored: Stored { record, kept: false, ..stored }, gone });
            }
            let marked = match &plan {
                Plan::Mark(new) => Some(&**new),
                _ => None,
            };
            let counted = Counted::delete(served, &object, marked);
            match self.commit_counted(vec![op], &counted).await? {
                Ok(revision) => {
                    tracing::debug!(resource = %resource, key = %key, user = %user.name, gone, "deleted");
                    let new = match &plan {
                        Plan::Mark(new) => Some(&**new),
                        _ => None,
                    };
                    self.after_write(served, Some(&object), new, revision).await;
                    return Ok(Deleted {
                        stored: Stored { record, revision, kept: !gone, ..stored },
                        gone,
                    });
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(e) => return Err(error::commit(e)),
            }
        }
        Err(Status::conflict(&resource, &key.name, "it changed faster than it could be deleted"))
    }
}

fn check_preconditions(
    served: &Served,
    key: &ObjectKey,
    stored: &Stored,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let conflict = |what: &str, asked: &str, is: &str| {
        let why = format!(
            "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is}"
        );
        Err(Status::conflict(&served.group_resource(), &key.name, &why))
    };
    let (uid, revision) = (stored.record.uid(), stored.revision.to_string());
    match (&options.uid, &options.revision) {
        (Some(asked), _) if asked != uid => conflict("UID", asked, uid),
        (_, Some(asked)) if *asked != revision => conflict("ResourceVersion", asked, &revision),
        _ => Ok(()),
    }
}

/// DELETE of one object.
pub async fn one(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
    body: &Bytes,
) -> Result<Response, Status> {
    let form = negotiate::accepted(&call.headers, served)?;
    let options =
        DeleteOptions::parse(&call.query, &decode::options(&server.registry(), call, body)?)?;
    let defaulted = served.rules.orphans_by_default && options.propagation.is_none();
    if defaulted && served.is("batch", "jobs") {
        call.warnings.push(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning".into(),
        );
    }
    let deleted = server.delete(served, key, &options, &call.user, &mut call.warnings).await?;
    if !deleted.gone || served.rules.returns_deleted {
        return server.respond(call, served, &deleted.stored, 200);
    }
    let mut details = json!({ "name": key.name, "kind": served.kind.resource, "uid": deleted.stored.record.uid() });
    if !served.kind.group.is_empty() {
        details["group"] = served.kind.group.as_str().into();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    Ok(views::encoded(call, 200, form, &status))
}

/// DELETE of a collection: of what was selected when it was asked for.
pub async fn collection(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    namespace: &str,
    body: &Bytes,
) -> Result<Response, Status> {
    let form = negotiate::accepted(&call.headers, served)?;
    let options =
        DeleteOptions::parse(&call.query, &decode::options(&server.registry(), call, body)?)?;
    let selected = ListOptions::parse(&call.query, &served.kind, false)?;
    let reader = Reader::start(server, served, namespace, selected).await?;
    let (items, list_meta) = reader.gather().await?;
    let (user, options) = (Arc::new(call.user.clone()), Arc::new(options));
    let keys: Vec<ObjectKey> = items.iter().map(|item| key_of(served, item)).collect();
    let mut keys = keys.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < COLLECTION_WIDTH
            && let Some(key) = keys.next()
        {
            let (server, served, options, user) =
                (server.clone(), served.clone(), options.clone(), user.clone());
            running.spawn(audit::carried(async move {
                let mut warnings = Vec::new();
                let deleted = server.delete(&served, &key, &options, &user, &mut warnings).await;
                (deleted.map(|_| ()), warnings)
            }));
        }
        match running.join_next().await {
            None => break,
            Some(Ok((deleted, warnings))) => {
                call.warnings.extend(warnings);
                match deleted {
                    Err(e) if !e.is_not_found() => return Err(e),
                    _ => {}
                }
            }
            Some(Err(e)) => return Err(Status::internal(e)),
        }
    }
    list::answer(server, call, served, form, &items, &list_meta)
}

/// The namespace and name in a store key.
pub fn key_of(served: &Served, stored: &Stored) -> ObjectKey {
    let relative = stored.key.strip_prefix(served.kind.storage.as_str()).unwrap_or(&stored.key);
    match relative.split_once('/') {
        Some((namespace, name)) if served.kind.namespaced() => ObjectKey::new(namespace, name),
        _ => ObjectKey::new("", relative),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::Registry;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[track_caller]
    fn check(resource: &str, object: Value, options: DeleteOptions, expected: Option<Value>) {
        let registry = Registry::builtin();
        let served =
            registry.all().iter().find(|s| s.kind.resource == resource).expect("is served").clone();
        match (plan(&served, &object, &options, at("2026-01-01T00:00:00Z")), expected) {
            (Plan::Remove, None) => {}
            (Plan::Mark(new), Some(expected)) => assert_eq!(new["metadata"], expected),
            (plan, expected) => panic!("planned {plan:?}, not {expected:?}"),
        }
    }

    #[test]
    fn plans() {
        let plain = json!({ "metadata": { "name": "x" } });
        check("configmaps", plain.clone(), DeleteOptions::default(), None);
        let foreground =
            || DeleteOptions { propagation: Some(Propagation::Foreground), ..Default::default() };
        check(
            "configmaps",
            plain,
            foreground(),
            Some(json!({
                "name": "x", "finalizers": ["foregroundDeletion"],
                "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0,
            })),
        );
        // Another policy replaces the one before.
        check(
            "configmaps",
            json!({ "metadata": { "finalizers": ["orphan"], "deletionTimestamp": "x", "deletionGracePeriodSeconds": 0 } }),
            foreground(),
            Some(
                json!({ "finalizers": ["foregroundDeletion"], "deletionTimestamp": "x", "deletionGracePeriodSeconds": 0 }),
            ),
        );
        check(
            "namespaces",
            json!({ "metadata": { "name": "n" }, "spec": { "finalizers": ["kubernetes"] } }),
            DeleteOptions::default(),
            Some(
                json!({ "name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0 }),
            ),
        );
        let pod = |node: &str| json!({ "metadata": {}, "spec": { "nodeName": node, "terminationGracePeriodSeconds": 30 } });
        check("pods", pod(""), DeleteOptions::default(), None);
        let now = || DeleteOptions { grace_seconds: Some(0), ..Default::default() };
        check("pods", pod("n"), now(), None);
    }
}
