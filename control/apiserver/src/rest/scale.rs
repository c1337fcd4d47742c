//! `/scale`: the number of replicas of anything that has them, as an `autoscaling/v1` Scale.

use std::sync::Arc;

use jiff::Timestamp;
use rimward_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as TypedSelector;
use rimward_api::selector::LabelSelector;
use rimward_api::{FieldError, GroupKind, ObjectKey, Status};
use rimward_control_kinds::custom::jsonpath::{segments, simple};
use rimward_control_kinds::print;
use serde_json::{Value, json};

use crate::body::Response;
use crate::decode::{self, PatchKind};
use crate::error;
use crate::negotiate::{self, Offer, Shape, Shapes};
use crate::options::WriteOptions;
use crate::request::Call;
use crate::rest::take_body;
use crate::rest::write::{Author, Change};
use crate::served::Served;
use crate::server::Inner;
use crate::table::{Include, include};
use crate::views;

const KIND: (&str, &str, &str) = ("autoscaling", "v1", "Scale");

pub async fn serve(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let form = negotiate::form(&call.headers, Offer { shapes: Shapes::All, ..Offer::OWN })?;
    let object = match call.attributes.verb.as_str() {
        "get" => {
            let stored = crate::rest::read(server, call, served, key).await?;
            server.value(served, &stored)?
        }
        "update" => replace(server, call, served, key).await?,
        _ => patch(server, call, served, key).await?,
    };
    let paths = Paths::of(served);
    if call.attributes.verb == "get"
        && served.custom.is_some()
        && simple(&object, &paths.spec).is_none()
    {
        return Err(Status::internal(format!(
            "the spec replicas field {:?} does not exist",
            paths.spec
        )));
    }
    let scale = scale_of(&object, &paths);
    Ok(match form.shape {
        Shape::Object => views::encoded(call, 200, form, &scale),
        Shape::Metadata => views::encoded(call, 200, form, &partial(&scale)),
        Shape::Table => {
            let table = row(&scale, include(&call.query)?, Timestamp::now());
            views::finished(call, 200, form, table.to_string().into_bytes())
        }
    })
}

fn partial(scale: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": scale["metadata"],
    })
}

/// A Scale as a Table, by the columns that Kubernetes prints of it.
fn row(scale: &Value, include: Include, now: Timestamp) -> Value {
    let column = |name: &str, ty: &str, format: &str| json!({ "name": name, "type": ty, "format": format, "description": "", "priority": 0 });
    let object = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(scale),
        Include::Object => scale.clone(),
    };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": { "resourceVersion": scale["metadata"]["resourceVersion"] },
        "columnDefinitions": [
            column("Name", "string", "name"),
            column("Desired", "integer", ""),
            column("Available", "integer", ""),
            column("Age", "string", ""),
        ],
        "rows": [{
            "cells": [
                print::name(scale),
                scale["spec"]["replicas"],
                scale["status"]["replicas"],
                print::age(scale, now),
            ],
            "object": object,
        }],
    })
}

/// Where a kind keeps what a Scale shows.
pub struct Paths {
    spec: String,
    status: String,
    /// None for a label selector of the usual form.
    selector: Option<String>,
}

impl Paths {
    pub fn of(served: &Served) -> Self {
        let scale = served.custom.as_ref().and_then(|c| c.version.scale.as_ref());
        match scale {
            Some(scale) => Self {
                spec: scale.spec_replicas.clone(),
                status: scale.status_replicas.clone(),
                selector: Some(scale.selector.clone()),
            },
            None => Self {
                spec: ".spec.replicas".to_owned(),
                status: ".status.replicas".to_owned(),
                selector: None,
            },
        }
    }

    fn selector(&self, object: &Value) -> String {
        match &self.selector {
            None => selector_text(object),
            Some(path) if path.is_empty() => String::new(),
            Some(path) => {
                simple(object, path).and_then(Value::as_str).unwrap_or_default().to_owned()
            }
        }
    }

    /// Sets the replicas that are asked for, making the objects on the way.
    pub fn set(&self, object: &mut Value, replicas: i64) {
        let mut at = object;
        for key in segments(&self.spec) {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[key];
        }
        *at = replicas.into();
    }
}

/// The Scale of an object in its served form.
pub fn scale_of(object: &Value, paths: &Paths) -> Value {
    let meta = &object["metadata"];
    let mut shown = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(field) {
            shown[field] = value.clone();
        }
    }
    let number = |path: &str| simple(object, path).and_then(Value::as_i64).unwrap_or(0);
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": shown,
        "spec": { "replicas": number(&paths.spec) },
        "status": { "replicas": number(&paths.status), "selector": paths.selector(object) },
    })
}

fn selector_text(object: &Value) -> String {
    let selector = &object["spec"]["selector"];
    // A ReplicationController's selector is a plain map.
    let typed = match selector.get("matchLabels").or(selector.get("matchExpressions")) {
        Some(_) => selector.clone(),
        None => json!({ "matchLabels": selector }),
    };
    let typed: TypedSelector = serde_json::from_value(typed).unwrap_or_default();
    LabelSelector::from_typed(&typed).map(|s| s.to_string()).unwrap_or_default()
}

/// Sets the replicas that a Scale asks for, if they may be.
fn rescale(
    object: &mut Value,
    scale: &Value,
    key: &ObjectKey,
    paths: &Paths,
) -> Result<(), Status> {
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas < 0 {
        let kind = GroupKind { group: KIND.0.into(), kind: KIND.2.into() };
        let error = FieldError::invalid(
            "spec.replicas",
            &json!(replicas),
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid(&kind, &key.name, &[error]));
    }
    // The version and identity that the client named stay preconditions.
    for field in ["resourceVersion", "uid"] {
        if let Some(value) =
            scale["metadata"].get(field).filter(|v| v.as_str().is_some_and(|t| !t.is_empty()))
        {
            object["metadata"][field] = value.clone();
        }
    }
    paths.set(object, replicas);
    Ok(())
}

async fn replace(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Value, Status> {
    let options = WriteOptions::parse(&call.query, "UpdateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let scale = decode::spoken(&server.registry(), KIND, call, &body, options.validation)?;
    let named = scale["metadata"].get("name").and_then(Value::as_str).unwrap_or_default();
    if named != key.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({})",
            key.name
        )));
    }
    let paths = Paths::of(served);
    let rewrite = |mut object: Value| {
        rescale(&mut object, &scale, key, &paths)?;
        Ok(object)
    };
    write(server, call, served, key, &options, &rewrite).await
}

async fn patch(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Value, Status> {
    let kind = decode::patch_kind(call)?;
    if kind == PatchKind::Apply {
        return Err(error::unsupported_media());
    }
    let options = WriteOptions::parse(&call.query, "PatchOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let definition = server.registry().model.of_kind(KIND.0, KIND.1, KIND.2);
    let paths = Paths::of(served);
    let rewrite = |mut object: Value| {
        let before = scale_of(&object, &paths);
        let after = decode::apply_patch(server.registry().model, definition, kind, &before, &body)?;
        rescale(&mut object, &after, key, &paths)?;
        Ok(object)
    };
    write(server, call, served, key, &options, &rewrite).await
}

async fn write(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
    options: &WriteOptions,
    rewrite: &(dyn Fn(Value) -> Result<Value, Status> + Send + Sync),
) -> Result<Value, Status> {
    let author = Author { user: &call.user, options };
    let change = Change::Rewrite(rewrite);
    let written = server.update(served, key, "scale", change, &author, &mut call.warnings).await?;
    server.value(served, &written.stored)
}
