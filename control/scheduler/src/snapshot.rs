//! The nodes and what runs on them, kept up to date change by change, never rebuilt.
//!
//! A pod that was decided on counts at once ("assumed"), before its binding is stored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use rimward_api::Quantity;

use crate::pod::{HostPort, Labels, PodInfo, Uid};
use crate::resources::Resources;
use crate::volumes::Volumes;

/// A node and the sum of its pods.
#[derive(Debug, Default)]
pub struct NodeInfo {
    pub name: Arc<str>,
    /// None while only pods say that there is such a node.
    pub node: Option<Arc<Node>>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub pods_max: usize,
    pub requested: Resources,
    /// For comparing nodes: pods without requests count too.
    pub weight: (i64, i64),
    pub pods: HashMap<Uid, Arc<PodInfo>>,
    pub ports: Vec<(Uid, HostPort)>,
    /// Pods per controlling owner.
    pub owners: HashMap<Arc<str>, u32>,
}

impl NodeInfo {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.as_ref()?.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let spec = node.spec.as_ref();
        self.taints = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
        self.unschedulable = spec.and_then(|s| s.unschedulable).unwrap_or(false);
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        let amounts = allocatable.into_iter().flatten().map(|(name, q)| (name.as_str(), q));
        self.allocatable = Resources::from_amounts(amounts);
        let pods = allocatable.and_then(|a| Quantity::parse(&a.get("pods")?.0).ok());
        self.pods_max = pods.map_or(0, |q| q.value().max(0) as usize);
        self.node = Some(node);
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.weight.0 += pod.weight.0;
        self.weight.1 += pod.weight.1;
        self.ports.extend(pod.host_ports.iter().map(|p| (pod.uid.clone(), p.clone())));
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_default() += 1;
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        self.weight.0 -= pod.weight.0;
        self.weight.1 -= pod.weight.1;
        if !pod.host_ports.is_empty() {
            self.ports.retain(|(owner, _)| **owner != *uid);
        }
        if let Some(owner) = &pod.owner
            && let Some(count) = self.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
        Some(pod)
    }

    fn is_void(&self) -> bool {
        self.node.is_none() && self.pods.is_empty()
    }
}

/// All nodes. Slots are reused, so that a node keeps its place while others come and go.
#[derive(Debug, Default)]
pub struct Snapshot {
    slots: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, usize>,
    free: Vec<usize>,
    /// Slots that hold a node, in the order in which they are tried.
    live: Vec<usize>,
    /// Where each pod counts.
    placed: HashMap<Uid, usize>,
    /// Slots with pods that keep others away.
    keeping_away: HashSet<usize>,
    namespaces: HashMap<String, Arc<Labels>>,
    pub volumes: Volumes,
}

impl Snapshot {
    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The node at a position of the order of trial.
    pub fn at(&self, position: usize) -> &NodeInfo {
        &self.slots[self.live[position]]
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.live.iter().map(|slot| &self.slots[*slot])
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|slot| &self.slots[*slot]).filter(|n| n.node.is_some())
    }

    /// Nodes with pods that have required anti-affinity.
    pub fn nodes_keeping_away(&self) -> impl Iterator<Item = &NodeInfo> {
        self.keeping_away.iter().map(|slot| &self.slots[*slot]).filter(|n| n.node.is_some())
    }

    pub fn namespace_labels(&self, namespace: &str) -> Option<Arc<Labels>> {
        self.namespaces.get(namespace).cloned()
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), Arc::new(labels)),
            None => self.namespaces.remove(name),
        };
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(NodeInfo::default());
            self.slots.len() - 1
        });
        let name: Arc<str> = name.into();
        self.slots[slot] = NodeInfo { name: name.clone(), ..NodeInfo::default() };
        self.by_name.insert(name, slot);
        slot
    }

    fn release(&mut self, slot: usize) {
        if self.slots[slot].is_void() {
            let name = self.slots[slot].name.clone();
            self.by_name.remove(&name);
            self.free.push(slot);
        }
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let slot = self.slot(node.metadata.name.as_deref().unwrap_or_default());
        if self.slots[slot].node.is_none() {
            self.live.push(slot);
        }
        self.slots[slot].set_node(node);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.get(name).copied() else { return };
        self.slots[slot].node = None;
        self.live.retain(|s| *s != slot);
        self.release(slot);
    }

    /// Counts a pod on a node, and nowhere else.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        let slot = self.slot(node);
        self.placed.insert(pod.uid.clone(), slot);
        if !pod.anti_affinity.is_empty() {
            self.keeping_away.insert(slot);
        }
        self.slots[slot].add(pod);
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let slot = self.placed.remove(uid)?;
        let pod = self.slots[slot].remove(uid)?;
        if !pod.anti_affinity.is_empty()
            && self.slots[slot].pods.values().all(|p| p.anti_affinity.is_empty())
        {
            self.keeping_away.remove(&slot);
        }
        self.release(slot);
        Some(pod)
    }

    /// The node on which a pod counts.
    pub fn place_of(&self, uid: &str) -> Option<&str> {
        self.placed.get(uid).map(|slot| &*self.slots[*slot].name)
    }
}
