//! ReplicaSet: as many pods as asked for.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>
//!
//! A ReplicationController is the same with another selector: it is [`Replicated`] too, and all below
//! sees it as a ReplicaSet.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rimward_api::ObjectKey;
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Client, Error, Object};
use rimward_control_lean::Pod;

use crate::claim::{self, controller_reference};
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, enqueue_owners, synced};
use crate::indexes::{self, BY_CONTROLLER, BY_SELECTOR};
use crate::pod_control::{PodControl, pod_from_template};
use crate::pods::{
    available_in, controller_of, is_active, is_deleting, is_ready, is_terminal, node_name, phase,
    ready_since, uid,
};
use crate::staleness::{OwnWrites, Pace};

pub const NAME: &str = "replicaset-controller";
const WORKERS: usize = 8;
/// A look at a set costs as much as it has pods. Looking no more often than this per pod keeps a
/// rollout of thousands linear, and a small set's delay unnoticeable.
const PACE_PER_POD: Duration = Duration::from_micros(20);
/// The most pods created or deleted in one go.
const BURST: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A kind that keeps a number of pods.
pub trait Replicated: Object {
    fn as_set(&self) -> Cow<'_, ReplicaSet>;
    /// The object with this status; None when it says so already.
    fn with_status(&self, status: &ReplicaSetStatus) -> Option<Self>;
}

impl Replicated for ReplicaSet {
    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: &ReplicaSetStatus) -> Option<Self> {
        let changed = self.status.as_ref() != Some(status);
        changed.then(|| Self { status: Some(status.clone()), ..self.clone() })
    }
}

struct Replicas<K> {
    client: Client,
    control: PodControl,
    sets: Cache<K>,
    pods: Cache<Pod>,
    own_writes: OwnWrites,
    pace: Pace,
}

pub fn start(context: &Context) {
    start_of::<ReplicaSet>(context);
}

pub fn start_of<K: Replicated>(context: &Context) {
    let keys = Keys::default();
    let (sets, pods) = (context.informers.of::<K>(), context.informers.of::<Pod>());
    indexes::owned(&pods);
    indexes::owned(&sets);
    sets.add_index(BY_SELECTOR, |set: &K| {
        let selected = |set: &ReplicaSet| {
            Some(indexes::selector_value(&set.metadata, &set.spec.as_ref()?.selector))
        };
        selected(&set.as_set()).into_iter().collect()
    });
    enqueue_changes(&sets, &keys);
    enqueue_owners(&pods, &sets, &keys);
    let controller = Replicas {
        client: context.client.clone(),
        control: PodControl::new(context, context.recorder()),
        sets: sets.clone(),
        pods: pods.clone(),
        own_writes: OwnWrites::default(),
        pace: Pace::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, vec![synced(&sets), synced(&pods)]);
}

/// What a ReplicaSet and its pods look like now. `pods` are the ones that it controls.
pub struct World<'a> {
    pub set: &'a ReplicaSet,
    pub pods: &'a [Arc<Pod>],
    /// Pods that this process created and the cache lacks.
    pub created_unseen: usize,
    /// Uids of pods that this process deleted and the cache still shows.
    pub deleted_unseen: &'a HashSet<String>,
    pub now: Timestamp,
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: usize,
    /// How many of the active pods are too many.
    pub delete: usize,
    pub counts: Counts,
    /// When a ready pod becomes available without anything else changing.
    pub wake: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
}

/// Decides; touches nothing.
pub fn plan(world: &World) -> Plan {
    let spec = world.set.spec.as_ref();
    let wanted = spec.and_then(|s| s.replicas).unwrap_or(1).max(0) as usize;
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let template_labels =
        spec.and_then(|s| s.template.as_ref()?.metadata.as_ref()?.labels.as_ref());
    let mut plan = Plan::default();
    let mut active = 0;
    for pod in world.pods {
        if !is_active(pod) {
            plan.counts.terminating += i32::from(is_deleting(&pod.metadata) && !is_terminal(pod));
            continue;
        }
        if !world.deleted_unseen.contains(uid(&pod.metadata)) {
            active += 1;
        }
        plan.counts.replicas += 1;
        plan.counts.fully_labeled += i32::from(has_labels(pod, template_labels));
        plan.counts.ready += i32::from(is_ready(pod));
        match available_in(pod, min_ready, world.now) {
            Some(Duration::ZERO) => plan.counts.available += 1,
            Some(left) => plan.wake = Some(plan.wake.map_or(left, |w| w.min(left))),
            None => {}
        }
    }
    if is_deleting(&world.set.metadata) {
        return plan;
    }
    let existing = active + world.created_unseen;
    if existing < wanted {
        plan.create = (wanted - existing).min(BURST);
    } else if existing > wanted {
        // Only what the cache shows can be deleted.
        plan.delete = (existing - wanted).min(active).min(BURST);
    }
    plan
}

fn has_labels(pod: &Pod, wanted: Option<&BTreeMap<String, String>>) -> bool {
    let has = |(k, v)| pod.metadata.labels.as_ref().and_then(|l| l.get(k)) == Some(v);
    wanted.into_iter().flatten().all(has)
}

/// The pods to delete first, first: what costs the user least. `on_node` counts the active pods of
/// the set and its siblings per node, so that doubled-up ones go first.
pub fn rank_for_deletion(pods: &mut [Arc<Pod>], on_node: &HashMap<String, usize>, now: Timestamp) {
    let age_bucket = |since: Option<Timestamp>| {
        // Logarithmic, so that a few seconds' difference does not always hit the newest zone or node.
        since.map_or(-1, |s| {
            let nanos = now.duration_since(s).as_nanos();
            if nanos <= 0 { -1 } else { i64::from(nanos.ilog2()) }
        })
    };
    pods.sort_by_cached_key(|pod| {
        let phase_rank = match phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let annotations = pod.metadata.annotations.as_ref();
        let cost: i32 = annotations.and_then(|a| a.get(DELETION_COST)?.parse().ok()).unwrap_or(0);
        let doubled = on_node.get(node_name(pod)).copied().unwrap_or(0);
        let restarts = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let restarts = restarts.map(|c| c.restart_count).max().unwrap_or(0);
        (
            !node_name(pod).is_empty(),
            phase_rank,
            is_ready(pod),
            cost,
            Reverse(doubled),
            age_bucket(ready_since(pod)),
            Reverse(restarts),
            age_bucket(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)),
            uid(&pod.metadata).to_owned(),
        )
    });
}

/// The status that says `counts`, and why the last creation or deletion failed.
pub fn status(
    set: &ReplicaSet,
    counts: Counts,
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    let known = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some((reason, message)) if !known => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    let nonzero = |n: i32| (n != 0).then_some(n);
    ReplicaSetStatus {
        replicas: counts.replicas,
        fully_labeled_replicas: nonzero(counts.fully_labeled),
        ready_replicas: nonzero(counts.ready),
        available_replicas: nonzero(counts.available),
        terminating_replicas: Some(counts.terminating),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

#[async_trait]
impl<K: Replicated> Controller for Replicas<K> {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(object) = self.sets.get_key(key) else { return Ok(Next::Change) };
        if !self.own_writes.seen(key, &self.sets) {
            return Ok(Next::Change);
        }
        let set = object.as_set();
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        let Ok(selector) = LabelSelector::from_typed(&spec.selector) else {
            return Ok(Next::Change);
        };
        let owner = uid(&set.metadata);
        let pods = self.pods.indexed_len(BY_CONTROLLER, owner);
        let wait = self.pace.wait(key, PACE_PER_POD * pods as u32);
        if !wait.is_zero() {
            return Ok(Next::After(wait));
        }
        self.pace.mark(key);
        // The revision first, so that what the look lacks is known to be newer.
        let seen = self.pods.revision();
        let (controlled, mut orphans) =
            claim::candidates(&self.pods, &set.metadata, &spec.selector);
        let (created_unseen, deleted_unseen) = self.control.settle(owner, &controlled, seen);
        orphans.retain(|p| is_active(p));
        let deleting = is_deleting(&set.metadata);
        let claims = claim::plan(&selector, deleting, controlled, orphans);
        let adopted = claim::act(&self.client, &*object, &claims).await?;
        let pods: Vec<Arc<Pod>> = claims.kept.into_iter().chain(adopted).collect();
        let now = Timestamp::now();
        let plan = plan(&World {
            set: &set,
            pods: &pods,
            created_unseen,
            deleted_unseen: &deleted_unseen,
            now,
        });
        let outcome = if plan.create > 0 {
            self.create(&object, &set, plan.create).await.map_err(|e| ("FailedCreate", e))
        } else if plan.delete > 0 {
            self.delete(&object, pods, &deleted_unseen, plan.delete)
                .await
                .map_err(|e| ("FailedDelete", e))
        } else {
            Ok(())
        };
        let failure = outcome.as_ref().err().map(|(reason, e)| (*reason, e.to_string()));
        let status = status(&set, plan.counts, failure, now);
        if let Some(changed) = object.with_status(&status) {
            match self.client.update_status(&changed).await {
                Ok(written) => self.own_writes.note(key, &written),
                Err(e) if e.is_not_found() => return Ok(Next::Change),
                Err(e) => return Err(e),
            }
        }
        match outcome {
            // No pod will ever be created there.
            Err((_, e)) if e.is_namespace_terminating() => Ok(Next::Change),
            Err((_, e)) => Err(e),
            Ok(()) if created_unseen > 0 || !deleted_unseen.is_empty() => {
                // Their echoes wake the key; this is for those that came and went while a watch was down.
                Ok(Next::After(plan.wake.unwrap_or(Duration::MAX).min(Duration::from_secs(10))))
            }
            Ok(()) => Ok(plan.wake.map_or(Next::Change, Next::After)),
        }
    }
}

impl<K: Replicated> Replicas<K> {
    async fn create(&self, object: &K, set: &ReplicaSet, count: usize) -> Result<(), Error> {
        let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
        let owner = controller_reference(object);
        let pod = pod_from_template(template, &set.metadata, owner);
        self.control.create(object, count, |_| pod.clone()).await
    }

    async fn delete(
        &self,
        object: &K,
        pods: Vec<Arc<Pod>>,
        deleted: &HashSet<String>,
        count: usize,
    ) -> Result<(), Error> {
        let wanted = |p: &Arc<Pod>| is_active(p) && !deleted.contains(uid(&p.metadata));
        let mut active: Vec<Arc<Pod>> = pods.into_iter().filter(wanted).collect();
        rank_for_deletion(&mut active, &self.siblings_on_node(object), Timestamp::now());
        active.truncate(count);
        self.control.delete(object, &active).await
    }

    /// How many active pods each node has of this set and of the other sets of its Deployment.
    fn siblings_on_node(&self, object: &K) -> HashMap<String, usize> {
        let siblings = match controller_of(object.metadata()) {
            Some(owner) => self.sets.indexed(BY_CONTROLLER, &owner.uid),
            None => vec![Arc::new(object.clone())],
        };
        let mut on_node = HashMap::new();
        for sibling in siblings {
            for pod in self.pods.indexed(BY_CONTROLLER, uid(sibling.metadata())) {
                if is_active(&pod) && !node_name(&pod).is_empty() {
                    *on_node.entry(node_name(&pod).to_owned()).or_default() += 1;
                }
            }
        }
        on_node
    }
}
