//! Which nodes a pod may be on, in the part that the scheduler, the DaemonSet controller and the nodes
//! themselves must see alike: node selector, required node affinity, taints.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/>

use std::collections::BTreeMap;

use crate::selector::{LabelSelector, Operator, Requirement};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration,
};

/// The field of nodes that selects.
pub const NODE_NAME_FIELD: &str = "metadata.name";

/// A node selector and required node affinity, parsed once.
#[derive(Debug, Default)]
pub struct WantedNodes {
    labels: BTreeMap<String, String>,
    /// Any term will do; None when there is none.
    terms: Option<Vec<NodeTerm>>,
}

impl WantedNodes {
    pub fn new(
        node_selector: Option<&BTreeMap<String, String>>,
        affinity: Option<&Affinity>,
    ) -> Self {
        let required = affinity.and_then(|a| {
            a.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
        });
        Self {
            labels: node_selector.cloned().unwrap_or_default(),
            terms: required.map(|r| r.node_selector_terms.iter().map(NodeTerm::new).collect()),
        }
    }

    pub fn allow(&self, node: &Node) -> bool {
        // Most pods want none in particular: then the node is not looked at, which is to wait for memory. A
        // compiler that sees only what follows reads its labels first.
        if self.labels.is_empty() && self.terms.is_none() {
            return true;
        }
        let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key));
        self.labels.iter().all(|(k, v)| label(k) == Some(v))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
    }

    /// The names of the only nodes that will do, if they are named: then no others need be looked at.
    pub fn only(&self) -> Option<Vec<String>> {
        let named: Option<Vec<Vec<String>>> =
            self.terms.as_ref()?.iter().map(NodeTerm::names).collect();
        named.map(|n| n.concat())
    }
}

/// A term of node affinity: all of it must hold. None where it can never match.
#[derive(Debug, Default)]
pub struct NodeTerm {
    labels: Option<LabelSelector>,
    /// Only [`NODE_NAME_FIELD`] is a field of nodes that selects.
    fields: Option<LabelSelector>,
}

impl NodeTerm {
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let (labels, fields) =
            (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
        let mut labels = requirements(labels);
        // A term without any expression matches nothing.
        if term.match_expressions.iter().flatten().count()
            + term.match_fields.iter().flatten().count()
            == 0
        {
            labels = None;
        }
        Self { labels, fields: requirements(fields) }
    }

    pub fn matches(&self, node: &Node) -> bool {
        let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
        let field = |key: &str| node.metadata.name.as_deref().filter(|_| key == NODE_NAME_FIELD);
        self.labels.as_ref().is_some_and(|s| s.matches_by(label))
            && self.fields.as_ref().is_some_and(|s| s.matches_by(field))
    }

    /// The names of the only nodes that this can match, if it names them.
    fn names(&self) -> Option<Vec<String>> {
        let named = |r: &Requirement| match &r.op {
            Operator::In(names) if r.key == NODE_NAME_FIELD => Some(names.clone()),
            _ => None,
        };
        self.fields.as_ref()?.requirements.iter().find_map(named)
    }
}

fn requirements<'a>(
    expressions: impl Iterator<Item = &'a NodeSelectorRequirement>,
) -> Option<LabelSelector> {
    let mut selector = LabelSelector::default();
    for e in expressions {
        let values = e.values.clone().unwrap_or_default();
        let number = || values.first().and_then(|v| v.parse().ok());
        let op = match e.operator.as_str() {
            "In" => Operator::In(values),
            "NotIn" => Operator::NotIn(values),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::GreaterThan(number()?),
            "Lt" => Operator::LessThan(number()?),
            _ => return None,
        };
        selector.requirements.push(Requirement { key: e.key.clone(), op });
    }
    Some(selector)
}

/// Whether a toleration is for a taint. Without a key it is for every key (which only `Exists` can say),
/// without an effect for every effect.
/// <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |said: &Option<String>| said.clone().unwrap_or_default();
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}
