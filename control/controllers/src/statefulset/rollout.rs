//! What a StatefulSet does next: which pods it makes, which go, what its status says.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#deployment-and-scaling-guarantees>
//!
//! `OrderedReady` takes one step at a time and waits for each: pods come in the order of their ordinals,
//! each once its predecessors are available, and go in the opposite order. `Parallel` waits for none.
//! Scaling comes before updating.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetSpec, StatefulSetStatus,
};
use k8s_openapi::api::core::v1::{self, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rimward_control_lean::Pod;

use super::identity::{self, Revision};
use super::retention::{self, Policy};
use crate::history::REVISION_LABEL;
use crate::pods::{available_in, is_deleting, is_ready, is_terminal, name, phase, uid};
use crate::shares;

/// What a StatefulSet and its pods look like now.
pub struct World<'a> {
    pub set: &'a StatefulSet,
    /// What the status says the pods are at, until all are updated.
    pub current: &'a Revision,
    /// The set's own template.
    pub update: &'a Revision,
    pub collisions: i32,
    /// The pods that it controls, of names that it gives.
    pub pods: &'a [Arc<Pod>],
    /// Uids of pods that this process deleted and the cache still shows.
    pub deleted_unseen: &'a HashSet<String>,
    /// Finds a claim of the set's namespace.
    pub claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Makes the claims that are missing, then the pod.
    Create {
        pod: Box<v1::Pod>,
        claims: Vec<PersistentVolumeClaim>,
    },
    /// A claim of an earlier pod stands in the way of the new one until it is gone. `going`: it is asked to.
    Blocked {
        pod: String,
        claim: String,
        going: bool,
    },
    /// Makes the claims that a pod waits for.
    Claims {
        pod: String,
        claims: Vec<PersistentVolumeClaim>,
    },
    /// Gives a claim other owners. `contested`: somebody else controls it.
    Reown {
        claim: Box<PersistentVolumeClaim>,
        contested: bool,
    },
    /// Says again who a pod is.
    Relabel {
        pod: Arc<Pod>,
        ordinal: i64,
    },
    Delete(Arc<Pod>),
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    pub status: StatefulSetStatus,
    /// When a ready pod becomes available without anything else changing.
    pub wake: Option<Duration>,
}

/// Decides; touches nothing.
pub fn plan(world: &World) -> Plan {
    let mut rollout = Rollout::new(world);
    if !is_deleting(&world.set.metadata) {
        rollout.run();
    }
    rollout.finish()
}

struct Rollout<'a> {
    world: &'a World<'a>,
    spec: StatefulSetSpec,
    ordered: bool,
    start: i64,
    /// By ordinal from `start` on.
    slots: Vec<Option<&'a Arc<Pod>>>,
    /// Pods beyond, the highest ordinal first.
    condemned: Vec<(i64, &'a Arc<Pod>)>,
    steps: Vec<Step>,
    /// Pods at the current revision that go for the update.
    outgoing: i32,
    wake: Option<Duration>,
}

/// Whether to go on within this plan.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    Wait,
}

impl<'a> Rollout<'a> {
    fn new(world: &'a World<'a>) -> Self {
        let spec = world.set.spec.clone().unwrap_or_default();
        let ordinals = identity::ordinals(world.set);
        let mut slots = vec![None; (ordinals.end - ordinals.start) as usize];
        let mut condemned = Vec::new();
        for pod in world.pods {
            match identity::ordinal(name(&world.set.metadata), name(&pod.metadata)) {
                Some(n) if ordinals.contains(&n) => {
                    slots[(n - ordinals.start) as usize] = Some(pod);
                }
                Some(n) => condemned.push((n, pod)),
                None => {}
            }
        }
        condemned.sort_by_key(|(n, _)| Reverse(*n));
        let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
        let (start, steps) = (ordinals.start, Vec::new());
        Self { world, spec, ordered, start, slots, condemned, steps, outgoing: 0, wake: None }
    }

    fn run(&mut self) {
        for i in 0..self.slots.len() {
            if self.keep(i) == Then::Wait && self.ordered {
                return;
            }
        }
        for (n, pod) in self.condemned.clone() {
            self.reown(n, pod);
        }
        let unhealthy = self.first_unavailable();
        for (_, pod) in self.condemned.clone() {
            if self.condemn(pod, unhealthy) == Then::Wait && self.ordered {
                return;
            }
        }
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete") {
            let rolling = strategy.and_then(|s| s.rolling_update.clone());
            self.update(&rolling.unwrap_or_default());
        }
    }

    /// Sees to it that there is a good pod in a slot.
    fn keep(&mut self, i: usize) -> Then {
        let ordinal = self.start + i as i64;
        let Some(pod) = self.slots[i] else {
            self.create(ordinal);
            return Then::Wait;
        };
        // One that ended is replaced, however it did: of one that was evicted the exit code says nothing.
        if is_terminal(pod) {
            if !self.is_going(pod) {
                self.steps.push(Step::Delete(pod.clone()));
            }
            return Then::Wait;
        }
        if phase(pod) == "Pending" {
            let claims = self.missing_claims(ordinal);
            if !claims.is_empty() {
                self.steps.push(Step::Claims { pod: name(&pod.metadata).to_owned(), claims });
            }
            self.reown(ordinal, pod);
        }
        if self.ordered
            && (self.is_going(pod) || !is_running_and_ready(pod) || !self.is_available(pod))
        {
            return Then::Wait;
        }
        if !identity::is_labelled(pod) {
            self.steps.push(Step::Relabel { pod: pod.clone(), ordinal });
        }
        if phase(pod) != "Pending" {
            self.reown(ordinal, pod);
        }
        Then::GoOn
    }

    fn create(&mut self, ordinal: i64) {
        let revision = self.revision_of_new(ordinal);
        let pod = identity::pod(self.world.set, revision, ordinal);
        for template in identity::claim_templates(self.world.set) {
            let claim = identity::claim_name(self.world.set, template, ordinal);
            let Some(there) = (self.world.claim)(&claim) else { continue };
            // It went with the pod that had this name before, or is about to.
            let stale = Policy::of(self.world.set).deletes_when_scaled()
                && retention::is_stale::<v1::Pod>(&there, &pod.metadata);
            let going = is_deleting(&there.metadata);
            if stale || going {
                let pod = name(&pod.metadata).to_owned();
                self.steps.push(Step::Blocked { pod, claim, going });
                return;
            }
        }
        let claims = self.missing_claims(ordinal);
        self.steps.push(Step::Create { pod: Box::new(pod), claims });
    }

    /// What is not yet updated, or by its partition never is, comes back as it was.
    fn revision_of_new(&self, ordinal: i64) -> &'a Revision {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let is_rolling = strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete");
        let old = match rolling {
            Some(rolling) => i64::from(rolling.partition.unwrap_or(0)),
            None if is_rolling => {
                let status = self.world.set.status.as_ref();
                status.and_then(|s| s.current_replicas).unwrap_or(0).into()
            }
            None => 0,
        };
        if ordinal < self.start + old { self.world.current } else { self.world.update }
    }

    fn missing_claims(&self, ordinal: i64) -> Vec<PersistentVolumeClaim> {
        let claims = identity::claims(self.world.set, ordinal).into_iter();
        claims.filter(|c| (self.world.claim)(name(&c.metadata)).is_none()).collect()
    }

    fn reown(&mut self, ordinal: i64, pod: &Pod) {
        let set = self.world.set;
        let kept = identity::ordinals(set).contains(&ordinal);
        for template in identity::claim_templates(set) {
            let claim_name = identity::claim_name(set, template, ordinal);
            let Some(claim) = (self.world.claim)(&claim_name) else { continue };
            let Some(owners) = retention::owners(&claim, set, pod, kept) else { continue };
            let contested = retention::has_other_controller(&claim, set, pod);
            let mut claim = (*claim).clone();
            claim.metadata.owner_references = (!owners.is_empty()).then_some(owners);
            self.steps.push(Step::Reown { claim: Box::new(claim), contested });
        }
    }

    /// The uid of the first pod that holds up what is to go.
    fn first_unavailable(&self) -> Option<&'a str> {
        let slots = self.slots.iter().flatten().copied();
        let beyond = self.condemned.iter().rev().map(|(_, pod)| *pod);
        slots.chain(beyond).find(|p| self.is_unavailable(p)).map(|p| uid(&p.metadata))
    }

    fn condemn(&mut self, pod: &Arc<Pod>, unhealthy: Option<&str>) -> Then {
        if self.is_going(pod) {
            return Then::Wait;
        }
        let good = is_running_and_ready(pod) && self.is_available(pod);
        if self.ordered && !good && unhealthy != Some(uid(&pod.metadata)) {
            return Then::Wait;
        }
        self.steps.push(Step::Delete(pod.clone()));
        Then::Wait
    }

    /// Deletes pods of another revision, the highest ordinal first, as many as may be unavailable at once.
    ///
    /// Kubernetes counts every unavailable pod, those of the old revision too. Here one that is to be
    /// replaced anyway is not in its own way: else pods that never become ready could not be updated to
    /// what would make them so.
    fn update(&mut self, rolling: &RollingUpdateStatefulSetStrategy) {
        let one = IntOrString::Int(1);
        let replicas = self.slots.len() as i32;
        let limit =
            shares::scaled(rolling.max_unavailable.as_ref().unwrap_or(&one), replicas, false);
        let limit = limit.max(1) as usize;
        let first = rolling.partition.unwrap_or(0).max(0) as usize;
        let outdated = |i: usize, pod: &Pod| {
            i >= first && revision_of(pod) != self.world.update.name && !self.is_going(pod)
        };
        let (mut unavailable, mut moving) = (0, 0);
        let mut candidates = Vec::new();
        for (i, slot) in self.slots.iter().enumerate().rev() {
            let bad = slot.is_none_or(|pod| self.is_unavailable(pod));
            unavailable += usize::from(bad);
            match slot {
                Some(pod) if outdated(i, pod) => candidates.push((*pod, bad)),
                _ => moving += usize::from(bad),
            }
        }
        let mut moves = limit.saturating_sub(moving);
        let mut spare = limit.saturating_sub(unavailable);
        for (pod, bad) in candidates {
            if moves == 0 {
                break;
            }
            if !bad {
                if spare == 0 {
                    continue;
                }
                spare -= 1;
            }
            moves -= 1;
            self.outgoing += i32::from(revision_of(pod) == self.world.current.name);
            self.steps.push(Step::Delete(pod.clone()));
        }
    }

    fn is_going(&self, pod: &Pod) -> bool {
        is_deleting(&pod.metadata) || self.world.deleted_unseen.contains(uid(&pod.metadata))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let seconds = self.spec.min_ready_seconds.unwrap_or(0);
        available_in(pod, seconds, self.world.now) == Some(Duration::ZERO)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        !self.is_available(pod) || self.is_going(pod)
    }

    fn finish(mut self) -> Plan {
        let status = self.status();
        Plan { steps: self.steps, status, wake: self.wake }
    }

    fn status(&mut self) -> StatefulSetStatus {
        let (world, seconds) = (self.world, self.spec.min_ready_seconds.unwrap_or(0));
        let (mut replicas, mut ready, mut available) = (0, 0, 0);
        let (mut current, mut updated) = (-self.outgoing, 0);
        let beyond = self.condemned.iter().map(|(_, pod)| *pod);
        for pod in self.slots.iter().flatten().copied().chain(beyond) {
            replicas += 1;
            if is_running_and_ready(pod) {
                ready += 1;
                match available_in(pod, seconds, world.now) {
                    Some(Duration::ZERO) => available += 1,
                    Some(left) => self.wake = Some(self.wake.map_or(left, |w| w.min(left))),
                    None => {}
                }
            }
            if !self.is_going(pod) {
                current += i32::from(revision_of(pod) == world.current.name);
                updated += i32::from(revision_of(pod) == world.update.name);
            }
        }
        let mut current_revision = &world.current.name;
        let wanted = self.slots.len() as i32;
        let strategy = self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
        if strategy != Some("OnDelete") && [updated, ready, replicas] == [wanted; 3] {
            (current, current_revision) = (updated, &world.update.name);
        }
        let nonzero = |n: i32| (n != 0).then_some(n);
        let before = world.set.status.as_ref();
        StatefulSetStatus {
            observed_generation: world.set.metadata.generation,
            replicas,
            ready_replicas: nonzero(ready),
            available_replicas: Some(available),
            current_replicas: nonzero(current),
            updated_replicas: nonzero(updated),
            current_revision: Some(current_revision.clone()),
            update_revision: Some(world.update.name.clone()),
            collision_count: Some(world.collisions),
            // What others say here stays.
            conditions: before.and_then(|s| s.conditions.clone()),
        }
    }
}

pub fn revision_of(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get(REVISION_LABEL)).map(String::as_str).unwrap_or_default()
}

fn is_running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}
