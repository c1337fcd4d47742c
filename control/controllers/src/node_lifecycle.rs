//! Node lifecycle: a node that nobody hears of becomes Unknown, and is tainted so that nothing new
//! goes there and what is there moves away.
//! <https://kubernetes.io/docs/concepts/architecture/nodes/#condition>
//!
//! The hub sets Ready when a node connects, and then only keeps the node's Lease fresh, which is not
//! stored. So each node has one timer: when it would be overdue, its Lease is read once, and the
//! timer set anew from what it says. After a start of this process every node has a full grace
//! period.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error, EventType, ListOptions, Patch, Recorder};
use rimward_control_lean::Pod;
use serde_json::json;

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::indexes::{self, BY_NODE};
use crate::pods::{is_ready, name};

pub const NAME: &str = "node-controller";
const WORKERS: usize = 8;
const LEASE_NAMESPACE: &str = "kube-node-lease";
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// (condition, the status that taints, the taint's key), NoSchedule only.
const PRESSURES: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The conditions that only the node itself can know.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

struct Nodes {
    client: Client,
    /// Reads Leases: the controller itself may not.
    reader: Client,
    recorder: Recorder,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    grace: SignedDuration,
    started: Timestamp,
    heard: Mutex<HashMap<String, Heard>>,
    /// Names of the nodes that are Ready.
    ready: Arc<Mutex<HashSet<String>>>,
}

/// The last sign of life, and the Ready condition that was current then.
struct Heard {
    at: Timestamp,
    ready: Option<NodeCondition>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (nodes, pods) = (context.informers.of::<Node>(), context.informers.of::<Pod>());
    indexes::pods_by_node(&pods);
    enqueue_changes(&nodes, &keys);
    let ready: Arc<Mutex<HashSet<String>>> = Arc::default();
    let (queue, known, set) = (keys.clone(), nodes.clone(), ready.clone());
    nodes.on_change(move |change| {
        let is_ready = change.new.is_some_and(|n| ready_status(n) == Some("True"));
        let mut set = set.lock();
        let before = set.is_empty();
        if is_ready {
            set.insert(change.key.name.clone())
        } else {
            set.remove(&change.key.name)
        };
        if before != set.is_empty() {
            // From all down to some up, or back: what may be evicted changes for every node.
            known.list().into_iter().for_each(|(key, _)| queue.add(key));
        }
    });
    let caches = vec![synced(&nodes), synced(&pods)];
    let controller = Nodes {
        client: context.client.clone(),
        reader: context.informers.client().clone(),
        recorder: context.recorder(),
        nodes,
        pods,
        grace: SignedDuration::try_from(context.config.node_monitor_grace)
            .unwrap_or(SignedDuration::from_secs(40)),
        started: Timestamp::now(),
        heard: Mutex::default(),
        ready,
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

pub fn ready_status(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|c| c.status.as_str())
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Conditions to set on the status.
    pub conditions: Vec<NodeCondition>,
    /// All taints of the node, if they must change.
    pub taints: Option<Vec<Taint>>,
    /// Its pods can no longer be said to be ready.
    pub pods_not_ready: bool,
}

/// Decides; touches nothing. `overdue`: nobody heard of the node for the grace period.
/// `any_ready`: some node is Ready. Where none is, the control plane rather than the nodes is cut
/// off, and there is nowhere to move pods to: nothing is evicted.
pub fn plan(node: &Node, overdue: bool, any_ready: bool, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut statuses: HashMap<&str, &str> = HashMap::new();
    for c in node.status.iter().flat_map(|s| s.conditions.iter().flatten()) {
        statuses.insert(&c.type_, &c.status);
    }
    if overdue {
        for kind in REPORTED {
            let old = condition(node, kind);
            if old.is_some_and(|c| c.status == "Unknown") {
                continue;
            }
            let (reason, text) = match old {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            plan.conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some(reason.into()),
                message: Some(text.into()),
                last_heartbeat_time: old.map_or(Some(Time(now)), |c| c.last_heartbeat_time.clone()),
                last_transition_time: Some(Time(now)),
            });
            statuses.insert(kind, "Unknown");
        }
    }
    let ready = statuses.get("Ready").copied();
    plan.pods_not_ready = ready == Some("Unknown");
    plan.taints = taints(node, &statuses, any_ready, now);
    plan
}

fn taints(
    node: &Node,
    statuses: &HashMap<&str, &str>,
    any_ready: bool,
    now: Timestamp,
) -> Option<Vec<Taint>> {
    let ready = statuses.get("Ready").copied();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let health = match ready {
        Some("True") => None,
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        // A node that never said anything is not ready, but nothing is there to evict.
        _ => {
            wanted.push((NOT_READY, "NoSchedule"));
            None
        }
    };
    if let Some(key) = health {
        wanted.push((key, "NoSchedule"));
        if any_ready {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, bad, key) in PRESSURES {
        if statuses.get(kind) == Some(&bad) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let pressure = PRESSURES.map(|(_, _, key)| key);
    let ours = |t: &Taint| {
        [NOT_READY, UNREACHABLE].contains(&t.key.as_str())
            && ["NoSchedule", "NoExecute"].contains(&t.effect.as_str())
            || (t.effect == "NoSchedule"
                && (t.key == UNSCHEDULABLE || pressure.contains(&t.key.as_str())))
    };
    let old = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let is_wanted =
        |t: &Taint| wanted.iter().any(|(key, effect)| t.key == *key && t.effect == *effect);
    let mut new: Vec<Taint> = old.iter().filter(|t| !ours(t) || is_wanted(t)).cloned().collect();
    for (key, effect) in wanted {
        if !new.iter().any(|t| t.key == key && t.effect == effect) {
            new.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (new != old).then_some(new)
}

#[async_trait]
impl Controller for Nodes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(node) = self.nodes.get_key(key) else {
            self.heard.lock().remove(&key.name);
            return Ok(Next::Change);
        };
        let watching = ready_status(&node) != Some("Unknown");
        let due = self.note(&node) + self.grace;
        let mut left = due.duration_since(Timestamp::now());
        if watching && !left.is_positive() {
            let renewed = self.renewed(&key.name).await?;
            if let Some(renewed) = renewed
                && let Some(heard) = self.heard.lock().get_mut(&key.name)
            {
                heard.at = heard.at.max(renewed);
            }
            left = (self.note(&node) + self.grace).duration_since(Timestamp::now());
        }
        let overdue = watching && !left.is_positive();
        let any_ready = !self.ready.lock().is_empty();
        let plan = plan(&node, overdue, any_ready, Timestamp::now());
        self.act(&node, &plan).await?;
        let left = Duration::try_from(left).ok().filter(|left| watching && !left.is_zero());
        Ok(left.map_or(Next::Change, Next::After))
    }
}

impl Nodes {
    /// Notes a sign of life if the Ready condition changed; answers the last one.
    fn note(&self, node: &Node) -> Timestamp {
        let ready = condition(node, "Ready").cloned();
        let mut heard = self.heard.lock();
        let heard = heard.entry(name(&node.metadata).to_owned()).or_insert_with(|| {
            let created = node.metadata.creation_timestamp.as_ref().map_or(self.started, |t| t.0);
            Heard { at: self.started.max(created), ready: ready.clone() }
        });
        // What this controller writes is no sign of life.
        if heard.ready != ready && ready.as_ref().is_some_and(|r| r.status != "Unknown") {
            heard.at = Timestamp::now();
        }
        heard.ready = ready;
        heard.at
    }

    async fn renewed(&self, node: &str) -> Result<Option<Timestamp>, Error> {
        let options = ListOptions {
            field_selector: format!("metadata.name={node}"),
            ..ListOptions::default()
        };
        let leases = self.reader.list::<Lease>(LEASE_NAMESPACE, &options).await?;
        let renewed = leases.items.into_iter().next().and_then(|l| l.spec?.renew_time);
        Ok(renewed.map(|t| t.0))
    }

    async fn act(&self, node: &Node, plan: &Plan) -> Result<(), Error> {
        let node_name = name(&node.metadata);
        if !plan.conditions.is_empty() {
            let patch = Patch::strategic(json!({"status": {"conditions": plan.conditions}}));
            match self.client.patch::<Node>("", node_name, "status", &patch).await {
                Err(e) if e.is_not_found() => return Ok(()),
                answer => drop(answer?),
            }
            tracing::warn!(node = node_name, "not heard of for the grace period, now Unknown");
            let text = format!("Node {node_name} status is now: NodeNotReady");
            self.recorder.event(node, EventType::Normal, "NodeNotReady", text);
        }
        if let Some(taints) = &plan.taints {
            // Taints have no identity to merge by: the whole list is replaced, and must be the one
            // that was read.
            let mut metadata = json!({});
            if plan.conditions.is_empty() {
                metadata["resourceVersion"] = json!(node.metadata.resource_version);
            }
            let patch = Patch::merge(json!({"metadata": metadata, "spec": {"taints": taints}}));
            match self.client.patch::<Node>("", node_name, "", &patch).await {
                Err(e) if e.is_not_found() => return Ok(()),
                answer => drop(answer?),
            }
        }
        if plan.pods_not_ready {
            self.mark_pods_not_ready(node_name).await?;
        }
        Ok(())
    }

    /// Services must stop sending there before the pods are gone.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), Error> {
        let now = Time(Timestamp::now());
        let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
        let patch = Patch::strategic(json!({"status": {"conditions": [condition]}}));
        let ready: Vec<Arc<Pod>> =
            self.pods.indexed(BY_NODE, node).into_iter().filter(|p| is_ready(p)).collect();
        for chunk in ready.chunks(32) {
            let patch = &patch;
            let answers = join_all(chunk.iter().map(|pod| async move {
                self.recorder.event(
                    &**pod,
                    EventType::Warning,
                    "NodeNotReady",
                    "Node is not ready",
                );
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                self.client.patch::<Pod>(namespace, name(&pod.metadata), "status", patch).await
            }));
            for answer in answers.await {
                match answer {
                    Err(e) if !e.is_not_found() => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
