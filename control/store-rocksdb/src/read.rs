//! Gets, lists and the log. All of it runs where waiting for the disk holds up nobody, except
//! [`Shared::get_cached`] and [`Shared::count`], which do not wait.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rimward_control_store::feed::{History, Taken};
use rimward_control_store::{Entry, Error, Event, ListRequest, Page, Revision};
use rocksdb::DBRawIterator;

use crate::Shared;
use crate::codec::{self, Body, Change};
use crate::engine::Engine;
use crate::index::Place;
use crate::pins::Pin;
use crate::values::Values;

/// How many keys are taken from the index at a time, so that a long list does not keep the
/// committer from it.
const KEYS_AT_A_TIME: usize = 1024;
/// A list of more than this does not push everything else out of the cache.
const CACHED_LIST_MAX: usize = 500;
/// How many log records are searched for one batch of a watcher.
const SEARCHED_MAX: usize = 20_000;

impl Shared {
    /// Keeps the state at `at` readable; None is the newest.
    fn pin(&self, at: Option<Revision>) -> Result<(Revision, Pin<'_>), Error> {
        loop {
            let newest = self.feed.head();
            let revision = at.unwrap_or(newest);
            if revision > newest {
                return Err(Error::Future { asked: revision, newest });
            }
            match self.pins.pin(revision) {
                Ok(pin) => return Ok((revision, pin)),
                // The newest was compacted between the two: there is a newer one.
                Err(Error::Compacted { .. }) if at.is_none() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the value of `key` at `at` is, and the shared copy of the key.
    fn place(&self, key: &str, at: Revision) -> Option<(Arc<str>, Place)> {
        let index = self.index.read();
        let (key, known) = index.get(key)?;
        Some((key.clone(), known.place(at)))
    }

    /// The value as it is now, if it is at hand. What is durable but not yet told of is left to those
    /// who look at a revision: nobody may see one that cannot be watched from.
    fn held(&self, key: &str) -> Option<Entry> {
        let (key, known) = {
            let index = self.index.read();
            let (key, known) = index.get(key)?;
            (key.clone(), *known)
        };
        let revision = known.present().filter(|revision| *revision <= self.feed.head())?;
        self.values.get(&key, revision)
    }

    /// A get that needs no file access; None when it needs one.
    pub fn get_cached(
        &self,
        key: &str,
        at: Option<Revision>,
    ) -> Result<Option<Option<Entry>>, Error> {
        self.with_engine(|engine| {
            if at.is_none()
                && let Some(held) = self.held(key)
            {
                return Ok(Some(Some(held)));
            }
            let (at, _pin) = self.pin(at)?;
            let Some((key, place)) = self.place(key, at) else { return Ok(Some(None)) };
            match place {
                Place::Absent => Ok(Some(None)),
                Place::At(revision) => {
                    let body = engine.cached_body(&key, revision)?;
                    let entry =
                        body.map(|(created, value)| Entry { key, value, revision, created });
                    entry.iter().for_each(|entry| self.values.put(entry));
                    Ok(entry.map(Some))
                }
                Place::Older | Place::Maybe => Ok(None),
            }
        })
    }

    pub fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, Error> {
        self.with_engine(|engine| {
            let (at, _pin) = self.pin(at)?;
            let Some((key, place)) = self.place(key, at) else { return Ok(None) };
            match place {
                Place::Absent => Ok(None),
                Place::At(revision) => {
                    let (created, value) = engine.body(&key, revision)?;
                    let entry = Entry { key, value, revision, created };
                    self.values.put(&entry);
                    Ok(Some(entry))
                }
                Place::Older | Place::Maybe => {
                    Bodies::new(engine, &self.values, &key, true).read(&key, place, at)
                }
            }
        })
    }

    pub fn count(&self, prefix: &str) -> Result<usize, Error> {
        self.with_engine(|_| Ok(self.index.read().count(prefix, None, Revision::MAX).certain))
    }

    pub fn list(&self, request: &ListRequest) -> Result<Page, Error> {
        self.with_engine(|engine| {
            let (revision, _pin) = self.pin(request.at)?;
            let limit = if request.limit == 0 { usize::MAX } else { request.limit };
            let mut bodies =
                Bodies::new(engine, &self.values, &request.prefix, limit <= CACHED_LIST_MAX);
            let mut page = Page { entries: Vec::new(), remaining: 0, revision };
            let mut after = request.after.clone();
            while page.entries.len() < limit {
                let wanted = limit - page.entries.len();
                let places = self.places(&request.prefix, after.as_deref(), revision, wanted);
                for (key, place) in &places.present {
                    page.entries.extend(bodies.read(key, *place, revision)?);
                }
                match places.last {
                    Some(last) => after = Some(last.to_string()),
                    None => return Ok(page),
                }
            }
            let rest = self.index.read().count(&request.prefix, after.as_deref(), revision);
            page.remaining = rest.certain;
            for key in &rest.maybe {
                let there = bodies.read(key, Place::Maybe, revision)?.is_some();
                page.remaining += usize::from(there);
            }
            Ok(page)
        })
    }

    /// The next keys that are, or may be, there at a revision.
    fn places(&self, prefix: &str, after: Option<&str>, at: Revision, wanted: usize) -> Places {
        let index = self.index.read();
        let mut places = Places { present: Vec::new(), last: None };
        let mut keys = index.under(prefix, after);
        for (key, known) in keys.by_ref().take(KEYS_AT_A_TIME) {
            let place = known.place(at);
            if place != Place::Absent {
                places.present.push((key.clone(), place));
            }
            places.last = Some(key.clone());
            if places.present.len() == wanted {
                return places;
            }
        }
        if keys.next().is_none() {
            places.last = None;
        }
        places
    }

    /// A watcher's next events from the log.
    fn read_log(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), Error> {
        self.with_engine(|engine| {
            let _pin = self.pins.pin(after)?;
            let mut log = LogCursor::new(engine, after);
            let mut taken = Taken::default();
            let mut searched = 0;
            let mut last = after;
            while let Some((revision, change)) = log.next(engine)? {
                if revision > until {
                    break;
                }
                let a_new_one = revision != last;
                if a_new_one && (taken.full_before(revision) || searched >= SEARCHED_MAX) {
                    return Ok((taken.events, last));
                }
                if change.key.starts_with(prefix) {
                    taken.push(Arc::new(self.event(engine, revision, &change)?));
                }
                searched += 1;
                last = revision;
            }
            if last < until {
                let what = format!("its log ends at revision {last} instead of {until}");
                return Err(engine.inconsistent(&what));
            }
            Ok((taken.events, until))
        })
    }

    fn event(&self, engine: &Engine, revision: Revision, change: &Change) -> Result<Event, Error> {
        let key: Arc<str> = change.key.into();
        let entry = |revision: Revision| {
            if let Some(held) = self.values.get(&key, revision) {
                return Ok(held);
            }
            let (created, value) = engine.body(&key, revision)?;
            Ok::<_, Error>(Entry { key: key.clone(), value, revision, created })
        };
        let now = if change.deleted { None } else { Some(entry(revision)?) };
        let previous = if change.previous == 0 { None } else { Some(entry(change.previous)?) };
        Ok(Event { key, revision, entry: now, previous })
    }
}

struct Places {
    present: Vec<(Arc<str>, Place)>,
    /// Where to go on, if there may be more.
    last: Option<Arc<str>>,
}

/// Walks over bodies in key order. Keys must be asked for in order to be quick.
struct Bodies<'a> {
    engine: &'a Engine,
    values: &'a Values,
    cursor: DBRawIterator<'a>,
    /// The cursor is where the key before this one was read.
    follows: bool,
    held: usize,
    asked: usize,
}

/// So many values are looked for before it is known whether that is worth it.
const TRIES: usize = 16;

impl<'a> Bodies<'a> {
    fn new(engine: &'a Engine, values: &'a Values, prefix: &str, keep_in_cache: bool) -> Self {
        let cursor = engine.cursor(engine.bodies(), codec::bodies_end(prefix), keep_in_cache);
        Self { engine, values, cursor, follows: false, held: 0, asked: 0 }
    }

    /// The value if it is held. A value that is not costs a search of its own where else a step would
    /// do, so only while nearly all are.
    fn held(&mut self, key: &Arc<str>, revision: Revision) -> Option<Entry> {
        if self.asked >= TRIES && self.held * 8 < self.asked * 7 {
            return None;
        }
        self.asked += 1;
        let held = self.values.get(key, revision)?;
        self.held += 1;
        self.follows = false;
        Some(held)
    }

    fn read(&mut self, key: &Arc<str>, place: Place, at: Revision) -> Result<Option<Entry>, Error> {
        let wanted = match place {
            Place::Absent => return Ok(None),
            Place::At(revision) => match self.held(key, revision) {
                Some(entry) => return Ok(Some(entry)),
                None => revision,
            },
            Place::Older | Place::Maybe => at,
        };
        let found = self.newest(key, wanted)?;
        let exact =
            |entry: &Entry| !matches!(place, Place::At(revision) if revision != entry.revision);
        match found.filter(exact) {
            Some(entry) => Ok(Some(entry)),
            None if place == Place::Maybe => Ok(None),
            None => Err(self.engine.missing(key, wanted)),
        }
    }

    /// The newest version of the key that is not newer than `at`, unless the key was deleted then.
    fn newest(&mut self, key: &Arc<str>, at: Revision) -> Result<Option<Entry>, Error> {
        let place = codec::body_key(key, at);
        // Often it is just the next record; a step costs far less than a search.
        if self.follows && self.cursor.valid() {
            self.cursor.next();
        }
        self.follows = true;
        if self.cursor.key() != Some(&place) {
            self.cursor.seek(&place);
        }
        self.cursor.status().map_err(|error| self.engine.failed("read", &error))?;
        let prefix = &place[..place.len() - 8];
        let Some((found, value)) = self.cursor.item() else { return Ok(None) };
        if found.len() != place.len() || !found.starts_with(prefix) {
            return Ok(None);
        }
        let decoded = codec::body_revision(found).and_then(|r| Ok((r, Body::decode(value)?)));
        let (revision, body) = decoded.map_err(|error| self.engine.unreadable(key, &error))?;
        Ok(body.value.map(|value| Entry {
            key: key.clone(),
            value: Bytes::copy_from_slice(value),
            revision,
            created: body.created,
        }))
    }
}

/// Walks over the log, and notices gaps.
pub struct LogCursor<'a> {
    cursor: DBRawIterator<'a>,
    after: Revision,
    last: Revision,
    started: bool,
}

impl<'a> LogCursor<'a> {
    pub fn new(engine: &'a Engine, after: Revision) -> Self {
        let cursor = engine.cursor(engine.log(), None, true);
        Self { cursor, after, last: after, started: false }
    }

    /// The next change; None at the end of the log.
    pub fn next(&mut self, engine: &Engine) -> Result<Option<(Revision, Change<'_>)>, Error> {
        if self.started {
            self.cursor.next();
        } else {
            self.cursor.seek(Change::place(self.after + 1, 0));
            self.started = true;
        }
        self.cursor.status().map_err(|error| engine.failed("read", &error))?;
        let Some((place, value)) = self.cursor.item() else { return Ok(None) };
        let decoded = Change::revision(place).and_then(|r| Ok((r, Change::decode(value)?)));
        let (revision, change) =
            decoded.map_err(|error| engine.unreadable("of the log", &error))?;
        if revision > self.last + 1 {
            let what =
                format!("its log has nothing between revisions {} and {revision}", self.last);
            return Err(engine.inconsistent(&what));
        }
        self.last = revision;
        Ok(Some((revision, change)))
    }
}

/// The log as watchers see it.
pub struct Log(pub Arc<Shared>);

#[async_trait]
impl History for Log {
    async fn read(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), Error> {
        let prefix = prefix.to_owned();
        self.0.blocking(move |shared| shared.read_log(&prefix, after, until)).await
    }
}
