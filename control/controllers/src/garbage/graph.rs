//! Who owns whom, and what follows from it. Pure: no requests, no clock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use rimward_api::{GroupVersion, ObjectKey};
use rimward_client::{Propagation, Watched};
use serde::Deserialize;

pub type Uid = Arc<str>;
pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";
/// Owners known to be gone are remembered, so that their dependents need not ask for them.
const GONE_MAX: usize = 8192;

/// The part of an object that garbage collection is about.
#[derive(Debug, Deserialize)]
pub struct Partial {
    pub metadata: PartialMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PartialMeta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    #[serde(rename = "deletionTimestamp", deserialize_with = "is_there")]
    pub is_deleted: bool,
    pub finalizers: Vec<String>,
    pub owner_references: Vec<Owner>,
}

fn is_there<'de, D: serde::Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Option::<serde::de::IgnoredAny>::deserialize(value).map(|value| value.is_some())
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

impl Owner {
    pub fn group(&self) -> String {
        GroupVersion::parse(&self.api_version).map(|v| v.group).unwrap_or_default()
    }
}

impl Watched for Partial {
    fn key(&self) -> ObjectKey {
        ObjectKey::new(self.metadata.namespace.clone(), self.metadata.name.clone())
    }

    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// A resource, by its number in the collector's table.
pub type ResourceId = u32;

struct Node {
    resource: ResourceId,
    key: ObjectKey,
    resource_version: Box<str>,
    owners: Box<[Owner]>,
    deleting: bool,
    foreground: bool,
    orphaning: bool,
}

impl Node {
    /// Waits for its dependents to go before it goes itself.
    fn awaits_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// What to look at next.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Whether it must go, or go on waiting.
    Judge(Uid),
    /// Its dependents are to be let go.
    Orphan(Uid),
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub resource: ResourceId,
    pub key: ObjectKey,
    pub resource_version: String,
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Nothing,
    /// Ask the server whether these owners exist, tell [`Graph::owner_gone`], and judge again.
    AskFor(Place, Vec<Owner>),
    /// All dependents are gone: drop the foreground finalizer.
    Finish(Place),
    /// Judge these first.
    Dependents(Vec<Uid>),
    /// Somebody owns it still: drop the references to these uids.
    DropOwners(Place, Vec<String>),
    /// Nobody owns it any more. `unblock`: a cycle waits for itself, stop blocking the owners first.
    Delete {
        place: Place,
        policy: Propagation,
        unblock: bool,
    },
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
    gone: HashSet<Uid>,
    gone_order: VecDeque<Uid>,
    by_resource: HashMap<ResourceId, HashSet<Uid>>,
}

impl Graph {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// An object was seen, new or changed.
    pub fn observe(&mut self, resource: ResourceId, object: Partial) -> Vec<Work> {
        let key = object.key();
        let meta = object.metadata;
        let uid: Uid = meta.uid.into();
        let has = |f: &str| meta.finalizers.iter().any(|x| x == f);
        let node = Node {
            resource,
            key,
            resource_version: meta.resource_version.into(),
            deleting: meta.is_deleted,
            foreground: has(FOREGROUND),
            orphaning: has(ORPHAN),
            owners: meta.owner_references.into(),
        };
        let mut work = Vec::new();
        let old = self.nodes.remove(&uid);
        if let Some(old) = old.as_ref().filter(|o| o.resource != resource)
            && let Some(same) = self.by_resource.get_mut(&old.resource)
        {
            same.remove(&uid);
        }
        let changed_owners = old.as_ref().is_none_or(|o| o.owners != node.owners);
        if changed_owners {
            for owner in old.iter().flat_map(|o| o.owners.iter()) {
                self.unlink(&owner.uid, &uid, &mut work);
            }
            for owner in &node.owners {
                self.dependents.entry(owner.uid.as_str().into()).or_default().insert(uid.clone());
            }
            if !node.owners.is_empty() && node.owners.iter().any(|o| !self.is_well(&o.uid)) {
                work.push(Work::Judge(uid.clone()));
            }
        }
        if node.deleting && node.orphaning {
            work.push(Work::Orphan(uid.clone()));
        } else if node.awaits_dependents() && old.as_ref().is_none_or(|o| !o.awaits_dependents()) {
            work.push(Work::Judge(uid.clone()));
            work.extend(self.dependents_of(&uid).map(Work::Judge));
        }
        self.by_resource.entry(resource).or_default().insert(uid.clone());
        self.nodes.insert(uid, node);
        work
    }

    /// An object changed in nothing that this is about. False if it is not known.
    pub fn revise(&mut self, uid: &str, resource_version: &str) -> bool {
        let Some(node) = self.nodes.get_mut(uid) else { return false };
        node.resource_version = resource_version.into();
        true
    }

    /// Whether an owner is there and not about to take its dependents along.
    fn is_well(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|n| !n.awaits_dependents())
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = Uid> + use<'_> {
        self.dependents.get(uid).into_iter().flatten().cloned()
    }

    fn unlink(&mut self, owner: &str, dependent: &Uid, work: &mut Vec<Work>) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
        if self.nodes.get(owner).is_some_and(Node::awaits_dependents) {
            work.push(Work::Judge(owner.into()));
        }
    }

    /// An object is gone.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some((uid, node)) = self.nodes.remove_entry(uid) else { return Vec::new() };
        let mut work = Vec::new();
        if let Some(same) = self.by_resource.get_mut(&node.resource) {
            same.remove(&uid);
        }
        for owner in &node.owners {
            self.unlink(&owner.uid, &uid, &mut work);
        }
        work.extend(self.dependents_of(&uid).map(Work::Judge));
        self.owner_gone(&uid);
        work
    }

    /// The server says that no object has this uid.
    pub fn owner_gone(&mut self, uid: &str) {
        let uid: Uid = uid.into();
        if self.gone.insert(uid.clone()) {
            self.gone_order.push_back(uid);
        }
        if self.gone_order.len() > GONE_MAX
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }

    /// The objects of a resource are exactly these.
    pub fn replace(&mut self, resource: ResourceId, objects: Vec<Partial>) -> Vec<Work> {
        let seen: HashSet<&str> = objects.iter().map(|o| o.metadata.uid.as_str()).collect();
        let known = self.by_resource.get(&resource).into_iter().flatten();
        let missing: Vec<Uid> = known.filter(|uid| !seen.contains(&***uid)).cloned().collect();
        let mut work: Vec<Work> = missing.iter().flat_map(|uid| self.remove(uid)).collect();
        for object in objects {
            work.extend(self.observe(resource, object));
        }
        work
    }

    /// The objects of a resource are watched as those of another from now on: in another version.
    pub fn transfer(&mut self, from: ResourceId, to: ResourceId) {
        let Some(moved) = self.by_resource.remove(&from) else { return };
        for uid in &moved {
            if let Some(node) = self.nodes.get_mut(uid) {
                node.resource = to;
            }
        }
        self.by_resource.entry(to).or_default().extend(moved);
    }

    /// A resource is no longer watched. That says nothing of its objects: whoever depends on them has
    /// to ask.
    pub fn forget(&mut self, resource: ResourceId) -> Vec<Work> {
        let mut work = Vec::new();
        for uid in self.by_resource.remove(&resource).into_iter().flatten() {
            let Some(node) = self.nodes.remove(&uid) else { continue };
            for owner in &node.owners {
                self.unlink(&owner.uid, &uid, &mut work);
            }
            work.extend(self.dependents_of(&uid).map(Work::Judge));
        }
        work
    }

    fn place(&self, node: &Node) -> Place {
        Place {
            resource: node.resource,
            key: node.key.clone(),
            resource_version: node.resource_version.to_string(),
        }
    }

    pub fn find(&self, uid: &str) -> Option<Place> {
        self.nodes.get(uid).map(|n| self.place(n))
    }

    /// Those that refer to `uid` as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<(Uid, Place)> {
        let known = |d: Uid| self.nodes.get(&d).map(|n| (d.clone(), self.place(n)));
        self.dependents_of(uid).filter_map(known).collect()
    }

    pub fn judge(&self, uid: &str, exists: &HashSet<String>) -> Verdict {
        let Some(node) = self.nodes.get(uid) else { return Verdict::Nothing };
        let place = self.place(node);
        if node.awaits_dependents() {
            return self.judge_waiting(uid, place);
        }
        if node.deleting || node.owners.is_empty() {
            return Verdict::Nothing;
        }
        let (mut solid, mut lost, mut waiting, mut unknown) =
            (0, Vec::new(), Vec::new(), Vec::new());
        for owner in &node.owners {
            match self.nodes.get(owner.uid.as_str()) {
                // An owner lives in the same namespace or in none.
                Some(o) if !o.key.namespace.is_empty() && o.key.namespace != node.key.namespace => {
                    if node.key.namespace.is_empty() {
                        solid += 1
                    } else {
                        lost.push(owner.uid.clone())
                    }
                }
                Some(o) if o.awaits_dependents() => waiting.push(owner.uid.clone()),
                Some(_) => solid += 1,
                None if exists.contains(&owner.uid) => solid += 1,
                None if self.gone.contains(owner.uid.as_str()) => lost.push(owner.uid.clone()),
                None => unknown.push(owner.clone()),
            }
        }
        if !unknown.is_empty() {
            return Verdict::AskFor(place, unknown);
        }
        if solid > 0 {
            lost.extend(waiting);
            return if lost.is_empty() {
                Verdict::Nothing
            } else {
                Verdict::DropOwners(place, lost)
            };
        }
        if !waiting.is_empty() && self.dependents.contains_key(uid) {
            let cycle = self
                .dependents_of(uid)
                .any(|d| self.nodes.get(&d).is_some_and(Node::awaits_dependents));
            return Verdict::Delete { place, policy: Propagation::Foreground, unblock: cycle };
        }
        let policy = match (node.orphaning, node.foreground) {
            (true, _) => Propagation::Orphan,
            (_, true) => Propagation::Foreground,
            _ => Propagation::Background,
        };
        Verdict::Delete { place, policy, unblock: false }
    }

    fn judge_waiting(&self, uid: &str, place: Place) -> Verdict {
        let blocks = |d: &Uid| {
            let owners = self.nodes.get(d).map(|n| &*n.owners).unwrap_or_default();
            owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
        };
        let blocking: Vec<Uid> = self.dependents_of(uid).filter(blocks).collect();
        if blocking.is_empty() {
            return Verdict::Finish(place);
        }
        let idle = |d: &Uid| self.nodes.get(d).is_some_and(|n| !n.awaits_dependents());
        Verdict::Dependents(blocking.into_iter().filter(idle).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str, owners: &[&str], state: &str) -> Partial {
        let owner = |u: &&str| Owner {
            uid: u.trim_end_matches('!').into(),
            api_version: "v1".into(),
            kind: "Kind".into(),
            name: "n".into(),
            controller: None,
            block_owner_deletion: Some(u.ends_with('!')),
        };
        Partial {
            metadata: PartialMeta {
                name: uid.into(),
                namespace: "ns".into(),
                uid: uid.into(),
                resource_version: "1".into(),
                is_deleted: !state.is_empty(),
                finalizers: [FOREGROUND, ORPHAN]
                    .iter()
                    .filter(|f| f.starts_with(state) && !state.is_empty())
                    .map(|f| (*f).into())
                    .collect(),
                owner_references: owners.iter().map(owner).collect(),
            },
        }
    }

    fn graph(objects: &[(&str, &[&str], &str)]) -> Graph {
        let mut graph = Graph::default();
        for (uid, owners, state) in objects {
            graph.observe(0, object(uid, owners, state));
        }
        graph
    }

    #[test]
    fn verdicts() {
        #[track_caller]
        fn check(objects: &[(&str, &[&str], &str)], gone: &[&str], uid: &str, expected: &str) {
            let mut graph = graph(objects);
            gone.iter().for_each(|g| graph.owner_gone(g));
            let verdict = match graph.judge(uid, &HashSet::new()) {
                Verdict::Nothing => "nothing".to_owned(),
                Verdict::AskFor(_, owners) => format!("ask for {}", owners[0].uid),
                Verdict::Finish(_) => "finish".into(),
                Verdict::Dependents(d) => format!("judge {}", d.join(",")),
                Verdict::DropOwners(_, owners) => format!("drop {}", owners.join(",")),
                Verdict::Delete { policy, unblock, .. } => {
                    format!("delete {policy:?}{}", if unblock { " unblock" } else { "" })
                }
            };
            assert_eq!(verdict, expected);
        }
        check(&[("a", &[], "")], &[], "a", "nothing");
        check(&[("a", &["b"], "")], &[], "a", "ask for b");
        check(&[("a", &["b"], "")], &["b"], "a", "delete Background");
        check(&[("a", &["b"], ""), ("b", &[], "")], &[], "a", "nothing");
        check(&[("a", &["b", "c"], ""), ("b", &[], "")], &["c"], "a", "drop c");
        check(&[("a", &["b"], ""), ("b", &[], "f")], &[], "a", "delete Background");
        check(&[("a", &["b!"], ""), ("b", &[], "f")], &[], "b", "judge a");
        check(&[("a", &["b"], ""), ("b", &[], "f")], &[], "b", "finish");
        check(
            &[("a", &["b"], ""), ("b", &[], "f"), ("c", &["a"], "")],
            &[],
            "a",
            "delete Foreground",
        );
        check(&[("a", &["b"], "x"), ("b", &[], "f")], &[], "a", "nothing");
        check(&[("a", &["b!"], ""), ("b", &["a!"], "f")], &[], "a", "delete Foreground unblock");
    }

    #[test]
    fn what_a_change_makes_work() {
        let judge = |uid: &str| Work::Judge(uid.into());
        let mut graph = graph(&[("b", &[], ""), ("a", &["b!"], ""), ("c", &["b"], "")]);
        let mut work = graph.observe(0, object("b", &[], "f"));
        work.sort();
        assert_eq!(
            work,
            [judge("a"), judge("b"), judge("c")],
            "foreground deletion reaches dependents"
        );
        assert_eq!(graph.remove("a"), [judge("b")], "the owner waits for it");
        assert_eq!(graph.remove("b"), [judge("c")]);
        assert_eq!(
            graph.judge("c", &HashSet::new()),
            Verdict::Delete {
                place: graph.find("c").expect("is there"),
                policy: Propagation::Background,
                unblock: false,
            }
        );
        assert_eq!(graph.replace(0, vec![]), []);
        assert!(graph.is_empty() && graph.dependents.is_empty());
        assert_eq!(graph.observe(0, object("o", &[], "o")), [Work::Orphan("o".into())]);
    }

    #[test]
    fn a_resource_that_is_watched_no_more_is_not_gone() {
        let mut graph = graph(&[("dependent", &["owner"], "")]);
        graph.observe(1, object("owner", &[], ""));
        let judged = [Work::Judge("dependent".into())];
        assert_eq!(graph.forget(1), judged);
        let asks = |graph: &Graph| {
            matches!(graph.judge("dependent", &HashSet::new()), Verdict::AskFor(..))
        };
        assert!(asks(&graph), "nobody said that the owner is gone");
        // Watched in another version: the first one is no longer about it.
        graph.observe(1, object("owner", &[], ""));
        graph.transfer(1, 2);
        assert_eq!(graph.find("owner").expect("is there").resource, 2);
        assert_eq!(graph.forget(1), []);
        assert_eq!(graph.judge("dependent", &HashSet::new()), Verdict::Nothing);
        assert_eq!(graph.remove("owner"), judged);
        assert!(!asks(&graph));
    }

    #[test]
    fn memory_of_the_gone_is_bounded() {
        let mut graph = Graph::default();
        (0..3 * GONE_MAX).for_each(|i| graph.owner_gone(&i.to_string()));
        assert!(graph.gone.len() <= GONE_MAX && graph.gone_order.len() <= GONE_MAX);
    }
}
