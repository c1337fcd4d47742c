//! A pod as the scheduler sees it: everything that rules ask for, parsed once.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PodAffinityTerm, Toleration, TopologySpreadConstraint};
use rimward_api::ObjectKey;
use rimward_api::nodes::{NodeTerm, WantedNodes};
use rimward_api::selector::{LabelSelector, Operator, Requirement};
use rimward_control_lean::{Pod, PodSpec};

use crate::resources::{Resources, pod_requests};

pub type Uid = Arc<str>;
pub type Labels = BTreeMap<String, String>;

/// What a container without requests is taken to need, when nodes are compared.
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

#[derive(Debug)]
pub struct PodInfo {
    pub key: ObjectKey,
    pub uid: Uid,
    pub pod: Arc<Pod>,
    pub labels: Labels,
    pub priority: i32,
    pub requests: Resources,
    /// CPU and memory for comparing nodes: never nothing.
    pub weight: (i64, i64),
    pub host_ports: Vec<HostPort>,
    pub tolerations: Vec<Toleration>,
    wanted_nodes: WantedNodes,
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    /// The uid of the controlling owner.
    pub owner: Option<Arc<str>>,
    pub affinity: Vec<PodTerm>,
    pub anti_affinity: Vec<PodTerm>,
    pub preferred_affinity: Vec<(i64, PodTerm)>,
    pub spread: Vec<Spread>,
    /// The claims that it uses.
    pub claims: Vec<ObjectKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be bound on one host.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Debug)]
pub struct PodTerm {
    /// None selects nothing.
    selector: Option<LabelSelector>,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
}

impl PodTerm {
    fn new(term: &PodAffinityTerm, own_namespace: &str) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(own_namespace.to_owned());
        }
        let parse = |s: &Option<_>| s.as_ref().and_then(|s| LabelSelector::from_typed(s).ok());
        Self {
            selector: parse(&term.label_selector),
            namespaces,
            namespace_selector: parse(&term.namespace_selector),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether it is about this pod. `namespace_labels` finds a namespace's labels.
    pub fn matches(
        &self,
        pod: &PodInfo,
        namespace_labels: &dyn Fn(&str) -> Option<Arc<Labels>>,
    ) -> bool {
        let namespace = &pod.key.namespace;
        let there = self.namespaces.iter().any(|n| n == namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| {
                s.is_empty() || namespace_labels(namespace).is_some_and(|labels| s.matches(&labels))
            });
        there && self.selector.as_ref().is_some_and(|s| s.matches(&pod.labels))
    }
}

/// A topology spread constraint.
#[derive(Debug)]
pub struct Spread {
    pub topology_key: String,
    pub max_skew: i64,
    /// Whether it forbids, rather than prefers.
    pub hard: bool,
    pub min_domains: i64,
    selector: Option<LabelSelector>,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let typed = constraint.label_selector.as_ref();
        let mut selector = typed.and_then(|s| LabelSelector::from_typed(s).ok());
        for key in constraint.match_label_keys.iter().flatten() {
            if let (Some(selector), Some(value)) = (&mut selector, labels.get(key)) {
                let op = Operator::In(vec![value.clone()]);
                selector.requirements.push(Requirement { key: key.clone(), op });
            }
        }
        Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: constraint.max_skew.into(),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            min_domains: constraint.min_domains.unwrap_or(1).into(),
            selector,
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|s| s.matches(labels))
    }
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let meta = &pod.metadata;
        let key = ObjectKey::of_meta(meta);
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let labels = meta.labels.clone().unwrap_or_default();
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|c| c.ports.iter().flatten());
        let host_ports = ports.filter_map(|p| {
            // With the host's network every port is the host's.
            let port = p
                .host_port
                .or_else(|| spec.host_network.filter(|h| *h).map(|_| p.container_port))?;
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            (port > 0).then(|| HostPort {
                ip: p.host_ip.clone().unwrap_or_default(),
                protocol,
                port,
            })
        });
        let requests = pod_requests(spec);
        let unsaid = spec.containers.len() as i64;
        let weight = (
            if requests.cpu == 0 { unsaid * DEFAULT_CPU } else { requests.cpu },
            if requests.memory == 0 { unsaid * DEFAULT_MEMORY } else { requests.memory },
        );
        let wanted_nodes = WantedNodes::new(spec.node_selector.as_ref(), spec.affinity.as_deref());
        let affinity = spec.affinity.as_deref().cloned().unwrap_or_default();
        let nodes = affinity.node_affinity.unwrap_or_default();
        let preferred =
            nodes.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
        let near = affinity.pod_affinity.unwrap_or_default();
        let apart = affinity.pod_anti_affinity.unwrap_or_default();
        let term = |t: &PodAffinityTerm| PodTerm::new(t, &key.namespace);
        let mut preferred_affinity = Vec::new();
        for w in near.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
            preferred_affinity.push((i64::from(w.weight), term(&w.pod_affinity_term)));
        }
        for w in apart.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
            preferred_affinity.push((-i64::from(w.weight), term(&w.pod_affinity_term)));
        }
        let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        Self {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            priority: spec.priority.unwrap_or(0),
            weight,
            host_ports: host_ports.collect(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            wanted_nodes,
            preferred_nodes: preferred
                .iter()
                .map(|p| (p.weight.into(), NodeTerm::new(&p.preference)))
                .collect(),
            owner: owner.map(|o| o.uid.as_str().into()),
            affinity: near
                .required_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
                .map(term)
                .collect(),
            anti_affinity: apart
                .required_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
                .map(term)
                .collect(),
            preferred_affinity,
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|c| Spread::new(c, &labels))
                .collect(),
            claims: rimward_control_volumes::claims_of(&pod),
            requests,
            labels,
            key,
            pod,
        }
    }

    /// The names of the only nodes that will do, if the pod names them: then no others are looked at.
    pub fn only_nodes(&self) -> Option<Vec<String>> {
        self.wanted_nodes.only()
    }

    /// Whether node selector and required node affinity allow a node.
    pub fn wants_node(&self, node: &Node) -> bool {
        self.wanted_nodes.allow(node)
    }
}
