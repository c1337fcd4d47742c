//! One pod's decision. Pure: a snapshot in, a node or the reasons out.

use std::collections::{BTreeMap, HashMap};

use crate::filter::{self, Happened, Reasons};
use crate::pod::{PodInfo, PodTerm, Spread};
use crate::score;
use crate::snapshot::{NodeInfo, Snapshot};
use crate::volumes::Demands;

/// With fewer nodes than this, or fewer that pass, all are looked at.
const NODES_MIN: usize = 100;

/// A pod, and what its rules need to know of the cluster as a whole, counted once.
pub struct Cycle<'a> {
    pub pod: &'a PodInfo,
    /// Matching pods per domain, for each term or constraint of the pod.
    pub affinity: Vec<Domains>,
    pub anti_affinity: Vec<Domains>,
    pub preferred_affinity: Vec<Domains>,
    pub spread: Vec<Domains>,
    /// Labels (key, value) of nodes from which pods that are there keep this one away.
    pub forbidden: Vec<(String, String)>,
    /// Whether the pod is what all its own affinity terms look for.
    pub matches_itself: bool,
    pub volumes: Demands,
}

/// Counts by the value of a topology label.
#[derive(Debug, Default)]
pub struct Domains(HashMap<String, i64>);

impl Domains {
    pub fn count(&self, domain: &str) -> i64 {
        self.0.get(domain).copied().unwrap_or(0)
    }

    pub fn most(&self) -> i64 {
        self.0.values().copied().max().unwrap_or(0)
    }

    /// The smallest count; 0 where there are fewer domains than wanted.
    pub fn least(&self, min_domains: i64) -> i64 {
        if (self.0.len() as i64) < min_domains {
            0
        } else {
            self.0.values().copied().min().unwrap_or(0)
        }
    }

    pub fn is_unpopulated(&self) -> bool {
        self.0.values().all(|n| *n == 0)
    }
}

impl<'a> Cycle<'a> {
    pub fn new(pod: &'a PodInfo, snapshot: &Snapshot) -> Self {
        let labels = |namespace: &str| snapshot.namespace_labels(namespace);
        let by_term = |term: &PodTerm| {
            let matches = |other: &PodInfo| term.matches(other, &labels);
            count(snapshot, &term.topology_key, |_| true, matches)
        };
        let mut forbidden = Vec::new();
        for node in snapshot.nodes_keeping_away() {
            for other in node.pods.values() {
                for term in other.anti_affinity.iter().filter(|t| t.matches(pod, &labels)) {
                    if let Some(domain) = node.label(&term.topology_key) {
                        forbidden.push((term.topology_key.clone(), domain.to_owned()));
                    }
                }
            }
        }
        forbidden.sort();
        forbidden.dedup();
        Self {
            affinity: pod.affinity.iter().map(by_term).collect(),
            anti_affinity: pod.anti_affinity.iter().map(by_term).collect(),
            preferred_affinity: pod.preferred_affinity.iter().map(|(_, t)| by_term(t)).collect(),
            spread: pod.spread.iter().map(|c| spread_over(snapshot, pod, c)).collect(),
            matches_itself: pod.affinity.iter().all(|t| t.matches(pod, &labels)),
            volumes: Demands::new(pod, snapshot),
            forbidden,
            pod,
        }
    }
}

fn count(
    snapshot: &Snapshot,
    key: &str,
    eligible: impl Fn(&NodeInfo) -> bool,
    matches: impl Fn(&PodInfo) -> bool,
) -> Domains {
    let mut domains = HashMap::new();
    for node in snapshot.nodes() {
        let Some(domain) = node.label(key).filter(|_| eligible(node)) else { continue };
        let here = node.pods.values().filter(|p| matches(p)).count() as i64;
        match domains.get_mut(domain) {
            Some(n) => *n += here,
            None => drop(domains.insert(domain.to_owned(), here)),
        }
    }
    Domains(domains)
}

fn spread_over(snapshot: &Snapshot, pod: &PodInfo, constraint: &Spread) -> Domains {
    let eligible = |node: &NodeInfo| {
        (!constraint.honor_affinity || node.node.as_ref().is_some_and(|n| pod.wants_node(n)))
            && (!constraint.honor_taints || filter::taints::untolerated(pod, node).is_none())
    };
    let matches = |other: &PodInfo| {
        let leaving = other.pod.metadata.deletion_timestamp.is_some();
        !leaving && other.key.namespace == pod.key.namespace && constraint.selects(&other.labels)
    };
    count(snapshot, &constraint.topology_key, eligible, matches)
}

#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// The node's name.
    Place(String),
    Unschedulable {
        message: String,
        /// What may change that.
        healed_by: Happened,
    },
}

/// Decides for one pod. `start` is where among the nodes to begin, moved along, so that over many
/// pods all nodes get their turn; `dice` breaks ties.
pub fn decide(
    snapshot: &Snapshot,
    pod: &PodInfo,
    start: &mut usize,
    dice: impl FnMut(usize) -> usize,
) -> Decision {
    if snapshot.is_empty() {
        let message = "no nodes available to schedule pods".into();
        return Decision::Unschedulable { message, healed_by: filter::NODE_ADDED };
    }
    let cycle = Cycle::new(pod, snapshot);
    if let Some(why) = &cycle.volumes.refusal {
        let message = format!("0/{} nodes are available: {why}.", snapshot.len());
        return Decision::Unschedulable { message, healed_by: filter::VOLUMES };
    }
    let mut refusals = Refusals::default();
    let feasible = match pod.only_nodes() {
        Some(names) => {
            let named: Vec<&NodeInfo> = names.iter().filter_map(|n| snapshot.node(n)).collect();
            refusals.elsewhere(snapshot.len().saturating_sub(named.len()));
            named.into_iter().filter(|n| refusals.passes(&cycle, n)).collect()
        }
        None => search(snapshot, &cycle, start, &mut refusals),
    };
    match feasible.as_slice() {
        [] => Decision::Unschedulable {
            message: refusals.message(snapshot.len()),
            healed_by: refusals.healed_by,
        },
        [only] => Decision::Place(only.name.to_string()),
        nodes => Decision::Place(best(&cycle, nodes, dice).name.to_string()),
    }
}

/// How many nodes that pass are enough: all of a small cluster, a twentieth of a very large one.
fn enough(nodes: usize) -> usize {
    if nodes < NODES_MIN {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(NODES_MIN)
}

fn search<'s>(
    snapshot: &'s Snapshot,
    cycle: &Cycle,
    start: &mut usize,
    refusals: &mut Refusals,
) -> Vec<&'s NodeInfo> {
    let (total, enough) = (snapshot.len(), enough(snapshot.len()));
    let mut feasible = Vec::with_capacity(enough.min(total));
    let mut seen = 0;
    while seen < total && feasible.len() < enough {
        let node = snapshot.at((*start + seen) % total);
        seen += 1;
        if refusals.passes(cycle, node) {
            feasible.push(node);
        }
    }
    *start = (*start + seen) % total;
    feasible
}

fn best<'s>(
    cycle: &Cycle,
    nodes: &[&'s NodeInfo],
    mut dice: impl FnMut(usize) -> usize,
) -> &'s NodeInfo {
    let totals = score::total(cycle, nodes);
    let most = totals.iter().copied().max().unwrap_or(0);
    let ties: Vec<usize> = (0..nodes.len()).filter(|i| totals[*i] == most).collect();
    nodes[ties[dice(ties.len()) % ties.len()]]
}

/// Why nodes did not pass, counted.
#[derive(Default)]
struct Refusals {
    counts: BTreeMap<String, usize>,
    healed_by: Happened,
    scratch: Reasons,
}

impl Refusals {
    fn passes(&mut self, cycle: &Cycle, node: &NodeInfo) -> bool {
        for rule in filter::ALL {
            (rule.check)(cycle, node, &mut self.scratch);
            if self.scratch.is_empty() {
                continue;
            }
            self.healed_by |= rule.healed_by;
            for reason in self.scratch.drain(..) {
                match self.counts.get_mut(&*reason) {
                    Some(n) => *n += 1,
                    None => drop(self.counts.insert(reason.into_owned(), 1)),
                }
            }
            return false;
        }
        true
    }

    /// Nodes that the pod does not name.
    fn elsewhere(&mut self, nodes: usize) {
        self.healed_by |= filter::node_affinity::RULE.healed_by;
        if nodes > 0 {
            self.counts.insert("node(s) didn't match Pod's node affinity/selector".into(), nodes);
        }
    }

    fn message(&self, nodes: usize) -> String {
        let mut parts: Vec<String> =
            self.counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        parts.sort();
        format!("0/{nodes} nodes are available: {}.", parts.join(", "))
    }
}
