//! StatefulSet: pods with names, one after the other, each with claims of its own.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/>
//!
//! [`identity`] says who a pod is, [`retention`] what becomes of its claims, [`rollout`] what is done next.
//! [`crate::history`] keeps the templates that were.

pub mod identity;
pub mod retention;
pub mod rollout;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{self, PersistentVolumeClaim};
use rimward_api::ObjectKey;
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Client, DeleteOptions, Error, EventType, Patch, Recorder};
use rimward_control_lean::Pod;
use serde_json::json;

use crate::claim;
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, enqueue_owners, synced};
use crate::history::{self, History};
use crate::indexes;
use crate::pod_control::slow_start;
use crate::pods::{is_deleting, name, uid};
use crate::staleness::{OwnWrites, Unseen};
use identity::Revision;
use rollout::{Plan, Step, World};

pub const NAME: &str = "statefulset-controller";
const WORKERS: usize = 8;
/// On a ControllerRevision of a StatefulSet: the hash in its name.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// How many old revisions are kept where the set does not say.
const HISTORY_DEFAULT: i32 = 10;
/// When to look again at a deletion whose echo is not in the cache yet.
const ECHO: Duration = Duration::from_secs(10);

struct StatefulSets {
    client: Client,
    recorder: Recorder,
    sets: Cache<StatefulSet>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    history: History,
    own_writes: OwnWrites,
    /// Pods made and changed.
    pod_writes: OwnWrites,
    /// Claims made and changed.
    claim_writes: OwnWrites,
    unseen: Unseen,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (sets, pods) = (context.informers.of::<StatefulSet>(), context.informers.of::<Pod>());
    let claims = context.informers.of::<PersistentVolumeClaim>();
    indexes::owned(&pods);
    indexes::stateful_sets_by_selector(&sets);
    enqueue_changes(&sets, &keys);
    enqueue_owners(&pods, &sets, &keys);
    let history = History::start(context, &sets, &keys, HASH_LABEL);
    let (queue, known) = (keys.clone(), sets.clone());
    claims.on_change(move |change| {
        let claim = change.key;
        for name in identity::sets_of_claim(&claim.name) {
            let set = known.get(&claim.namespace, name);
            if set.is_some_and(|set| identity::has_claim(&set, &claim.name)) {
                queue.add(ObjectKey::new(claim.namespace.as_str(), name));
            }
        }
    });
    let caches = vec![synced(&sets), synced(&pods), synced(&claims), synced(history.cache())];
    let controller = StatefulSets {
        client: context.client.clone(),
        recorder: context.recorder(),
        sets,
        pods,
        claims,
        history,
        own_writes: OwnWrites::default(),
        pod_writes: OwnWrites::default(),
        claim_writes: OwnWrites::default(),
        unseen: Unseen::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

#[async_trait]
impl Controller for StatefulSets {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(set) = self.sets.get_key(key) else { return Ok(Next::Change) };
        let seen = self.own_writes.seen(key, &self.sets)
            && self.pod_writes.seen(key, &self.pods)
            && self.claim_writes.seen(key, &self.claims)
            && self.history.seen(key);
        if !seen {
            return Ok(Next::Change);
        }
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        let Ok(selector) = LabelSelector::from_typed(&spec.selector) else {
            return Ok(Next::Change);
        };
        let revisions = self.history.of(&*set, &spec.selector, &selector).await?;
        let (pods, deleted_unseen) = self.pods_of(&set, &selector).await?;
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let newest = self.history.newest(key, &*set, &spec.template, &revisions, collisions).await;
        let (update, collisions) = match newest {
            Err(e) if e.is_namespace_terminating() => return Ok(Next::Change),
            newest => newest?,
        };
        let said = set.status.as_ref().and_then(|s| s.current_revision.as_deref());
        let current = revisions.iter().find(|r| Some(name(&r.metadata)) == said);
        let current = current.unwrap_or(&update).clone();
        let plan = rollout::plan(&World {
            set: &set,
            current: &revision(&current, &set),
            update: &revision(&update, &set),
            collisions,
            pods: &pods,
            deleted_unseen: &deleted_unseen,
            claim: &|name| self.claims.get(&key.namespace, name),
            now: Timestamp::now(),
        });
        let outcome = slow_start(plan.steps.len(), |i| self.act(key, &set, &plan.steps[i])).await;
        self.write_status(key, &set, &plan.status).await?;
        let live = |r: &ControllerRevision| {
            let own = name(&r.metadata);
            own == name(&current.metadata)
                || own == name(&update.metadata)
                || pods.iter().any(|p| rollout::revision_of(p) == own)
        };
        let old: Vec<_> = revisions.iter().filter(|r| !live(r)).cloned().collect();
        let limit = spec.revision_history_limit.unwrap_or(HISTORY_DEFAULT).max(0) as usize;
        self.history.delete(&old[..old.len().saturating_sub(limit)]).await?;
        match outcome {
            // No pod will ever be created there.
            Err(e) if e.is_namespace_terminating() => Ok(Next::Change),
            Err(e) => Err(e),
            Ok(()) => Ok(next(&plan, !deleted_unseen.is_empty())),
        }
    }
}

fn next(plan: &Plan, unseen: bool) -> Next {
    let wake = if unseen { Some(plan.wake.map_or(ECHO, |w| w.min(ECHO))) } else { plan.wake };
    wake.map_or(Next::Change, Next::After)
}

/// A revision whose data somebody broke stands for the set's own template: nothing else is known.
fn revision(stored: &ControllerRevision, set: &StatefulSet) -> Revision {
    let own = || set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let template = history::template_of(stored).unwrap_or_else(own);
    Revision { name: name(&stored.metadata).to_owned(), template }
}

impl StatefulSets {
    /// The pods that the set controls, and which of them are deleted though the cache does not say so.
    async fn pods_of(
        &self,
        set: &StatefulSet,
        selector: &LabelSelector,
    ) -> Result<(Vec<Arc<Pod>>, HashSet<String>), Error> {
        let meta = &set.metadata;
        // The revision first: what the look lacks is known to be newer.
        let seen = self.pods.revision();
        let typed = set.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
        let (controlled, orphans) = claim::candidates(&self.pods, meta, &typed);
        let (_, deleted) = self.unseen.settle(uid(meta), &controlled, seen);
        let member = |pod: &Pod| {
            identity::ordinal(name(meta), name(&pod.metadata)).is_some()
                && claim::selects(selector, &pod.metadata)
        };
        let claims = claim::plan_by(member, is_deleting(meta), controlled, orphans);
        let adopted = claim::act(&self.client, set, &claims).await?;
        Ok((claims.kept.into_iter().chain(adopted).collect(), deleted))
    }

    async fn act(&self, key: &ObjectKey, set: &StatefulSet, step: &Step) -> Result<(), Error> {
        match step {
            Step::Create { pod, claims } => self.create(key, set, pod, claims).await,
            Step::Claims { pod, claims } => self.make_claims(key, set, pod, claims).await,
            Step::Blocked { pod, claim, going } => {
                if *going {
                    self.tell_of_pod(
                        set,
                        "create",
                        pod,
                        Err(&format!("pvc {claim} is being deleted")),
                    );
                }
                Ok(())
            }
            Step::Reown { claim, contested } => self.reown(key, set, claim, *contested).await,
            Step::Relabel { pod, ordinal } => self.relabel(key, set, pod, *ordinal).await,
            Step::Delete(pod) => self.delete(set, pod).await,
        }
    }

    async fn create(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        pod: &v1::Pod,
        claims: &[PersistentVolumeClaim],
    ) -> Result<(), Error> {
        let pod_name = name(&pod.metadata);
        self.make_claims(key, set, pod_name, claims).await?;
        match self.client.create(pod).await {
            Ok(created) => {
                self.pod_writes.note(key, &created);
                self.tell_of_pod(set, "create", pod_name, Ok(()));
                Ok(())
            }
            Err(e) => {
                if !e.is_already_exists() && !e.is_namespace_terminating() {
                    self.tell_of_pod(set, "create", pod_name, Err(&e.to_string()));
                }
                Err(e)
            }
        }
    }

    async fn make_claims(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        pod: &str,
        claims: &[PersistentVolumeClaim],
    ) -> Result<(), Error> {
        for claim in claims {
            let (set_name, claim_name) = (name(&set.metadata), name(&claim.metadata));
            match self.client.create(claim).await {
                Ok(created) => {
                    self.claim_writes.note(key, &created);
                    let text = format!(
                        "create Claim {claim_name} Pod {pod} in StatefulSet {set_name} success"
                    );
                    self.recorder.event(set, EventType::Normal, "SuccessfulCreate", text);
                }
                Err(e) if e.is_already_exists() => {}
                Err(e) => {
                    if !e.is_namespace_terminating() {
                        let text = format!(
                            "create Claim {claim_name} for Pod {pod} in StatefulSet {set_name} failed error: {e}"
                        );
                        self.recorder.event(set, EventType::Warning, "FailedCreate", text);
                    }
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    async fn reown(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        claim: &PersistentVolumeClaim,
        contested: bool,
    ) -> Result<(), Error> {
        if contested {
            let text = format!(
                "PersistentVolumeClaim {} has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim",
                name(&claim.metadata)
            );
            self.recorder.event(set, EventType::Warning, "ConflictingController", text);
        }
        let written = match self.client.update(claim).await {
            Err(e) if e.is_not_found() => return Ok(()),
            answer => answer?,
        };
        self.claim_writes.note(key, &written);
        Ok(())
    }

    async fn relabel(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        pod: &Pod,
        ordinal: i64,
    ) -> Result<(), Error> {
        let (meta, pod_name) = (&pod.metadata, name(&pod.metadata));
        let labels: serde_json::Map<String, serde_json::Value> =
            identity::labels(pod_name, ordinal)
                .map(|(k, v)| (k.to_owned(), v.into()))
                .into_iter()
                .collect();
        let patch = json!({ "metadata": { "uid": uid(meta), "labels": labels } });
        let answer =
            self.client.patch::<Pod>(&key.namespace, pod_name, "", &Patch::strategic(patch)).await;
        let told = answer.as_ref().map(drop).map_err(ToString::to_string);
        self.tell_of_pod(set, "update", pod_name, told.as_ref().copied().map_err(String::as_str));
        self.pod_writes.note(key, &answer?);
        Ok(())
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), Error> {
        let (meta, pod_name) = (&pod.metadata, name(&pod.metadata));
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        match self.client.delete::<Pod>(namespace, pod_name, &DeleteOptions::uid(uid(meta))).await {
            Ok(()) => {
                self.unseen.deleted(uid(&set.metadata), pod);
                self.tell_of_pod(set, "delete", pod_name, Ok(()));
                Ok(())
            }
            Err(e) if e.is_not_found() || e.is_conflict() => Ok(()),
            Err(e) => {
                self.tell_of_pod(set, "delete", pod_name, Err(&e.to_string()));
                Err(e)
            }
        }
    }

    /// In the words of pkg/controller/statefulset/stateful_pod_control.go.
    fn tell_of_pod(&self, set: &StatefulSet, verb: &str, pod: &str, outcome: Result<(), &str>) {
        let what = format!("{verb} Pod {pod} in StatefulSet {}", name(&set.metadata));
        let noun = match verb {
            "create" => "Create",
            "update" => "Update",
            _ => "Delete",
        };
        let (kind, reason, text) = match outcome {
            Ok(()) => {
                (EventType::Normal, format!("Successful{noun}"), format!("{what} successful"))
            }
            Err(e) => {
                (EventType::Warning, format!("Failed{noun}"), format!("{what} failed error: {e}"))
            }
        };
        self.recorder.event(set, kind, &reason, text);
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        status: &StatefulSetStatus,
    ) -> Result<(), Error> {
        if set.status.as_ref() == Some(status) {
            return Ok(());
        }
        let changed = StatefulSet { status: Some(status.clone()), ..set.clone() };
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
