//! What outlives the process. Backends without that ([`Backend::reopen`] answers None) pass.

use super::lists::{check_state, history};
use super::{Backend, commit, delete, events_until, get, kind, put, show_event, state, watch};
use crate::Revision;

pub async fn everything_is_there_again(backend: &dyn Backend) {
    let store = backend.fresh().await;
    commit(&*store, [put("a", "1"), put("b", "1")]).await;
    commit(&*store, [put("a", "2"), delete("b")]).await;
    let Some(store) = backend.reopen(store).await else { return };
    assert_eq!((store.revision(), store.oldest()), (2, 0));
    assert_eq!(state(&*store, "", None).await, ["a=2@2/1"]);
    assert_eq!(store.count("").await.expect("it counts"), 1);
    assert_eq!(commit(&*store, [put("b", "3")]).await, 3, "revisions go on");
    assert_eq!(get(&*store, "b", None).await.expect("it is there").created, 3);
    let Some(store) = backend.reopen(store).await else { return };
    assert_eq!(state(&*store, "", None).await, ["a=2@2/1", "b=3@3/3"]);
}

/// Old revisions list, and watches replay, as before.
pub async fn history_is_there_again(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let (revision, states) = history(&*store, 60).await;
    let mut before = watch(&*store, "", 0);
    let before: Vec<String> =
        events_until(&mut before, revision).await.iter().map(|event| show_event(event)).collect();
    let Some(store) = backend.reopen(store).await else { return };
    for (at, expected) in states.iter().enumerate() {
        check_state(&*store, at as Revision, expected).await;
    }
    for after in [0, revision / 3, revision - 1] {
        let mut again = watch(&*store, "", after);
        let again = events_until(&mut again, revision).await;
        let from = before.len() - again.len();
        let again: Vec<String> = again.iter().map(|event| show_event(event)).collect();
        assert_eq!(again, before[from..], "after {after}");
        assert_eq!(from == 0, after == 0);
    }
}

pub async fn compaction_is_remembered(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let (revision, states) = history(&*store, 60).await;
    let half = revision / 2;
    store.compact(half).await.expect("it is retained");
    let Some(store) = backend.reopen(store).await else { return };
    assert_eq!((store.revision(), store.oldest()), (revision, half));
    assert_eq!(
        kind(store.get("x", Some(half - 1)).await),
        format!("{} compacted up to {half}", half - 1)
    );
    for (at, expected) in states.iter().enumerate().skip(half as usize) {
        check_state(&*store, at as Revision, expected).await;
    }
    store.compact(revision).await.expect("it is retained");
    let Some(store) = backend.reopen(store).await else { return };
    assert_eq!((store.revision(), store.oldest()), (revision, revision));
    check_state(&*store, revision, &states[revision as usize]).await;
    assert_eq!(commit(&*store, [put("next", "")]).await, revision + 1);
}
