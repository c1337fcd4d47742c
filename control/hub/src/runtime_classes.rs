//! RuntimeClasses: a node is told the handler in the place of a class's name, and what nodes of this fleet
//! have is there as classes from the start.
//!
//! A class's handler cannot change, so what a pod was told stays right. A class that is gone is told by its
//! name, which the node then does not know: such a pod starts nowhere, as in Kubernetes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::node::v1::{RuntimeClass, Scheduling};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_client::Cache;
use serde::Deserialize;
use serde_json::Value;

use crate::Inner;

/// Handlers that get a class of their name, and the label of the nodes that have them.
const BUILT_IN: [(&str, &str); 4] = [
    ("wasm", "rimward.dev/wasm"),
    ("wasm-isolated", "rimward.dev/wasm"),
    ("oci", "rimward.dev/oci"),
    ("runc", "rimward.dev/runc"),
];

/// The pod, as JSON, as its node is told it; None if that is as it is.
pub(crate) fn resolved(pod: &[u8], classes: &Cache<RuntimeClass>) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        spec: Spec<'a>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec<'a> {
        #[serde(borrow)]
        runtime_class_name: Option<Cow<'a, str>>,
    }
    let named: Named = serde_json::from_slice(pod).ok()?;
    let name = named.spec.runtime_class_name.filter(|name| !name.is_empty())?;
    let class = classes.get("", &name)?;
    if class.handler == name {
        return None;
    }
    let mut told: Value = serde_json::from_slice(pod).ok()?;
    told["spec"]["runtimeClassName"] = Value::from(class.handler.as_str());
    serde_json::to_vec(&told).ok().map(Bytes::from)
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
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn a_node_is_told_the_handler() {
        let classes = Cache::new();
        let class = json!({"metadata": {"name": "mine"}, "handler": "wasm-isolated"});
        let class: RuntimeClass = serde_json::from_value(class).unwrap();
        classes.apply(ObjectKey::new("", "mine"), Arc::new(class));
        let told = |name: Value| {
            let pod = json!({"spec": {"containers": [], "runtimeClassName": name}});
            let told = resolved(pod.to_string().as_bytes(), &classes)?;
            let told: Value = serde_json::from_slice(&told).unwrap();
            assert_eq!(told["spec"]["containers"], json!([]));
            Some(told["spec"]["runtimeClassName"].clone())
        };
        assert_eq!(told(json!("mine")), Some(json!("wasm-isolated")));
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
