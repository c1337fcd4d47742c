//! What a DaemonSet does next: on which nodes it makes pods, which pods go, what its status says.
//! <https://kubernetes.io/docs/tasks/manage-daemon/update-daemon-set/>
//!
//! First each node gets what belongs there and loses what does not; only once nothing of that is left to do
//! are pods replaced by those of the newest template, as many at a time as the strategy allows.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::Node;
use rimward_client::EventType;
use rimward_control_lean::Pod;

use super::placement::{self, Placement, Wish};
use crate::pods::{available_in, is_deleting, is_ready, is_terminal, name, node_name, phase};
use crate::shares;

/// What a DaemonSet, its pods and all nodes look like now.
pub struct World<'a> {
    pub set: &'a DaemonSet,
    /// By name.
    pub nodes: &'a [Arc<Node>],
    /// The pods that it controls.
    pub pods: &'a [Arc<Pod>],
    /// Of the revision of its template.
    pub hash: &'a str,
    pub collisions: Option<i32>,
    /// Whether the cache shows all pods that this process created and deleted.
    pub settled: bool,
    /// How long a failed pod of a node is still left alone.
    pub backoff: &'a dyn Fn(&str) -> Duration,
    pub now: Timestamp,
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Names of the nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Names of the nodes whose failed pod goes: the next one waits longer.
    pub failed: Vec<String>,
    pub events: Vec<(EventType, &'static str, String)>,
    pub status: DaemonSetStatus,
    /// When to look again though nothing changes.
    pub wake: Option<Duration>,
}

/// Decides; touches nothing.
pub fn plan(world: &World) -> Plan {
    let mut rollout = Rollout::new(world);
    rollout.count();
    if world.settled {
        rollout.manage();
        if rollout.plan.create.is_empty() && rollout.plan.delete.is_empty() {
            rollout.update();
        }
    }
    rollout.plan
}

type OldAndNew<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

struct Rollout<'a> {
    world: &'a World<'a>,
    spec: DaemonSetSpec,
    generation: Option<i64>,
    /// What is wanted of each node that there is.
    wishes: BTreeMap<&'a str, Wish>,
    /// Pods by node, also of nodes that are gone; the one that counts first, first.
    pods: BTreeMap<&'a str, Vec<&'a Arc<Pod>>>,
    /// How many nodes are to have a pod.
    desired: i32,
    plan: Plan,
}

impl<'a> Rollout<'a> {
    fn new(world: &'a World<'a>) -> Self {
        let placement = Placement::new(world.set);
        let wish = |node: &'a Arc<Node>| (name(&node.metadata), placement.wish(node));
        let wishes: BTreeMap<&str, Wish> = world.nodes.iter().map(wish).collect();
        let mut pods: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
        for pod in world.pods {
            // What ended and is on its way out no longer takes its node's place.
            if is_terminal(pod) && is_deleting(&pod.metadata) {
                continue;
            }
            if let Some(node) = placement::target(pod) {
                pods.entry(node).or_default().push(pod);
            }
        }
        for on_node in pods.values_mut() {
            on_node.sort_by_key(|pod| {
                let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
                (node_name(pod).is_empty(), created, name(&pod.metadata))
            });
        }
        let desired = wishes.values().filter(|w| **w == Wish::Run).count() as i32;
        Self {
            world,
            spec: world.set.spec.clone().unwrap_or_default(),
            generation: placement::generation(world.set),
            wishes,
            pods,
            desired,
            plan: Plan::default(),
        }
    }

    fn count(&mut self) {
        let before = self.world.set.status.clone().unwrap_or_default();
        let observed = self.world.set.metadata.generation.filter(|_| self.world.settled);
        let mut status = DaemonSetStatus {
            desired_number_scheduled: self.desired,
            observed_generation: observed.or(before.observed_generation),
            collision_count: self.world.collisions,
            // What others say here stays.
            conditions: before.conditions,
            ..DaemonSetStatus::default()
        };
        let (mut available, mut updated) = (0, 0);
        for (node, wish) in &self.wishes {
            let Some(pod) = self.pods.get(node).and_then(|pods| pods.first()) else { continue };
            if *wish != Wish::Run {
                status.number_misscheduled += 1;
                continue;
            }
            status.current_number_scheduled += 1;
            status.number_ready += i32::from(is_ready(pod));
            updated += i32::from(self.is_updated(pod));
            match self.available_in(pod) {
                Some(Duration::ZERO) => available += 1,
                Some(left) => wake(&mut self.plan.wake, left),
                None => {}
            }
        }
        let nonzero = |n: i32| (n != 0).then_some(n);
        status.number_available = nonzero(available);
        status.number_unavailable = nonzero(self.desired - available);
        status.updated_number_scheduled = nonzero(updated);
        self.plan.status = status;
    }

    fn manage(&mut self) {
        for (node, wish) in std::mem::take(&mut self.wishes) {
            let pods = self.pods.get(node).cloned().unwrap_or_default();
            match wish {
                Wish::Run if pods.is_empty() => self.plan.create.push(node.to_owned()),
                Wish::Run | Wish::Stay => self.tidy(node, wish, &pods),
                Wish::Leave => self.delete(pods.into_iter().filter(|p| !is_deleting(&p.metadata))),
            }
            self.wishes.insert(node, wish);
        }
        // Their node is gone, so that nobody will ever bind them, and nobody else collects them.
        let known: HashSet<&str> = self.wishes.keys().copied().collect();
        let lost = self.pods.iter().filter(|(node, _)| !known.contains(*node));
        let lost = lost.flat_map(|(_, pods)| pods.iter().copied());
        let lost = lost.filter(|p| node_name(p).is_empty() && !is_deleting(&p.metadata));
        let lost: Vec<&Arc<Pod>> = lost.collect();
        self.delete(lost.into_iter());
    }

    /// Leaves one good pod on a node; two where one takes over from the other.
    fn tidy(&mut self, node: &str, wish: Wish, pods: &[&'a Arc<Pod>]) {
        let mut running = Vec::new();
        for pod in pods.iter().filter(|p| !is_deleting(&p.metadata)) {
            let pod_name = format!(
                "{}/{}",
                pod.metadata.namespace.as_deref().unwrap_or_default(),
                name(&pod.metadata)
            );
            match phase(pod) {
                "Failed" => {
                    let left = (self.world.backoff)(node);
                    if !left.is_zero() {
                        // The node that refuses it and this would else keep each other busy.
                        wake(&mut self.plan.wake, left);
                        continue;
                    }
                    self.plan.failed.push(node.to_owned());
                    let text = format!(
                        "Found failed daemon pod {pod_name} on node {node}, will try to kill it"
                    );
                    self.plan.events.push((EventType::Warning, "FailedDaemonPod", text));
                    self.plan.delete.push((*pod).clone());
                }
                "Succeeded" => {
                    let text = format!(
                        "Found succeeded daemon pod {pod_name} on node {node}, will try to delete it"
                    );
                    self.plan.events.push((EventType::Normal, "SucceededDaemonPod", text));
                    self.plan.delete.push((*pod).clone());
                }
                _ => running.push(*pod),
            }
        }
        if !self.surges() {
            self.delete(running.into_iter().skip(1));
            return;
        }
        if running.len() <= 1 {
            // One that is going does not keep its successor waiting.
            if running.is_empty() && wish == Wish::Run {
                self.plan.create.push(node.to_owned());
            }
            return;
        }
        // The oldest of the new and of the old stay, and both only until one of them will do.
        let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
            running.into_iter().partition(|p| self.has_hash(p));
        self.delete(new.iter().chain(&old).copied().filter(|p| {
            let first = |all: &[&'a Arc<Pod>]| all.first().is_some_and(|f| Arc::ptr_eq(f, p));
            !first(&new) && !first(&old)
        }));
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (!is_ready(old) || self.is_available(new))
        {
            self.plan.delete.push((*old).clone());
        }
    }

    fn update(&mut self) {
        let strategy = self.spec.update_strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("OnDelete") {
            return;
        }
        for (node, wish) in &self.wishes {
            if *wish == Wish::Run {
                self.pods.entry(node).or_default();
            }
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let count = |said: Option<_>, unsaid| {
            said.map_or(unsaid, |s| shares::scaled(&s, self.desired, true)).max(0) as usize
        };
        let surge = count(rolling.max_surge, 0);
        let mut unavailable = count(rolling.max_unavailable, 1);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        if surge == 0 { self.replace(unavailable) } else { self.surge(surge) }
    }

    /// Deletes old pods; their nodes then get new ones. One that is not available costs nothing.
    fn replace(&mut self, max_unavailable: usize) {
        let (mut unavailable, mut candidates) = (0, Vec::new());
        for pods in self.pods.values() {
            match self.old_and_new(pods) {
                // No pod, or more than there should be: the next look sees to that.
                None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
                Some((None, Some(new))) => unavailable += usize::from(!self.is_available(new)),
                Some((Some(old), None)) if !self.is_available(old) => {
                    self.plan.delete.push(old.clone());
                    unavailable += 1;
                }
                Some((Some(old), None)) => candidates.push(old),
            }
        }
        let free = max_unavailable.saturating_sub(unavailable);
        self.delete(candidates.into_iter().take(free));
    }

    /// Makes new pods beside old ones, which go once the new are available.
    fn surge(&mut self, max_surge: usize) {
        let (mut surging, mut available) = (0, 0);
        let (mut candidates, mut misplaced) = (Vec::new(), Vec::new());
        for (node, pods) in &self.pods {
            let Some((old, new)) = self.old_and_new(pods) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|p| self.is_available(p)));
            let Some(old) = old else { continue };
            let runs = self.wishes.get(node) == Some(&Wish::Run);
            match new {
                Some(new) if self.is_available(new) => self.plan.delete.push(old.clone()),
                Some(_) => surging += 1,
                None if !runs && self.is_available(old) => misplaced.push(old),
                None if !runs => self.plan.delete.push(old.clone()),
                None if self.is_available(old) => candidates.push((*node).to_owned()),
                None => self.plan.create.push((*node).to_owned()),
            }
        }
        let free = max_surge.saturating_sub(surging);
        self.plan.create.extend(candidates.into_iter().take(free));
        // Who surges wants all to be served all the time: a pod leaves a node that it no longer belongs on
        // only when as many others are available as there should be.
        let spare = available.saturating_sub(self.desired as usize);
        self.delete(misplaced.into_iter().take(spare));
    }

    /// The old and the new pod of a node, those that are going aside; None if it has two of a sort.
    fn old_and_new(&self, pods: &[&'a Arc<Pod>]) -> Option<OldAndNew<'a>> {
        let (mut old, mut new) = (None, None);
        for pod in pods.iter().filter(|p| !is_deleting(&p.metadata)) {
            let place = if self.is_updated(pod) { &mut new } else { &mut old };
            if place.replace(*pod).is_some() {
                return None;
            }
        }
        Some((old, new))
    }

    fn delete(&mut self, pods: impl Iterator<Item = &'a Arc<Pod>>) {
        self.plan.delete.extend(pods.cloned());
    }

    fn surges(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.filter(|s| s.type_.as_deref() != Some("OnDelete"));
        let surge = rolling.and_then(|s| s.rolling_update.as_ref()?.max_surge.as_ref());
        surge.is_some_and(|s| shares::scaled(s, self.desired.max(1), true) > 0)
    }

    fn has_hash(&self, pod: &Pod) -> bool {
        placement::is_updated(pod, self.world.hash, None)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        placement::is_updated(pod, self.world.hash, self.generation)
    }

    fn available_in(&self, pod: &Pod) -> Option<Duration> {
        available_in(pod, self.spec.min_ready_seconds.unwrap_or(0), self.world.now)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        self.available_in(pod) == Some(Duration::ZERO)
    }
}

fn wake(at: &mut Option<Duration>, left: Duration) {
    *at = Some(at.map_or(left, |w| w.min(left)));
}
