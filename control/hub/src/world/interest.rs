//! Which nodes an object concerns, and what each connected one has yet to be told.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use rimward_api::ObjectKey;
use rimward_tunnel::wire::ObjectKind;
use tokio::sync::Notify;

pub(super) type Reference = (ObjectKind, ObjectKey);

/// Counts who references what, by object and by node: what concerns a node is found without a look at other
/// nodes' objects, and whom an object concerns without a look at other nodes.
#[derive(Default)]
pub(super) struct Interest {
    pub outboxes: HashMap<String, Arc<Outbox>>,
    /// ConfigMaps, Secrets and claims that something references.
    references: HashMap<Reference, References>,
    /// The same by the nodes whose pods reference them.
    by_node: HashMap<String, BTreeSet<Reference>>,
    /// The same by Ingresses, which every node serves.
    shared: BTreeSet<Reference>,
}

/// Who references an object, and how often.
#[derive(Default)]
struct References {
    /// By pods of a node.
    nodes: HashMap<String, u32>,
    /// By Ingresses.
    shared: u32,
}

/// The keys that a connected node has yet to be told.
#[derive(Default)]
pub struct Outbox {
    keys: Mutex<BTreeSet<Reference>>,
    changed: Notify,
}

impl Outbox {
    pub fn mark(&self, kind: ObjectKind, key: ObjectKey) {
        self.keys.lock().insert((kind, key));
        self.changed.notify_one();
    }

    /// Waits until there are keys. Cancel-safe.
    pub async fn ready(&self) {
        while self.keys.lock().is_empty() {
            self.changed.notified().await;
        }
    }

    /// Takes at most `max` keys, those that others need first.
    pub fn take(&self, max: usize) -> Vec<Reference> {
        let mut keys = self.keys.lock();
        let mut taken = Vec::new();
        while taken.len() < max {
            let Some(next) = keys.pop_first() else { break };
            taken.push(next);
        }
        taken
    }
}

impl Interest {
    /// A pod of the node references it.
    pub fn add(&mut self, node: &str, reference: Reference) {
        let who = self.references.entry(reference.clone()).or_default();
        let count = who.nodes.entry(node.to_owned()).or_default();
        *count += 1;
        if *count == 1 {
            self.by_node.entry(node.to_owned()).or_default().insert(reference.clone());
            self.mark(node, reference);
        }
    }

    /// A pod of the node references it no more.
    pub fn release(&mut self, node: &str, reference: Reference) {
        let Some(who) = self.references.get_mut(&reference) else { return };
        let Some(count) = who.nodes.get_mut(node) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        who.nodes.remove(node);
        self.forget_unused(&reference);
        if let Some(of_node) = self.by_node.get_mut(node) {
            of_node.remove(&reference);
            if of_node.is_empty() {
                self.by_node.remove(node);
            }
        }
        self.mark(node, reference);
    }

    /// An Ingress references it.
    pub fn share(&mut self, reference: Reference) {
        self.references.entry(reference.clone()).or_default().shared += 1;
        self.shared.insert(reference.clone());
        self.mark_everywhere(&reference);
    }

    /// An Ingress references it no more.
    pub fn unshare(&mut self, reference: Reference) {
        let Some(who) = self.references.get_mut(&reference) else { return };
        who.shared = who.shared.saturating_sub(1);
        if who.shared == 0 {
            self.shared.remove(&reference);
            self.forget_unused(&reference);
        }
        self.mark_everywhere(&reference);
    }

    fn forget_unused(&mut self, reference: &Reference) {
        let unused = |who: &References| who.shared == 0 && who.nodes.is_empty();
        if self.references.get(reference).is_some_and(unused) {
            self.references.remove(reference);
        }
    }

    /// Whether a pod of the node, or an Ingress, references it.
    pub fn concerns(&self, node: &str, reference: &Reference) -> bool {
        let who = self.references.get(reference);
        who.is_some_and(|who| who.shared > 0 || who.nodes.contains_key(node))
    }

    /// The objects of a kind that the node's pods, or Ingresses, reference.
    pub fn of_node(&self, node: &str, kind: ObjectKind) -> BTreeSet<ObjectKey> {
        let own = self.by_node.get(node).into_iter().flatten();
        let all = own.chain(&self.shared).filter(|(k, _)| *k == kind);
        all.map(|(_, key)| key.clone()).collect()
    }

    /// The nodes whose pods reference it.
    pub fn nodes_of(&self, reference: &Reference) -> impl Iterator<Item = &str> {
        let who = self.references.get(reference).into_iter();
        who.flat_map(|who| who.nodes.keys().map(String::as_str))
    }

    pub fn mark(&self, node: &str, (kind, key): Reference) {
        if let Some(outbox) = self.outboxes.get(node) {
            outbox.mark(kind, key);
        }
    }

    /// Those who reference an object are told that it changed.
    pub fn mark_referrers(&self, reference: &Reference) {
        if self.shared.contains(reference) {
            self.mark_everywhere(reference);
            return;
        }
        for node in self.nodes_of(reference) {
            self.mark(node, reference.clone());
        }
    }

    pub fn mark_everywhere(&self, (kind, key): &Reference) {
        for outbox in self.outboxes.values() {
            outbox.mark(*kind, key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_counted() {
        let mut interest = Interest::default();
        let (outbox, other) = (Arc::new(Outbox::default()), Arc::new(Outbox::default()));
        interest.outboxes.insert("n".into(), outbox.clone());
        interest.outboxes.insert("other".into(), other.clone());
        let key = ObjectKey::new("ns", "s");
        let id = (ObjectKind::Secret, key.clone());
        interest.add("n", id.clone());
        interest.add("n", id.clone());
        assert_eq!(outbox.take(9), vec![id.clone()]);
        assert!(other.take(9).is_empty());
        assert!(interest.of_node("other", ObjectKind::Secret).is_empty());
        assert!(interest.of_node("n", ObjectKind::ConfigMap).is_empty());
        interest.release("n", id.clone());
        assert!(interest.concerns("n", &id));
        assert_eq!(interest.of_node("n", ObjectKind::Secret), [key.clone()].into());
        assert!(outbox.take(9).is_empty());
        interest.share(id.clone());
        assert!(interest.concerns("other", &id));
        assert_eq!(interest.of_node("other", ObjectKind::Secret), [key].into());
        assert_eq!((outbox.take(9), other.take(9)), (vec![id.clone()], vec![id.clone()]));
        interest.release("n", id.clone());
        assert!(interest.concerns("n", &id), "an Ingress still references it");
        interest.unshare(id.clone());
        assert!(!interest.concerns("n", &id));
        assert_eq!(outbox.take(9), vec![id.clone()]);
        let left = (interest.references.len(), interest.by_node.len(), interest.shared.len());
        assert_eq!(left, (0, 0, 0));
    }
}
