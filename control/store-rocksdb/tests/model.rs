//! RocksStore does what MemoryStore does, whatever is asked in whatever order.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails by panicking, as the test does")]

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rimward_control_store::{
    CommitError, Error, Event, Expect, ListRequest, MemoryStore, Op, Page, Revision, Store, Txn,
    Watch,
};
use rimward_control_store_rocksdb::{Options, RocksStore};

/// Short keys of two letters, so that some are prefixes of others.
fn key() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!['a', 'b', '/', '\0']), 0..4)
        .prop_map(|letters| letters.into_iter().collect())
}

/// A condition, given as how far back the revision lies that it asks for.
#[derive(Clone, Debug)]
enum Condition {
    Anything,
    Absent,
    /// The key's present revision, less this.
    Current(u64),
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(u8, String, Condition)>),
    Get {
        key: String,
        back: Option<u64>,
    },
    List {
        prefix: String,
        after: Option<String>,
        limit: usize,
        back: Option<u64>,
    },
    Count(String),
    Compact {
        back: u64,
    },
    Watch {
        prefix: String,
        back: u64,
    },
    /// Every watch catches up.
    Drain,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let condition = prop_oneof![
        6 => Just(Condition::Anything),
        1 => Just(Condition::Absent),
        2 => Just(Condition::Current(0)),
        1 => (0..3_u64).prop_map(Condition::Current),
    ];
    let ops = prop::collection::vec((0..4_u8, key(), condition), 0..5);
    let back = || prop::option::of(0..12_u64);
    prop_oneof![
        12 => ops.prop_map(Step::Commit),
        3 => (key(), back()).prop_map(|(key, back)| Step::Get { key, back }),
        6 => (key(), prop::option::of(key()), 0..4_usize, back())
            .prop_map(|(prefix, after, limit, back)| Step::List { prefix, after, limit, back }),
        1 => key().prop_map(Step::Count),
        1 => (0..12_u64).prop_map(|back| Step::Compact { back }),
        2 => (key(), 0..12_u64).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        2 => Just(Step::Drain),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn does_what_the_memory_does(steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(compare(steps));
    }
}

async fn compare(steps: Vec<Step>) {
    // In memory where possible: this is not about the disk, and opens a thousand stores.
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = directory.path().join("store");
    let model = MemoryStore::new();
    let mut pair = Pair { model: model.clone(), store: open(&path), watches: Vec::new() };
    for step in steps {
        if let Step::Reopen = step {
            pair.watches.clear();
            pair.store.close().await;
            pair.store = open(&path);
        } else {
            pair.take(step).await;
        }
        assert_eq!(pair.store.revision(), model.revision());
        assert_eq!(pair.store.oldest(), model.oldest());
    }
    pair.drain().await;
}

fn open(path: &Path) -> Arc<RocksStore> {
    let options = Options {
        // Small, so that watches leave the ring and trimming rewrites files.
        ring: rimward_control_store::feed::RingLimits { events: 4, bytes: 1 << 20 },
        rewrite_bytes_min: 500,
        log_file_bytes: 64 << 10,
        ..Options::default()
    };
    RocksStore::open(path, options).unwrap()
}

struct Pair {
    model: Arc<MemoryStore>,
    store: Arc<RocksStore>,
    watches: Vec<Watches>,
}

/// One watch on each, and how far they were read.
struct Watches {
    model: Box<dyn Watch>,
    store: Box<dyn Watch>,
    reached: Revision,
}

impl Pair {
    async fn take(&mut self, step: Step) {
        let newest = self.model.revision();
        // Sometimes one too far, or compacted.
        let at = |back: u64| (newest + 1).saturating_sub(back);
        let (model, store) = (&*self.model as &dyn Store, &*self.store as &dyn Store);
        match step {
            Step::Commit(ops) => {
                let txn = self.transaction(ops).await;
                let answers = [model.commit(txn.clone()).await, store.commit(txn.clone()).await];
                let [expected, found] = answers.map(|answer| show_commit(&answer));
                assert_eq!(found, expected, "{txn:?}");
            }
            Step::Get { key, back } => {
                let at = back.map(at);
                let expected = show(model.get(&key, at).await);
                assert_eq!(show(store.get(&key, at).await), expected, "{key:?} at {at:?}");
            }
            Step::List { prefix, after, limit, back } => {
                let request = ListRequest { prefix, after, limit, at: back.map(at) };
                let expected = show(model.list(request.clone()).await.map(show_page));
                let found = show(store.list(request.clone()).await.map(show_page));
                assert_eq!(found, expected, "{request:?}");
            }
            Step::Count(prefix) => {
                let expected = model.count(&prefix).await.unwrap();
                assert_eq!(store.count(&prefix).await.unwrap(), expected, "{prefix:?}");
            }
            Step::Compact { back } => {
                let expected = show(model.compact(at(back)).await);
                assert_eq!(show(store.compact(at(back)).await), expected);
                // A watch that is behind is told at different moments; that is another test's.
                self.watches.clear();
            }
            Step::Watch { prefix, back } => {
                match (model.watch(&prefix, at(back)), store.watch(&prefix, at(back))) {
                    (Ok(model), Ok(store)) => {
                        self.watches.push(Watches { model, store, reached: at(back) });
                    }
                    (expected, found) => {
                        assert_eq!(show(found.map(|_| ())), show(expected.map(|_| ())));
                    }
                }
            }
            Step::Drain => self.drain().await,
            Step::Reopen => unreachable!("the caller's"),
        }
    }

    async fn transaction(&self, ops: Vec<(u8, String, Condition)>) -> Txn {
        let mut txn = Txn::default();
        for (number, (kind, key, condition)) in ops.into_iter().enumerate() {
            let expect = match condition {
                Condition::Anything => Expect::Anything,
                Condition::Absent => Expect::Absent,
                Condition::Current(less) => match self.model.get(&key, None).await.unwrap() {
                    Some(entry) => Expect::At(entry.revision.saturating_sub(less)),
                    None => Expect::Absent,
                },
            };
            let value = format!("{}.{number}", self.model.revision());
            txn.ops.push(match kind {
                0 => Op::Delete { key, expect },
                1 => Op::Check { key, expect },
                _ => Op::Put { key, value: value.into(), expect },
            });
        }
        txn
    }

    async fn drain(&mut self) {
        let newest = self.model.revision();
        for Watches { model, store, reached } in &mut self.watches {
            if *reached < newest {
                let expected = events(model, newest).await;
                assert_eq!(events(store, newest).await, expected);
                *reached = newest;
            }
        }
    }
}

/// All events up to the newest revision, which was not reached yet.
async fn events(watch: &mut Box<dyn Watch>, newest: Revision) -> Vec<String> {
    watch.progress(true);
    let mut shown = Vec::new();
    loop {
        let batch = watch.next().await.unwrap();
        shown.extend(batch.events.iter().map(|event| show_event(event)));
        if batch.revision >= newest {
            return shown;
        }
    }
}

fn show_event(event: &Event) -> String {
    format!("{event:?}")
}

fn show_page(page: Page) -> String {
    format!("{page:?}")
}

fn show<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    format!("{answer:?}")
}

fn show_commit(answer: &Result<Revision, CommitError>) -> String {
    format!("{answer:?}")
}
