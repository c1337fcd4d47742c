//! `pods/log`: a container's output, from the node through its tunnel.

use std::sync::Arc;

use futures::StreamExt as _;
use rimward_api::{FieldError, GroupKind, ObjectKey, Status};
use serde_json::json;

use crate::body::{self, BoxError, Response};
use crate::nodes::{LogOptions, PodOnNode};
use crate::request::{Call, Query};
use crate::rest::{find, on_node};
use crate::served::Served;
use crate::server::Inner;
use crate::streams::messages;

pub async fn get(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Served,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let mut options = options(&call.query, &key.name)?;
    let stored = find(server, served, key).await?;
    let pod = server.value(served, &stored)?;
    options.container = on_node::container(&pod, &options.container, &key.name)?;
    let place = on_node::place(&pod, stored.record.uid(), key)?;
    let PodOnNode { node, namespace, name, uid } = &place;
    let logs = on_node::nodes(server)?.logs(node, namespace, name, uid, options).await;
    let logs = logs.map_err(on_node::node_status)?;
    let stop = server.stop.clone();
    let chunks = logs
        .map(|chunk| chunk.map_err(|e| -> BoxError { Box::new(e) }))
        .take_until(stop.cancelled_owned());
    let mut response = http::Response::new(body::stream(chunks));
    let plain = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    messages::of_bytes(call, response)
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
