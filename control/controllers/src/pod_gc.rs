//! Pod garbage collection: removes pods that nobody will remove. Those on a node whose object is
//! gone, those deleted before they had a node, and the oldest ended ones beyond a threshold.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error, Patch};
use rimward_control_lean::Pod;
use serde_json::json;

use crate::Config;
use crate::driver::{Context, Controller, Keys, Next, synced};
use crate::indexes::{self, BY_NODE};
use crate::pods::{is_deleting, is_terminal, name, node_name, uid};

pub const NAME: &str = "pod-garbage-collector";
const WORKERS: usize = 2;
/// Value: "yes".
const ENDED: &str = "ended";
/// Ended pods are counted after this, so that a burst of them is sorted once.
const COUNT_AFTER: Duration = Duration::from_secs(20);

struct PodGc {
    client: Client,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    config: Arc<Config>,
}

/// The key under which ended pods are counted. Keys with a namespace are pods, the others nodes.
fn ended_key() -> ObjectKey {
    ObjectKey::default()
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (nodes, pods) = (context.informers.of::<Node>(), context.informers.of::<Pod>());
    indexes::pods_by_node(&pods);
    pods.add_index(ENDED, |pod| is_terminal(pod).then(|| "yes".into()).into_iter().collect());
    let config = context.config.clone();
    let (queue, quarantine) = (keys.clone(), config.node_gone_quarantine);
    nodes.on_change(move |change| {
        if change.new.is_none() {
            queue.add_after(change.key.clone(), quarantine);
        }
    });
    let (queue, known, limit) = (keys.clone(), nodes.clone(), config.clone());
    pods.on_change(move |change| {
        let Some(pod) = change.new else { return };
        if node_name(pod).is_empty() {
            if is_deleting(&pod.metadata) {
                queue.add(change.key.clone());
            }
        } else if known.get("", node_name(pod)).is_none() {
            queue.add_after(ObjectKey::new("", node_name(pod)), limit.node_gone_quarantine);
        }
        if is_terminal(pod)
            && limit.terminated_pods_max > 0
            && !change.old.is_some_and(|p| is_terminal(p))
        {
            queue.add_after(ended_key(), COUNT_AFTER);
        }
    });
    let caches = vec![synced(&nodes), synced(&pods)];
    let controller = PodGc { client: context.client.clone(), nodes, pods, config };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// The ended pods beyond the threshold, oldest first; evicted ones go before all. Pure.
pub fn excess(mut ended: Vec<Arc<Pod>>, keep: usize) -> Vec<Arc<Pod>> {
    let too_many = ended.len().saturating_sub(keep);
    ended.sort_by_cached_key(|pod| {
        let evicted = pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
        let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (!evicted, created, pod.metadata.name.clone())
    });
    ended.truncate(too_many);
    ended
}

#[async_trait]
impl Controller for PodGc {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if *key == ended_key() {
            for pod in excess(self.pods.indexed(ENDED, "yes"), self.config.terminated_pods_max) {
                self.remove(&pod).await?;
            }
        } else if key.namespace.is_empty() {
            self.node_gone(&key.name).await?;
        } else if let Some(pod) =
            self.pods.get_key(key).filter(|p| node_name(p).is_empty() && is_deleting(&p.metadata))
        {
            self.remove(&pod).await?;
        }
        Ok(Next::Change)
    }
}

impl PodGc {
    async fn node_gone(&self, node: &str) -> Result<(), Error> {
        let pods = self.pods.indexed(BY_NODE, node);
        if pods.is_empty() || self.nodes.get("", node).is_some() {
            return Ok(());
        }
        // The cache may be behind a node that just joined.
        match self.client.get::<Node>("", node).await {
            Ok(_) => return Ok(()),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        tracing::info!(node, pods = pods.len(), "the node is gone, removing its pods");
        for pod in pods {
            if !is_terminal(&pod) {
                self.mark_failed(&pod).await?;
            }
            self.remove(&pod).await?;
        }
        Ok(())
    }

    /// Owners that count successes and failures must not wait for an end that nobody will report.
    async fn mark_failed(&self, pod: &Pod) -> Result<(), Error> {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": Time(Timestamp::now()),
        });
        let patch =
            Patch::strategic(json!({"status": {"phase": "Failed", "conditions": [condition]}}));
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match self.client.patch::<Pod>(namespace, name(&pod.metadata), "status", &patch).await {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }

    async fn remove(&self, pod: &Pod) -> Result<(), Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let options = DeleteOptions::uid(uid(&pod.metadata)).grace(0);
        match self.client.delete::<Pod>(namespace, name(&pod.metadata), &options).await {
            Err(e) if !e.is_not_found() && !e.is_conflict() => Err(e),
            _ => Ok(()),
        }
    }
}
