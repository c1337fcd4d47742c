//! ControllerRevisions: what a StatefulSet's or DaemonSet's template was, so that `kubectl rollout` can
//! show it and put it back.
//! <https://kubernetes.io/docs/tasks/manage-daemon/rollback-daemon-set/>
//!
//! A revision's data is the strategic merge patch that replaces the template, as JSON with its members in
//! order: kubectl compares those bytes with what it makes of the object itself. The newest revision has the
//! highest number; going back to an old template raises the number of its revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as TypedSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use rimward_api::ObjectKey;
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Client, DeleteOptions, Error, Object};
use serde_json::{Value, json};

use crate::claim::{self, controller_reference};
use crate::driver::{Context, Keys, enqueue_owners};
use crate::hash;
use crate::indexes;
use crate::pods::{is_deleting, name, uid};
use crate::staleness::OwnWrites;

/// On pods: of which revision they are.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// The longest part of an owner's name in a revision's name.
const PREFIX_BYTES_MAX: usize = 223;

/// The patch that puts a template back.
pub fn patch_to(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).expect("a template is JSON");
    template["$patch"] = "replace".into();
    json!({ "spec": { "template": template } })
}

/// The template that a revision holds; None where somebody wrote something else there.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Oldest first.
pub fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by_cached_key(|r| {
        let created: Option<Timestamp> = r.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (r.revision, created, name(&r.metadata).to_owned())
    });
}

/// How a patch becomes the newest revision.
#[derive(Clone, Debug, PartialEq)]
pub enum Newest {
    /// It is.
    Is(Arc<ControllerRevision>),
    /// It was an earlier one, and gets this number.
    Again(Arc<ControllerRevision>, i64),
    /// It is new, and gets this number.
    New(i64),
}

/// Decides; touches nothing. `revisions` are sorted.
pub fn plan(revisions: &[Arc<ControllerRevision>], patch: &Value) -> Newest {
    let Some(last) = revisions.last() else { return Newest::New(1) };
    let same = |r: &&Arc<ControllerRevision>| r.data.as_ref().is_some_and(|d| d.0 == *patch);
    match revisions.iter().rfind(same) {
        Some(found) if Arc::ptr_eq(found, last) => Newest::Is(found.clone()),
        Some(found) => Newest::Again(found.clone(), last.revision + 1),
        None => Newest::New(last.revision + 1),
    }
}

/// A revision that `owner` is to have. `hash_label` is the label that holds the hash by itself.
pub fn revision<O: Object>(
    owner: &O,
    template: &PodTemplateSpec,
    hash_label: &str,
    number: i64,
    collisions: i32,
) -> ControllerRevision {
    let data = patch_to(template);
    let bytes = serde_json::to_vec(&data).expect("a patch is JSON");
    let probe = collisions.to_string();
    let hash = hash::readable(hash::fnv1(bytes.iter().chain(probe.as_bytes())));
    let owner_name = name(owner.metadata());
    let prefix = &owner_name[..owner_name.len().min(PREFIX_BYTES_MAX)];
    let labels = template.metadata.as_ref().and_then(|m| m.labels.clone());
    let mut labels: BTreeMap<String, String> = labels.unwrap_or_default();
    labels.insert(hash_label.to_owned(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: owner.metadata().namespace.clone(),
            labels: Some(labels),
            annotations: owner.metadata().annotations.clone(),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// The revisions of one kind of owner.
pub struct History {
    client: Client,
    revisions: Cache<ControllerRevision>,
    writes: OwnWrites,
    hash_label: &'static str,
}

impl History {
    /// `owners` must have the index `BY_SELECTOR`: a change of a revision wakes its owner.
    pub fn start<O: Object>(
        context: &Context,
        owners: &Cache<O>,
        keys: &Keys,
        hash_label: &'static str,
    ) -> Self {
        let revisions = context.informers.of::<ControllerRevision>();
        indexes::owned(&revisions);
        enqueue_owners(&revisions, owners, keys);
        let client = context.client.clone();
        Self { client, revisions, writes: OwnWrites::default(), hash_label }
    }

    pub fn cache(&self) -> &Cache<ControllerRevision> {
        &self.revisions
    }

    /// Whether the cache shows all that was written for the owner; if not, its echo wakes the key.
    pub fn seen(&self, key: &ObjectKey) -> bool {
        self.writes.seen(key, &self.revisions)
    }

    /// The owner's revisions, oldest first, after adopting and releasing what is due.
    pub async fn of<O: Object>(
        &self,
        owner: &O,
        typed: &TypedSelector,
        selector: &LabelSelector,
    ) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let meta = owner.metadata();
        let (controlled, orphans) = claim::candidates(&self.revisions, meta, typed);
        let claims = claim::plan(selector, is_deleting(meta), controlled, orphans);
        let adopted = claim::act(&self.client, owner, &claims).await?;
        let mut revisions: Vec<_> = claims.kept.into_iter().chain(adopted).collect();
        sort(&mut revisions);
        Ok(revisions)
    }

    /// The revision of the owner's template, made the newest one; and how often a name was taken so far.
    pub async fn newest<O: Object>(
        &self,
        key: &ObjectKey,
        owner: &O,
        template: &PodTemplateSpec,
        revisions: &[Arc<ControllerRevision>],
        mut collisions: i32,
    ) -> Result<(Arc<ControllerRevision>, i32), Error> {
        let number = match plan(revisions, &patch_to(template)) {
            Newest::Is(revision) => return Ok((revision, collisions)),
            Newest::Again(revision, number) => {
                let changed = ControllerRevision { revision: number, ..(*revision).clone() };
                let written = self.client.update(&changed).await?;
                self.writes.note(key, &written);
                return Ok((Arc::new(written), collisions));
            }
            Newest::New(number) => number,
        };
        loop {
            let wanted = revision(owner, template, self.hash_label, number, collisions);
            match self.client.create(&wanted).await {
                Ok(created) => {
                    self.writes.note(key, &created);
                    return Ok((Arc::new(created), collisions));
                }
                Err(e) if e.is_already_exists() => {}
                Err(e) => return Err(e),
            }
            let there: ControllerRevision =
                self.client.get(&key.namespace, name(&wanted.metadata)).await?;
            if there.data == wanted.data {
                return Ok((Arc::new(there), collisions));
            }
            // Another template has that name: the count is part of the next.
            collisions += 1;
        }
    }

    /// Deletes revisions that are not kept any longer.
    pub async fn delete(&self, revisions: &[Arc<ControllerRevision>]) -> Result<(), Error> {
        for revision in revisions {
            let meta = &revision.metadata;
            let (namespace, options) =
                (meta.namespace.as_deref().unwrap_or_default(), DeleteOptions::uid(uid(meta)));
            let answer =
                self.client.delete::<ControllerRevision>(namespace, name(meta), &options).await;
            match answer {
                Err(e) if !e.is_not_found() && !e.is_conflict() => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}
