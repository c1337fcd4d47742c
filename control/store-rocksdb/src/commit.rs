//! The one thread that writes.
//!
//! It takes what waits in the queue as one group, decides each transaction against the index and
//! what the group changed so far, writes the group with one sync, and only then makes it visible:
//! index, feed, answers, in that order, so that whoever has an answer reads his own write, and the
//! watchers are woken last: whoever waits for an answer is served before those who follow. An
//! answer that refuses (a conflict) waits for the sync too: it may be about a write of the group.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rimward_control_store::{CommitError, Entry, Error, Event, Op, Revision, Txn};
use rocksdb::WriteBatch;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::Shared;
use crate::codec::{self, Body, Change, Known};
use crate::directory::Directory;
use crate::engine::{self, Engine, FACT_COMPACTED, FACT_REVISION, FACT_TRIMMED};
use crate::trim::Garbage;

/// How many requests may wait; who comes then waits to get in.
pub const QUEUE: usize = 1024;
/// And how many KiB of transactions.
pub const QUEUE_KIB: usize = 16 << 10;
/// When a group is full.
const GROUP_TRANSACTIONS_MAX: usize = 512;
const GROUP_BYTES_MAX: usize = 4 << 20;
/// How long it is believed that the disk has room.
const ROOM_ASKED_EVERY: Duration = Duration::from_millis(10);

pub enum Request {
    Commit {
        txn: Txn,
        reply: oneshot::Sender<Result<Revision, CommitError>>,
        /// Its place in the queue.
        room: OwnedSemaphorePermit,
    },
    Compact {
        revision: Revision,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Trim {
        garbage: Garbage,
        reply: oneshot::Sender<()>,
    },
}

pub struct Committer {
    shared: Arc<Shared>,
    directory: Directory,
    /// The newest revision, written or in the present group.
    revision: Revision,
    queue: mpsc::Receiver<Request>,
    /// That long there is room on the disk.
    roomy_until: Option<Instant>,
    /// The last note of how far we acknowledged could not be written; said once.
    notes_fail: bool,
}

/// Transactions that are written and answered together.
#[derive(Default)]
struct Group {
    batch: WriteBatch,
    bytes: usize,
    transactions: usize,
    changed: HashMap<Arc<str>, Changed>,
    events: Vec<Arc<Event>>,
    compacted: Option<Revision>,
    answers: Vec<Answer>,
}

/// A key as an earlier transaction of the group left it.
struct Changed {
    known: Known,
    /// None: deleted.
    value: Option<Bytes>,
}

enum Answer {
    Commit(oneshot::Sender<Result<Revision, CommitError>>, Result<Revision, CommitError>),
    Compact(oneshot::Sender<Result<(), Error>>, Result<(), Error>),
}

impl Group {
    fn is_full(&self) -> bool {
        self.transactions >= GROUP_TRANSACTIONS_MAX || self.bytes >= GROUP_BYTES_MAX
    }
}

impl Committer {
    pub fn new(
        shared: Arc<Shared>,
        directory: Directory,
        revision: Revision,
        queue: mpsc::Receiver<Request>,
    ) -> Self {
        Self { shared, directory, revision, queue, roomy_until: None, notes_fail: false }
    }

    /// Runs until the store is closed and the queue is empty.
    pub fn run(mut self) {
        let path = self.shared.path.clone();
        // A half-done group must not be followed by another, nor its writers wait for ever.
        if catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            die(&path, "its writer panicked");
        }
        if let Err(error) = self.directory.seal() {
            tracing::warn!(path = %path.display(), %error, "cannot sync the file `acknowledged`");
        }
    }

    fn serve(&mut self) {
        let shared = self.shared.clone();
        let engine = shared.engine.read();
        let Some(engine) = &*engine else { return };
        self.prepare_log(engine);
        while let Some(first) = self.queue.blocking_recv() {
            let mut group = Group::default();
            let mut garbage = None;
            let may_grow = self.room();
            let mut next = Some(first);
            while let Some(request) = next.take() {
                match request {
                    Request::Commit { txn, reply, room } => {
                        drop(room);
                        let answer = self.stage(engine, &mut group, txn, &may_grow);
                        group.answers.push(Answer::Commit(reply, answer));
                    }
                    Request::Compact { revision, reply } => {
                        let answer = self.stage_compaction(&mut group, revision);
                        group.answers.push(Answer::Compact(reply, answer));
                    }
                    // Alone, after the group: it looks at the index as the group leaves it.
                    Request::Trim { garbage: found, reply } => {
                        garbage = Some((found, reply));
                        break;
                    }
                }
                if !group.is_full() {
                    next = self.queue.try_recv().ok();
                }
            }
            self.write_group(engine, group);
            if let Some((garbage, reply)) = garbage {
                self.write_garbage(engine, &garbage);
                let _trimmer_may_be_gone = reply.send(());
            }
        }
    }

    /// The log is quicker to sync once it is written over files that are there. Not on a disk that is
    /// short of room.
    fn prepare_log(&self, engine: &Engine) {
        let (bytes, reserve) =
            (self.shared.options.log_file_bytes, self.shared.options.disk_reserve_bytes);
        let enough = self.free_bytes().is_none_or(|free| free >= reserve + 8 * bytes as u64);
        if bytes > 0
            && enough
            && let Err(error) = engine.prepare_log(bytes)
        {
            die(&self.shared.path, &format!("a write failed: {error}"));
        }
    }

    /// Whether there is room for transactions that add something, or why not. While there is, it is not
    /// asked before every group: what a disk loses in so short a time, the reserve has.
    fn room(&mut self) -> Result<(), String> {
        if self.roomy_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let (path, reserve) = (&self.shared.path, self.shared.options.disk_reserve_bytes);
        // If it cannot be asked, the write itself will tell.
        let Some(free) = self.free_bytes().filter(|free| *free < reserve) else {
            self.roomy_until = Some(Instant::now() + ROOM_ASKED_EVERY);
            return Ok(());
        };
        self.roomy_until = None;
        Err(format!(
            "the file system of {} is full ({} MiB left, {} MiB are kept in reserve): free some \
             space or delete objects",
            path.display(),
            free >> 20,
            reserve >> 20
        ))
    }

    fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.shared.path).ok()?;
        Some(stat.f_bavail * stat.f_frsize)
    }

    /// Decides a transaction and adds it to the group.
    fn stage(
        &mut self,
        engine: &Engine,
        group: &mut Group,
        txn: Txn,
        may_grow: &Result<(), String>,
    ) -> Result<Revision, CommitError> {
        group.transactions += 1;
        let current = self.current(group, &txn);
        for (index, (op, (_, known))) in txn.ops.iter().zip(&current).enumerate() {
            if !op.expect().holds(known.and_then(|known| known.present())) {
                let current = match known {
                    Some(known) => self.entry(engine, group, op.key(), known)?,
                    None => None,
                };
                return Err(CommitError::Conflict { op: index, current });
            }
        }
        if let Err(full) = may_grow
            && txn.ops.iter().any(|op| matches!(op, Op::Put { .. }))
        {
            return Err(Error::Backend(full.clone()).into());
        }
        // Everything is read before anything is added, so that a failed read leaves no half.
        let mut previous = Vec::with_capacity(txn.ops.len());
        for (op, (_, known)) in txn.ops.iter().zip(&current) {
            previous.push(match (op, known) {
                (Op::Check { .. }, _) | (_, None) => None,
                (_, Some(known)) => self.entry(engine, group, op.key(), known)?,
            });
        }
        let revision = self.revision + 1;
        let mut changes = 0;
        for ((op, (key, known)), previous) in txn.ops.into_iter().zip(current).zip(previous) {
            let value = match op {
                Op::Put { value, .. } => Some(value),
                Op::Delete { .. } if previous.is_some() => None,
                Op::Delete { .. } | Op::Check { .. } => continue,
            };
            group.add(engine, revision, changes, key, known, previous, value);
            changes += 1;
        }
        if changes > 0 {
            self.revision = revision;
        }
        Ok(self.revision)
    }

    /// Each operation's key as it is now, after what the group did so far.
    fn current(&self, group: &Group, txn: &Txn) -> Vec<(Arc<str>, Option<Known>)> {
        let index = self.shared.index.read();
        let look_up = |op: &Op| {
            if let Some((key, changed)) = group.changed.get_key_value(op.key()) {
                return (key.clone(), Some(changed.known));
            }
            match index.get(op.key()) {
                Some((key, known)) => (key.clone(), Some(*known)),
                None => (op.key().into(), None),
            }
        };
        txn.ops.iter().map(look_up).collect()
    }

    fn entry(
        &self,
        engine: &Engine,
        group: &Group,
        key: &str,
        known: &Known,
    ) -> Result<Option<Entry>, Error> {
        let Some(revision) = known.present() else { return Ok(None) };
        let (key, value) = match group.changed.get_key_value(key) {
            Some((key, changed)) => (key.clone(), changed.value.clone().unwrap_or_default()),
            None => {
                let key: Arc<str> = key.into();
                match self.shared.values.get(&key, revision) {
                    Some(entry) => return Ok(Some(entry)),
                    None => {
                        let value = engine.body(&key, revision)?.1;
                        (key, value)
                    }
                }
            }
        };
        Ok(Some(Entry { key, value, revision, created: known.created }))
    }

    fn stage_compaction(&self, group: &mut Group, revision: Revision) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::Future { asked: revision, newest: self.revision });
        }
        let sofar = group.compacted.unwrap_or_else(|| self.shared.pins.oldest());
        if revision > sofar {
            engine::put_fact(&mut group.batch, FACT_COMPACTED, revision);
            group.compacted = Some(revision);
        }
        Ok(())
    }

    fn write_group(&mut self, engine: &Engine, mut group: Group) {
        if !group.events.is_empty() {
            engine::put_fact(&mut group.batch, FACT_REVISION, self.revision);
        }
        if !group.batch.is_empty() {
            self.write(engine, group.batch);
        }
        let mut wakes = None;
        if !group.events.is_empty() {
            self.note_acknowledged();
            let mut index = self.shared.index.write();
            for (key, changed) in group.changed {
                index.insert(key, changed.known);
            }
            drop(index);
            for event in &group.events {
                match &event.entry {
                    Some(entry) => self.shared.values.put(entry),
                    None => self.shared.values.forget(&event.key),
                }
            }
            wakes = Some(self.shared.feed.publish(group.events, self.revision));
        }
        if let Some(revision) = group.compacted {
            self.shared.pins.compact(revision);
        }
        for answer in group.answers {
            // Who no longer waits does not need the answer.
            match answer {
                Answer::Commit(reply, answer) => drop(reply.send(answer)),
                Answer::Compact(reply, answer) => drop(reply.send(answer)),
            }
        }
        drop(wakes);
    }

    fn write_garbage(&self, engine: &Engine, garbage: &Garbage) {
        let mut batch = WriteBatch::default();
        for body in &garbage.bodies {
            batch.delete_cf(engine.bodies(), body);
        }
        let index = self.shared.index.read();
        for (key, revision) in &garbage.deleted {
            if index.deleted_at(key) == Some(*revision) {
                batch.delete_cf(engine.keys(), key.as_bytes());
            }
        }
        drop(index);
        let (from, to) = (Change::place(garbage.after + 1, 0), Change::place(garbage.upto + 1, 0));
        batch.delete_range_cf(engine.log(), from, to);
        engine::put_fact(&mut batch, FACT_TRIMMED, garbage.upto);
        self.write(engine, batch);
        let mut index = self.shared.index.write();
        for (key, revision) in &garbage.deleted {
            index.forget(key, *revision);
        }
    }

    fn write(&self, engine: &Engine, batch: WriteBatch) {
        if let Err(error) = engine.write(batch) {
            die(&self.shared.path, &format!("a write failed: {error}"));
        }
    }

    fn note_acknowledged(&mut self) {
        if let Err(error) = self.directory.acknowledge(self.revision)
            && !self.notes_fail
        {
            self.notes_fail = true;
            let path = self.shared.path.display();
            tracing::warn!(%path, %error, "cannot write the file `acknowledged`");
        }
    }
}

impl Group {
    /// Adds one key's change to the batch, the overlay and the events.
    #[expect(clippy::too_many_arguments)]
    fn add(
        &mut self,
        engine: &Engine,
        revision: Revision,
        index: u16,
        key: Arc<str>,
        known: Option<Known>,
        previous: Option<Entry>,
        value: Option<Bytes>,
    ) {
        let created = previous.as_ref().map_or(revision, |entry| entry.created);
        let earlier = known.is_some_and(|known| known.earlier || known.deleted);
        let known = Known { revision, created, deleted: value.is_none(), earlier };
        let change = Change {
            key: &key,
            deleted: value.is_none(),
            previous: previous.as_ref().map_or(0, |entry| entry.revision),
            previous_bytes: previous.as_ref().map_or(0, |entry| entry.value.len() as u64),
        };
        let body = Body { created, value: value.as_deref() };
        self.batch.put_cf(engine.bodies(), codec::body_key(&key, revision), body.encode());
        self.batch.put_cf(engine.log(), Change::place(revision, index), change.encode());
        self.batch.put_cf(engine.keys(), key.as_bytes(), known.encode());
        self.bytes += value.as_ref().map_or(0, Bytes::len) + 2 * key.len();
        let entry = value.clone().map(|value| Entry { key: key.clone(), value, revision, created });
        self.events.push(Arc::new(Event { key: key.clone(), revision, entry, previous }));
        self.changed.insert(key, Changed { known, value });
    }
}

/// Ends the process. After a failed write nobody knows what the disk holds until it is read again;
/// going on could acknowledge what is not there.
fn die(path: &Path, what: &str) -> ! {
    let text = format!(
        "the store in {} cannot go on: {what}. Nothing that was acknowledged is lost. Check the \
         disk and its free space, then start again",
        path.display()
    );
    tracing::error!("{text}");
    eprintln!("rimward: {text}");
    std::process::abort();
}
