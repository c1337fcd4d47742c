//! Objects of one kind in memory, shared, with a feed of which keys changed.
//!
//! An informer fills one from a list and a watch; a node's agent fills one from the tunnel. Readers
//! look at the state, not at the event: a [`Delta`] names a key, the reader then looks it up.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use rimward_api::ObjectKey;
use tokio::sync::{broadcast, watch};

/// How many changed keys a slow reader may fall behind before it is told to look at everything.
const BACKLOG: usize = 4096;

/// Shared objects of one kind; clones are handles to the same cache.
pub struct Cache<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    objects: RwLock<BTreeMap<ObjectKey, Arc<K>>>,
    changed: broadcast::Sender<ObjectKey>,
    synced: watch::Sender<bool>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Cache<K> {
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                objects: RwLock::default(),
                changed: broadcast::channel(BACKLOG).0,
                synced: watch::channel(false).0,
            }),
        }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.inner.objects.read().get(key).cloned()
    }

    /// All objects in key order.
    pub fn list(&self) -> Vec<(ObjectKey, Arc<K>)> {
        self.inner.objects.read().iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// The objects of one namespace in name order.
    pub fn list_in(&self, namespace: &str) -> Vec<(ObjectKey, Arc<K>)> {
        let first = ObjectKey::new(namespace, "");
        let objects = self.inner.objects.read();
        let range = objects.range(first..).take_while(|(k, _)| k.namespace == namespace);
        range.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    pub fn len(&self) -> usize {
        self.inner.objects.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Inserts or replaces; answers what was there.
    pub fn apply(&self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.inner.objects.write().insert(key.clone(), object);
        let _nobody_listens_is_fine = self.inner.changed.send(key);
        old
    }

    pub fn remove(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let old = self.inner.objects.write().remove(key);
        if old.is_some() {
            let _nobody_listens_is_fine = self.inner.changed.send(key.clone());
        }
        old
    }

    /// Makes the content exactly this (a fresh list), and marks the cache synced. Every key that was
    /// or is there counts as changed.
    pub fn replace(&self, objects: BTreeMap<ObjectKey, Arc<K>>) {
        let mut keys: std::collections::BTreeSet<ObjectKey> = objects.keys().cloned().collect();
        let old = std::mem::replace(&mut *self.inner.objects.write(), objects);
        keys.extend(old.into_keys());
        for key in keys {
            let _nobody_listens_is_fine = self.inner.changed.send(key);
        }
        self.mark_synced();
    }

    /// Says that the first full state is in.
    pub fn mark_synced(&self) {
        self.inner.synced.send_replace(true);
    }

    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Waits for the first full state.
    pub async fn synced(&self) {
        let mut seen = self.inner.synced.subscribe();
        let _sender_lives_in_self = seen.wait_for(|synced| *synced).await;
    }

    /// Changes from now on. The first answer is [`Delta::All`], so that a reader that acts on
    /// deltas alone starts from the whole state.
    pub fn subscribe(&self) -> Deltas {
        Deltas { receiver: self.inner.changed.subscribe(), first: true }
    }
}

/// What to look at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// This key appeared, changed or went.
    Key(ObjectKey),
    /// Look at everything: the start, or the reader fell too far behind.
    All,
}

/// A feed of changes.
pub struct Deltas {
    receiver: broadcast::Receiver<ObjectKey>,
    first: bool,
}

impl Deltas {
    /// Waits for the next change; None when the cache is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delta> {
        if std::mem::take(&mut self.first) {
            return Some(Delta::All);
        }
        match self.receiver.recv().await {
            Ok(key) => Some(Delta::Key(key)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Delta::All),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// A change that is already here.
    pub fn try_next(&mut self) -> Option<Delta> {
        if std::mem::take(&mut self.first) {
            return Some(Delta::All);
        }
        match self.receiver.try_recv() {
            Ok(key) => Some(Delta::Key(key)),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(Delta::All),
            Err(_) => None,
        }
    }
}
