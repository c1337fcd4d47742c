//! RuntimeClasses: a node is told the handler in the place of a class's name, and what nodes of this fleet
//! have is there as classes from the start.
//!
//! A class's handler cannot change, so what a pod was told stays right. A class that is gone is told by its
//! name, which the node then does not know: such a pod starts nowhere, as in Kubernetes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::node::v1::{RuntimeClass, Scheduling};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_client::Cache;

use crate::Inner;

/// Handlers that get a class of their name, and the label of the nodes that have them.
const BUILT_IN: [(&str, &str); 4] = [
    ("wasm", "rimward.dev/wasm"),
    ("wasm-isolated", "rimward.dev/wasm"),
    ("oci", "rimward.dev/oci"),
    ("runc", "rimward.dev/runc"),
];

/// The pod as its node is told it; None if that is as it is.
pub(crate) fn resolved(pod: &Pod, classes: &Cache<RuntimeClass>) -> Option<Pod> {
    let name = pod.spec.as_ref()?.runtime_class_name.as_deref().filter(|n| !n.is_empty())?;
    let class = classes.get("", name)?;
    if class.handler == name {
        return None;
    }
    let mut told = pod.clone();
    told.spec.as_mut()?.runtime_class_name = Some(class.handler.clone());
    Some(told)
}

/// Makes the classes of what a node has that there are not yet. What an operator made under such a name stays.
pub(crate) async fn ensure(inner: &Inner, node: &Node) {
    for (handler, label) in missing(node, &inner.world.runtime_classes) {
        match inner.client.create(&class(handler, label)).await {
            Ok(_) => tracing::info!(handler, "a RuntimeClass was made for what nodes have"),
            Err(e) if e.is_already_exists() => {}
            Err(cause) => tracing::warn!(handler, %cause, "cannot make a RuntimeClass"),
        }
    }
}

fn missing(node: &Node, classes: &Cache<RuntimeClass>) -> Vec<(&'static str, &'static str)> {
    let handlers = node.status.iter().flat_map(|s| s.runtime_handlers.iter().flatten());
    let names: Vec<&str> = handlers.filter_map(|h| h.name.as_deref()).collect();
    let wanted = BUILT_IN.into_iter().filter(|(handler, _)| names.contains(handler));
    wanted.filter(|(handler, _)| classes.get("", handler).is_none()).collect()
}

fn class(handler: &str, label: &str) -> RuntimeClass {
    RuntimeClass {
        metadata: ObjectMeta { name: Some(handler.into()), ..ObjectMeta::default() },
        handler: handler.into(),
        overhead: None,
        scheduling: Some(Scheduling {
            node_selector: Some(BTreeMap::from([(label.into(), "true".into())])),
            tolerations: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rimward_api::ObjectKey;
    use serde_json::{Value, json};
    use std::sync::Arc;

    #[test]
    fn a_node_is_told_the_handler() {
        let classes = Cache::new();
        let class = json!({"metadata": {"name": "mine"}, "handler": "wasm-isolated"});
        let class: RuntimeClass = serde_json::from_value(class).unwrap();
        classes.apply(ObjectKey::new("", "mine"), Arc::new(class));
        let told = |name: Value| {
            let pod = json!({"spec": {"containers": [], "runtimeClassName": name}});
            let pod = resolved(&serde_json::from_value(pod).unwrap(), &classes)?;
            pod.spec.unwrap().runtime_class_name
        };
        assert_eq!(told(json!("mine")), Some("wasm-isolated".into()));
        assert_eq!(told(json!("gone")), None);
        assert_eq!(told(Value::Null), None);
    }

    #[test]
    fn what_nodes_have_gets_a_class_once() {
        let classes = Cache::new();
        let node = json!({"status": {"runtimeHandlers": [{"name": ""}, {"name": "wasm"}, {"name": "oci"}, {"name": "odd"}]}});
        let node: Node = serde_json::from_value(node).unwrap();
        let names = |classes| missing(&node, classes).iter().map(|m| m.0).collect::<Vec<_>>();
        assert_eq!(names(&classes), ["wasm", "oci"]);
        classes.apply(ObjectKey::new("", "oci"), Arc::new(class("oci", "l")));
        assert_eq!(names(&classes), ["wasm"]);
    }
}
