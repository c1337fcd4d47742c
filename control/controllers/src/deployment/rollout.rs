//! How large each ReplicaSet of a Deployment is to be. Pure.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rimward_client::EventType;

use super::progress;
use super::revision::{self, DESIRED, MAX, REVISION, annotate, annotation};
use crate::pods::{is_deleting, name, uid};
use crate::shares;

/// What a Deployment and its ReplicaSets look like now.
pub struct World<'a> {
    pub deployment: &'a Deployment,
    /// Those that it controls.
    pub sets: &'a [Arc<ReplicaSet>],
    /// Whether a ReplicaSet still has pods that have not ended. Asked by Recreate only.
    pub running: &'a dyn Fn(&ReplicaSet) -> bool,
    pub now: Timestamp,
}

/// What to write, in this order.
#[derive(Debug, Default)]
pub struct Plan {
    pub create: Option<ReplicaSet>,
    pub update: Vec<ReplicaSet>,
    pub events: Vec<(EventType, &'static str, String)>,
    /// The Deployment with its new status and revision annotation, if they changed.
    pub deployment: Option<Deployment>,
    /// Old ones beyond revisionHistoryLimit.
    pub delete: Vec<ReplicaSet>,
    pub wake: Option<Duration>,
}

pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// maxSurge and maxUnavailable as numbers of pods: surge is rounded up, unavailable down, and if
/// both come out as 0 one may be unavailable, else nothing could ever move.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let rolling =
        deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()?.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let resolve = |value: Option<&IntOrString>, up: bool| {
        shares::scaled(value.unwrap_or(&quarter), replicas(deployment), up)
    };
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), true);
    let unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub fn max_surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

pub fn max_unavailable(deployment: &Deployment) -> i32 {
    if replicas(deployment) == 0 { 0 } else { fenceposts(deployment).1.min(replicas(deployment)) }
}

/// Decides; touches nothing.
pub fn plan(world: &World) -> Plan {
    let deployment = world.deployment;
    let mut rollout = Rollout::new(world);
    let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
    if is_deleting(&deployment.metadata) {
        rollout.count();
        return rollout.finish(false);
    }
    rollout.note_pause(paused);
    if paused || rollout.was_scaled() {
        rollout.find_new(false);
        rollout.scale();
        if paused {
            rollout.clean_up();
        }
        rollout.count();
        return rollout.finish(false);
    }
    if is_rolling(deployment) {
        rollout.roll()
    } else {
        rollout.recreate(world.running)
    }
    rollout.count();
    rollout.judge();
    rollout.finish(true)
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

/// The Deployment's world as it will be once the plan is carried out.
struct Rollout<'a> {
    deployment: &'a Deployment,
    now: Timestamp,
    /// Oldest first; the flag says whether it must be written.
    sets: Vec<(ReplicaSet, bool)>,
    new: Option<usize>,
    /// The new one does not exist yet.
    created: bool,
    /// The status to start from, conditions being added to it.
    base: DeploymentStatus,
    status: DeploymentStatus,
    revision: Option<String>,
    events: Vec<(EventType, &'static str, String)>,
    delete: Vec<ReplicaSet>,
}

impl<'a> Rollout<'a> {
    fn new(world: &World<'a>) -> Self {
        let mut sets: Vec<Arc<ReplicaSet>> = world.sets.to_vec();
        sets.sort_by_cached_key(|s| revision::age_key(s));
        let new = revision::find_new(world.deployment, &sets);
        let base = world.deployment.status.clone().unwrap_or_default();
        Self {
            deployment: world.deployment,
            now: world.now,
            sets: sets.into_iter().map(|s| ((*s).clone(), false)).collect(),
            new,
            created: false,
            status: base.clone(),
            base,
            revision: None,
            events: Vec::new(),
            delete: Vec::new(),
        }
    }

    fn old(&self) -> Vec<usize> {
        (0..self.sets.len()).filter(|i| Some(*i) != self.new).collect()
    }

    fn size(&self, i: usize) -> i32 {
        size(&self.sets[i].0)
    }

    fn total(&self, of: &[usize]) -> i32 {
        of.iter().map(|i| self.size(*i)).sum()
    }

    fn all(&self) -> Vec<usize> {
        (0..self.sets.len()).collect()
    }

    fn progressing(&mut self, status: &str, reason: &str, message: String) {
        let condition = progress::condition("Progressing", status, reason, message, self.now);
        progress::set(&mut self.base, condition);
    }

    fn note_pause(&mut self, paused: bool) {
        if !progress::has_deadline(self.deployment) {
            return;
        }
        let reason = progress::find(&self.base, "Progressing").and_then(|c| c.reason.clone());
        let noted = reason.as_deref() == Some("DeploymentPaused");
        if reason.as_deref() == Some("ProgressDeadlineExceeded") {
            return;
        }
        if paused && !noted {
            self.progressing("Unknown", "DeploymentPaused", "Deployment is paused".into());
        } else if !paused && noted {
            self.progressing("Unknown", "DeploymentResumed", "Deployment is resumed".into());
        }
    }

    /// Whether spec.replicas changed since the active ReplicaSets were last sized.
    fn was_scaled(&self) -> bool {
        let wanted = replicas(self.deployment);
        self.sets.iter().filter(|(s, _)| size(s) > 0).any(|(set, _)| {
            let desired = annotation(&set.metadata, DESIRED).and_then(|d| d.parse::<i32>().ok());
            desired.is_some_and(|d| d != wanted)
        })
    }

    /// Makes the ReplicaSet of the current template the newest revision; creates it if wanted.
    fn find_new(&mut self, create: bool) {
        let newest =
            self.old().iter().map(|i| revision::revision_of(&self.sets[*i].0.metadata)).max();
        let newest = newest.unwrap_or(0) + 1;
        if let Some(i) = self.new {
            let min_ready = self.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
            let (set, dirty) = &mut self.sets[i];
            *dirty |= revision::promote(self.deployment, set, newest);
            if let Some(spec) = &mut set.spec
                && spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0)
            {
                spec.min_ready_seconds = min_ready;
                *dirty = true;
            }
            self.revision = annotation(&set.metadata, REVISION).map(str::to_owned);
            let name = name(&set.metadata).to_owned();
            if progress::has_deadline(self.deployment)
                && progress::find(&self.base, "Progressing").is_none()
            {
                self.progressing(
                    "True",
                    "FoundNewReplicaSet",
                    format!("Found new replica set {name:?}"),
                );
            }
        } else if create {
            let mut set = revision::new_set(self.deployment);
            revision::promote(self.deployment, &mut set, newest);
            let name = name(&set.metadata).to_owned();
            self.sets.push((set, false));
            let i = self.sets.len() - 1;
            (self.new, self.created) = (Some(i), true);
            let count = self.new_size(i);
            self.resize(i, count);
            self.revision = Some(newest.to_string());
            if progress::has_deadline(self.deployment) {
                self.progressing(
                    "True",
                    "NewReplicaSetCreated",
                    format!("Created new replica set {name:?}"),
                );
            }
        }
    }

    /// As large as the new one may be now.
    fn new_size(&self, new: usize) -> i32 {
        let wanted = replicas(self.deployment);
        if !is_rolling(self.deployment) {
            return wanted;
        }
        let room = wanted + max_surge(self.deployment) - self.total(&self.all());
        let current = self.size(new);
        if room <= 0 { current } else { current + room.min(wanted - current) }
    }

    /// Sizes a ReplicaSet and notes what for; answers whether its size changed.
    fn resize(&mut self, i: usize, to: i32) -> bool {
        let wanted = replicas(self.deployment);
        let most = wanted + max_surge(self.deployment);
        let (set, dirty) = &mut self.sets[i];
        let from = size(set);
        *dirty |= annotate(&mut set.metadata, DESIRED, wanted.to_string());
        *dirty |= annotate(&mut set.metadata, MAX, most.to_string());
        if from == to {
            return false;
        }
        set.spec.get_or_insert_default().replicas = Some(to);
        *dirty = true;
        let direction = if to > from { "up" } else { "down" };
        let text =
            format!("Scaled {direction} replica set {} from {from} to {to}", name(&set.metadata));
        self.events.push((EventType::Normal, "ScalingReplicaSet", text));
        true
    }

    /// The RollingUpdate strategy: one step.
    fn roll(&mut self) {
        self.find_new(true);
        if self.grow_new() || self.shrink_old() {
            return;
        }
        self.clean_up_when_complete();
    }

    fn grow_new(&mut self) -> bool {
        let Some(new) = self.new else { return false };
        let (current, wanted) = (self.size(new), replicas(self.deployment));
        if current == wanted {
            return false;
        }
        let to = if current > wanted { wanted } else { self.new_size(new) };
        to != current && self.resize(new, to)
    }

    /// Takes from old ReplicaSets what availability allows: first pods that are not available
    /// anyway, then, oldest set first, the others.
    fn shrink_old(&mut self) -> bool {
        let old: Vec<usize> = self.old().into_iter().filter(|i| self.size(*i) > 0).collect();
        let Some(new) = self.new.filter(|_| !old.is_empty()) else { return false };
        let least = replicas(self.deployment) - max_unavailable(self.deployment);
        let new_unavailable = self.size(new) - progress::available(&self.sets[new].0);
        let allowed = self.total(&self.all()) - least - new_unavailable;
        if allowed <= 0 {
            return false;
        }
        let mut cleaned = 0;
        for i in &old {
            let unhealthy = self.size(*i) - progress::available(&self.sets[*i].0);
            let take = unhealthy.min(allowed - cleaned);
            if take > 0 {
                self.resize(*i, self.size(*i) - take);
                cleaned += take;
            }
        }
        let counted = old.iter().chain([&new]);
        let available: i32 = counted.map(|i| progress::available(&self.sets[*i].0)).sum();
        let mut spare = (available - least).max(0);
        let mut taken = 0;
        for i in &old {
            let take = self.size(*i).min(spare);
            if take > 0 {
                self.resize(*i, self.size(*i) - take);
                spare -= take;
                taken += take;
            }
        }
        cleaned + taken > 0
    }

    /// The Recreate strategy: one step.
    fn recreate(&mut self, running: &dyn Fn(&ReplicaSet) -> bool) {
        self.find_new(false);
        let active: Vec<usize> = self.old().into_iter().filter(|i| self.size(*i) > 0).collect();
        if !active.is_empty() {
            for i in active {
                self.resize(i, 0);
            }
            return;
        }
        let remains =
            |i: &usize| progress::actual(&self.sets[*i].0) > 0 || running(&self.sets[*i].0);
        if self.old().iter().any(remains) {
            return;
        }
        self.find_new(true);
        if let Some(new) = self.new {
            self.resize(new, replicas(self.deployment));
        }
        self.clean_up_when_complete();
    }

    /// spec.replicas changed, or the Deployment is paused: sizes what is there without moving from
    /// one template to the other.
    fn scale(&mut self) {
        let wanted = replicas(self.deployment);
        let active: Vec<usize> = self.all().into_iter().filter(|i| self.size(*i) > 0).collect();
        let only = match active.as_slice() {
            // `old` is oldest first.
            [] => self.new.or_else(|| self.old().last().copied()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(only) = only {
            // If it is as large already, only its note may be old.
            self.resize(only, wanted);
            return;
        }
        if active.is_empty() {
            return;
        }
        let saturated = self.new.is_some_and(|new| {
            let set = &self.sets[new].0;
            let desired = annotation(&set.metadata, DESIRED).and_then(|d| d.parse::<i32>().ok());
            size(set) == wanted && desired == Some(wanted) && progress::available(set) == wanted
        });
        if saturated {
            for i in self.old() {
                if self.size(i) > 0 {
                    self.resize(i, 0);
                }
            }
            return;
        }
        if is_rolling(self.deployment) {
            self.scale_proportionally(active);
        }
    }

    /// Spreads a change of size over the active ReplicaSets in proportion to theirs, what rounding
    /// leaves goes to the largest.
    fn scale_proportionally(&mut self, mut active: Vec<usize>) {
        let wanted = replicas(self.deployment);
        let allowed = if wanted > 0 { wanted + max_surge(self.deployment) } else { 0 };
        let to_add = allowed - self.total(&active);
        // Largest first; of equal ones the newest when growing, the oldest when shrinking. `sets` is
        // oldest first.
        if to_add > 0 {
            active.sort_by_key(|i| (Reverse(self.size(*i)), Reverse(*i)));
        } else if to_add < 0 {
            active.sort_by_key(|i| (Reverse(self.size(*i)), *i));
        }
        let mut added = 0;
        let mut sizes: Vec<i32> = active.iter().map(|i| self.size(*i)).collect();
        if to_add != 0 {
            for (slot, i) in active.iter().enumerate() {
                let share = self.proportion(*i, to_add, added);
                sizes[slot] += share;
                added += share;
            }
            sizes[0] = (sizes[0] + to_add - added).max(0);
        }
        for (i, to) in active.into_iter().zip(sizes) {
            self.resize(i, to);
        }
    }

    fn proportion(&self, i: usize, to_add: i32, added: i32) -> i32 {
        let current = self.size(i);
        if current == 0 || to_add == added {
            return 0;
        }
        let (fraction, allowed) = (self.fraction(i), to_add - added);
        if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
    }

    fn fraction(&self, i: usize) -> i32 {
        let (current, wanted) = (self.size(i), replicas(self.deployment));
        if wanted == 0 {
            return -current;
        }
        let most = wanted + max_surge(self.deployment);
        let before = annotation(&self.sets[i].0.metadata, MAX).and_then(|m| m.parse::<i32>().ok());
        let before = before.filter(|m| *m != 0).or(self.base.replicas).unwrap_or(0);
        if before == 0 {
            return 0;
        }
        let scaled = f64::from(current) * f64::from(most) / f64::from(before);
        scaled.round() as i32 - current
    }

    fn clean_up_when_complete(&mut self) {
        if progress::is_complete(self.deployment, &self.base) {
            self.clean_up();
        }
    }

    /// Deletes old, empty ReplicaSets beyond revisionHistoryLimit, oldest revision first.
    fn clean_up(&mut self) {
        let limit = self.deployment.spec.as_ref().and_then(|s| s.revision_history_limit);
        let Some(limit) = limit.filter(|l| *l != i32::MAX) else { return };
        let mut old = self.old();
        old.retain(|i| !is_deleting(&self.sets[*i].0.metadata));
        let too_many = old.len().saturating_sub(limit.max(0) as usize);
        old.sort_by_key(|i| (revision::revision_of(&self.sets[*i].0.metadata), *i));
        for i in old.into_iter().take(too_many) {
            let set = &self.sets[i].0;
            let observed = set.status.as_ref().and_then(|s| s.observed_generation);
            let idle =
                size(set) == 0 && progress::actual(set) == 0 && set.metadata.generation <= observed;
            if idle {
                self.delete.push(set.clone());
            }
        }
    }

    fn count(&mut self) {
        let new = self.new.map(|i| &self.sets[i].0);
        let sets = self.sets.iter().map(|(s, _)| s);
        self.status = progress::counted(self.deployment, &self.base, sets, new, self.now);
    }

    fn judge(&mut self) {
        let new = self.new.map(|i| &self.sets[i].0);
        // The new one's failure matters more than an old one's.
        let sets = new.into_iter().chain(self.sets.iter().map(|(s, _)| s));
        progress::judge(self.deployment, &self.base, &mut self.status, new, sets, self.now);
    }

    fn finish(mut self, rolling: bool) -> Plan {
        let mut changed = self.deployment.clone();
        let mut differs = self.deployment.status.as_ref() != Some(&self.status);
        if let Some(revision) = self.revision.take() {
            differs |= annotate(&mut changed.metadata, REVISION, revision);
        }
        let wake =
            rolling.then(|| progress::next_look(self.deployment, &self.status, self.now)).flatten();
        changed.status = Some(self.status);
        let deleted = |set: &ReplicaSet, gone: &[ReplicaSet]| {
            gone.iter().any(|d| uid(&d.metadata) == uid(&set.metadata))
        };
        let create = if self.created { self.new.map(|i| self.sets.remove(i).0) } else { None };
        let update = self
            .sets
            .into_iter()
            .filter(|(s, dirty)| *dirty && !deleted(s, &self.delete))
            .map(|(s, _)| s);
        Plan {
            create,
            update: update.collect(),
            events: self.events,
            deployment: differs.then_some(changed),
            delete: self.delete,
            wake,
        }
    }
}
