//! `pods/eviction`: a delete that asks the pod's disruption budget first.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/>

mod budget;

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_kinds::read::Read;
use serde_json::{Value, json};

use crate::admission::{self, Operation, Review};
use crate::body::Response;
use crate::decode;
use crate::meta;
use crate::negotiate::{self, Offer};
use crate::options::{DeleteOptions, WriteOptions};
use crate::request::{Call, Query};
use crate::rest::write::{Author, Change};
use crate::rest::{find, take_body};
use crate::served::Served;
use crate::server::Inner;
use crate::views;

/// How often a pod that changes while it is looked at is looked at again.
const ATTEMPTS_MAX: usize = 16;

pub async fn create(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let form = negotiate::form(&call.headers, Offer::OWN)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let mut eviction = decode::spoken(
        &server.registry(),
        ("policy", "v1", "Eviction"),
        call,
        &body,
        options.validation,
    )?;
    let named = eviction["metadata"].get("name").and_then(Value::as_str).unwrap_or_default();
    if !named.is_empty() && named != key.name {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {:?}, {named:?}",
            key.name
        )));
    }
    let mut review = Review {
        served,
        subresource: "eviction",
        operation: Operation::Create,
        user: &call.user,
        options: admission::Options::Create(&options),
        key: key.clone(),
        object: &mut eviction,
        old: None,
        warnings: &mut call.warnings,
    };
    admission::pass(server, &mut review).await?;
    let sent = match eviction.get("deleteOptions").filter(|o| o.is_object()) {
        Some(options) => Bytes::from(options.to_string()),
        None => Bytes::new(),
    };
    let mut delete = DeleteOptions::parse(&call.query, &sent)?;
    delete.dry_run |= options.dry_run;
    evict(server, call, served, key, &delete).await?;
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    Ok(views::encoded(call, 201, form, &status))
}

async fn evict(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
    delete: &DeleteOptions,
) -> Result<(), Status> {
    let mut permitted = false;
    for _ in 0..ATTEMPTS_MAX {
        let stored = find(server, served, key).await?;
        let pod = stored.stored_value(served)?;
        // Who goes without a budget's leave goes as what it was seen to be.
        let mut as_seen = !permitted;
        if !permitted && counts(&pod) {
            match budget::of(server, &pod).await? {
                budget::Leave::Free => as_seen = false,
                budget::Leave::AsSeen => {}
                budget::Leave::Ask(budget) => {
                    budget::take(server, &budget, &key.name, delete.dry_run).await?;
                    (as_seen, permitted) = (false, true);
                }
            }
        }
        let mut delete = delete.clone();
        let conditional = delete.revision.is_some();
        if as_seen && !conditional {
            delete.revision = Some(stored.revision.to_string());
        }
        let outcome = tell_and_delete(server, call, served, key, &pod, &mut delete).await;
        match outcome {
            Err(e) if e.code == 409 && as_seen && !conditional => {}
            done => return done,
        }
    }
    let why = "it changed faster than it could be evicted";
    Err(Status::conflict(&served.group_resource(), &key.name, why))
}

async fn tell_and_delete(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
    pod: &Value,
    delete: &mut DeleteOptions,
) -> Result<(), Status> {
    let meta = pod.at("metadata");
    let is_meant = delete.uid.as_deref().is_none_or(|uid| uid == meta.text("uid"));
    if !delete.dry_run && is_meant && !meta.has("deletionTimestamp") {
        let told = tell_why(server, served, key, delete.revision.as_deref()).await?;
        // What was written here is no change that the condition is about.
        if let Some(revision) = &mut delete.revision {
            *revision = told.to_string();
        }
    }
    server.delete(served, key, delete, &call.user, &mut call.warnings).await.map(|_| ())
}

/// Whether the pod is one that a budget may count: one that has not begun, has ended or is going anyway
/// serves nobody.
fn counts(pod: &Value) -> bool {
    let phase = pod.at("status").text("phase");
    !matches!(phase, "Succeeded" | "Failed" | "Pending")
        && !pod.at("metadata").has("deletionTimestamp")
}

/// Writes on the pod why it goes, if it is still at that revision; answers the one that it has then.
async fn tell_why(
    server: &Inner,
    served: &Arc<Served>,
    key: &ObjectKey,
    revision: Option<&str>,
) -> Result<u64, Status> {
    let now = meta::time(Timestamp::now());
    let resource = served.group_resource();
    let rewrite = |mut pod: Value| {
        if revision.is_some_and(|r| r != pod.at("metadata").text("resourceVersion")) {
            return Err(Status::conflict(&resource, &key.name, "it is another by now"));
        }
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": now,
        });
        if !pod["status"].is_object() {
            pod["status"] = json!({});
        }
        let conditions = &mut pod["status"]["conditions"];
        if !conditions.is_array() {
            *conditions = json!([]);
        }
        let list = conditions.as_array_mut().expect("was just made one");
        match list.iter_mut().find(|c| c["type"] == condition["type"]) {
            Some(there) if there["status"] == "True" => {}
            Some(there) => *there = condition,
            None => list.push(condition),
        }
        Ok(pod)
    };
    own_write(server, served, key, &rewrite, false).await
}

/// A write of the server's own to a status; answers the object's revision.
async fn own_write(
    server: &Inner,
    served: &Arc<Served>,
    key: &ObjectKey,
    rewrite: &(dyn Fn(Value) -> Result<Value, Status> + Send + Sync),
    dry_run: bool,
) -> Result<u64, Status> {
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions::parse(&Query::default(), "UpdateOptions", "kube-apiserver", false)?;
    let options = WriteOptions { dry_run, ..options };
    let author = Author { user: &user, options: &options };
    let change = Change::Rewrite(rewrite);
    let written = server.update(served, key, "status", change, &author, &mut Vec::new()).await?;
    Ok(written.stored.revision)
}
