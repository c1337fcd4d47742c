//! How watchers learn of commits: the part that is the same for every backend.
//!
//! A watcher is a position in the backend's log. Near the head it is fed from one small ring of
//! recent events that all watchers share; further back it reads the log ([`History`]) at its own
//! pace. Between the two nothing is queued per watcher: a commit leaves a mark (two numbers) with
//! each watcher of a prefix that it touched, and does not touch the others at all. So a watcher
//! that is never asked costs the same few bytes for ever.
//!
//! Rejected: a channel per watcher (memory for the slow), one broadcast channel (wakes watchers of
//! every prefix on every commit).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::{Batch, Error, Event, Revision, Watch};

/// How many events one batch holds at most, before it ends with the transaction it is in.
pub const BATCH_EVENTS_MAX: usize = 512;
/// How many bytes of values one batch holds at most, before it ends with the transaction it is in.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// How much the shared ring of recent events may hold.
#[derive(Clone, Copy, Debug)]
pub struct RingLimits {
    pub events: usize,
    /// Bytes of keys and values, previous values included.
    pub bytes: usize,
}

impl Default for RingLimits {
    fn default() -> Self {
        Self { events: 4096, bytes: 4 << 20 }
    }
}

/// The retained log of a backend, for watchers that are behind the ring.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Events of keys that start with `prefix`, of whole transactions in `(after, until]`, oldest
    /// first, and the revision up to which the log was searched. May stop early (at the batch
    /// limits, or after searching long enough), but always gets further than `after`.
    async fn read(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), Error>;
}

/// The head of the log and everyone who follows it.
pub struct Feed {
    head: AtomicU64,
    closed: AtomicBool,
    ring: RwLock<Ring>,
    watchers: RwLock<BTreeMap<String, HashMap<u64, Arc<Slot>>>>,
    next_watcher: AtomicU64,
    /// Wakes those who want to hear of every revision, whatever it touched.
    moved: Notify,
}

struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// The ring holds every event later than this.
    floor: Revision,
    limits: RingLimits,
}

/// What a commit leaves with a watcher.
#[derive(Default)]
struct Slot {
    marks: Mutex<Marks>,
    wake: Notify,
}

/// Wakes, when it is dropped, the watchers that a commit concerns.
#[must_use = "watchers are woken when it is dropped"]
pub struct Wakes<'a> {
    feed: &'a Feed,
    touched: Vec<Arc<Slot>>,
}

impl Drop for Wakes<'_> {
    fn drop(&mut self) {
        for slot in &self.touched {
            slot.wake.notify_one();
        }
        self.feed.moved.notify_waiters();
    }
}

/// The first and the last revision that touched the prefix since the watcher looked; 0 is none.
#[derive(Clone, Copy, Default)]
struct Marks {
    first: Revision,
    last: Revision,
}

impl Feed {
    /// `head` is the newest durable revision.
    pub fn new(head: Revision, limits: RingLimits) -> Arc<Self> {
        Arc::new(Self {
            head: AtomicU64::new(head),
            closed: AtomicBool::new(false),
            ring: RwLock::new(Ring { events: VecDeque::new(), bytes: 0, floor: head, limits }),
            watchers: RwLock::default(),
            next_watcher: AtomicU64::new(0),
            moved: Notify::new(),
        })
    }

    /// The newest revision that readers and watchers may see.
    pub fn head(&self) -> Revision {
        self.head.load(Ordering::SeqCst)
    }

    /// Makes durable transactions visible: `events` of revisions after the present head up to
    /// `head`, in order. One caller at a time. Watchers sleep until what is answered is dropped, so
    /// that the writers can have their answers before a dozen watchers run for the cores.
    pub fn publish(&self, events: Vec<Arc<Event>>, head: Revision) -> Wakes<'_> {
        let touched = self.mark(&events);
        self.ring.write().push(events);
        // After the marks: a watcher that reads this head and finds no mark has missed nothing.
        self.head.store(head, Ordering::SeqCst);
        Wakes { feed: self, touched }
    }

    /// Every watcher answers [`Error::Closed`] from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for slot in self.watchers.read().values().flat_map(HashMap::values) {
            slot.wake.notify_one();
        }
        self.moved.notify_waiters();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.watchers.read().values().map(HashMap::len).sum()
    }

    /// A watcher of `prefix` from `after`, which must be retained: that is the backend's to check,
    /// also against its log whenever it is read.
    pub fn watch(
        self: &Arc<Self>,
        prefix: &str,
        after: Revision,
        history: Arc<dyn History>,
    ) -> Result<Box<dyn Watch>, Error> {
        if self.is_closed() {
            return Err(Error::Closed);
        }
        // Registered before the head is read: what is published in between leaves a mark.
        let slot = Arc::new(Slot::default());
        let id = self.next_watcher.fetch_add(1, Ordering::Relaxed);
        self.watchers.write().entry(prefix.to_owned()).or_default().insert(id, slot.clone());
        let watcher = Watcher {
            feed: self.clone(),
            history,
            prefix: prefix.to_owned(),
            id,
            slot,
            position: after,
            said: after,
            due: Some(after + 1),
            last: 0,
            progress: false,
        };
        let newest = self.head();
        if after > newest {
            return Err(Error::Future { asked: after, newest });
        }
        Ok(Box::new(watcher))
    }

    /// Leaves marks for the watchers whose prefix an event touched, and answers who they are. The
    /// first event of a batch that touches a watcher counts, so later ones are cheap.
    fn mark(&self, events: &[Arc<Event>]) -> Vec<Arc<Slot>> {
        let watchers = self.watchers.read();
        let mut touched: HashMap<&str, Marks> = HashMap::new();
        for event in events {
            for_each_prefix_of(&watchers, &event.key, |prefix| {
                let marks = touched.entry(prefix).or_default();
                if marks.first == 0 {
                    marks.first = event.revision;
                }
                marks.last = event.revision;
            });
        }
        let mut slots = Vec::new();
        for (prefix, new) in touched {
            for slot in watchers[prefix].values() {
                let mut marks = slot.marks.lock();
                if marks.first == 0 {
                    marks.first = new.first;
                }
                marks.last = new.last;
                slots.push(slot.clone());
            }
        }
        slots
    }
}

/// Calls `found` with each key of the map that `text` starts with. It walks down the sorted map by
/// ever shorter common prefixes, so it costs a few look-ups, however many prefixes are watched.
fn for_each_prefix_of<'m, V>(
    map: &'m BTreeMap<String, V>,
    text: &str,
    mut found: impl FnMut(&'m str),
) {
    let mut reach = text;
    loop {
        let below = (Bound::Unbounded, Bound::Included(reach));
        let Some((candidate, _)) = map.range::<str, _>(below).next_back() else { return };
        if text.starts_with(candidate.as_str()) {
            found(candidate);
            let Some(last) = candidate.chars().next_back() else { return };
            reach = &text[..candidate.len() - last.len_utf8()];
        } else {
            // Whatever is a prefix of the text and sorts before the candidate is a prefix of what
            // both share.
            let shared: usize = text
                .chars()
                .zip(candidate.chars())
                .take_while(|(a, b)| a == b)
                .map(|(a, _)| a.len_utf8())
                .sum();
            reach = &text[..shared.min(reach.len())];
        }
    }
}

impl Ring {
    fn push(&mut self, events: Vec<Arc<Event>>) {
        for event in events {
            self.bytes += size(&event);
            self.events.push_back(event);
        }
        while self.bytes > self.limits.bytes || self.events.len() > self.limits.events {
            let Some(oldest) = self.events.front() else { return };
            // Whole transactions, or a watcher would be handed half of one.
            self.floor = oldest.revision;
            while self.events.front().is_some_and(|event| event.revision == self.floor) {
                let gone = self.events.pop_front().expect("front was there");
                self.bytes -= size(&gone);
            }
        }
    }

    /// The events that a watcher at `after` comes to next; None when the ring does not reach back
    /// that far.
    fn read(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> Option<(Vec<Arc<Event>>, Revision)> {
        if after < self.floor {
            return None;
        }
        let start = self.events.partition_point(|event| event.revision <= after);
        let mut taken = Taken::default();
        for event in self.events.range(start..) {
            if event.revision > until {
                break;
            }
            if taken.full_before(event.revision) {
                return Some((taken.events, event.revision - 1));
            }
            if event.key.starts_with(prefix) {
                taken.push(event.clone());
            }
        }
        Some((taken.events, until))
    }
}

/// Events collected for one batch, which ends with a whole transaction.
#[derive(Default)]
pub struct Taken {
    pub events: Vec<Arc<Event>>,
    bytes: usize,
}

impl Taken {
    pub fn push(&mut self, event: Arc<Event>) {
        self.bytes += size(&event);
        self.events.push(event);
    }

    /// Whether the batch should end before an event of this revision.
    pub fn full_before(&self, revision: Revision) -> bool {
        (self.events.len() >= BATCH_EVENTS_MAX || self.bytes >= BATCH_BYTES_MAX)
            && self.events.last().is_some_and(|last| last.revision < revision)
    }
}

fn size(event: &Event) -> usize {
    let value = |entry: &Option<crate::Entry>| entry.as_ref().map_or(0, |e| e.value.len());
    event.key.len() + value(&event.entry) + value(&event.previous)
}

struct Watcher {
    feed: Arc<Feed>,
    history: Arc<dyn History>,
    prefix: String,
    id: u64,
    slot: Arc<Slot>,
    /// Everything up to here was delivered, or did not concern the prefix.
    position: Revision,
    /// The revision of the last batch.
    said: Revision,
    /// The first revision after `position` that may concern the prefix; None: none that was
    /// published when we last looked.
    due: Option<Revision>,
    /// The last revision that is known to concern the prefix.
    last: Revision,
    progress: bool,
}

impl Watcher {
    fn take_marks(&mut self) {
        let marks = std::mem::take(&mut *self.slot.marks.lock());
        if marks.first > self.position && self.due.is_none() {
            self.due = Some(marks.first);
        }
        self.last = self.last.max(marks.last);
    }

    async fn read(
        &self,
        after: Revision,
        head: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), Error> {
        let recent = self.feed.ring.read().read(&self.prefix, after, head);
        match recent {
            Some(read) => Ok(read),
            None => self.history.read(&self.prefix, after, head).await,
        }
    }
}

#[async_trait]
impl Watch for Watcher {
    async fn next(&mut self) -> Result<Batch, Error> {
        let feed = self.feed.clone();
        let slot = self.slot.clone();
        loop {
            let mut moved = pin!(feed.moved.notified());
            if self.progress {
                moved.as_mut().enable();
            }
            if feed.is_closed() {
                return Err(Error::Closed);
            }
            // The head first: what it covers has left its marks already.
            let head = feed.head();
            self.take_marks();
            if let Some(due) = self.due
                && due <= head
            {
                let (events, upto) = self.read(self.position.max(due - 1), head).await?;
                self.position = upto;
                self.due = (upto < head || self.last > upto).then_some(upto + 1);
                if !events.is_empty() {
                    self.said = upto;
                    return Ok(Batch { events, revision: upto });
                }
                continue;
            }
            self.position = self.position.max(head);
            if self.progress && self.position > self.said {
                self.said = self.position;
                return Ok(Batch { events: Vec::new(), revision: self.position });
            }
            tokio::select! {
                () = slot.wake.notified() => {}
                () = moved, if self.progress => {}
            }
        }
    }

    fn progress(&mut self, wanted: bool) {
        self.progress = wanted;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut watchers = self.feed.watchers.write();
        if let Some(group) = watchers.get_mut(&self.prefix) {
            group.remove(&self.id);
            if group.is_empty() {
                watchers.remove(&self.prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_a_key_are_found() {
        let check = |prefixes: &[&str], key: &str, expected: &[&str]| {
            let map: BTreeMap<String, ()> =
                prefixes.iter().map(|p| ((*p).to_owned(), ())).collect();
            let mut found = Vec::new();
            for_each_prefix_of(&map, key, |p| found.push(p));
            found.reverse();
            assert_eq!(found, expected, "{key} among {prefixes:?}");
        };
        check(&[], "/pods/a", &[]);
        check(&[""], "/pods/a", &[""]);
        check(&["", "/pods/", "/pods/a/", "/pods/b/"], "/pods/a/x", &["", "/pods/", "/pods/a/"]);
        check(&["/pods/a/x"], "/pods/a/x", &["/pods/a/x"]);
        check(&["/pods/a/xy", "/pods/a/xa"], "/pods/a/x", &[]);
        check(&["/a", "/b", "/c"], "/b/x", &["/b"]);
        check(&["/é", "/è/"], "/é/x", &["/é"]);
        check(&["/p", "/pa", "/pb", "/pc", "/pca"], "/pcz", &["/p", "/pc"]);
    }

    /// Against the obvious way, on many small texts.
    #[test]
    fn prefixes_of_a_key_are_all_found() {
        let mut texts = vec![String::new()];
        for length in 0..5 {
            let longer: Vec<String> = texts
                .iter()
                .filter(|t| t.len() == length)
                .flat_map(|t| ["a", "b"].map(|c| format!("{t}{c}")))
                .collect();
            texts.extend(longer);
        }
        for salt in 0..40_usize {
            let map: BTreeMap<String, ()> = texts
                .iter()
                .enumerate()
                .filter(|(i, _)| (i * 7 + salt * 13) % 11 < 4)
                .map(|(_, t)| (t.clone(), ()))
                .collect();
            for text in &texts {
                let mut found = Vec::new();
                for_each_prefix_of(&map, text, |p| found.push(p));
                found.reverse();
                let expected: Vec<&str> =
                    map.keys().map(String::as_str).filter(|p| text.starts_with(p)).collect();
                assert_eq!(found, expected, "{text}");
            }
        }
    }
}
