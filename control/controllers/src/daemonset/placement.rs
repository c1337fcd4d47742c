//! Which nodes a DaemonSet's pods belong on, and what such a pod looks like.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/#how-daemon-pods-are-scheduled>

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    self, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Toleration,
};
use rimward_api::nodes::{NODE_NAME_FIELD, WantedNodes, tolerates};
use rimward_control_lean::Pod;

use crate::claim::controller_reference;
use crate::history::REVISION_LABEL;
use crate::pod_control::pod_from_template;
use crate::pods::{name, node_name};

/// On a DaemonSet: counts the changes of its template.
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
/// On a pod: of which count its template was.
const GENERATION_LABEL: &str = "pod-template-generation";
/// What happens to a node is no reason for its daemon to leave it, nor not to come.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// One that needs no pod network may come before there is one.
const TOLERATED_ON_HOST_NETWORK: (&str, &str) =
    ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Whether a pod of the set is to be on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// One is to be there.
    Run,
    /// None is made, but one that is there may stay.
    Stay,
    /// None is to be there.
    Leave,
}

/// Where a set's pods may be, read once.
pub struct Placement {
    node: String,
    wanted: WantedNodes,
    tolerations: Vec<Toleration>,
}

impl Placement {
    pub fn new(set: &DaemonSet) -> Self {
        let spec = set.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
        Self {
            wanted: WantedNodes::new(spec.node_selector.as_ref(), spec.affinity.as_ref()),
            tolerations: tolerations(&spec),
            node: spec.node_name.unwrap_or_default(),
        }
    }

    pub fn wish(&self, node: &Node) -> Wish {
        let here = self.node.is_empty() || self.node == name(&node.metadata);
        if !here || !self.wanted.allow(node) {
            return Wish::Leave;
        }
        let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let mut wish = Wish::Run;
        for taint in taints.filter(|t| !self.tolerations.iter().any(|own| tolerates(own, t))) {
            match taint.effect.as_str() {
                "NoExecute" => return Wish::Leave,
                "NoSchedule" => wish = Wish::Stay,
                _ => {}
            }
        }
        wish
    }
}

/// The template's own, and those that every daemon has.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let host = spec.host_network.unwrap_or(false).then_some(TOLERATED_ON_HOST_NETWORK);
    for (key, effect) in TOLERATED.into_iter().chain(host) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let same = |t: &&mut Toleration| {
            let with_seconds = Toleration { toleration_seconds: None, ..(**t).clone() };
            with_seconds == toleration
        };
        match all.iter_mut().find(same) {
            Some(there) => *there = toleration,
            None => all.push(toleration),
        }
    }
    all
}

/// How often the template has changed, if the set says so.
pub fn generation(set: &DaemonSet) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(GENERATION_ANNOTATION)?.parse().ok()
}

/// Whether a pod is of the set's template, whose revision has that hash.
pub fn is_updated(pod: &Pod, hash: &str, generation: Option<i64>) -> bool {
    let label = |key| pod.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
    let by_count = generation.is_some_and(|g| label(GENERATION_LABEL) == Some(&g.to_string()));
    by_count || !hash.is_empty() && label(REVISION_LABEL) == Some(hash)
}

/// The node that a pod is on, or is made for.
pub fn target(pod: &Pod) -> Option<&str> {
    if !node_name(pod).is_empty() {
        return Some(node_name(pod));
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut fields = fields.filter(|r| r.key == NODE_NAME_FIELD && r.operator == "In");
    fields.find_map(|r| match r.values.as_deref() {
        Some([name]) => Some(name.as_str()),
        _ => None,
    })
}

/// A pod of the set for one node; the scheduler binds it.
pub fn pod(set: &DaemonSet, hash: &str, node: &str) -> v1::Pod {
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pod_from_template(template, &set.metadata, controller_reference(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    if let Some(generation) = generation(set) {
        labels.insert(GENERATION_LABEL.into(), generation.to_string());
    }
    labels.insert(REVISION_LABEL.into(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        // The node was chosen by what was required: nothing else is needed.
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![NodeSelectorRequirement {
                key: NODE_NAME_FIELD.into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            }]),
        }],
    });
    pod
}
