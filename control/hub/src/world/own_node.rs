//! What a node is told of its own object: the labels and taints that others put there, by which it turns pods
//! away as the scheduler would. What it says itself, its status, is not told back to it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSpec, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::ObjectKey;
use rimward_tunnel::wire::ObjectKind;

use super::{Entry, World};
use crate::registration::has_unallocated;

impl World {
    /// Marks what changes of a node concern it.
    pub(super) fn follow_nodes(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.nodes.on_change(move |change| {
            let Some(world) = weak.upgrade() else { return };
            let (old, new) = (change.old.map(|node| &**node), change.new.map(|node| &**node));
            // Most changes are of status, which the node said itself.
            if new.is_some_and(has_unallocated) || old.map(said) != new.map(said) {
                let own = (ObjectKind::Node, change.key.clone());
                world.interest.lock().mark(&change.key.name, own);
            }
        });
    }

    pub(super) fn told_node(&self, name: &str) -> Option<Node> {
        self.nodes.get_key(&ObjectKey::new("", name)).map(|node| told(&node))
    }
}

/// What is told, and of which node.
#[derive(PartialEq)]
struct Said<'a> {
    uid: Option<&'a String>,
    labels: Option<&'a BTreeMap<String, String>>,
    taints: Option<&'a Vec<Taint>>,
}

fn said(node: &Node) -> Said<'_> {
    Said {
        uid: node.metadata.uid.as_ref(),
        labels: node.metadata.labels.as_ref(),
        taints: node.spec.as_ref().and_then(|spec| spec.taints.as_ref()),
    }
}

/// Its version is that of what is in it, so that a node that comes back with the same need not be told again.
pub(crate) fn told(node: &Node) -> Node {
    let Said { labels, taints, .. } = said(node);
    let mut hasher = DefaultHasher::new();
    let said = serde_json::to_vec(&(labels, taints)).expect("labels and taints are plain data");
    said.hash(&mut hasher);
    Node {
        metadata: ObjectMeta {
            name: node.metadata.name.clone(),
            uid: node.metadata.uid.clone(),
            resource_version: Some(format!("{:016x}", hasher.finish())),
            labels: labels.cloned(),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec { taints: taints.cloned(), ..NodeSpec::default() }),
        status: None,
    }
}

pub(super) fn entry(node: &Node) -> Entry {
    super::entry(ObjectKey::of_meta(&node.metadata), node)
}
