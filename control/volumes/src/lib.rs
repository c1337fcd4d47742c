//! Which PersistentVolume satisfies which claim: what the binder (a controller) and the scheduler must
//! agree on. It contains no I/O.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#binding>

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use rimward_api::selector::LabelSelector;
use rimward_api::{ObjectKey, Quantity};
use rimward_control_lean::Pod;

/// On a claim: its binding was completed once. <https://kubernetes.io/docs/reference/labels-annotations-taints/>
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: not its author, the cluster chose the other side.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: which provisioner made it.
pub use rimward_api::local_volumes::PROVISIONED_BY;
/// On a claim: the node that the scheduler chose for its pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to provision it.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The same for provisioners that are older.
pub const OLD_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The provisioner of classes whose volumes an administrator makes.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// How classes were named before there was a field.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub fn claim_annotation<'a>(claim: &'a PersistentVolumeClaim, key: &str) -> Option<&'a str> {
    claim.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn volume_annotation<'a>(volume: &'a PersistentVolume, key: &str) -> Option<&'a str> {
    volume.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The class that a claim asks for; empty is none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = || claim.spec.as_ref()?.storage_class_name.as_deref();
    claim_annotation(claim, OLD_CLASS).or_else(field).unwrap_or_default()
}

pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref()?.storage_class_name.as_deref();
    volume_annotation(volume, OLD_CLASS).or_else(field).unwrap_or_default()
}

/// Whether the class waits for the first pod before it binds.
pub fn waits_for_consumer(class: Option<&StorageClass>) -> bool {
    class.and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}

/// Whether both sides say that they belong together and the binder is done with them.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    let named =
        claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|v| !v.is_empty());
    named && claim_annotation(claim, BIND_COMPLETED).is_some()
}

/// The volume that a claim names.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

/// The claim that a volume is for, whether it exists or not.
pub fn claim_key(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Some(ObjectKey::new(text(&reference.namespace), text(&reference.name)))
}

/// Whether a volume is for this very claim: a reference without UID is for whoever has the name.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    reference.is_some_and(|r| {
        r.name == claim.metadata.name
            && r.namespace == claim.metadata.namespace
            && r.uid
                .as_deref()
                .is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
    })
}

/// The claims that a pod uses, those made for its ephemeral volumes included.
pub fn claims_of(pod: &Pod) -> Vec<ObjectKey> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let named = volumes.filter_map(|volume| match &volume.persistent_volume_claim {
        Some(source) => Some(source.claim_name.clone()),
        None => volume.ephemeral.as_ref().map(|_| format!("{pod_name}-{}", volume.name)),
    });
    named.map(|claim| ObjectKey::new(namespace, claim)).collect()
}

/// Whether a claim that was made for a pod's ephemeral volume is that pod's; any other claim is as good as
/// anybody's.
pub fn is_owned_by(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners
        .into_iter()
        .any(|o| o.controller == Some(true) && Some(&o.uid) == pod.metadata.uid.as_ref())
}

/// Why a volume that a claim names will not do for it, in Kubernetes' words.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    if capacity(volume) < requested(claim) {
        Some("requested PV is too small")
    } else if class_of_volume(volume) != class_of_claim(claim) {
        Some("storageClassName does not match")
    } else if !same_attributes(volume, claim) {
        Some("volumeAttributesClassName does not match")
    } else if !same_mode(volume, claim) {
        Some("incompatible volumeMode")
    } else if !offers_access(volume, claim) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// Where a volume is looked for.
pub enum Search<'a> {
    /// Anywhere, by the binder. With `delayed` only volumes that are already for the claim will do: the
    /// others are the scheduler's to choose from.
    Anywhere { delayed: bool },
    /// Where one node reaches it, by the scheduler.
    Node(&'a dyn Fn(&PersistentVolume) -> bool),
}

/// The volume that a claim gets: one that is for it already, else the smallest that is large enough.
pub fn best_match<'v>(
    claim: &PersistentVolumeClaim,
    volumes: impl IntoIterator<Item = &'v PersistentVolume>,
    search: &Search<'_>,
    taken: &HashSet<&str>,
) -> Option<&'v PersistentVolume> {
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    let selector = match selector.map(LabelSelector::from_typed) {
        Some(Err(_)) => return None,
        Some(Ok(selector)) => Some(selector),
        None => None,
    };
    let (wanted, class) = (requested(claim), class_of_claim(claim));
    let mut best: Option<&PersistentVolume> = None;
    for volume in volumes {
        let own = is_for(volume, claim);
        let reachable = match search {
            Search::Anywhere { .. } => true,
            Search::Node(reaches) => reaches(volume),
        };
        if volume.metadata.deletion_timestamp.is_some()
            || taken.contains(volume.metadata.name.as_deref().unwrap_or_default())
            || !own && volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some())
            || capacity(volume) < wanted
            || !same_mode(volume, claim)
            || !same_attributes(volume, claim)
        {
            continue;
        }
        if own {
            return reachable.then_some(volume);
        }
        let available =
            volume.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Available"));
        let labels = volume.metadata.labels.clone().unwrap_or_default();
        if matches!(search, Search::Anywhere { delayed: true })
            || !available
            || !reachable
            || class_of_volume(volume) != class
            || !offers_access(volume, claim)
            || selector.as_ref().is_some_and(|s| !s.matches(&labels))
        {
            continue;
        }
        if best.is_none_or(|b| capacity(volume) < capacity(b)) {
            best = Some(volume);
        }
    }
    best
}

/// The volume, for this claim and no other.
pub fn volume_to(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<PersistentVolume> {
    let mut next = volume.clone();
    let own = is_for(volume, claim);
    let spec = next.spec.get_or_insert_default();
    let known = spec.claim_ref.as_ref().is_some_and(|r| own && r.uid == claim.metadata.uid);
    if !known {
        spec.claim_ref = Some(reference(claim));
    }
    if !own {
        annotate(&mut next.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
    }
    (next != *volume).then_some(next)
}

/// Names a claim as volumes do.
pub fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        kind: Some("PersistentVolumeClaim".into()),
        api_version: Some("v1".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

pub fn annotate(annotations: &mut Option<BTreeMap<String, String>>, key: &str, value: &str) {
    annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
}

fn amount(map: Option<&BTreeMap<String, Written>>) -> Quantity {
    let text = map.and_then(|m| m.get("storage"));
    text.and_then(|q| Quantity::parse(&q.0).ok()).unwrap_or(Quantity::ZERO)
}

pub fn capacity(volume: &PersistentVolume) -> Quantity {
    amount(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()))
}

pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    amount(resources.and_then(|r| r.requests.as_ref()))
}

fn same_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let mode = |m: Option<&str>| m.unwrap_or("Filesystem").to_owned();
    let has = volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref());
    mode(has) == mode(claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()))
}

fn same_attributes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let has = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    let wants = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    has.unwrap_or_default() == wants.unwrap_or_default()
}

fn offers_access(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let has = volume.spec.as_ref().and_then(|s| s.access_modes.as_ref());
    let mut wants = claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten());
    wants.all(|mode| has.is_some_and(|modes| modes.contains(mode)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut whole = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        let object =
            json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": whole});
        serde_json::from_value(object).unwrap()
    }

    fn volume(name: &str, size: &str, spec: Value) -> PersistentVolume {
        let mut whole = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        let object = json!({"metadata": {"name": name, "labels": {"name": name}}, "spec": whole,
            "status": {"phase": "Available"}});
        serde_json::from_value(object).unwrap()
    }

    #[track_caller]
    fn check(wants: Value, has: &[PersistentVolume], delayed: bool, expected: Option<&str>) {
        let claim = claim(wants);
        let search = Search::Anywhere { delayed };
        let found = best_match(&claim, has, &search, &HashSet::new());
        assert_eq!(found.and_then(|v| v.metadata.name.as_deref()), expected);
    }

    #[test]
    fn the_smallest_that_is_large_enough() {
        let volumes = ["1Gi", "20Gi", "5Gi", "10Gi"].map(|size| volume(size, size, json!({})));
        check(json!({}), &volumes, false, Some("5Gi"));
        check(
            json!({"selector": {"matchLabels": {"name": "20Gi"}}}),
            &volumes,
            false,
            Some("20Gi"),
        );
        check(json!({"resources": {"requests": {"storage": "21Gi"}}}), &volumes, false, None);
        check(json!({"accessModes": ["ReadWriteMany"]}), &volumes, false, None);
        check(json!({"storageClassName": "fast"}), &volumes, false, None);
        check(json!({"volumeMode": "Block"}), &volumes, false, None);
        check(json!({"volumeAttributesClassName": "gold"}), &volumes, false, None);
        check(json!({}), &volumes, true, None);
    }

    #[test]
    fn one_that_is_for_the_claim_goes_first() {
        let reference =
            json!({"claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "x"});
        let volumes = [volume("small", "5Gi", json!({})), volume("own", "9Gi", reference)];
        check(json!({}), &volumes, false, Some("own"));
        check(json!({}), &volumes, true, Some("own"));
        let other = json!({"claimRef": {"namespace": "n", "name": "c", "uid": "another"}});
        check(json!({}), &[volume("other", "5Gi", other)], false, None);
    }

    #[test]
    fn a_node_sees_what_it_reaches() {
        let volumes = [volume("far", "5Gi", json!({})), volume("near", "9Gi", json!({}))];
        let reaches = |v: &PersistentVolume| v.metadata.name.as_deref() == Some("near");
        let near = |taken: &[&'static str]| {
            let taken = taken.iter().copied().collect();
            let claim = claim(json!({}));
            best_match(&claim, &volumes, &Search::Node(&reaches), &taken)
                .map(|v| v.metadata.name.clone().unwrap())
        };
        assert_eq!(near(&[]).as_deref(), Some("near"));
        assert_eq!(near(&["near"]), None);
    }

    #[test]
    fn mismatches() {
        let check = |spec: Value, expected| {
            assert_eq!(mismatch(&volume("v", "5Gi", json!({})), &claim(spec)), expected);
        };
        check(json!({}), None);
        check(
            json!({"resources": {"requests": {"storage": "6Gi"}}}),
            Some("requested PV is too small"),
        );
        check(json!({"storageClassName": "x"}), Some("storageClassName does not match"));
        check(json!({"volumeMode": "Block"}), Some("incompatible volumeMode"));
        check(json!({"accessModes": ["ReadOnlyMany"]}), Some("incompatible accessMode"));
    }
}
