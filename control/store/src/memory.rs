//! The backend for tests: everything in one process's memory, durable by definition.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use crate::feed::{Feed, History, RingLimits, Taken};
use crate::{CommitError, Entry, Error, Event, ListRequest, Op, Page, Revision, Store, Txn, Watch};

/// A store that forgets everything when it is dropped.
pub struct MemoryStore {
    state: Arc<RwLock<State>>,
    feed: Arc<Feed>,
}

#[derive(Default)]
struct State {
    revision: Revision,
    oldest: Revision,
    /// The retained versions of each key, oldest first.
    keys: BTreeMap<Arc<str>, Vec<Version>>,
    /// Events later than `oldest`, in order.
    log: VecDeque<Arc<Event>>,
}

struct Version {
    revision: Revision,
    created: Revision,
    /// None: the key was deleted here.
    value: Option<Bytes>,
}

impl MemoryStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Arc::default(), feed: Feed::new(0, RingLimits::default()) })
    }

    /// Every later call, and every watcher, answers [`Error::Closed`].
    pub fn close(&self) {
        self.feed.close();
    }

    fn open(&self) -> Result<&RwLock<State>, Error> {
        if self.feed.is_closed() { Err(Error::Closed) } else { Ok(&self.state) }
    }
}

impl State {
    fn current(&self, key: &str) -> Option<Entry> {
        self.at(key, self.revision)
    }

    fn at(&self, key: &str, at: Revision) -> Option<Entry> {
        let (key, versions) = self.keys.get_key_value(key)?;
        entry_at(key, versions, at)
    }

    /// The revision to read at, if it can be read.
    fn readable(&self, at: Option<Revision>) -> Result<Revision, Error> {
        match at {
            None => Ok(self.revision),
            Some(asked) if asked > self.revision => {
                Err(Error::Future { asked, newest: self.revision })
            }
            Some(asked) if asked < self.oldest => {
                Err(Error::Compacted { asked, oldest: self.oldest })
            }
            Some(asked) => Ok(asked),
        }
    }

    /// The events that a transaction would cause, at the next revision.
    fn plan(&self, txn: &Txn) -> Result<Vec<Arc<Event>>, CommitError> {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for (index, op) in txn.ops.iter().enumerate() {
            let current = self.current(op.key());
            if !op.expect().holds(current.as_ref().map(|entry| entry.revision)) {
                return Err(CommitError::Conflict { op: index, current });
            }
            let key: Arc<str> = match &current {
                Some(entry) => entry.key.clone(),
                None => op.key().into(),
            };
            match op {
                Op::Put { value, .. } => {
                    let created = current.as_ref().map_or(revision, |entry| entry.created);
                    let entry = Entry { key: key.clone(), value: value.clone(), revision, created };
                    let entry = Some(entry);
                    events.push(Arc::new(Event { key, revision, entry, previous: current }));
                }
                Op::Delete { .. } if current.is_some() => {
                    events.push(Arc::new(Event { key, revision, entry: None, previous: current }));
                }
                Op::Delete { .. } | Op::Check { .. } => {}
            }
        }
        Ok(events)
    }

    fn apply(&mut self, events: &[Arc<Event>]) {
        self.revision += 1;
        for event in events {
            self.log.push_back(event.clone());
            let version = Version {
                revision: event.revision,
                created: event.entry.as_ref().map_or(0, |entry| entry.created),
                value: event.entry.as_ref().map(|entry| entry.value.clone()),
            };
            self.keys.entry(event.key.clone()).or_default().push(version);
        }
    }

    fn compact(&mut self, revision: Revision) {
        self.oldest = revision;
        while self.log.front().is_some_and(|event| event.revision <= revision) {
            self.log.pop_front();
        }
        self.keys.retain(|_, versions| {
            let newest_kept =
                versions.partition_point(|v| v.revision <= revision).saturating_sub(1);
            versions.drain(..newest_kept);
            let gone = |v: &Version| v.value.is_none() && v.revision <= revision;
            if versions.first().is_some_and(gone) {
                versions.remove(0);
            }
            !versions.is_empty()
        });
    }

    fn under<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Vec<Version>)> {
        let range = (Bound::Included(prefix), Bound::Unbounded);
        self.keys.range::<str, _>(range).take_while(move |(key, _)| key.starts_with(prefix))
    }
}

fn entry_at(key: &Arc<str>, versions: &[Version], at: Revision) -> Option<Entry> {
    let version = versions.iter().rev().find(|version| version.revision <= at)?;
    let value = version.value.clone()?;
    Some(Entry { key: key.clone(), value, revision: version.revision, created: version.created })
}

#[async_trait]
impl Store for MemoryStore {
    fn revision(&self) -> Revision {
        self.feed.head()
    }

    fn oldest(&self) -> Revision {
        self.state.read().oldest
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, Error> {
        let state = self.open()?.read();
        let at = state.readable(at)?;
        Ok(state.at(key, at))
    }

    async fn list(&self, request: ListRequest) -> Result<Page, Error> {
        let state = self.open()?.read();
        let revision = state.readable(request.at)?;
        let after = request.after.as_deref();
        let mut found = state
            .under(&request.prefix)
            .filter(|(key, _)| after.is_none_or(|after| &***key > after))
            .filter_map(|(key, versions)| entry_at(key, versions, revision));
        let limit = if request.limit == 0 { usize::MAX } else { request.limit };
        let entries = found.by_ref().take(limit).collect();
        Ok(Page { entries, remaining: found.count(), revision })
    }

    async fn count(&self, prefix: &str) -> Result<usize, Error> {
        let state = self.open()?.read();
        let alive = |versions: &&Vec<Version>| versions.last().is_some_and(|v| v.value.is_some());
        Ok(state.under(prefix).map(|(_, versions)| versions).filter(alive).count())
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        txn.check()?;
        let mut state = self.open()?.write();
        let events = state.plan(&txn)?;
        if !events.is_empty() {
            state.apply(&events);
            // Under the lock, so that watchers see transactions in order.
            drop(self.feed.publish(events, state.revision));
        }
        Ok(state.revision)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Error> {
        let oldest = self.oldest();
        if after < oldest {
            return Err(Error::Compacted { asked: after, oldest });
        }
        self.feed.watch(prefix, after, Arc::new(Log(self.state.clone())))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let mut state = self.open()?.write();
        if revision > state.revision {
            return Err(Error::Future { asked: revision, newest: state.revision });
        }
        if revision > state.oldest {
            state.compact(revision);
        }
        Ok(())
    }
}

struct Log(Arc<RwLock<State>>);

#[async_trait]
impl History for Log {
    async fn read(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), Error> {
        let state = self.0.read();
        if after < state.oldest {
            return Err(Error::Compacted { asked: after, oldest: state.oldest });
        }
        let start = state.log.partition_point(|event| event.revision <= after);
        let mut taken = Taken::default();
        for event in state.log.range(start..) {
            if event.revision > until {
                break;
            }
            if taken.full_before(event.revision) {
                return Ok((taken.events, event.revision - 1));
            }
            if event.key.starts_with(prefix) {
                taken.push(event.clone());
            }
        }
        Ok((taken.events, until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Backend;

    struct Memory;

    #[async_trait]
    impl Backend for Memory {
        async fn fresh(&self) -> Arc<dyn Store> {
            MemoryStore::new()
        }

        async fn reopen(&self, _: Arc<dyn Store>) -> Option<Arc<dyn Store>> {
            None
        }
    }

    crate::conformance!(Memory);
}
