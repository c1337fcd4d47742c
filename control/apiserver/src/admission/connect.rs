//! Requests that become a connection (exec, attach, port-forward, proxy): reviewed by their options,
//! before anybody is connected.

use std::sync::Arc;

use rimward_api::{ObjectKey, Status};
use serde_json::{Map, Value, json};

use super::{Operation, Options, Review};
use crate::request::Call;
use crate::served::Served;
use crate::server::Inner;

const FLAGS: [&str; 4] = ["stdin", "stdout", "stderr", "tty"];

/// Puts a connect request through admission.
///
/// # Errors
/// Whatever a reviewer refuses it with.
pub async fn admit(
    server: &Inner,
    call: &mut Call,
    served: &Arc<Served>,
    subresource: &str,
    key: &ObjectKey,
) -> Result<(), Status> {
    let Some(sub) = served.kind.subresource(subresource) else { return Ok(()) };
    let kind = sub.speaks.as_ref().map_or("", |(_, _, kind)| kind.as_str());
    let path = call.attributes.resource.as_ref().map_or("", |r| r.rest.as_str());
    let mut object = options(kind, path, &call.query);
    let mut review = Review {
        served,
        subresource,
        operation: Operation::Connect,
        user: &call.user,
        options: Options::None,
        key: key.clone(),
        object: &mut object,
        old: None,
        warnings: &mut call.warnings,
    };
    super::pass(server, &mut review).await
}

/// `PodExecOptions` and its like, from the query.
fn options(kind: &str, path: &str, query: &crate::request::Query) -> Value {
    let mut object = Map::new();
    object.insert("kind".into(), kind.into());
    object.insert("apiVersion".into(), "v1".into());
    for flag in FLAGS {
        if query.flag(flag) == Some(true) {
            object.insert(flag.into(), true.into());
        }
    }
    if let Some(container) = query.get("container") {
        object.insert("container".into(), container.into());
    }
    let command: Vec<&str> = query.all("command").collect();
    if !command.is_empty() {
        object.insert("command".into(), json!(command));
    }
    let ports: Vec<i64> = query.all("ports").filter_map(|p| p.parse().ok()).collect();
    if !ports.is_empty() {
        object.insert("ports".into(), json!(ports));
    }
    if kind.ends_with("ProxyOptions") && !path.is_empty() {
        object.insert("path".into(), path.into());
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;

    #[test]
    fn exec_options() {
        let query = Query::parse(Some("stdin=true&tty=false&container=c&command=a&command=b"));
        assert_eq!(
            options("PodExecOptions", "", &query),
            json!({ "kind": "PodExecOptions", "apiVersion": "v1", "stdin": true, "container": "c", "command": ["a", "b"] })
        );
    }
}
