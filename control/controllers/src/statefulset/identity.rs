//! Who a pod of a StatefulSet is: its name and ordinal, its network name, its claims.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#pod-identity>

use std::collections::BTreeMap;
use std::ops::Range;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    self, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_control_lean::Pod;

use super::retention::{self, Policy};
use crate::claim::controller_reference;
use crate::history::REVISION_LABEL;
use crate::pod_control::pod_from_template;
use crate::pods::name;

/// On a pod: its own name, so that a Service can select it alone.
pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// On a pod: its ordinal.
pub const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// A template under the name of its ControllerRevision.
#[derive(Clone, Debug)]
pub struct Revision {
    pub name: String,
    pub template: PodTemplateSpec,
}

/// The ordinals that the set is to have.
pub fn ordinals(set: &StatefulSet) -> Range<i64> {
    let spec = set.spec.as_ref();
    let start = spec.and_then(|s| s.ordinals.as_ref()?.start).unwrap_or(0).max(0).into();
    let replicas: i64 = spec.and_then(|s| s.replicas).unwrap_or(1).max(0).into();
    start..start + replicas
}

/// The ordinal in the name of a set's pod; None where it is no name that this set gives.
pub fn ordinal(set_name: &str, pod_name: &str) -> Option<i64> {
    let text = pod_name.strip_prefix(set_name)?.strip_prefix('-')?;
    let number = text.parse::<u32>().ok().filter(|n| n.to_string() == text)?;
    Some(number.into())
}

/// The names of sets that a claim of that name may be of: what stands between a template's name and an ordinal.
pub fn sets_of_claim(claim_name: &str) -> impl Iterator<Item = &str> {
    let (rest, _ordinal) = claim_name.rsplit_once('-').unwrap_or_default();
    rest.match_indices('-').map(|(at, _)| &rest[at + 1..])
}

/// Whether a claim of that name is one of the set's.
pub fn has_claim(set: &StatefulSet, claim_name: &str) -> bool {
    let ours = |template: &PersistentVolumeClaim| {
        let rest = claim_name.strip_prefix(name(&template.metadata))?.strip_prefix('-')?;
        ordinal(name(&set.metadata), rest)
    };
    claim_templates(set).iter().any(|t| ours(t).is_some())
}

pub fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", name(&template.metadata), name(&set.metadata))
}

/// The labels that say who a pod is.
pub fn labels(pod_name: &str, ordinal: i64) -> [(&'static str, String); 2] {
    [(POD_NAME_LABEL, pod_name.to_owned()), (POD_INDEX_LABEL, ordinal.to_string())]
}

/// Whether a pod says who it is.
pub fn is_labelled(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get(POD_NAME_LABEL)) == pod.metadata.name.as_ref()
}

/// The pod of an ordinal at a revision.
pub fn pod(set: &StatefulSet, revision: &Revision, ordinal: i64) -> v1::Pod {
    let set_name = name(&set.metadata);
    let pod_name = format!("{set_name}-{ordinal}");
    let owner = controller_reference(set);
    let mut pod = pod_from_template(revision.template.clone(), &set.metadata, owner);
    let own = pod.metadata.labels.get_or_insert_default();
    own.extend(labels(&pod_name, ordinal).map(|(k, v)| (k.to_owned(), v)));
    own.insert(REVISION_LABEL.into(), revision.name.clone());
    pod.metadata.name = Some(pod_name.clone());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name);
    spec.subdomain =
        set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
    let templates = claim_templates(set);
    if !templates.is_empty() {
        let mut volumes: BTreeMap<&str, Volume> = BTreeMap::new();
        for template in templates {
            let volume = name(&template.metadata);
            let source = PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, ordinal),
                read_only: None,
            };
            volumes.insert(
                volume,
                Volume {
                    name: volume.to_owned(),
                    persistent_volume_claim: Some(source),
                    ..Volume::default()
                },
            );
        }
        // A claim stands for a volume of the template that has its name.
        let own = spec.volumes.take().unwrap_or_default();
        let own = own.into_iter().filter(|v| !volumes.contains_key(v.name.as_str()));
        let own: Vec<Volume> = own.collect();
        spec.volumes = Some(volumes.into_values().chain(own).collect());
    }
    pod
}

/// The claims of an ordinal, which need not exist.
pub fn claims(set: &StatefulSet, ordinal: i64) -> Vec<PersistentVolumeClaim> {
    let spec = set.spec.as_ref();
    let selected = spec.and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    let owned = Policy::of(set).deletes_with_set() && ordinals(set).contains(&ordinal);
    let claim = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selected.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(set, template, ordinal)),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: template.metadata.annotations.clone(),
                finalizers: template.metadata.finalizers.clone(),
                owner_references: owned.then(|| vec![retention::reference_to_set(set)]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    claim_templates(set).iter().map(claim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_sets_a_claim_may_be_of() {
        let check = |claim: &str, expected: &[&str]| {
            assert_eq!(sets_of_claim(claim).collect::<Vec<_>>(), expected, "{claim}");
        };
        check("data-web-0", &["web"]);
        check("my-data-web-blue-12", &["data-web-blue", "web-blue", "blue"]);
        check("data-0", &[]);
        check("data", &[]);
    }
}
