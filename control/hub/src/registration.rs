//! A node's own object: made and kept current from what the node says about itself, and its Lease.
//!
//! `describe` is pure: from the stored Node and the node's own view it makes the next Node. A node
//! speaks about itself only: labels of its own domain, capacity, addresses, conditions. What others
//! own (taints, cordons, foreign labels, the pod block) it cannot touch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use rimward_api::{Block, local_volumes};
use rimward_client::Error;
use rimward_tunnel::identity::Holder;

use crate::joining::{KEY_ANNOTATION, key_of};
use crate::{Inner, runtime_classes};

const LEASES: &str = "kube-node-lease";
/// What Kubernetes gives a node's Lease.
const LEASE_SECONDS: i32 = 40;
/// How often a write that lost to another is tried again.
const CONFLICTS_MAX: u32 = 8;
/// What a node may say in labels: Kubernetes' own (<https://kubernetes.io/docs/reference/labels-annotations-taints/>)
/// and ours. Others are the operator's, given with --label, and may not be reserved ones.
const RESERVED: [&str; 2] = ["kubernetes.io/", "k8s.io/"];
const OWN_LABELS: [&str; 6] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
];

/// Why a node that has a certificate is still not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    #[error("its Node description cannot be read: {0}")]
    Malformed(String),
    #[error("the name {0:?} belongs to another key; delete that Node, or join under another name")]
    OtherKey(String),
    #[error("no address block is left in {0}; use a larger pod network")]
    NoBlock(Block),
    #[error(transparent)]
    Api(#[from] Error),
}

impl RegistrationError {
    /// Whether the node should give up.
    pub fn permanent(&self) -> bool {
        matches!(self, Self::OtherKey(_))
    }
}

/// Makes the Node current, and answers with it and its block of pod addresses.
pub(crate) async fn register(
    inner: &Inner,
    holder: &Holder,
    said: &[u8],
) -> Result<(Node, Block), RegistrationError> {
    let said = read(said)?;
    let name = &holder.node;
    let mut conflicts = 0;
    loop {
        let stored = match inner.client.get::<Node>("", name).await {
            Ok(node) => node,
            Err(e) if e.is_not_found() => match inner.client.create(&fresh(holder)).await {
                Ok(node) => node,
                Err(e) if e.is_already_exists() => continue,
                Err(e) => return Err(e.into()),
            },
            Err(e) => return Err(e.into()),
        };
        match key_of(&stored) {
            Some(key) if key == holder.key_hash => {}
            _ => return Err(RegistrationError::OtherKey(name.clone())),
        }
        match settle(inner, stored, &said).await {
            Err(RegistrationError::Api(e)) if e.is_conflict() && conflicts < CONFLICTS_MAX => {
                conflicts += 1
            }
            Err(RegistrationError::Api(e)) if e.is_not_found() && conflicts < CONFLICTS_MAX => {
                conflicts += 1
            }
            other => return other,
        }
    }
}

async fn settle(
    inner: &Inner,
    stored: Node,
    said: &Node,
) -> Result<(Node, Block), RegistrationError> {
    let mut wanted = describe(&stored, said);
    let has_block = block_of(&stored).is_some();
    // One at a time from the choice to the write: two nodes must not be given one block.
    let _choosing = match has_block {
        true => None,
        false => Some(inner.allocation.lock().await),
    };
    if !has_block {
        let block = free_block(inner, block_bits(inner.network.node_bits, pods_max(said))).await?;
        let spec = wanted.spec.get_or_insert_with(NodeSpec::default);
        spec.pod_cidr = Some(block.to_string());
        spec.pod_cidrs = Some(vec![block.to_string()]);
    }
    let written = match wanted.metadata == stored.metadata && wanted.spec == stored.spec {
        true => stored,
        false => inner.client.update(&wanted).await?,
    };
    let block = block_of(&written).ok_or(RegistrationError::NoBlock(inner.network.pod_network))?;
    let mut with_status = written;
    let status = merge_status(with_status.status.take(), said.status.clone(), Timestamp::now());
    with_status.status = Some(status);
    let node = inner.client.update_status(&with_status).await?;
    runtime_classes::ensure(inner, &node).await;
    Ok((node, block))
}

/// Writes what the node now says about its status. Nothing is written when nothing changed.
pub(crate) async fn update(
    inner: &Inner,
    name: &str,
    said: &[u8],
) -> Result<(), RegistrationError> {
    let said = read(said)?;
    let mut stored = match inner.world.nodes.get("", name) {
        Some(node) => (*node).clone(),
        None => inner.client.get::<Node>("", name).await?,
    };
    for _ in 0..=CONFLICTS_MAX {
        let status = merge_status(stored.status.clone(), said.status.clone(), Timestamp::now());
        if stored.status.as_ref() == Some(&status) {
            return Ok(());
        }
        stored.status = Some(status);
        match inner.client.update_status(&stored).await {
            Err(e) if e.is_conflict() => stored = inner.client.get::<Node>("", name).await?,
            other => return Ok(other.map(drop)?),
        }
    }
    Ok(())
}

fn read(said: &[u8]) -> Result<Node, RegistrationError> {
    serde_json::from_slice(said).map_err(|e| RegistrationError::Malformed(e.to_string()))
}

fn fresh(holder: &Holder) -> Node {
    let annotations = BTreeMap::from([(KEY_ANNOTATION.to_owned(), holder.key_hash.clone())]);
    Node {
        metadata: ObjectMeta {
            name: Some(holder.node.clone()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        ..Node::default()
    }
}

pub(crate) fn block_of(node: &Node) -> Option<Block> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

/// The lowest block that no Node has. Asked of the API, not of a cache: the last block was perhaps
/// given a moment ago.
async fn free_block(inner: &Inner, bits: u8) -> Result<Block, RegistrationError> {
    let nodes = inner.client.list_all::<Node>("", &Default::default()).await?;
    let taken: BTreeSet<Block> = nodes.items.iter().filter_map(block_of).collect();
    let network = inner.network.pod_network;
    lowest_free(network, bits, &taken).ok_or(RegistrationError::NoBlock(network))
}

/// The pods that a node takes, as it says.
fn pods_max(said: &Node) -> u64 {
    let capacity = said.status.as_ref().and_then(|s| s.capacity.as_ref());
    let pods = capacity.and_then(|c| rimward_api::Quantity::parse(&c.get("pods")?.0).ok());
    pods.map_or(0, |pods| pods.value().unsigned_abs())
}

/// The size of a node's block: the usual one, or larger where its pods need it. A quarter beyond them is
/// for pods that still end while their successors start; three addresses are never a pod's.
fn block_bits(usual: u8, pods: u64) -> u8 {
    let addresses = (pods + pods / 4 + 3).next_power_of_two();
    let bits = 32u64.saturating_sub(u64::from(addresses.trailing_zeros()));
    usual.min(bits as u8)
}

fn lowest_free(network: Block, bits: u8, taken: &BTreeSet<Block>) -> Option<Block> {
    let odd: Vec<Block> = taken.iter().copied().filter(|b| b.bits() != bits).collect();
    (0..network.count(bits))
        .filter_map(|index| network.nth(bits, index))
        .find(|block| !taken.contains(block) && !odd.iter().any(|other| other.overlaps(*block)))
}

/// The next Node but for its status: the node's labels on top of what others put there, and where it keeps
/// volumes.
fn describe(stored: &Node, said: &Node) -> Node {
    let mut next = stored.clone();
    let allowed = |key: &str| {
        let domain = key.split_once('/').map(|(domain, _)| format!("{domain}/"));
        let reserved = domain
            .is_some_and(|d| RESERVED.iter().any(|r| d == *r || d.ends_with(&format!(".{r}"))));
        !reserved || OWN_LABELS.contains(&key)
    };
    for (key, value) in said.metadata.labels.iter().flatten().filter(|(key, _)| allowed(key)) {
        next.metadata.labels.get_or_insert_default().insert(key.clone(), value.clone());
    }
    let said_directory =
        said.metadata.annotations.as_ref().and_then(|a| a.get(local_volumes::DIRECTORY));
    if let Some(directory) = said_directory {
        let annotations = next.metadata.annotations.get_or_insert_default();
        annotations.insert(local_volumes::DIRECTORY.into(), directory.clone());
    }
    next.metadata.managed_fields = stored.metadata.managed_fields.clone();
    next
}

/// Extended resources are what others say the node has, by writing its capacity; all of that is for pods.
/// <https://kubernetes.io/docs/tasks/administer-cluster/extended-resource-node/>
fn allocate_extended(next: &mut NodeStatus, stored: &NodeStatus) {
    for list in [&mut next.capacity, &mut next.allocatable] {
        let list = list.get_or_insert_default();
        list.retain(|name, _| !is_extended(name));
        let capacity = stored.capacity.iter().flatten().filter(|(name, _)| is_extended(name));
        list.extend(capacity.map(|(name, amount)| (name.clone(), amount.clone())));
    }
}

/// The node's own are `cpu`, `hugepages-2Mi` and the like.
fn is_extended(resource: &str) -> bool {
    resource.contains('/')
}

/// Whether others changed what extended resources the node has, and its allocatable does not tell.
pub(crate) fn has_unallocated(node: &Node) -> bool {
    let Some(status) = &node.status else { return false };
    let of = |list: &Option<BTreeMap<String, Quantity>>| -> BTreeMap<String, Quantity> {
        let all = list.iter().flatten().filter(|(name, _)| is_extended(name));
        all.map(|(name, amount)| (name.clone(), amount.clone())).collect()
    };
    of(&status.capacity) != of(&status.allocatable)
}

/// Makes allocatable what others say that the node has.
pub(crate) async fn allocate(inner: &Inner, name: &str) -> Result<(), Error> {
    if !inner.world.nodes.get("", name).is_some_and(|node| has_unallocated(&node)) {
        return Ok(());
    }
    for _ in 0..=CONFLICTS_MAX {
        let mut stored = inner.client.get::<Node>("", name).await?;
        if !has_unallocated(&stored) {
            return Ok(());
        }
        let before = stored.status.clone().unwrap_or_default();
        allocate_extended(stored.status.get_or_insert_default(), &before);
        match inner.client.update_status(&stored).await {
            Err(e) if e.is_conflict() => {}
            other => return other.map(drop),
        }
    }
    Ok(())
}

/// The node's status over the stored one: conditions of types that it does not speak of stay, and a
/// condition that did not change keeps its times.
fn merge_status(
    stored: Option<NodeStatus>,
    said: Option<NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let stored = stored.unwrap_or_default();
    let mut next = NodeStatus {
        volumes_attached: stored.volumes_attached.clone(),
        volumes_in_use: stored.volumes_in_use.clone(),
        ..said.unwrap_or_default()
    };
    allocate_extended(&mut next, &stored);
    let old = stored.conditions.unwrap_or_default();
    let said = next.conditions.take().unwrap_or_default();
    let others = old.iter().filter(|c| !said.iter().any(|s| s.type_ == c.type_)).cloned();
    let mut conditions: Vec<NodeCondition> = others.collect();
    for mut condition in said.iter().cloned() {
        let before = old.iter().find(|c| c.type_ == condition.type_);
        let unchanged = |b: &&NodeCondition| {
            b.status == condition.status
                && b.reason == condition.reason
                && b.message == condition.message
        };
        if let Some(same) = before.filter(unchanged) {
            conditions.push(same.clone());
            continue;
        }
        let same_status = before.filter(|b| b.status == condition.status);
        condition.last_transition_time =
            same_status.and_then(|b| b.last_transition_time.clone()).or(Some(Time(now)));
        condition.last_heartbeat_time = Some(Time(now));
        conditions.push(condition);
    }
    conditions.sort_by_key(|c| c.type_ == "Ready");
    next.conditions = Some(conditions);
    next
}

/// Writes the node's Lease. A failure is logged: the next write is at most ten minutes away, and the
/// live time is overlaid on reads.
pub(crate) async fn renew_lease(inner: &Inner, node: &Node, at: Timestamp) {
    let name = node.metadata.name.clone().unwrap_or_default();
    let attempt = async {
        let mut lease = match inner.client.get::<Lease>(LEASES, &name).await {
            Ok(lease) => lease,
            Err(e) if e.is_not_found() => Lease {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(LEASES.into()),
                    owner_references: Some(vec![OwnerReference {
                        api_version: "v1".into(),
                        kind: "Node".into(),
                        name: name.clone(),
                        uid: node.metadata.uid.clone().unwrap_or_default(),
                        ..OwnerReference::default()
                    }]),
                    ..ObjectMeta::default()
                },
                ..Lease::default()
            },
            Err(e) => return Err(e),
        };
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(name.clone());
        spec.lease_duration_seconds = Some(LEASE_SECONDS);
        spec.renew_time = Some(MicroTime(at));
        match lease.metadata.resource_version {
            Some(_) => inner.client.update(&lease).await.map(drop),
            None => inner.client.create(&lease).await.map(drop),
        }
    };
    if let Err(cause) = attempt.await {
        tracing::warn!(node = name, %cause, "cannot write the node's Lease");
    }
}

/// When the next Lease is written: ten minutes, spread so that a fleet does not write at once.
pub(crate) fn lease_interval() -> Duration {
    Duration::from_secs(600).mul_f64(rand::random_range(0.8..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(type_: &str, status: &str) -> NodeCondition {
        NodeCondition { type_: type_.into(), status: status.into(), ..NodeCondition::default() }
    }

    #[test]
    fn unchanged_conditions_write_nothing() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let said = NodeStatus {
            conditions: Some(vec![condition("Ready", "True")]),
            ..NodeStatus::default()
        };
        let foreign = NodeStatus {
            conditions: Some(vec![condition("Foreign", "True")]),
            ..NodeStatus::default()
        };
        let first = merge_status(Some(foreign), Some(said.clone()), at(1));
        assert_eq!(first.conditions.as_ref().unwrap().len(), 2);
        assert_eq!(first.conditions.as_ref().unwrap()[1].last_transition_time, Some(Time(at(1))));
        assert_eq!(merge_status(Some(first.clone()), Some(said), at(2)), first);
        let not_ready = NodeStatus {
            conditions: Some(vec![condition("Ready", "False")]),
            ..NodeStatus::default()
        };
        let third = merge_status(Some(first), Some(not_ready), at(3));
        assert_eq!(third.conditions.unwrap()[1].last_transition_time, Some(Time(at(3))));
    }

    #[test]
    fn what_others_say_a_node_has_is_for_pods() {
        let list = |entries: &[(&str, &str)]| {
            let entry =
                |(name, amount): &(&str, &str)| (name.to_string(), Quantity(amount.to_string()));
            Some(entries.iter().map(entry).collect::<BTreeMap<_, _>>())
        };
        let status = |capacity: &[(&str, &str)], allocatable: &[(&str, &str)]| NodeStatus {
            capacity: list(capacity),
            allocatable: list(allocatable),
            ..NodeStatus::default()
        };
        let said = status(&[("cpu", "2")], &[("cpu", "1")]);
        let stored =
            status(&[("cpu", "1"), ("example.com/dongle", "4")], &[("example.com/gone", "1")]);
        let node = Node { status: Some(stored.clone()), ..Node::default() };
        assert!(has_unallocated(&node));
        let next = merge_status(Some(stored), Some(said), Timestamp::UNIX_EPOCH);
        assert_eq!(next.capacity, list(&[("cpu", "2"), ("example.com/dongle", "4")]));
        assert_eq!(next.allocatable, list(&[("cpu", "1"), ("example.com/dongle", "4")]));
        assert!(!has_unallocated(&Node { status: Some(next), ..Node::default() }));
    }

    #[test]
    fn a_node_cannot_label_itself_into_reserved_domains() {
        let labels = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        let stored = Node {
            metadata: ObjectMeta {
                labels: labels(&[("a", "1"), ("mine", "0")]),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        let said = labels(&[
            ("mine", "1"),
            ("kubernetes.io/os", "linux"),
            ("rimward.dev/wasm", "true"),
            ("node-role.kubernetes.io/control-plane", ""),
            ("node-restriction.kubernetes.io/x", "y"),
        ]);
        let said = Node {
            metadata: ObjectMeta { labels: said, ..ObjectMeta::default() },
            ..Node::default()
        };
        let next = describe(&stored, &said).metadata.labels;
        assert_eq!(
            next,
            labels(&[
                ("a", "1"),
                ("mine", "1"),
                ("kubernetes.io/os", "linux"),
                ("rimward.dev/wasm", "true")
            ])
        );
    }

    #[test]
    fn blocks_hold_the_nodes_pods() {
        let sizes = [0, 110, 202, 204, 1000, 10_000].map(|pods| block_bits(24, pods));
        assert_eq!(sizes, [24, 24, 24, 23, 21, 18]);
    }

    #[test]
    fn blocks_are_the_lowest_free_ones() {
        let block = |text: &str| text.parse::<Block>().unwrap();
        let network = block("10.42.0.0/22");
        let check = |taken: &[&str], expect: Option<&str>| {
            let taken = taken.iter().map(|t| block(t)).collect();
            assert_eq!(lowest_free(network, 24, &taken), expect.map(block));
        };
        check(&[], Some("10.42.0.0/24"));
        check(&["10.42.0.0/24", "10.42.2.0/24"], Some("10.42.1.0/24"));
        check(&["10.42.0.0/23"], Some("10.42.2.0/24"));
        check(&["10.42.0.0/22"], None);
    }
}
