//! Values that were written or read last, as they are now, so that reading one again asks nobody.
//!
//! RocksDB's own cache holds blocks: a read looks for the block, in it for the record, and copies it.
//! Whoever asks for a pod's namespace at every create need not do that. A value counts only with the
//! revision that the index tells, so a stale one is never answered, whoever put it in when.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rimward_control_store::{Entry, Revision};

/// Larger values are left to the blocks.
const VALUE_BYTES_MAX: usize = 64 << 10;
/// What an entry costs beside its value: the key, both counters, the cache's own.
const ENTRY_BYTES: usize = 200;

pub struct Values(Cache<Arc<str>, Held, ByBytes>);

#[derive(Clone)]
struct Held {
    revision: Revision,
    created: Revision,
    value: Bytes,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Arc<str>, Held> for ByBytes {
    fn weight(&self, _key: &Arc<str>, held: &Held) -> u64 {
        (held.value.len() + ENTRY_BYTES) as u64
    }
}

impl Values {
    /// Holds about so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Cache::with_weighter(bytes / 4096, bytes as u64, ByBytes))
    }

    /// The value of a key that was last written at `revision`.
    pub fn get(&self, key: &Arc<str>, revision: Revision) -> Option<Entry> {
        let held = self.0.get(key).filter(|held| held.revision == revision)?;
        let (value, created) = (held.value, held.created);
        Some(Entry { key: key.clone(), value, revision, created })
    }

    pub fn put(&self, entry: &Entry) {
        if entry.value.len() <= VALUE_BYTES_MAX {
            let Entry { revision, created, .. } = *entry;
            let held = Held { revision, created, value: entry.value.clone() };
            self.0.insert(entry.key.clone(), held);
        }
    }

    pub fn forget(&self, key: &Arc<str>) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_revision_that_is_asked_for_counts() {
        let values = Values::new(1 << 20);
        let key: Arc<str> = "/a".into();
        let entry = |revision, value: &'static str| Entry {
            key: key.clone(),
            value: value.into(),
            revision,
            created: 1,
        };
        assert_eq!(values.get(&key, 1), None);
        values.put(&entry(3, "new"));
        // A slow reader comes with what it read before.
        values.put(&entry(2, "old"));
        assert_eq!(values.get(&key, 3), None);
        assert_eq!(values.get(&key, 2), Some(entry(2, "old")));
        values.forget(&key);
        assert_eq!(values.get(&key, 2), None);
        values.put(&Entry { value: vec![0; VALUE_BYTES_MAX + 1].into(), ..entry(4, "") });
        assert_eq!(values.get(&key, 4), None);
    }
}
