//! Objects of one kind in memory, shared, with a feed of which keys changed.
//!
//! An informer fills one from a list and a watch; a node's agent fills one from the tunnel. Readers
//! look at the state, not at the event: a [`Delta`] names a key, the reader then looks it up.
//! Readers inside the control plane rather take [`Cache::on_change`], which also shows what was.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rimward_api::ObjectKey;
use tokio::sync::{broadcast, watch};

/// How many changed keys a slow reader may fall behind before it is told to look at everything.
const BACKLOG: usize = 4096;

/// Shared objects of one kind; clones are handles to the same cache.
pub struct Cache<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    state: RwLock<State<K>>,
    /// Held over a change and the calls that announce it, so that every handler sees the changes in
    /// the order in which they happened. Always taken before `state`.
    handlers: Mutex<Vec<Handler<K>>>,
    changed: broadcast::Sender<ObjectKey>,
    synced: watch::Sender<bool>,
    revision: AtomicU64,
}

struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    indexes: Vec<Index<K>>,
}

type Handler<K> = Box<dyn Fn(Change<'_, K>) + Send + Sync>;

/// Objects by a computed value. A bucket is keyed by the address of its objects: that costs no copy
/// of their names.
struct Index<K> {
    name: &'static str,
    values: fn(&K) -> Vec<String>,
    buckets: HashMap<String, HashMap<usize, Arc<K>>>,
}

/// One object's change, as handlers see it: at least one side is there.
pub struct Change<'a, K> {
    pub key: &'a ObjectKey,
    pub old: Option<&'a Arc<K>>,
    pub new: Option<&'a Arc<K>>,
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
                state: RwLock::new(State { objects: BTreeMap::new(), indexes: Vec::new() }),
                handlers: Mutex::default(),
                changed: broadcast::channel(BACKLOG).0,
                synced: watch::channel(false).0,
                revision: AtomicU64::new(0),
            }),
        }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.inner.state.read().objects.get(key).cloned()
    }

    /// All objects in key order.
    pub fn list(&self) -> Vec<(ObjectKey, Arc<K>)> {
        self.inner.state.read().objects.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// The objects of one namespace in name order.
    pub fn list_in(&self, namespace: &str) -> Vec<(ObjectKey, Arc<K>)> {
        let first = ObjectKey::new(namespace, "");
        let state = self.inner.state.read();
        let range = state.objects.range(first..).take_while(|(k, _)| k.namespace == namespace);
        range.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    pub fn len(&self) -> usize {
        self.inner.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the objects findable by what `values` says of them, from now on. Adding the same name
    /// again changes nothing, so every reader may ask for the indexes it needs.
    pub fn add_index(&self, name: &'static str, values: fn(&K) -> Vec<String>) {
        let mut state = self.inner.state.write();
        if state.indexes.iter().any(|i| i.name == name) {
            return;
        }
        let mut index = Index { name, values, buckets: HashMap::new() };
        state.objects.values().for_each(|object| index.insert(object));
        state.indexes.push(index);
    }

    /// The objects of which the index `name` says `value`, in no order.
    ///
    /// # Panics
    /// If the index was never added: a mistake in the program.
    pub fn indexed(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.inner.state.read();
        let index = state.indexes.iter().find(|i| i.name == name);
        let index = index.expect("the index is added before it is read");
        index.buckets.get(value).map(|b| b.values().cloned().collect()).unwrap_or_default()
    }

    /// How many objects [`Cache::indexed`] would answer.
    ///
    /// # Panics
    /// As [`Cache::indexed`].
    pub fn indexed_len(&self, name: &str, value: &str) -> usize {
        let state = self.inner.state.read();
        let index = state.indexes.iter().find(|i| i.name == name);
        index
            .expect("the index is added before it is read")
            .buckets
            .get(value)
            .map_or(0, HashMap::len)
    }

    /// Calls `handler` for every object that is there, then for every change, in order and before
    /// the writer goes on: so it must be quick (put a key into a queue) and must not write to this
    /// cache. Unlike [`Cache::subscribe`] it sees the old object, misses nothing, holds no memory.
    pub fn on_change(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.inner.handlers.lock();
        for (key, object) in self.list() {
            handler(Change { key: &key, old: None, new: Some(&object) });
        }
        handlers.push(Box::new(handler));
    }

    /// The newest revision that this cache is known to reflect; 0 where nobody says.
    pub fn revision(&self) -> u64 {
        self.inner.revision.load(Ordering::Acquire)
    }

    /// Says that the cache reflects everything up to a revision.
    pub fn advance(&self, revision: u64) {
        self.inner.revision.fetch_max(revision, Ordering::AcqRel);
    }

    /// Inserts or replaces; answers what was there.
    pub fn apply(&self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        self.change(key, Some(object), 0)
    }

    /// [`Cache::apply`], of a change that happened at a revision.
    pub fn apply_at(&self, key: ObjectKey, object: Arc<K>, revision: u64) -> Option<Arc<K>> {
        self.change(key, Some(object), revision)
    }

    pub fn remove(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.change(key.clone(), None, 0)
    }

    /// [`Cache::remove`], of a deletion that happened at a revision.
    pub fn remove_at(&self, key: &ObjectKey, revision: u64) -> Option<Arc<K>> {
        self.change(key.clone(), None, revision)
    }

    fn change(&self, key: ObjectKey, new: Option<Arc<K>>, revision: u64) -> Option<Arc<K>> {
        let handlers = self.inner.handlers.lock();
        let old = self.inner.state.write().set(&key, new.clone());
        // Before the handlers: whoever they wake must find the cache as new as the change.
        self.advance(revision);
        if old.is_some() || new.is_some() {
            for handler in handlers.iter() {
                handler(Change { key: &key, old: old.as_ref(), new: new.as_ref() });
            }
            let _nobody_listens_is_fine = self.inner.changed.send(key);
        }
        old
    }

    /// Makes the content exactly this (a fresh list), and marks the cache synced. Every key that was
    /// or is there counts as changed.
    pub fn replace(&self, objects: BTreeMap<ObjectKey, Arc<K>>) {
        let gone: Vec<ObjectKey> = {
            let state = self.inner.state.read();
            state.objects.keys().filter(|k| !objects.contains_key(k)).cloned().collect()
        };
        for key in gone {
            self.change(key, None, 0);
        }
        for (key, object) in objects {
            self.change(key, Some(object), 0);
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

    /// Changes of what the objects belong to (a Service, for its EndpointSlices), from now on, as
    /// [`Cache::subscribe`]: an object that changed names what it belonged to and what it belongs to now.
    /// The feed lives as long as the cache: for readers that do.
    pub fn subscribe_to(&self, owner: fn(&K) -> Option<ObjectKey>) -> Deltas
    where
        K: 'static,
    {
        let (sender, receiver) = broadcast::channel(BACKLOG);
        let tell = move |change: Change<'_, K>| {
            let of = |object: Option<&Arc<K>>| object.and_then(|object| owner(object));
            let (before, now) = (of(change.old), of(change.new));
            for key in before.iter().chain(now.iter().filter(|now| before.as_ref() != Some(now))) {
                let _nobody_listens_is_fine = sender.send(key.clone());
            }
        };
        self.inner.handlers.lock().push(Box::new(tell));
        Deltas { receiver, first: true }
    }
}

impl<K> State<K> {
    fn set(&mut self, key: &ObjectKey, new: Option<Arc<K>>) -> Option<Arc<K>> {
        let old = match &new {
            Some(object) => match self.objects.get_mut(key) {
                Some(slot) => Some(std::mem::replace(slot, object.clone())),
                None => self.objects.insert(key.clone(), object.clone()),
            },
            None => self.objects.remove(key),
        };
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.remove(old);
            }
            if let Some(new) = &new {
                index.insert(new);
            }
        }
        old
    }
}

impl<K> Index<K> {
    fn insert(&mut self, object: &Arc<K>) {
        for value in (self.values)(object) {
            self.buckets
                .entry(value)
                .or_default()
                .insert(Arc::as_ptr(object).addr(), object.clone());
        }
    }

    fn remove(&mut self, object: &Arc<K>) {
        for value in (self.values)(object) {
            if let Some(bucket) = self.buckets.get_mut(&value) {
                bucket.remove(&Arc::as_ptr(object).addr());
                if bucket.is_empty() {
                    self.buckets.remove(&value);
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    #[test]
    fn indexes_follow_every_change() {
        let cache: Cache<Vec<&str>> = Cache::new();
        cache.apply(key("early"), Arc::new(vec!["x"]));
        let values = |o: &Vec<&str>| o.iter().map(|s| (*s).to_owned()).collect();
        cache.add_index("words", values);
        cache.add_index("words", values);
        let sizes = || ["x", "y", "z"].map(|w| cache.indexed_len("words", w));
        assert_eq!(sizes(), [1, 0, 0]);
        cache.apply(key("a"), Arc::new(vec!["x", "y"]));
        assert_eq!(sizes(), [2, 1, 0]);
        cache.apply(key("a"), Arc::new(vec!["z"]));
        assert_eq!(sizes(), [1, 0, 1]);
        cache.remove(&key("early"));
        assert_eq!(sizes(), [0, 0, 1]);
        cache.replace(BTreeMap::from([(key("b"), Arc::new(vec!["y"]))]));
        assert_eq!(sizes(), [0, 1, 0]);
        assert_eq!(cache.indexed("words", "y"), vec![Arc::new(vec!["y"])]);
    }

    #[test]
    fn owners_hear_of_what_comes_and_goes() {
        let cache: Cache<&str> = Cache::new();
        cache.apply(key("early"), Arc::new("x"));
        let mut deltas = cache.subscribe_to(|owner| (*owner != "none").then(|| key(owner)));
        let mut told = |expected: &[&str]| {
            let told: Vec<Delta> = std::iter::from_fn(|| deltas.try_next()).collect();
            let expected: Vec<Delta> = expected.iter().map(|o| Delta::Key(key(o))).collect();
            assert_eq!(told.strip_prefix(&[Delta::All]).unwrap_or(&told), expected);
        };
        told(&[]);
        cache.apply(key("a"), Arc::new("x"));
        told(&["x"]);
        cache.apply(key("a"), Arc::new("x"));
        told(&["x"]);
        cache.apply(key("a"), Arc::new("y"));
        told(&["x", "y"]);
        cache.apply(key("a"), Arc::new("none"));
        told(&["y"]);
        cache.remove(&key("a"));
        told(&[]);
        cache.remove(&key("early"));
        told(&["x"]);
    }

    #[test]
    fn handlers_see_both_sides_and_a_cache_that_has_the_change() {
        let cache: Cache<u32> = Cache::new();
        cache.apply_at(key("a"), Arc::new(1), 5);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, reader) = (seen.clone(), cache.clone());
        cache.on_change(move |change| {
            let now = reader.get_key(change.key);
            assert_eq!(now.as_ref(), change.new);
            log.lock().push((change.old.map(|v| **v), change.new.map(|v| **v), reader.revision()));
        });
        cache.apply_at(key("a"), Arc::new(2), 6);
        cache.remove_at(&key("a"), 9);
        cache.remove_at(&key("a"), 11);
        assert_eq!(*seen.lock(), [(None, Some(1), 5), (Some(1), Some(2), 6), (Some(2), None, 9)]);
        assert_eq!(cache.revision(), 11);
    }
}
