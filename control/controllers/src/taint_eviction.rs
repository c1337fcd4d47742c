//! Taint eviction: pods leave a node whose NoExecute taints they do not tolerate, or no longer.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions>

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use rimward_api::ObjectKey;
use rimward_api::nodes::tolerates;
use rimward_client::{Cache, Client, DeleteOptions, Error, EventType, Patch, Recorder};
use rimward_control_lean::Pod;
use serde_json::json;

use crate::driver::{Context, Controller, Keys, Next, synced};
use crate::indexes::{self, BY_NODE};
use crate::pods::{is_deleting, is_terminal, name, node_name, uid};

/// Acts as the node controller does.
pub const NAME: &str = "taint-eviction-controller";
const WORKERS: usize = 4;

struct Evictions {
    client: Client,
    recorder: Recorder,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    /// When a taint without timeAdded was first seen, by node and taint.
    first_seen: Mutex<HashMap<String, Vec<(Taint, Timestamp)>>>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (nodes, pods) = (context.informers.of::<Node>(), context.informers.of::<Pod>());
    indexes::pods_by_node(&pods);
    let queue = keys.clone();
    nodes.on_change(move |change| {
        let tainted = |node: Option<&Arc<Node>>| node.is_some_and(|n| !no_execute(n).is_empty());
        if tainted(change.old) || tainted(change.new) {
            queue.add(change.key.clone());
        }
    });
    let (queue, known) = (keys.clone(), nodes.clone());
    pods.on_change(move |change| {
        let Some(pod) =
            change.new.filter(|p| !node_name(p).is_empty() && !is_deleting(&p.metadata))
        else {
            return;
        };
        let key = ObjectKey::new("", node_name(pod));
        if known.get_key(&key).is_some_and(|n| !no_execute(&n).is_empty()) {
            queue.add(key);
        }
    });
    let caches = vec![synced(&nodes), synced(&pods)];
    let controller = Evictions {
        client: context.client.clone(),
        recorder: context.recorder(),
        nodes,
        pods,
        first_seen: Mutex::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

fn no_execute(node: &Node) -> Vec<&Taint> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.filter(|t| t.effect == "NoExecute").collect()
}

/// When a pod must leave, given each taint and since when it is there; None: it may stay. Pure.
pub fn leave_at(pod: &Pod, taints: &[(Taint, Timestamp)]) -> Option<Timestamp> {
    let tolerations: Vec<&Toleration> =
        pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten()).collect();
    let deadline = |(taint, since): &(Taint, Timestamp)| {
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return Some(*since);
        }
        let seconds = matching.filter_map(|t| t.toleration_seconds).min()?;
        Some(*since + SignedDuration::from_secs(seconds.clamp(0, i64::from(i32::MAX))))
    };
    taints.iter().filter_map(deadline).min()
}

#[async_trait]
impl Controller for Evictions {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let taints = match self.nodes.get_key(key) {
            Some(node) => self.dated(&key.name, &no_execute(&node)),
            None => self.dated(&key.name, &[]),
        };
        if taints.is_empty() {
            return Ok(Next::Change);
        }
        let now = Timestamp::now();
        let (mut leaving, mut next) = (Vec::new(), None::<Timestamp>);
        for pod in self.pods.indexed(BY_NODE, &key.name) {
            if is_deleting(&pod.metadata) || is_terminal(&pod) {
                continue;
            }
            match leave_at(&pod, &taints) {
                Some(at) if at <= now => leaving.push(pod),
                Some(at) => next = Some(next.map_or(at, |n| n.min(at))),
                None => {}
            }
        }
        for chunk in leaving.chunks(32) {
            for answer in join_all(chunk.iter().map(|pod| self.evict(pod))).await {
                answer?;
            }
        }
        let left = next.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
        Ok(left.map_or(Next::Change, Next::After))
    }
}

impl Evictions {
    /// Each taint with the time since when it is there.
    fn dated(&self, node: &str, taints: &[&Taint]) -> Vec<(Taint, Timestamp)> {
        let mut seen = self.first_seen.lock();
        let old = seen.remove(node).unwrap_or_default();
        let dated: Vec<(Taint, Timestamp)> = taints
            .iter()
            .map(|taint| {
                let known = old.iter().find(|(t, _)| t == *taint).map(|(_, at)| *at);
                let since =
                    known.or(taint.time_added.as_ref().map(|t| t.0)).unwrap_or_else(Timestamp::now);
                ((*taint).clone(), since)
            })
            .collect();
        if !dated.is_empty() {
            seen.insert(node.to_owned(), dated.clone());
        }
        dated
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Error> {
        let (namespace, pod_name) =
            (pod.metadata.namespace.as_deref().unwrap_or_default(), name(&pod.metadata));
        self.recorder.event(
            pod,
            EventType::Normal,
            "TaintManagerEviction",
            format!("Marking for deletion Pod {namespace}/{pod_name}"),
        );
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(Timestamp::now()),
        });
        let patch = Patch::strategic(
            json!({"metadata": {"uid": uid(&pod.metadata)}, "status": {"conditions": [condition]}}),
        );
        match self.client.patch::<Pod>(namespace, pod_name, "status", &patch).await {
            Err(e) if e.is_not_found() || e.is_conflict() => return Ok(()),
            answer => drop(answer?),
        }
        match self
            .client
            .delete::<Pod>(namespace, pod_name, &DeleteOptions::uid(uid(&pod.metadata)))
            .await
        {
            Err(e) if !e.is_not_found() && !e.is_conflict() => Err(e),
            _ => Ok(()),
        }
    }
}
