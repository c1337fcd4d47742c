//! Pods, of which there are more than of anything else, are not watched a second time: the collector reads
//! them where the other controllers do.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rimward_client::{Cache, Change};
use rimward_control_lean::Pod;
use tokio_util::sync::CancellationToken;

use super::Collector;
use super::graph::{Graph, Owner, Partial, PartialMeta, ResourceId, Work};

impl Collector {
    /// Feeds the graph from the shared cache, for as long as there is one.
    pub(super) fn follow_pods(
        self: &Arc<Self>,
        pods: &Cache<Pod>,
        id: ResourceId,
        token: CancellationToken,
    ) {
        let weak = Arc::downgrade(self);
        pods.on_change(move |change| {
            if let Some(collector) = weak.upgrade() {
                let work = changed(&mut collector.graph.lock(), id, &change);
                work.into_iter().for_each(|work| collector.work.add(work));
            }
        });
        let (collector, pods) = (self.clone(), pods.clone());
        tokio::spawn(async move {
            if token.run_until_cancelled(pods.synced()).await.is_some() {
                collector.first_listed();
            }
        });
    }
}

fn changed(graph: &mut Graph, id: ResourceId, change: &Change<'_, Pod>) -> Vec<Work> {
    let (old, new) = (change.old.map(|pod| &pod.metadata), change.new.map(|pod| &pod.metadata));
    let mut work = Vec::new();
    if let Some(old) = old
        && new.is_none_or(|new| new.uid != old.uid)
    {
        work.extend(graph.remove(old.uid.as_deref().unwrap_or_default()));
    }
    if let Some(new) = new {
        // Most changes are of status.
        let version = new.resource_version.as_deref().unwrap_or_default();
        let uid = new.uid.as_deref().unwrap_or_default();
        if !old.is_some_and(|old| as_before(old, new)) || !graph.revise(uid, version) {
            work.extend(graph.observe(id, partial(new)));
        }
    }
    work
}

/// Whether nothing changed that garbage collection is about.
fn as_before(old: &ObjectMeta, new: &ObjectMeta) -> bool {
    old.uid == new.uid
        && old.owner_references == new.owner_references
        && old.finalizers == new.finalizers
        && old.deletion_timestamp.is_some() == new.deletion_timestamp.is_some()
}

fn partial(meta: &ObjectMeta) -> Partial {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Partial {
        metadata: PartialMeta {
            name: text(&meta.name),
            namespace: text(&meta.namespace),
            uid: text(&meta.uid),
            resource_version: text(&meta.resource_version),
            is_deleted: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            owner_references: meta.owner_references.iter().flatten().map(owner).collect(),
        },
    }
}

fn owner(reference: &OwnerReference) -> Owner {
    Owner {
        api_version: reference.api_version.clone(),
        kind: reference.kind.clone(),
        name: reference.name.clone(),
        uid: reference.uid.clone(),
        controller: reference.controller,
        block_owner_deletion: reference.block_owner_deletion,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rimward_api::ObjectKey;
    use serde_json::{Value, json};

    #[test]
    fn what_follows_from_changes_of_pods() {
        let pod = |meta: Value| {
            Arc::new(serde_json::from_value::<Pod>(json!({"metadata": meta})).unwrap())
        };
        let key = ObjectKey::new("ns", "p");
        let meta = |uid: &str, version: &str, more: Value| {
            let mut meta =
                json!({"namespace": "ns", "name": "p", "uid": uid, "resourceVersion": version});
            let more = more.as_object().cloned().unwrap_or_default();
            meta.as_object_mut().expect("an object").extend(more);
            pod(meta)
        };
        let owned = json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r",
            "uid": "owner", "controller": true, "blockOwnerDeletion": true}]});
        let mut graph = Graph::default();
        let mut step = |old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>| {
            let work = changed(&mut graph, 7, &Change { key: &key, old, new });
            let at = graph.find("a").map(|place| place.resource_version);
            (work, at, graph.find("b").is_some())
        };
        let at = |version: &str| Some(version.to_owned());
        let judge = || vec![Work::Judge("a".into())];
        // Its owner is not known.
        let first = meta("a", "1", owned.clone());
        assert_eq!(step(None, Some(&first)), (judge(), at("1"), false));
        let second = meta("a", "2", owned);
        assert_eq!(step(Some(&first), Some(&second)), (vec![], at("2"), false));
        let freed = meta("a", "3", json!({}));
        assert_eq!(step(Some(&second), Some(&freed)), (vec![], at("3"), false));
        let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]});
        let waiting = meta("a", "4", leaving);
        assert_eq!(step(Some(&freed), Some(&waiting)), (judge(), at("4"), false));
        // Another one of its name.
        let other = meta("b", "6", json!({}));
        assert_eq!(step(Some(&waiting), Some(&other)), (vec![], None, true));
        assert_eq!(step(Some(&other), None), (vec![], None, false));
    }
}
