//! What every backend must do, as tests that a backend runs by one line:
//!
//! ```ignore
//! rimward_control_store::conformance!(MyBackend);
//! ```
//!
//! where `MyBackend` is a unit struct that implements [`Backend`]. Each check gets a fresh store.
//! The checks only use the trait, so they say nothing of files, crashes or speed: that is the
//! backend's own to test.

pub mod lists;
pub mod restarts;
pub mod transactions;
pub mod watches;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Batch, Entry, Error, Event, Expect, ListRequest, Op, Page, Revision, Store, Txn, Watch,
};

/// How the suite gets at stores.
#[async_trait]
pub trait Backend: Send + Sync {
    /// An empty store.
    async fn fresh(&self) -> Arc<dyn Store>;

    /// Closes the store and opens what it left behind; None where nothing outlives the process.
    async fn reopen(&self, store: Arc<dyn Store>) -> Option<Arc<dyn Store>>;
}

/// Makes a `#[tokio::test]` of each check.
#[macro_export]
macro_rules! conformance {
    ($backend:expr) => {
        $crate::conformance!(
            $backend,
            transactions: revisions_are_consecutive, compare_and_set, a_conflict_changes_nothing,
                a_transaction_is_one_revision, no_change_takes_no_revision, limits_are_kept,
                created_restarts_after_a_delete, concurrent_increments_lose_nothing,
                revisions_of_concurrent_writers_have_no_gaps;
            lists: order_prefix_and_limit, pages_are_consistent, any_retained_revision_is_exact,
                any_text_is_a_key, unreadable_revisions_say_so, compaction_keeps_the_state,
                counts_follow_changes;
            watches: replay_from_the_beginning, only_the_prefix, live_events_in_order,
                a_laggard_misses_nothing, idle_survives_compaction, a_compacted_laggard_is_told,
                progress_says_how_far, waiting_can_be_cancelled, unreadable_positions_say_so,
                many_watchers_see_the_same;
            restarts: everything_is_there_again, history_is_there_again, compaction_is_remembered;
        );
    };
    ($backend:expr, $($module:ident: $($check:ident),+;)+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                $crate::conformance::$module::$check(&$backend).await;
            }
        )+)+
    };
}

/// Fails a check that would otherwise hang.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("waited 30 s for {what}"),
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put {
        key: key.into(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expect: Expect::Anything,
    }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into(), expect: Expect::Anything }
}

async fn commit(store: &dyn Store, ops: impl Into<Vec<Op>>) -> Revision {
    let txn = Txn { ops: ops.into() };
    soon("a commit", store.commit(txn)).await.expect("the transaction is valid")
}

async fn get(store: &dyn Store, key: &str, at: Option<Revision>) -> Option<Entry> {
    soon("a get", store.get(key, at)).await.expect("the revision is retained")
}

async fn list(store: &dyn Store, request: ListRequest) -> Page {
    soon("a list", store.list(request)).await.expect("the revision is retained")
}

/// All of a prefix at a revision, as `key=value@revision/created`.
async fn state(store: &dyn Store, prefix: &str, at: Option<Revision>) -> Vec<String> {
    let page = list(store, ListRequest { prefix: prefix.into(), at, ..Default::default() }).await;
    assert_eq!(page.remaining, 0, "a list without a limit leaves nothing");
    page.entries.iter().map(show_entry).collect()
}

fn show_entry(entry: &Entry) -> String {
    let value = String::from_utf8_lossy(&entry.value);
    format!("{}={value}@{}/{}", entry.key, entry.revision, entry.created)
}

/// An event as `revision key: what was there -> what is there`.
fn show_event(event: &Event) -> String {
    let show = |entry: &Option<Entry>| entry.as_ref().map_or("nothing".into(), show_entry);
    format!("{} {}: {} -> {}", event.revision, event.key, show(&event.previous), show(&event.entry))
}

fn watch(store: &dyn Store, prefix: &str, after: Revision) -> Box<dyn Watch> {
    store.watch(prefix, after).expect("the revision is retained")
}

async fn next(watch: &mut Box<dyn Watch>) -> Batch {
    soon("a batch", watch.next()).await.expect("the watch goes on")
}

/// Events until the revision is reached; each batch must be whole transactions in order.
async fn events_until(watch: &mut Box<dyn Watch>, until: Revision) -> Vec<Arc<Event>> {
    let mut events: Vec<Arc<Event>> = Vec::new();
    loop {
        let last = events.last().map_or(0, |event| event.revision);
        let batch = next(watch).await;
        for event in &batch.events {
            assert!(event.revision > last, "a batch repeats or splits revision {last}");
            assert!(event.revision <= batch.revision, "an event beyond the batch's revision");
        }
        assert!(batch.events.is_sorted_by_key(|event| event.revision), "events out of order");
        events.extend(batch.events);
        if batch.revision >= until {
            return events;
        }
        assert!(!events.is_empty(), "an empty batch although no progress is wanted");
        if events.last().is_some_and(|event| event.revision >= until) {
            return events;
        }
    }
}

/// The kind of an error, for comparing.
fn kind<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(Error::Compacted { asked, oldest }) => format!("{asked} compacted up to {oldest}"),
        Err(Error::Future { asked, newest }) => format!("{asked} is after {newest}"),
        Err(error) => format!("{error}"),
    }
}
