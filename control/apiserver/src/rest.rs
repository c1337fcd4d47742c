//! Requests on resources: which handler answers which verb and subresource.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use rimward_api::{ObjectKey, Status};

use crate::body::{self, Response};
use crate::deadline;
use crate::decode::{self, PatchKind};
use crate::error;
use crate::freshness;
use crate::negotiate;
use crate::options::{WriteOptions, parse_revision};
use crate::request::{Call, Resource};
use crate::reviews;
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;
use crate::{aggregation, definitions, paths, watch};

pub mod binding;
pub mod components;
pub mod connect;
pub mod delete;
pub mod eviction;
pub mod finalize;
pub mod list;
pub mod log;
pub mod on_node;
mod ownership;
pub mod scale;
pub mod token;
pub mod usage;
pub mod write;

use write::{Author, Change, Written};

/// Admission and storage: the last steps of the pipeline.
pub async fn serve(server: &Arc<Inner>, call: &mut Call) -> Result<Response, Status> {
    if let Some(service) = server.aggregation.owner(&call.attributes.path) {
        return Ok(aggregation::proxy::forward(server, call, &service).boxed().await);
    }
    let Some(target) = call.attributes.resource.clone() else {
        return paths::serve(server, call).boxed().await;
    };
    call.served = match server.registry().get(&target.gvr()).cloned() {
        Some(served) => Some(served),
        None => definitions::just_come(server, &target.gvr()).await,
    };
    let Some(served) = call.served.clone() else {
        return match server.registry().has_version(&target.group, &target.version) {
            true => Err(error::no_such_resource()),
            false => Ok(error::page_not_found()),
        };
    };
    call.warnings.extend(served.deprecation());
    let on_namespaces = served.is("", "namespaces");
    if !served.kind.namespaced() && !target.namespace.is_empty() && !on_namespaces {
        return Err(error::no_such_resource());
    }
    if served.kind.namespaced()
        && target.namespace.is_empty()
        && !target.name.is_empty()
        && call.attributes.verb != "watch"
    {
        return Err(error::no_such_resource());
    }
    let namespace = if served.kind.namespaced() { target.namespace.clone() } else { String::new() };
    let key = ObjectKey::new(namespace, target.name.clone());
    call.warnings.extend(served.kind.deprecated.clone());
    if target.subresource.is_empty() {
        return main(server, call, &served, &key).boxed().await;
    }
    subresource(server, call, &served, &target, &key).boxed().await
}

/// Reads the body, once it is known to be wanted.
pub async fn take_body(call: &mut Call) -> Result<Bytes, Status> {
    let read = body::read(std::mem::replace(call.body.get_mut(), body::empty()));
    match call.deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, read)
            .await
            .unwrap_or_else(|_| Err(deadline::exceeded())),
        None => read.await,
    }
}

async fn main(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let verb = call.attributes.verb.clone();
    if !served.kind.verbs.contains(&verb) {
        return Err(error::method_not_allowed());
    }
    match verb.as_str() {
        "get" => get(server, call, served, key).await,
        "list" => list::list(server, call, served, &key.namespace).await,
        "watch" => watch::watch(server, call, served, &key.namespace).await,
        "create" if reviews::is_review(served) => {
            reviews::answer(server, call, served, &key.namespace).await
        }
        "create" if served.is("", "bindings") => binding::create(server, call, key).await,
        "create" if !key.name.is_empty() => Err(error::method_not_allowed()),
        "create" if served.kind.namespaced() && key.namespace.is_empty() => {
            Err(error::method_not_allowed())
        }
        "create" => create(server, call, served, &key.namespace).await,
        // Of a collection.
        "update" | "patch" if key.name.is_empty() => Err(error::method_not_allowed()),
        "update" => update(server, call, served, key, "").await,
        "patch" => patch(server, call, served, key, "").await,
        "delete" => {
            let body = take_body(call).await?;
            delete::one(server, call, served, key, &body).await
        }
        "deletecollection" => {
            let body = take_body(call).await?;
            delete::collection(server, call, served, &key.namespace, &body).await
        }
        _ => Err(error::method_not_allowed()),
    }
}

async fn subresource(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    target: &Resource,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let Some(sub) = served.kind.subresource(&target.subresource) else {
        return Err(error::no_such_resource());
    };
    let verb = call.attributes.verb.clone();
    // An OPTIONS is not a verb of the API, but a proxy hands it on.
    let handed_on = verb == "options" && target.subresource == "proxy";
    if !sub.verbs.contains(&verb) && !handed_on {
        return Err(error::method_not_allowed());
    }
    match (target.subresource.as_str(), verb.as_str()) {
        ("scale", _) => scale::serve(server, call, served, key).await,
        ("binding", "create") => binding::create(server, call, key).await,
        ("eviction", "create") => eviction::create(server, call, served, key).await,
        ("token", "create") => token::create(server, call, key).await,
        ("finalize", "update") => finalize::update(server, call, served, key).await,
        ("log", "get") => log::get(server, call, served, key).await,
        (sub @ ("exec" | "attach" | "portforward" | "proxy"), _) => {
            connect::serve(server, call, served, sub, key).await
        }
        (_, "get") => get(server, call, served, key).await,
        (sub, "update") => update(server, call, served, key, sub).await,
        (sub, "patch") => patch(server, call, served, key, sub).await,
        _ => Err(error::method_not_allowed()),
    }
}

/// Reads one object, as new as the request demands.
pub async fn read(
    server: &Inner,
    call: &Call,
    served: &Served,
    key: &ObjectKey,
) -> Result<Stored, Status> {
    if let Some(text) = call.query.get("resourceVersion").filter(|t| !t.is_empty()) {
        freshness::reached(server, parse_revision(text)?).await?;
    }
    find(server, served, key).await
}

pub async fn find(server: &Inner, served: &Served, key: &ObjectKey) -> Result<Stored, Status> {
    let missing = || Status::not_found(&served.group_resource(), &key.name);
    if components::are(served) {
        let mut all = components::all(server, served).into_iter();
        return all.find(|c| c.name() == key.name).ok_or_else(missing);
    }
    if usage::is(served) {
        return usage::one(server, served, key).await?.ok_or_else(missing);
    }
    let entry = server.store.get(&served.key(key), None).await.map_err(error::store)?;
    let entry = entry.ok_or_else(missing)?;
    server.present_one(served, Stored::open(&entry)?).await
}

async fn get(
    server: &Arc<Inner>,
    call: &Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let stored = read(server, call, served, key).await?;
    // As for watchers: what is read is in effect.
    server.mirrors.caught_up(&served.kind.storage, stored.revision).await;
    server.respond(call, served, &stored, 200)
}

/// The Warning of a kind whose behaviour does not exist yet.
fn warn_not_yet(call: &mut Call, served: &Served) {
    call.warnings.extend(served.kind.not_yet.clone());
}

async fn create(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    namespace: &str,
) -> Result<Response, Status> {
    negotiate::accepted(&call.headers, served)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let object = decode::object(served, call, &body, options.validation)?;
    let author = Author { user: &call.user, options: &options };
    let written = server.create(served, namespace, object, &author, &mut call.warnings).await?;
    warn_not_yet(call, served);
    answer(server, call, served, &written)
}

async fn update(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
    sub: &str,
) -> Result<Response, Status> {
    negotiate::accepted(&call.headers, served)?;
    let options = WriteOptions::parse(&call.query, "UpdateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let object = decode::object(served, call, &body, options.validation)?;
    let author = Author { user: &call.user, options: &options };
    let change = Change::Replace(object);
    let written = server.update(served, key, sub, change, &author, &mut call.warnings).await?;
    warn_not_yet(call, served);
    answer(server, call, served, &written)
}

async fn patch(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
    sub: &str,
) -> Result<Response, Status> {
    negotiate::accepted(&call.headers, served)?;
    let kind = decode::patch_kind(call)?;
    if kind == PatchKind::Strategic && served.custom.is_some() {
        return Err(error::no_strategic_merge());
    }
    let options =
        WriteOptions::parse(&call.query, "PatchOptions", call.agent(), kind == PatchKind::Apply)?;
    let body = take_body(call).await?;
    let author = Author { user: &call.user, options: &options };
    let change = match kind {
        PatchKind::Apply => {
            Change::Apply(applied(served, key, &body, &options, &mut call.warnings)?)
        }
        kind => Change::Patch(kind, &body),
    };
    let written = server.update(served, key, sub, change, &author, &mut call.warnings).await?;
    warn_not_yet(call, served);
    answer(server, call, served, &written)
}

/// The body of an apply, kept as it was sent: what it says of types and fields is checked when it is
/// merged.
fn applied(
    served: &Served,
    key: &ObjectKey,
    body: &Bytes,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<serde_json::Value, Status> {
    let decoded = rimward_control_schema::decode::applied(body, options.validation)?;
    warnings.extend(decoded.warnings);
    let mut sent = decoded.value;
    if !sent["metadata"].is_null() && !sent["metadata"].is_object() {
        return Ok(sent);
    }
    let meta = crate::meta::metadata(&mut sent);
    meta.entry("name").or_insert_with(|| key.name.as_str().into());
    if served.kind.namespaced() {
        meta.entry("namespace").or_insert_with(|| key.namespace.as_str().into());
    }
    Ok(sent)
}

pub fn answer(
    server: &Inner,
    call: &Call,
    served: &Served,
    written: &Written,
) -> Result<Response, Status> {
    server.respond(call, served, &written.stored, if written.created { 201 } else { 200 })
}
