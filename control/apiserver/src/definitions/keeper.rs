//! Keeps the status of definitions, and sees to their end: names and conditions when they come, the
//! deletion of all their objects when they go.
//!
//! It looks at all definitions whenever one changed, and does for each what is left to do.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rimward_api::meta::str_at;
use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_kinds::custom::definition::{CLEANUP, is_protected, is_true};
use rimward_control_kinds::custom::names::{self, Taken};
use rimward_control_schema::FieldValidation;
use rimward_control_store::{Error, ListRequest};
use serde_json::{Value, json};

use super::Definitions;
use crate::error;
use crate::options::{DeleteOptions, WriteOptions};
use crate::rest::write::{Author, Change};
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

/// How long to wait after something failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Objects that are deleted between two looks at what is left.
const PAGE: usize = 500;

/// Definitions whose end is on its way, by uid.
type Ending = Arc<Mutex<HashSet<String>>>;

/// Looks whenever a definition changed, until the server stops.
pub async fn run(server: Arc<Inner>, definitions: Arc<Definitions>) {
    let ending = Ending::default();
    loop {
        if let Err(e) = look(&server, &definitions, &ending).await {
            tracing::warn!(error = %e, "CustomResourceDefinitions: what is left to do is tried again");
            let definitions = definitions.clone();
            tokio::spawn(async move {
                tokio::time::sleep(RETRY_AFTER).await;
                definitions.changed.notify_one();
            });
        }
        tokio::select! {
            () = definitions.changed.notified() => {}
            () = server.stop.cancelled() => return,
        }
    }
}

async fn look(
    server: &Arc<Inner>,
    definitions: &Arc<Definitions>,
    ending: &Ending,
) -> Result<(), Status> {
    let mut groups: BTreeMap<String, Vec<Arc<Value>>> = BTreeMap::new();
    for definition in definitions.all() {
        let group = str_at(&definition, &["spec", "group"]).unwrap_or_default().to_owned();
        groups.entry(group).or_default().push(definition);
    }
    for group in groups.values() {
        for definition in group.iter().filter(|d| is_ending(d)) {
            let uid = str_at(definition, &["metadata", "uid"]).unwrap_or_default().to_owned();
            if ending.lock().insert(uid.clone()) {
                let (server, definitions) = (server.clone(), definitions.clone());
                let (definition, ending) = (definition.clone(), ending.clone());
                tokio::spawn(async move {
                    let stop = server.stop.clone();
                    let end = end(&server, &definition);
                    if let Some(Err(e)) = stop.run_until_cancelled(end).await {
                        tracing::warn!(error = %e, "the end of a CustomResourceDefinition is delayed");
                        tokio::time::sleep(RETRY_AFTER).await;
                    }
                    ending.lock().remove(&uid);
                    definitions.changed.notify_one();
                });
            }
        }
        name(server, group).await?;
    }
    Ok(())
}

fn is_ending(definition: &Value) -> bool {
    let held = definition["metadata"].get("finalizers").and_then(Value::as_array);
    str_at(definition, &["metadata", "deletionTimestamp"]).is_some()
        && held.is_some_and(|all| all.iter().any(|f| f == CLEANUP))
}

/// Whether nothing is left to decide about the names of a definition.
fn is_settled(definition: &Value) -> bool {
    let (wanted, has) = (&definition["spec"]["names"], &definition["status"]["acceptedNames"]);
    wanted == has
        && is_true(definition, "Established")
        && is_true(definition, "NamesAccepted")
        && !is_protected(str_at(definition, &["spec", "group"]).unwrap_or_default())
}

/// Grants names to the definitions of one group.
async fn name(server: &Arc<Inner>, group: &[Arc<Value>]) -> Result<(), Status> {
    let unsettled = group.iter().filter(|d| !is_settled(d) && !is_ending(d));
    for definition in unsettled {
        let mut taken = Taken::default();
        let others = group.iter().filter(|d| !Arc::ptr_eq(d, definition));
        others.for_each(|other| taken.add(other));
        if names::plan(definition, &taken, Timestamp::now()).is_none() {
            continue;
        }
        let rewrite = |mut object: Value| {
            if let Some(status) = names::plan(&object, &taken, Timestamp::now()) {
                object["status"] = status;
            }
            Ok(object)
        };
        write(server, definition, "status", &rewrite).await?;
        // Names that were just granted are taken: the change calls for another look.
        return Ok(());
    }
    Ok(())
}

pub fn definitions_kind(server: &Inner) -> Arc<Served> {
    let found = server.registry().resource("apiextensions.k8s.io", "customresourcedefinitions");
    found.expect("a built-in kind")
}

fn this_server() -> UserInfo {
    UserInfo::authenticated("system:apiserver", &["system:masters"])
}

/// Changes a definition, if it is still that one.
async fn write(
    server: &Arc<Inner>,
    definition: &Value,
    subresource: &str,
    rewrite: &(dyn Fn(Value) -> Result<Value, Status> + Send + Sync),
) -> Result<(), Status> {
    let uid = definition["metadata"]["uid"].clone();
    let same = |object: Value| match object["metadata"]["uid"] == uid {
        true => rewrite(object),
        false => Ok(object),
    };
    let options = WriteOptions {
        dry_run: false,
        manager: "kube-apiserver".to_owned(),
        sent: Default::default(),
        validation: FieldValidation::Ignore,
        force: false,
    };
    let user = this_server();
    let author = Author { user: &user, options: &options };
    let key = ObjectKey::of(definition);
    let kind = definitions_kind(server);
    let change = Change::Rewrite(&same);
    match server.update(&kind, &key, subresource, change, &author, &mut Vec::new()).await {
        Err(e) if e.is_not_found() => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn terminating(
    server: &Arc<Inner>,
    definition: &Value,
    (reason, holds, message): (&'static str, bool, String),
) -> Result<(), Status> {
    let rewrite = move |mut object: Value| {
        let condition = (reason, holds, message.clone());
        names::set_condition(&mut object["status"], "Terminating", condition, Timestamp::now());
        Ok(object)
    };
    write(server, definition, "status", &rewrite).await
}

/// Deletes what is left of a definition's objects, waits until they are gone, and lets it go.
async fn end(server: &Arc<Inner>, definition: &Value) -> Result<(), Status> {
    let begun =
        ("InstanceDeletionInProgress", true, "CustomResource deletion is in progress".into());
    terminating(server, definition, begun).await?;
    let outcome = match super::any_version(definition) {
        Some(served) => {
            if let Err(e) = delete_all(server, &served).await {
                let failed =
                    ("InstanceDeletionFailed", true, format!("could not issue all deletes: {e}"));
                terminating(server, definition, failed).await?;
                return Err(e);
            }
            ("InstanceDeletionCompleted", false, "removed all instances".into())
        }
        None => ("NeverEstablished", false, "resource was never established".into()),
    };
    terminating(server, definition, outcome).await?;
    let rewrite = |mut object: Value| {
        let finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let kept: Vec<Value> = finalizers.into_iter().filter(|f| f != CLEANUP).collect();
        object["metadata"]["finalizers"] = json!(kept);
        Ok(object)
    };
    write(server, definition, "status", &rewrite).await
}

/// Deletes the objects of a kind until there are none. What finalizers hold is waited for.
async fn delete_all(server: &Arc<Inner>, served: &Arc<Served>) -> Result<(), Status> {
    let (options, user) = (DeleteOptions::default(), this_server());
    let prefix = served.kind.storage.clone();
    loop {
        let mut after = None;
        let (revision, mut left) = (server.store.revision(), 0);
        loop {
            let request =
                ListRequest { prefix: prefix.clone(), after: after.take(), limit: PAGE, at: None };
            let page = server.store.list(request).await.map_err(error::store)?;
            for entry in &page.entries {
                let key = crate::rest::delete::key_of(served, &Stored::open(entry)?);
                match server.delete(served, &key, &options, &user, &mut Vec::new()).await {
                    Ok(deleted) => left += usize::from(!deleted.gone),
                    Err(e) if e.is_not_found() => {}
                    Err(e) => return Err(e),
                }
            }
            after = page.entries.last().map(|e| e.key.to_string());
            if page.remaining == 0 {
                break;
            }
        }
        if left == 0 {
            return Ok(());
        }
        wait_for_change(server, &prefix, revision).await?;
    }
}

/// Waits until an object under the prefix changed after a revision.
async fn wait_for_change(server: &Inner, prefix: &str, revision: u64) -> Result<(), Status> {
    let mut feed = match server.store.watch(prefix, revision) {
        Ok(feed) => feed,
        Err(Error::Compacted { .. }) => return Ok(()),
        Err(e) => return Err(error::store(e)),
    };
    loop {
        match feed.next().await {
            Ok(batch) if batch.events.iter().any(|e| e.entry.is_none()) => return Ok(()),
            Ok(_) => {}
            Err(Error::Compacted { .. }) => return Ok(()),
            Err(e) => return Err(error::store(e)),
        }
    }
}
