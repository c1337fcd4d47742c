//! `pods/log`: a container's output, from the node through its tunnel.

use std::sync::Arc;

use futures::StreamExt as _;
use rimward_api::meta::str_at;
use rimward_api::{FieldError, GroupKind, ObjectKey, Reason, Status};
use serde_json::{Value, json};

use crate::body::{self, BoxError, Response};
use crate::nodes::{LogOptions, NodeError};
use crate::request::{Call, Query};
use crate::rest::find;
use crate::served::Served;
use crate::server::Inner;

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

pub async fn get(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Served,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let mut options = options(&call.query, &key.name)?;
    let stored = find(server, served, key).await?;
    let pod = server.value(served, &stored)?;
    options.container = container(&pod, &options.container, &key.name)?;
    let node = str_at(&pod, &["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", key.name)));
    }
    let nodes = server.nodes.read().clone();
    let nodes = nodes.ok_or_else(|| Status::unavailable("nodes cannot be reached yet"))?;
    let logs = nodes.logs(node, &key.namespace, &key.name, stored.record.uid(), options).await;
    let logs = logs.map_err(|e| match e {
        NodeError::NotConnected(_) => Status::unavailable(e.to_string()),
        NodeError::Refused(code, text) => Status::new(code.clamp(400, 599), reason(code), text),
    })?;
    let stop = server.stop.clone();
    let chunks = logs
        .map(|chunk| chunk.map_err(|e| -> BoxError { Box::new(e) }))
        .take_until(stop.cancelled_owned());
    let mut response = http::Response::new(body::stream(chunks));
    let plain = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    Ok(response)
}

fn reason(code: u16) -> Reason {
    match code {
        400 => Reason::BadRequest,
        404 => Reason::NotFound,
        403 => Reason::Forbidden,
        503 => Reason::ServiceUnavailable,
        500 => Reason::InternalError,
        _ => Reason::Unknown,
    }
}

fn options(query: &Query, pod: &str) -> Result<LogOptions, Status> {
    let mut errors = Vec::new();
    let mut number = |name: &str, min: i64| -> Option<i64> {
        let text = query.get(name).filter(|t| !t.is_empty())?;
        match text.parse::<i64>() {
            Ok(n) if n >= min => Some(n),
            Ok(n) => {
                let rule = match min {
                    1 => "must be greater than 0",
                    _ => "must be greater than or equal to 0",
                };
                errors.push(FieldError::invalid(name, &json!(n), rule));
                None
            }
            Err(_) => {
                errors.push(FieldError::invalid(name, &json!(text), "must be a number"));
                None
            }
        }
    };
    let (since_seconds, tail_lines, limit_bytes) =
        (number("sinceSeconds", 1), number("tailLines", 0), number("limitBytes", 1));
    let since_time = query.get("sinceTime").filter(|t| !t.is_empty()).map(str::to_owned);
    if since_time.as_ref().is_some_and(|t| t.parse::<jiff::Timestamp>().is_err()) {
        errors.push(FieldError::invalid(
            "sinceTime",
            &json!(since_time),
            "must be an RFC 3339 time",
        ));
    }
    if since_seconds.is_some() && since_time.is_some() {
        errors.push(FieldError::forbidden(
            "",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if !errors.is_empty() {
        let kind = GroupKind { group: String::new(), kind: "PodLogOptions".into() };
        return Err(Status::invalid(&kind, pod, &errors));
    }
    let flag = |name: &str| query.flag(name) == Some(true);
    Ok(LogOptions {
        container: query.get("container").unwrap_or_default().to_owned(),
        follow: flag("follow"),
        previous: flag("previous"),
        timestamps: flag("timestamps"),
        since_seconds,
        since_time,
        tail_lines,
        limit_bytes,
    })
}

/// The container that is meant: the named one, or the only one.
fn container(pod: &Value, asked: &str, name: &str) -> Result<String, Status> {
    let names = |field: &str| -> Vec<&str> {
        let list = pod["spec"].get(field).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(|c| c.get("name")?.as_str()).collect()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !asked.is_empty() {
        let known = main.iter().chain(&init).chain(&ephemeral).any(|n| *n == asked);
        return match known {
            true => Ok(asked.to_owned()),
            false => {
                Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
            }
        };
    }
    let annotated =
        pod.pointer("/metadata/annotations").and_then(|a| a.get(DEFAULT_CONTAINER)?.as_str());
    match (main.as_slice(), annotated) {
        ([only], _) => Ok((*only).to_owned()),
        (all, Some(default)) if all.contains(&default) => Ok(default.to_owned()),
        ([], _) => Err(Status::bad_request(format!("pod {name} has no containers"))),
        (all, _) => {
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                all.join(" ")
            );
            if !init.is_empty() {
                text += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(Status::bad_request(text))
        }
    }
}
