//! DaemonSet: one pod on every node that is fit for it.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>
//!
//! [`placement`] says which nodes those are and what a pod looks like, [`rollout`] what is done next,
//! [`backoff`] how long a failed pod stays. [`crate::history`] keeps the templates that were.

pub mod backoff;
pub mod placement;
pub mod rollout;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Node;
use rimward_api::ObjectKey;
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Change, Client, Error, EventType, Recorder};
use rimward_control_lean::Pod;
use tokio::time::Instant;

use crate::claim;
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, enqueue_owners, synced};
use crate::history::{History, REVISION_LABEL};
use crate::indexes;
use crate::pod_control::PodControl;
use crate::pods::{is_deleting, name, uid};
use crate::staleness::{OwnWrites, Pace};
use backoff::Backoff;
use rollout::{Plan, World};

pub const NAME: &str = "daemonset-controller";
/// Its ServiceAccount is written otherwise.
pub const IDENTITY: &str = "daemon-set-controller";
const WORKERS: usize = 4;
/// The most pods created or deleted in one go.
const BURST: usize = 250;
/// How many old revisions are kept where the set does not say.
const HISTORY_DEFAULT: i32 = 10;
/// A look at a set costs as much as there are nodes. Looking no more often than this per node keeps the
/// coming of thousands of nodes linear, and a small cluster's delay unnoticeable.
const PACE_PER_NODE: Duration = Duration::from_micros(20);
/// When to look again at a creation or deletion whose echo is not in the cache yet.
const ECHO: Duration = Duration::from_secs(10);

struct DaemonSets {
    client: Client,
    recorder: Recorder,
    control: PodControl,
    sets: Cache<DaemonSet>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    history: History,
    own_writes: OwnWrites,
    backoff: Backoff,
    pace: Pace,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (sets, pods) = (context.informers.of::<DaemonSet>(), context.informers.of::<Pod>());
    let nodes = context.informers.of::<Node>();
    indexes::owned(&pods);
    indexes::daemon_sets_by_selector(&sets);
    enqueue_changes(&sets, &keys);
    enqueue_owners(&pods, &sets, &keys);
    let history = History::start(context, &sets, &keys, REVISION_LABEL);
    let (queue, known) = (keys.clone(), sets.clone());
    nodes.on_change(move |change| {
        if matters(&change) {
            known.list().into_iter().for_each(|(key, _)| queue.add(key));
        }
    });
    let caches = vec![synced(&sets), synced(&pods), synced(&nodes), synced(history.cache())];
    let recorder = context.recorder();
    let controller = DaemonSets {
        client: context.client.clone(),
        recorder: recorder.clone(),
        control: PodControl::new(context, recorder),
        sets,
        pods,
        nodes,
        history,
        own_writes: OwnWrites::default(),
        backoff: Backoff::default(),
        pace: Pace::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// Whether a node's change may move pods: it came or went, or has other labels or taints.
fn matters(change: &Change<'_, Node>) -> bool {
    let taints = |node: &Arc<Node>| node.spec.as_ref().and_then(|s| s.taints.clone());
    let (Some(old), Some(new)) = (change.old, change.new) else { return true };
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

#[async_trait]
impl Controller for DaemonSets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(set) = self.sets.get_key(key) else { return Ok(Next::Change) };
        if !self.own_writes.seen(key, &self.sets) || !self.history.seen(key) {
            return Ok(Next::Change);
        }
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        let Ok(selector) = LabelSelector::from_typed(&spec.selector) else {
            return Ok(Next::Change);
        };
        if selector.is_empty() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&*set, EventType::Warning, "SelectingAll", text);
            return Ok(Next::Change);
        }
        // Its revisions may be collected before its pods: what it had to say is said.
        if is_deleting(&set.metadata) {
            return Ok(Next::Change);
        }
        let wait = self.pace.wait(key, PACE_PER_NODE * self.nodes.len() as u32);
        if !wait.is_zero() {
            return Ok(Next::After(wait));
        }
        self.pace.mark(key);
        // The revision first: what the look lacks is known to be newer.
        let seen = self.pods.revision();
        let (controlled, orphans) = claim::candidates(&self.pods, &set.metadata, &spec.selector);
        let (created, deleted) = self.control.settle(uid(&set.metadata), &controlled, seen);
        let claims = claim::plan(&selector, false, controlled, orphans);
        let adopted = claim::act(&self.client, &*set, &claims).await?;
        let pods: Vec<Arc<Pod>> = claims.kept.into_iter().chain(adopted).collect();
        let revisions = self.history.of(&*set, &spec.selector, &selector).await?;
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let newest = self
            .history
            .newest(key, &*set, &spec.template, &revisions, collisions.unwrap_or(0))
            .await;
        let (current, count) = match newest {
            Err(e) if e.is_namespace_terminating() => return Ok(Next::Change),
            newest => newest?,
        };
        let nodes: Vec<Arc<Node>> = self.nodes.list().into_iter().map(|(_, node)| node).collect();
        let (started, settled) = (Instant::now(), created == 0 && deleted.is_empty());
        let hash = hash_of(&current);
        let plan = rollout::plan(&World {
            set: &set,
            nodes: &nodes,
            pods: &pods,
            hash,
            collisions: collisions.or((count > 0).then_some(count)).map(|before| before.max(count)),
            settled,
            backoff: &|node| self.backoff.left(&failures_of(&set, node), started),
            now: Timestamp::now(),
        });
        let outcome = self.act(&set, hash, &plan, started).await;
        self.write_status(key, &set, &plan.status).await?;
        match outcome {
            // No pod will ever be created there.
            Err(e) if e.is_namespace_terminating() => return Ok(Next::Change),
            outcome => outcome?,
        }
        if settled {
            self.history.delete(&surplus(&set, &current, &revisions, &pods)).await?;
            return Ok(plan.wake.map_or(Next::Change, Next::After));
        }
        Ok(Next::After(plan.wake.unwrap_or(ECHO).min(ECHO)))
    }
}

fn hash_of(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|l| l.get(REVISION_LABEL)).map_or(name(&revision.metadata), String::as_str)
}

/// A new template is a new chance.
fn failures_of(set: &DaemonSet, node: &str) -> String {
    let observed = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
    format!("{}/{observed}/{node}", uid(&set.metadata))
}

/// The oldest revisions beyond the limit of which there are no pods.
fn surplus(
    set: &DaemonSet,
    current: &ControllerRevision,
    revisions: &[Arc<ControllerRevision>],
    pods: &[Arc<Pod>],
) -> Vec<Arc<ControllerRevision>> {
    let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit);
    let limit = limit.unwrap_or(HISTORY_DEFAULT).max(0) as usize;
    let labels = pods.iter().filter_map(|p| p.metadata.labels.as_ref()?.get(REVISION_LABEL));
    let live: HashSet<&str> = labels.map(String::as_str).collect();
    let old = revisions.iter().filter(|r| uid(&r.metadata) != uid(&current.metadata));
    let excess = old.clone().count().saturating_sub(limit);
    old.filter(|r| !live.contains(hash_of(r))).take(excess).cloned().collect()
}

impl DaemonSets {
    async fn act(
        &self,
        set: &DaemonSet,
        hash: &str,
        plan: &Plan,
        started: Instant,
    ) -> Result<(), Error> {
        for node in &plan.failed {
            self.backoff.failed(&failures_of(set, node), started);
        }
        for (kind, reason, text) in &plan.events {
            self.recorder.event(set, *kind, reason, text.clone());
        }
        let count = plan.create.len().min(BURST);
        let pod = |i: usize| placement::pod(set, hash, &plan.create[i]);
        let created = self.control.create(set, count, pod).await;
        let delete = &plan.delete[..plan.delete.len().min(BURST)];
        self.control.delete(set, delete).await?;
        created
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        status: &DaemonSetStatus,
    ) -> Result<(), Error> {
        if set.status.as_ref() == Some(status) {
            return Ok(());
        }
        let changed = DaemonSet { status: Some(status.clone()), ..set.clone() };
        match self.client.update_status(&changed).await {
            Ok(written) => {
                self.own_writes.note(key, &written);
                Ok(())
            }
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
        }
    }
}
