//! Watches that miss nothing, cost nothing while they wait, and say when history is gone.

use std::time::Duration;

use super::{Backend, commit, delete, events_until, kind, next, put, show_event, soon, watch};
use crate::{Error, Event, Revision};

fn shown(events: &[std::sync::Arc<Event>]) -> Vec<String> {
    events.iter().map(|event| show_event(event)).collect()
}

pub async fn replay_from_the_beginning(backend: &dyn Backend) {
    let store = backend.fresh().await;
    commit(&*store, [put("a", "1"), put("b", "1")]).await;
    commit(&*store, [put("a", "2")]).await;
    commit(&*store, [delete("a"), delete("absent"), put("c", "3")]).await;
    commit(&*store, [put("a", "4")]).await;
    let all = [
        "1 a: nothing -> a=1@1/1",
        "1 b: nothing -> b=1@1/1",
        "2 a: a=1@1/1 -> a=2@2/1",
        "3 a: a=2@2/1 -> nothing",
        "3 c: nothing -> c=3@3/3",
        "4 a: nothing -> a=4@4/4",
    ];
    for after in 0..=3 {
        let mut watch = watch(&*store, "", after);
        let events = events_until(&mut watch, 4).await;
        let expected: Vec<&str> =
            all.into_iter().filter(|e| e[..1].parse::<u64>().unwrap_or(0) > after).collect();
        assert_eq!(shown(&events), expected, "after {after}");
    }
}

pub async fn only_the_prefix(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let mut a = watch(&*store, "/a/", 0);
    let mut one = watch(&*store, "/a/1", 0);
    commit(&*store, [put("/a", ""), put("/a0", ""), put("/b/1", "")]).await;
    commit(&*store, [put("/a/1", "x"), put("/b/1", "x"), put("/a/2", "x")]).await;
    commit(&*store, [put("/b/2", "x")]).await;
    commit(&*store, [delete("/a/2")]).await;
    let events = events_until(&mut a, 4).await;
    assert_eq!(
        shown(&events),
        [
            "2 /a/1: nothing -> /a/1=x@2/2",
            "2 /a/2: nothing -> /a/2=x@2/2",
            "4 /a/2: /a/2=x@2/2 -> nothing",
        ]
    );
    let events = events_until(&mut one, 2).await;
    assert_eq!(shown(&events), ["2 /a/1: nothing -> /a/1=x@2/2"]);
}

/// A watcher that runs along with eight writers sees each revision once, in order.
pub async fn live_events_in_order(backend: &dyn Backend) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 40;
    let store = backend.fresh().await;
    let mut watch = watch(&*store, "/w/", 0);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..EACH {
                    let value = format!("{i}");
                    let ops = [
                        put(&format!("/w/{writer}/a"), &value),
                        put(&format!("/w/{writer}/b"), &value),
                    ];
                    commit(&*store, ops).await;
                }
            })
        })
        .collect();
    let events = events_until(&mut watch, WRITERS * EACH).await;
    for writer in writers {
        soon("a writer", writer).await.expect("the writer does not panic");
    }
    let revisions: Vec<Revision> = events.iter().map(|event| event.revision).collect();
    let expected: Vec<Revision> = (1..=WRITERS * EACH).flat_map(|r| [r, r]).collect();
    assert_eq!(revisions, expected);
    let mut last = std::collections::BTreeMap::new();
    for event in &events {
        let previous = event.previous.as_ref().map(|entry| entry.revision);
        assert_eq!(previous, last.insert(event.key.clone(), event.revision), "{}", event.key);
    }
}

/// Far more than any ring of recent events would hold goes by before the first question.
pub async fn a_laggard_misses_nothing(backend: &dyn Backend) {
    const TRANSACTIONS: u64 = 12_800;
    let store = backend.fresh().await;
    let mut slow = watch(&*store, "/w/", 0);
    let writers: Vec<_> = (0..32_u64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..TRANSACTIONS / 32 {
                    let prefix = if i % 4 == 0 { "/w" } else { "/other" };
                    commit(&*store, [put(&format!("{prefix}/{writer}"), &format!("{i}"))]).await;
                }
            })
        })
        .collect();
    for writer in writers {
        soon("a writer", writer).await.expect("the writer does not panic");
    }
    let newest = commit(&*store, [put("/w/last", "")]).await;
    let events = events_until(&mut slow, newest).await;
    assert_eq!(events.len() as u64, TRANSACTIONS / 4 + 1);
    assert!(events.is_sorted_by(|a, b| a.revision < b.revision));
}

/// Waiting is not lagging: what happened meanwhile did not concern the watcher.
pub async fn idle_survives_compaction(backend: &dyn Backend) {
    let store = backend.fresh().await;
    commit(&*store, [put("/mine", "1")]).await;
    let mut idle = watch(&*store, "/mine", 1);
    let waiting = tokio::time::timeout(Duration::from_millis(20), idle.next()).await;
    assert!(waiting.is_err(), "nothing happened");
    for _ in 0..50 {
        commit(&*store, [put("/other", "x")]).await;
    }
    store.compact(51).await.expect("it is retained");
    commit(&*store, [put("/mine", "2")]).await;
    let batch = next(&mut idle).await;
    assert_eq!(shown(&batch.events), ["52 /mine: /mine=1@1/1 -> /mine=2@52/1"]);
}

pub async fn a_compacted_laggard_is_told(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let mut slow = watch(&*store, "/w/", 0);
    // More than a ring holds, so that the log is what is left.
    for _ in 0..60 {
        let ops: Vec<_> = (0..128).map(|i| put(&format!("/w/{i}"), "x")).collect();
        commit(&*store, ops).await;
    }
    store.compact(60).await.expect("it is retained");
    let told = soon("an answer", slow.next()).await;
    assert_eq!(kind(told), "0 compacted up to 60");
}

pub async fn progress_says_how_far(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let mut watch = watch(&*store, "/mine/", 0);
    watch.progress(true);
    commit(&*store, [put("/other", "1")]).await;
    let batch = next(&mut watch).await;
    assert_eq!((batch.events.len(), batch.revision), (0, 1), "a bookmark");
    let ahead = tokio::spawn(async move {
        let batch = next(&mut watch).await;
        (watch, batch)
    });
    commit(&*store, [put("/other", "2")]).await;
    let (mut watch, batch) = soon("the bookmark", ahead).await.expect("it does not panic");
    assert_eq!((batch.events.len(), batch.revision), (0, 2), "a bookmark wakes the waiting");
    commit(&*store, [put("/mine/x", "3")]).await;
    commit(&*store, [put("/other", "4")]).await;
    let batch = next(&mut watch).await;
    assert_eq!(batch.events.len(), 1);
    watch.progress(false);
    commit(&*store, [put("/other", "5")]).await;
    commit(&*store, [put("/mine/x", "6")]).await;
    let batch = next(&mut watch).await;
    assert_eq!((batch.events.len(), batch.revision), (1, 6), "no bookmark unasked");
}

/// Dropping the future of `next` at any point loses nothing.
pub async fn waiting_can_be_cancelled(backend: &dyn Backend) {
    const TRANSACTIONS: u64 = 200;
    let store = backend.fresh().await;
    let mut watch = watch(&*store, "", 0);
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0..TRANSACTIONS {
                commit(&*store, [put("k", &format!("{i}"))]).await;
                tokio::task::yield_now().await;
            }
        })
    };
    let mut revisions = Vec::new();
    while revisions.last() != Some(&TRANSACTIONS) {
        tokio::select! {
            biased;
            batch = watch.next() => {
                let batch = batch.expect("the watch goes on");
                revisions.extend(batch.events.iter().map(|event| event.revision));
            }
            () = tokio::task::yield_now() => {}
        }
    }
    soon("the writer", writer).await.expect("it does not panic");
    assert_eq!(revisions, (1..=TRANSACTIONS).collect::<Vec<_>>());
}

pub async fn unreadable_positions_say_so(backend: &dyn Backend) {
    let store = backend.fresh().await;
    for _ in 0..5 {
        commit(&*store, [put("a", "x")]).await;
    }
    let open = |after| kind(store.watch("a", after).map(|_| ()));
    assert_eq!(open(6), "6 is after 5");
    assert_eq!(open(5), "ok");
    store.compact(3).await.expect("it is retained");
    assert_eq!(open(2), "2 compacted up to 3");
    let mut watch = watch(&*store, "a", 3);
    let events = events_until(&mut watch, 5).await;
    assert_eq!(shown(&events), ["4 a: a=x@3/1 -> a=x@4/1", "5 a: a=x@4/1 -> a=x@5/1"]);
}

pub async fn many_watchers_see_the_same(backend: &dyn Backend) {
    const WATCHERS: usize = 300;
    const TRANSACTIONS: u64 = 60;
    let store = backend.fresh().await;
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|i| {
            let prefix = if i % 2 == 0 { "/a/" } else { "/a/x/" };
            let mut watch = watch(&*store, prefix, 0);
            tokio::spawn(async move { shown(&events_until(&mut watch, TRANSACTIONS).await) })
        })
        .collect();
    for i in 1..=TRANSACTIONS {
        commit(&*store, [put("/a/y", "1"), put("/a/x/1", &format!("{i}")), put("/b", "")]).await;
    }
    let mut seen = Vec::new();
    for watcher in watchers {
        seen.push(soon("a watcher", watcher).await.expect("it does not panic"));
    }
    for (i, events) in seen.iter().enumerate() {
        assert_eq!(events, &seen[i % 2], "watcher {i}");
        assert_eq!(events.len() as u64, if i % 2 == 0 { 2 * TRANSACTIONS } else { TRANSACTIONS });
    }
    drop(seen);
    assert!(matches!(store.watch("/a/", TRANSACTIONS + 1), Err(Error::Future { .. })));
}
