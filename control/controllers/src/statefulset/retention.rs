//! What becomes of a StatefulSet's claims when it goes or shrinks: they are owned by whatever they are to
//! go with, and the garbage collector does the rest.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#persistentvolumeclaim-retention>

use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rimward_control_lean::Pod;

use crate::claim::controller_reference;
use crate::pods::{name, uid};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    delete_with_set: bool,
    delete_when_scaled: bool,
}

impl Policy {
    pub fn of(set: &StatefulSet) -> Self {
        let said =
            set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
        let deletes = |said: Option<&String>| said.is_some_and(|s| s == "Delete");
        Self {
            delete_with_set: deletes(said.and_then(|p| p.when_deleted.as_ref())),
            delete_when_scaled: deletes(said.and_then(|p| p.when_scaled.as_ref())),
        }
    }

    pub fn deletes_with_set(self) -> bool {
        self.delete_with_set
    }

    /// Whether claims that outlive their pod are never used again.
    pub fn deletes_when_scaled(self) -> bool {
        self.delete_when_scaled
    }

    fn retains(self) -> bool {
        !self.delete_with_set && !self.delete_when_scaled
    }
}

pub fn reference_to_set(set: &StatefulSet) -> OwnerReference {
    controller_reference(set)
}

fn refers<K: Resource>(reference: &OwnerReference, meta: &ObjectMeta) -> bool {
    reference.api_version == K::API_VERSION
        && reference.kind == K::KIND
        && reference.name == name(meta)
}

/// Whether a claim is owned by an earlier object of the same name.
pub fn is_stale<K: Resource>(claim: &PersistentVolumeClaim, owner: &ObjectMeta) -> bool {
    let mut references = claim.metadata.owner_references.iter().flatten();
    references.any(|r| refers::<K>(r, owner) && r.uid != uid(owner))
}

/// Whether somebody else controls the claim, so that the policy cannot be heeded.
pub fn has_other_controller(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> bool {
    if Policy::of(set).retains() {
        return false;
    }
    claim.metadata.owner_references.iter().flatten().any(|r| {
        let ours = |meta: &ObjectMeta| r.uid == uid(meta);
        !ours(&set.metadata) && !ours(&pod.metadata) && r.controller == Some(true)
    })
}

/// The owners that the claim should have; None where it has them, or is not to be touched. `kept` is
/// whether the set still has the pod's ordinal.
pub fn owners(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
    kept: bool,
) -> Option<Vec<OwnerReference>> {
    if is_stale::<StatefulSet>(claim, &set.metadata) || is_stale::<Pod>(claim, &pod.metadata) {
        return None;
    }
    let has = claim.metadata.owner_references.clone().unwrap_or_default();
    let ours = |r: &OwnerReference| r.uid == uid(&set.metadata) || r.uid == uid(&pod.metadata);
    let mut wanted: Vec<OwnerReference> = has.iter().filter(|r| !ours(r)).cloned().collect();
    if !has_other_controller(claim, set, pod) {
        let policy = Policy::of(set);
        let by_pod = policy.delete_when_scaled && !kept;
        if by_pod {
            wanted.push(controller_reference(pod));
        } else if policy.delete_with_set {
            wanted.push(reference_to_set(set));
        }
    }
    let mut differs = has.len() != wanted.len();
    differs |= wanted.iter().any(|w| {
        let same = has.iter().find(|h| h.uid == w.uid);
        same.is_none_or(|h| ours(h) && h.controller != Some(true))
    });
    differs.then_some(wanted)
}
