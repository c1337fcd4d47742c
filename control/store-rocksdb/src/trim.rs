//! The thread that removes history which was compacted and which nobody reads any more.
//!
//! The log says what is garbage: a change at or before the compaction revision replaced a version
//! that no retained revision shows. So the work is proportional to what happened, not to what is
//! stored. It is deleted in pieces through the committer, between its groups; when enough is gone
//! the files are rewritten, beside everything else. Where it stopped is a fact in the database, so
//! a restart goes on from there.

use std::sync::Arc;

use rimward_control_store::{Error, Revision};
use tokio::sync::{oneshot, watch};

use crate::Shared;
use crate::codec;
use crate::commit::Request;
use crate::read::LogCursor;

/// How many log records are trimmed by one write.
const PIECE: usize = 1000;
/// What a version costs beside its value, roughly.
const RECORD_BYTES: u64 = 100;

/// What one write removes.
#[derive(Default)]
pub struct Garbage {
    /// The log is removed from after here
    pub after: Revision,
    /// up to here.
    pub upto: Revision,
    /// Places of versions that no retained revision shows.
    pub bodies: Vec<Vec<u8>>,
    /// Keys deleted at a revision; forgotten unless they came back since.
    pub deleted: Vec<(String, Revision)>,
    bytes: u64,
}

pub struct Trimmer {
    shared: Arc<Shared>,
    trimmed: Revision,
    /// Bytes deleted since the files were last rewritten.
    freed: u64,
    said: watch::Sender<Revision>,
}

impl Trimmer {
    pub fn new(shared: Arc<Shared>, trimmed: Revision) -> (Self, watch::Receiver<Revision>) {
        let (said, hear) = watch::channel(trimmed);
        (Self { shared, trimmed, freed: 0, said }, hear)
    }

    pub fn run(mut self) {
        while let Some(upto) = self.shared.pins.wait_for_garbage(self.trimmed) {
            match self.trim(upto) {
                Ok(()) => self.said.send_replace(self.trimmed),
                Err(Error::Closed) => return,
                Err(error) => {
                    // Without trimming the store only grows; reads and writes go on.
                    tracing::error!(%error, "history is no longer removed");
                    return;
                }
            };
        }
    }

    fn trim(&mut self, upto: Revision) -> Result<(), Error> {
        while self.trimmed < upto {
            let garbage = self.collect(upto)?;
            let (next, bytes) = (garbage.upto, garbage.bytes);
            let (reply, done) = oneshot::channel();
            let requests = self.shared.requests.lock().clone().ok_or(Error::Closed)?;
            requests.blocking_send(Request::Trim { garbage, reply }).map_err(|_| Error::Closed)?;
            drop(requests);
            done.blocking_recv().map_err(|_| Error::Closed)?;
            self.trimmed = next;
            self.freed += bytes;
        }
        self.rewrite()
    }

    /// The next piece, which ends with a whole transaction.
    fn collect(&self, upto: Revision) -> Result<Garbage, Error> {
        self.shared.with_engine(|engine| {
            let mut garbage = Garbage::default();
            let mut log = LogCursor::new(engine, self.trimmed);
            let mut last = self.trimmed;
            let mut searched = 0;
            while let Some((revision, change)) = log.next(engine)? {
                if revision > upto || (revision != last && searched >= PIECE) {
                    break;
                }
                if change.previous != 0 {
                    garbage.bodies.push(codec::body_key(change.key, change.previous));
                }
                if change.deleted {
                    garbage.bodies.push(codec::body_key(change.key, revision));
                    garbage.deleted.push((change.key.to_owned(), revision));
                }
                garbage.bytes += change.previous_bytes + change.key.len() as u64 + RECORD_BYTES;
                searched += 1;
                last = revision;
            }
            if last == self.trimmed {
                return Err(
                    engine.inconsistent(&format!("its log has nothing after revision {last}"))
                );
            }
            garbage.after = self.trimmed;
            garbage.upto = last;
            Ok(garbage)
        })
    }

    /// Deleted records occupy the disk until the files that hold them are rewritten, which costs
    /// as much as the files are large: so it waits until a good part of them is garbage.
    fn rewrite(&mut self) -> Result<(), Error> {
        self.shared.with_engine(|engine| {
            let worth_it = self.shared.options.rewrite_bytes_min.max(engine.table_bytes() / 2);
            if self.freed >= worth_it {
                engine.rewrite();
                self.freed = 0;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use rimward_control_store::{Expect, Op, Store, Txn};

    use crate::engine::Engine;
    use crate::{Options, RocksStore};

    /// Records in bodies, log and keys.
    fn records(engine: &Engine) -> [usize; 3] {
        [engine.bodies(), engine.log(), engine.keys()].map(|family| {
            let mut cursor = engine.cursor(family, None, true);
            cursor.seek_to_first();
            let mut count = 0;
            while cursor.valid() {
                count += 1;
                cursor.next();
            }
            count
        })
    }

    /// Of what was compacted nothing is left but the state: in no family, nor in memory.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_left_but_the_state() {
        let directory = tempfile::tempdir().unwrap();
        let store = RocksStore::open(&directory.path().join("store"), Options::default()).unwrap();
        let commit = async |keys: std::ops::Range<usize>, delete: bool| {
            let ops = keys.map(|n| {
                let (key, expect) = (format!("/{n}"), Expect::Anything);
                if delete {
                    Op::Delete { key, expect }
                } else {
                    Op::Put { key, value: "x".into(), expect }
                }
            });
            store.commit(Txn { ops: ops.collect() }).await.unwrap()
        };
        for _ in 0..30 {
            commit(0..100, false).await;
            commit(20..100, true).await;
        }
        let back = commit(90..100, false).await;
        commit(10..20, true).await;
        let newest = commit(10..15, false).await;

        let look = || {
            let index = store.shared.index.read().under("", None).count();
            (store.shared.with_engine(|engine| Ok(records(engine))).unwrap(), index)
        };
        let written = 30 * (100 + 80) + 10 + 10 + 5;
        assert_eq!(look(), ([written, written, 100], 100));
        store.compact(back).await.unwrap();
        store.trimmed(back).await.unwrap();
        // The twenty that stayed and the ten that came back; then ten went and five came back.
        assert_eq!(look(), ([20 + 10 + 10 + 5, 10 + 5, 30], 30));
        store.compact(newest).await.unwrap();
        store.trimmed(newest).await.unwrap();
        assert_eq!(look(), ([25, 0, 25], 25));
    }
}
