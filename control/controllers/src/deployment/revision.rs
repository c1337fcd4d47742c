//! Which ReplicaSet has the Deployment's template, and the history kept in annotations.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::claim::controller_reference;
use crate::hash;
use crate::pods::name;

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that say nothing about its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// The most bytes of history that a ReplicaSet carries.
const HISTORY_BYTES_MAX: usize = 2000;

/// Whether a ReplicaSet's template is the Deployment's, its hash label aside.
pub fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let without_hash = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
            labels.remove(HASH_LABEL);
        }
        template
    };
    let wanted = deployment.spec.as_ref().map(|s| without_hash(&s.template));
    let has = set.spec.as_ref().and_then(|s| s.template.as_ref()).map(without_hash);
    match (wanted, has) {
        (Some(a), Some(b)) => a == b || pruned(&a) == pruned(&b),
        _ => false,
    }
}

/// As JSON without empty members: absent and empty mean the same.
fn pruned(template: &PodTemplateSpec) -> Value {
    fn prune(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.values_mut().for_each(prune);
                map.retain(|_, v| {
                    !v.is_null()
                        && v.as_object().is_none_or(|o| !o.is_empty())
                        && v.as_array().is_none_or(|a| !a.is_empty())
                });
            }
            Value::Array(items) => items.iter_mut().for_each(prune),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(template).unwrap_or_default();
    prune(&mut value);
    value
}

/// The oldest ReplicaSet with the Deployment's template.
pub fn find_new(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<usize> {
    let same = sets.iter().enumerate().filter(|(_, set)| same_template(deployment, set));
    same.min_by_key(|(_, set)| age_key(set)).map(|(i, _)| i)
}

/// Sorts by age, oldest first; by name within a second.
pub fn age_key(set: &ReplicaSet) -> (Option<jiff::Timestamp>, String) {
    (set.metadata.creation_timestamp.as_ref().map(|t| t.0), name(&set.metadata).to_owned())
}

pub fn revision_of(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Sets an annotation; answers whether that changed anything.
pub fn annotate(meta: &mut ObjectMeta, key: &str, value: String) -> bool {
    let annotations = meta.annotations.get_or_insert_default();
    let changed = annotations.get(key) != Some(&value);
    if changed {
        annotations.insert(key.to_owned(), value);
    }
    changed
}

/// Makes a ReplicaSet the newest revision, and gives it the Deployment's annotations (the
/// change-cause among them); answers whether that changed anything.
pub fn promote(deployment: &Deployment, set: &mut ReplicaSet, newest: i64) -> bool {
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            changed |= annotate(&mut set.metadata, key, value.clone());
        }
    }
    let old = annotation(&set.metadata, REVISION).map(str::to_owned);
    let number = match old.as_deref() {
        None | Some("") => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            // Somebody wrote nonsense there; leave it.
            Err(_) => return changed,
        },
    };
    if number >= newest {
        return changed;
    }
    annotate(&mut set.metadata, REVISION, newest.to_string());
    // It had a revision before, so this is a rollback to it.
    if let Some(old) = old {
        let history = annotation(&set.metadata, REVISION_HISTORY).unwrap_or_default();
        let mut past: Vec<&str> = history.split(',').filter(|r| !r.is_empty()).collect();
        past.push(&old);
        while past.len() > 1 && past.iter().map(|r| r.len() + 1).sum::<usize>() > HISTORY_BYTES_MAX
        {
            past.remove(0);
        }
        let joined = past.join(",");
        annotate(&mut set.metadata, REVISION_HISTORY, joined);
    }
    true
}

/// A ReplicaSet of size 0 for the Deployment's template.
pub fn new_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels: BTreeMap<String, String> = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// Over the template's JSON and the collision count.
fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let json = serde_json::to_vec(&pruned(template)).unwrap_or_default();
    let collisions = collisions.map(i32::to_le_bytes).unwrap_or_default();
    hash::readable(hash::fnv1a(json.iter().chain(&collisions)))
}
