//! PodDisruptionBudgets: how many of the pods that a budget counts may go of their own free will now. The
//! API server takes from that number at every eviction.
//! <https://kubernetes.io/docs/tasks/run-application/configure-pdb/>

mod scale;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rimward_api::ObjectKey;
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Client, Error, EventType, Object, Recorder};
use rimward_control_lean::Pod;

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::indexes::{self, BY_LABEL, BY_SELECTOR, selector_value, selector_values};
use crate::pods::{controller_of, is_deleting, is_ready, name, uid};
use crate::shares;
use crate::staleness::OwnWrites;

pub const NAME: &str = "disruption-controller";
const WORKERS: usize = 4;
/// How long an eviction that was permitted may take until it is taken for one that failed.
const DISRUPTION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

struct Budgets {
    client: Client,
    recorder: Recorder,
    budgets: Cache<PodDisruptionBudget>,
    pods: Cache<Pod>,
    owners: Owners,
    own_writes: OwnWrites,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let budgets = context.informers.of::<PodDisruptionBudget>();
    let pods = context.informers.of::<Pod>();
    indexes::pods_by_label(&pods);
    budgets.add_index(BY_SELECTOR, |budget: &PodDisruptionBudget| {
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        selector.map(|s| selector_value(&budget.metadata, s)).into_iter().collect()
    });
    enqueue_changes(&budgets, &keys);
    let (queue, known) = (keys.clone(), budgets.clone());
    pods.on_change(move |change| {
        for pod in [change.old, change.new].into_iter().flatten() {
            for value in selector_values(&pod.metadata) {
                for budget in known.indexed(BY_SELECTOR, &value) {
                    queue.add(ObjectKey::of_meta(&budget.metadata));
                }
            }
        }
    });
    let owners = Owners {
        client: context.client.clone(),
        deployments: context.informers.of(),
        sets: context.informers.of(),
        controllers: context.informers.of(),
        stateful: context.informers.of(),
    };
    owners.wake(&budgets, &keys);
    let mut caches = vec![synced(&budgets), synced(&pods)];
    caches.extend([
        synced(&owners.deployments),
        synced(&owners.sets),
        synced(&owners.controllers),
        synced(&owners.stateful),
    ]);
    let controller = Budgets {
        client: context.client.clone(),
        recorder: context.recorder(),
        budgets,
        pods,
        owners,
        own_writes: OwnWrites::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// Who says how many pods there should be.
struct Owners {
    client: Client,
    deployments: Cache<Deployment>,
    sets: Cache<ReplicaSet>,
    controllers: Cache<ReplicationController>,
    stateful: Cache<StatefulSet>,
}

impl Owners {
    /// A budget in percent depends on how many pods are asked for.
    fn wake(&self, budgets: &Cache<PodDisruptionBudget>, keys: &Keys) {
        fn on<K: Object>(
            owners: &Cache<K>,
            budgets: &Cache<PodDisruptionBudget>,
            keys: &Keys,
            replicas: fn(&K) -> Option<i32>,
        ) {
            let (budgets, keys) = (budgets.clone(), keys.clone());
            owners.on_change(move |change| {
                let asked = |owner: Option<&Arc<K>>| owner.and_then(|o| replicas(o));
                if asked(change.old) != asked(change.new) {
                    let all = budgets.list_in(&change.key.namespace);
                    all.into_iter().for_each(|(key, _)| keys.add(key));
                }
            });
        }
        on(&self.deployments, budgets, keys, |d| d.spec.as_ref()?.replicas);
        on(&self.sets, budgets, keys, |s| s.spec.as_ref()?.replicas);
        on(&self.controllers, budgets, keys, |c| c.spec.as_ref()?.replicas);
        on(&self.stateful, budgets, keys, |s| s.spec.as_ref()?.replicas);
    }

    /// Uid and replicas of what is scaled for an owner: a ReplicaSet's Deployment, if it has one.
    ///
    /// # Errors
    /// It cannot be asked how such an owner is scaled, or is not scaled.
    async fn scale(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>, String> {
        let is = |group: &str| owner.api_version.split('/').next() == Some(group);
        fn of<K: Object>(
            found: Option<Arc<K>>,
            owner: &str,
            replicas: Option<i32>,
        ) -> Option<(String, i32)> {
            let found = found.filter(|f| uid(f.metadata()) == owner)?;
            Some((uid(found.metadata()).to_owned(), replicas.unwrap_or(1)))
        }
        Ok(match owner.kind.as_str() {
            "ReplicaSet" if is("apps") => {
                let set = self.sets.get(namespace, &owner.name);
                let above = set.as_ref().and_then(|s| controller_of(&s.metadata)).cloned();
                if let Some(above) = above.filter(|a| a.kind == "Deployment") {
                    let found = self.deployments.get(namespace, &above.name);
                    let replicas = found.as_ref().and_then(|d| d.spec.as_ref()?.replicas);
                    return Ok(of(found, &above.uid, replicas));
                }
                let replicas = set.as_ref().and_then(|s| s.spec.as_ref()?.replicas);
                of(set, &owner.uid, replicas)
            }
            "ReplicationController" if is("v1") => {
                let found = self.controllers.get(namespace, &owner.name);
                let replicas = found.as_ref().and_then(|c| c.spec.as_ref()?.replicas);
                of(found, &owner.uid, replicas)
            }
            "StatefulSet" if is("apps") => {
                let found = self.stateful.get(namespace, &owner.name);
                let replicas = found.as_ref().and_then(|s| s.spec.as_ref()?.replicas);
                of(found, &owner.uid, replicas)
            }
            _ => scale::of(&self.client, namespace, owner).await?,
        })
    }

    /// How many pods should be there of those who own these. Pods without an owner count for nothing.
    async fn expected(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<i32, String> {
        let (mut scaled, mut asked) = (HashMap::new(), HashSet::new());
        for owner in pods.iter().filter_map(|pod| controller_of(&pod.metadata)) {
            if asked.insert(owner.uid.as_str())
                && let Some((uid, replicas)) = self.scale(namespace, owner).await?
            {
                scaled.insert(uid, replicas);
            }
        }
        Ok(scaled.into_values().fold(0, i32::saturating_add))
    }
}

/// What a budget asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    pub expected: i32,
    pub healthy: i32,
}

/// Whether what a budget asks for depends on how many pods there should be, not just on how many there are.
fn depends_on_scale(budget: &PodDisruptionBudget) -> bool {
    budget.spec.as_ref().is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
    })
}

/// How many pods shall be healthy. `scale` is asked only where the budget depends on it. Pure but for that.
///
/// # Errors
/// As `scale`.
pub fn wanted(
    budget: &PodDisruptionBudget,
    pods: usize,
    scale: impl FnOnce() -> Result<i32, String>,
) -> Result<Wanted, String> {
    let spec = budget.spec.clone().unwrap_or_default();
    let (expected, healthy) = match (spec.max_unavailable, spec.min_available) {
        (Some(unavailable), _) => {
            let expected = scale()?;
            (expected, expected - shares::scaled(&unavailable, expected, true))
        }
        (None, Some(IntOrString::Int(n))) => (pods as i32, n),
        (None, Some(share)) => {
            let expected = scale()?;
            (expected, shares::scaled(&share, expected, true))
        }
        (None, None) => (0, 0),
    };
    Ok(Wanted { expected, healthy: healthy.max(0) })
}

/// The status that a budget should have, evictions that were permitted but did not happen, and when to
/// look again at those that did not yet. Pure.
pub fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    wanted: &Wanted,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Vec<String>, Option<Duration>) {
    let before = budget.status.clone().unwrap_or_default();
    let by_name: HashMap<&str, &Arc<Pod>> = pods.iter().map(|p| (name(&p.metadata), p)).collect();
    let (mut going, mut failed, mut again) = (BTreeMap::new(), Vec::new(), None::<Duration>);
    for (pod, since) in before.disrupted_pods.clone().unwrap_or_default() {
        // Once it is going, that is seen on the pod itself.
        if by_name.get(pod.as_str()).is_none_or(|p| is_deleting(&p.metadata)) {
            continue;
        }
        let left = DISRUPTION_TIMEOUT - now.duration_since(since.0);
        match Duration::try_from(left) {
            Ok(left) if !left.is_zero() => {
                again = Some(again.map_or(left, |other| other.min(left)));
                going.insert(pod, since);
            }
            _ => failed.push(pod),
        }
    }
    let healthy = pods
        .iter()
        .filter(|p| !is_deleting(&p.metadata) && !going.contains_key(name(&p.metadata)))
        .filter(|p| is_ready(p))
        .count() as i32;
    let allowed = if wanted.expected <= 0 { 0 } else { (healthy - wanted.healthy).max(0) };
    let status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(wanted.healthy),
        expected_pods: Some(wanted.expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!going.is_empty()).then_some(going),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(budget, allowed > 0, None, now)),
    };
    (status, failed, again)
}

/// What the condition says; `failure` is why nothing could be counted.
fn conditions(
    budget: &PodDisruptionBudget,
    allowed: bool,
    failure: Option<&str>,
    now: Timestamp,
) -> Vec<Condition> {
    const KIND: &str = "DisruptionAllowed";
    let before = budget.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let status = if allowed { "True" } else { "False" };
    let same = before.iter().find(|c| c.type_ == KIND && c.status == status);
    let condition = Condition {
        type_: KIND.into(),
        status: status.into(),
        reason: match (failure, allowed) {
            (Some(_), _) => "SyncFailed",
            (None, true) => "SufficientPods",
            (None, false) => "InsufficientPods",
        }
        .into(),
        message: failure.unwrap_or_default().to_owned(),
        observed_generation: budget.metadata.generation,
        last_transition_time: same.map_or(Time(now), |c| c.last_transition_time.clone()),
    };
    let others = before.into_iter().filter(|c| c.type_ != KIND);
    others.chain([condition]).collect()
}

impl Budgets {
    /// The pods that the budget counts.
    fn counted(&self, budget: &PodDisruptionBudget) -> Vec<Arc<Pod>> {
        let Some(typed) = budget.spec.as_ref().and_then(|s| s.selector.as_ref()) else {
            return Vec::new();
        };
        let Ok(selector) = LabelSelector::from_typed(typed) else { return Vec::new() };
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        let mut pods: Vec<Arc<Pod>> = match typed.match_labels.iter().flatten().next() {
            Some(_) => self.pods.indexed(BY_LABEL, &selector_value(&budget.metadata, typed)),
            None => self.pods.list_in(namespace).into_iter().map(|(_, pod)| pod).collect(),
        };
        let none = BTreeMap::new();
        pods.retain(|p| selector.matches(p.metadata.labels.as_ref().unwrap_or(&none)));
        pods
    }

    async fn write(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), Error> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        // On the condition that nobody took from it meanwhile.
        let new = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        let written = self.client.update_status(&new).await?;
        self.own_writes.note(key, &written);
        Ok(())
    }
}

#[async_trait]
impl Controller for Budgets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(budget) = self.budgets.get_key(key) else { return Ok(Next::Change) };
        if is_deleting(&budget.metadata) || !self.own_writes.seen(key, &self.budgets) {
            return Ok(Next::Change);
        }
        let (pods, now) = (self.counted(&budget), Timestamp::now());
        let expected = match depends_on_scale(&budget) {
            true => self.owners.expected(&key.namespace, &pods).await,
            false => Ok(0),
        };
        let wanted = match wanted(&budget, pods.len(), || expected) {
            Ok(wanted) => wanted,
            Err(why) => {
                let status = budget.status.clone().unwrap_or_default();
                let status = PodDisruptionBudgetStatus {
                    disruptions_allowed: Some(0),
                    observed_generation: budget.metadata.generation,
                    conditions: Some(conditions(&budget, false, Some(&why), now)),
                    ..status
                };
                let text = format!("Failed to calculate the number of expected pods: {why}");
                self.recorder.event(
                    &*budget,
                    EventType::Warning,
                    "CalculateExpectedPodCountFailed",
                    text,
                );
                self.write(key, &budget, status).await?;
                return Ok(Next::Change);
            }
        };
        if pods.is_empty() {
            self.recorder.event(&*budget, EventType::Normal, "NoPods", "No matching pods found");
        }
        let (status, failed, again) = plan(&budget, &pods, &wanted, now);
        for pod in failed.iter().filter_map(|name| self.pods.get(&key.namespace, name)) {
            let text = "Pod was expected by PDB to be deleted but it wasn't";
            self.recorder.event(&*pod, EventType::Warning, "NotDeleted", text);
        }
        self.write(key, &budget, status).await?;
        Ok(again.map_or(Next::Change, |left| Next::After(left + Duration::from_secs(1))))
    }
}
