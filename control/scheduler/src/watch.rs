//! What the informers see, put into the snapshot and the queue.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use rimward_client::Cache;
use rimward_control_lean::Pod;

use crate::filter::{self, Happened};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;
use crate::{Shared, World};

pub(crate) fn namespaces(cache: &Cache<Namespace>, shared: &Arc<Shared>) {
    let shared = shared.clone();
    cache.on_change(move |change| {
        let labels = change.new.map(|n| n.metadata.labels.clone().unwrap_or_default());
        let mut world = shared.world.lock();
        world.snapshot.set_namespace(&change.key.name, labels);
        shared.happened(&mut world, filter::NAMESPACE);
    });
}

pub(crate) fn volumes(
    claims: &Cache<PersistentVolumeClaim>,
    volumes: &Cache<PersistentVolume>,
    classes: &Cache<StorageClass>,
    shared: &Arc<Shared>,
) {
    let to = shared.clone();
    claims.on_change(move |change| {
        let mut world = to.world.lock();
        world.snapshot.volumes.set_claim(change.key, change.new.cloned());
        to.happened(&mut world, filter::VOLUMES);
        to.claims.notify_waiters();
    });
    let to = shared.clone();
    volumes.on_change(move |change| {
        let mut world = to.world.lock();
        world.snapshot.volumes.set_volume(&change.key.name, change.new.cloned());
        to.happened(&mut world, filter::VOLUMES);
    });
    let to = shared.clone();
    classes.on_change(move |change| {
        let mut world = to.world.lock();
        world.snapshot.volumes.set_class(&change.key.name, change.new.cloned());
        to.happened(&mut world, filter::VOLUMES);
    });
}

pub(crate) fn nodes(cache: &Cache<Node>, shared: &Arc<Shared>) {
    let shared = shared.clone();
    cache.on_change(move |change| {
        let mut world = shared.world.lock();
        let Some(node) = change.new else {
            world.snapshot.remove_node(&change.key.name);
            return;
        };
        let what = match world.snapshot.node(&change.key.name) {
            None => filter::NODE_ADDED,
            Some(known) => changed(known, node),
        };
        world.snapshot.set_node(node.clone());
        shared.happened(&mut world, what);
    });
}

fn changed(known: &NodeInfo, node: &Node) -> Happened {
    let Some(old) = &known.node else { return filter::NODE_ADDED };
    let mut what = 0;
    if old.metadata.labels != node.metadata.labels {
        what |= filter::NODE_LABELS;
    }
    let taints = |n: &Node| n.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable));
    if taints(old) != taints(node) {
        what |= filter::NODE_TAINTS;
    }
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    if allocatable(old) != allocatable(node) {
        what |= filter::NODE_ALLOCATABLE;
    }
    what
}

pub(crate) fn pods(cache: &Cache<Pod>, shared: &Arc<Shared>, scheduler: &str) {
    let (shared, scheduler) = (shared.clone(), scheduler.to_owned());
    cache.on_change(move |change| {
        let mut world = shared.world.lock();
        // One of the same name may have followed another.
        if let Some(old) = change
            .old
            .filter(|old| change.new.is_none_or(|new| old.metadata.uid != new.metadata.uid))
        {
            shared.gone(&mut world, uid(old));
        }
        if let Some(new) = change.new {
            let old = change.old.filter(|old| old.metadata.uid == new.metadata.uid);
            shared.seen(&mut world, old, new, &scheduler);
        }
    });
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether it is for this scheduler to find a node now.
fn wants_node(pod: &Pod, scheduler: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == scheduler
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && pod.metadata.deletion_timestamp.is_none()
}

impl Shared {
    fn happened(&self, world: &mut World, what: Happened) {
        if what != 0 && world.queue.happened(what, Instant::now()) {
            self.wake.notify_one();
        }
    }

    fn gone(&self, world: &mut World, uid: &str) {
        world.queue.remove(uid);
        world.assumed.remove(uid);
        if world.snapshot.remove_pod(uid).is_some() {
            self.happened(world, filter::POD_REMOVED);
        }
    }

    fn seen(&self, world: &mut World, old: Option<&Arc<Pod>>, new: &Arc<Pod>, scheduler: &str) {
        let uid = uid(new);
        if is_over(new) {
            return self.gone(world, uid);
        }
        // Nearly every change is one of status only.
        let same = old.is_some_and(|old| {
            old.spec == new.spec
                && old.metadata.labels == new.metadata.labels
                && old.metadata.deletion_timestamp.is_some()
                    == new.metadata.deletion_timestamp.is_some()
        });
        if let Some(node) = node_name(new) {
            let confirmed = world.assumed.remove(uid);
            if same && !confirmed && world.snapshot.place_of(uid) == Some(node) {
                return;
            }
            world.queue.remove(uid);
            world.snapshot.place(Arc::new(PodInfo::new(new.clone())), node);
            self.happened(world, filter::POD_PLACED);
        } else if world.assumed.contains(uid) {
            // Its binding is under way; this is an echo from before.
        } else if wants_node(new, scheduler) {
            world.queue.add(Arc::new(PodInfo::new(new.clone())), !same);
            self.wake.notify_one();
        } else {
            world.queue.remove(uid);
        }
    }
}
