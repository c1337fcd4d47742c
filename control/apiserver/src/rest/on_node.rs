//! Requests about a pod that its node serves: which container, which node, and the node's word as a
//! Status.

use std::sync::Arc;

use rimward_api::meta::str_at;
use rimward_api::{ObjectKey, Reason, Status};
use serde_json::Value;

use crate::nodes::{NodeError, Nodes, PodOnNode};
use crate::server::Inner;

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The way to nodes.
///
/// # Errors
/// Until the control plane has one.
pub fn nodes(server: &Inner) -> Result<Arc<dyn Nodes>, Status> {
    let nodes = server.nodes.read().clone();
    nodes.ok_or_else(|| Status::unavailable("nodes cannot be reached yet"))
}

/// Where a pod runs.
///
/// # Errors
/// When it is not bound to a node yet.
pub fn place(pod: &Value, uid: &str, key: &ObjectKey) -> Result<PodOnNode, Status> {
    let node = str_at(pod, &["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", key.name)));
    }
    Ok(PodOnNode {
        node: node.to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: uid.to_owned(),
    })
}

/// A node's refusal.
pub fn node_status(error: NodeError) -> Status {
    match error {
        NodeError::NotConnected(_) => Status::unavailable(error.to_string()),
        NodeError::Refused(code, text) => Status::new(code.clamp(400, 599), reason(code), text),
    }
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

/// The container that is meant: the named one, or the only one.
///
/// # Errors
/// When there is none of that name, or no name and several.
pub fn container(pod: &Value, asked: &str, name: &str) -> Result<String, Status> {
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
        _ => {
            let all: Vec<&str> = [init, main, ephemeral].concat();
            Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                all.join(" ")
            )))
        }
    }
}
