//! What this process did and the caches do not show yet. Without it a controller that is woken
//! between its write and the echo of its write would act twice.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use rimward_api::ObjectKey;
use rimward_client::resource::revision;
use rimward_client::{Cache, Object};
use tokio::time::{Duration, Instant};

use crate::pods::{is_deleting, uid};

/// Revisions of the last writes by key.
#[derive(Default)]
pub struct OwnWrites(Mutex<HashMap<ObjectKey, u64>>);

impl OwnWrites {
    pub fn note<K: Object>(&self, key: &ObjectKey, written: &K) {
        let written = revision(written.metadata().resource_version.as_deref().unwrap_or_default());
        let mut writes = self.0.lock();
        let newest = writes.entry(key.clone()).or_default();
        *newest = written.max(*newest);
    }

    /// Whether the cache shows everything written for the key. If not, its echo will wake the key.
    pub fn seen<K>(&self, key: &ObjectKey, cache: &Cache<K>) -> bool {
        let mut writes = self.0.lock();
        let seen = writes.get(key).is_none_or(|written| *written <= cache.revision());
        if seen {
            writes.remove(key);
        }
        seen
    }
}

/// When a key was last worked on, to spread its work: what comes in swarms is done in batches, what
/// comes alone is done at once.
#[derive(Default)]
pub struct Pace(Mutex<HashMap<ObjectKey, Instant>>);

/// No pace is slower, so older entries say nothing.
const PACE_MAX: Duration = Duration::from_secs(1);

impl Pace {
    /// How long the key must wait to be worked on no more often than `every`; zero when it may be now.
    pub fn wait(&self, key: &ObjectKey, every: Duration) -> Duration {
        let last = self.0.lock().get(key).copied();
        last.map(|at| every.min(PACE_MAX).saturating_sub(at.elapsed())).unwrap_or_default()
    }

    /// The key was worked on.
    pub fn mark(&self, key: &ObjectKey) {
        let mut last = self.0.lock();
        if last.len() >= 4096 {
            last.retain(|_, at| at.elapsed() < PACE_MAX);
        }
        last.insert(key.clone(), Instant::now());
    }
}

/// Children that were created or deleted and are not, or still, in the cache; by owner uid.
#[derive(Default)]
pub struct Unseen(Mutex<HashMap<String, Children>>);

#[derive(Default)]
struct Children {
    /// Uid, and the revision of its creation.
    created: Vec<(String, u64)>,
    deleted: Vec<(String, Instant)>,
}

/// A deletion that never shows (the server lost it) must not be believed forever.
const DELETION_BELIEVED: Duration = Duration::from_secs(60);

impl Unseen {
    pub fn created<K: Object>(&self, owner: &str, child: &K) {
        let meta = child.metadata();
        let written = revision(meta.resource_version.as_deref().unwrap_or_default());
        let mut owners = self.0.lock();
        let children = owners.entry(owner.to_owned()).or_default();
        children.created.push((uid(meta).to_owned(), written));
    }

    pub fn deleted<K: Object>(&self, owner: &str, child: &K) {
        let meta = child.metadata();
        let mut owners = self.0.lock();
        let children = owners.entry(owner.to_owned()).or_default();
        children.deleted.push((uid(meta).to_owned(), Instant::now()));
    }

    /// What a look at the cache did not show: how many created children, and the uids of deleted ones
    /// that it still had alive. `children` is what was seen, `seen` the cache's revision *before* that.
    ///
    /// Both must be of one look. Asking the cache again here, a moment later, would forget a child that
    /// came in between: it would be counted neither as seen nor as unseen, and be created once more.
    pub fn settle<K: Object>(
        &self,
        owner: &str,
        children: &[Arc<K>],
        seen: u64,
    ) -> (usize, HashSet<String>) {
        let mut owners = self.0.lock();
        let Some(unseen) = owners.get_mut(owner) else { return Default::default() };
        let alive: HashMap<&str, bool> =
            children.iter().map(|c| (uid(c.metadata()), !is_deleting(c.metadata()))).collect();
        unseen.created.retain(|(id, written)| *written > seen && !alive.contains_key(id.as_str()));
        unseen.deleted.retain(|(id, at)| {
            at.elapsed() < DELETION_BELIEVED && alive.get(id.as_str()) == Some(&true)
        });
        let deleted = unseen.deleted.iter().map(|(id, _)| id.clone()).collect();
        let state = (unseen.created.len(), deleted);
        if unseen.created.is_empty() && unseen.deleted.is_empty() {
            owners.remove(owner);
        }
        state
    }

    pub fn forget(&self, owner: &str) {
        self.0.lock().remove(owner);
    }
}
