//! One revision sequence, compare-and-set, all or nothing.

use std::sync::Arc;

use bytes::Bytes;

use super::{Backend, commit, delete, get, put, soon, state};
use crate::{CommitError, Expect, Op, Revision, Store, TXN_BYTES_MAX, TXN_OPS_MAX, Txn};

pub async fn revisions_are_consecutive(backend: &dyn Backend) {
    let store = backend.fresh().await;
    assert_eq!((store.revision(), store.oldest()), (0, 0), "a fresh store is before everything");
    for expected in 1..=20 {
        assert_eq!(commit(&*store, [put("a", "x")]).await, expected);
        assert_eq!(store.revision(), expected, "an acknowledged revision is readable");
    }
}

/// What each condition says of an absent and of a present key.
pub async fn compare_and_set(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let written = commit(&*store, [put("there", "1")]).await;
    let check = async |key: &str, expect: Expect, holds: bool| {
        let op = Op::Check { key: key.into(), expect };
        let answer = store.commit(Txn { ops: vec![op] }).await;
        match answer {
            Ok(_) => assert!(holds, "{expect:?} of {key} must not hold"),
            Err(CommitError::Conflict { op: 0, current }) => {
                assert!(!holds, "{expect:?} of {key} must hold");
                assert_eq!(
                    current,
                    get(&*store, key, None).await,
                    "a conflict shows what is there"
                );
            }
            Err(other) => panic!("{expect:?} of {key}: {other}"),
        }
    };
    check("there", Expect::Anything, true).await;
    check("there", Expect::Absent, false).await;
    check("there", Expect::At(written), true).await;
    check("there", Expect::At(written + 1), false).await;
    check("there", Expect::At(0), false).await;
    check("absent", Expect::Anything, true).await;
    check("absent", Expect::Absent, true).await;
    check("absent", Expect::At(written), false).await;
    check("absent", Expect::At(0), false).await;

    commit(&*store, [delete("there")]).await;
    check("there", Expect::Absent, true).await;
    check("there", Expect::At(written), false).await;
}

pub async fn a_conflict_changes_nothing(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let before = commit(&*store, [put("a", "1"), put("b", "1")]).await;
    let ops = vec![
        put("a", "2"),
        put("new", "2"),
        Op::Delete { key: "b".into(), expect: Expect::At(before + 7) },
        Op::Put { key: "c".into(), value: Bytes::new(), expect: Expect::At(3) },
    ];
    match store.commit(Txn { ops }).await {
        Err(CommitError::Conflict { op: 2, current }) => {
            assert_eq!(
                current,
                get(&*store, "b", None).await,
                "the first failed operation is told"
            );
        }
        other => panic!("expected a conflict at operation 2, got {other:?}"),
    }
    assert_eq!(store.revision(), before);
    assert_eq!(state(&*store, "", None).await, ["a=1@1/1", "b=1@1/1"]);
}

pub async fn a_transaction_is_one_revision(backend: &dyn Backend) {
    let store = backend.fresh().await;
    commit(&*store, [put("a", "1"), put("b", "1"), put("c", "1")]).await;
    let check = Op::Check { key: "c".into(), expect: Expect::At(1) };
    let second = commit(&*store, [put("a", "2"), delete("b"), check, put("d", "2")]).await;
    assert_eq!(second, 2);
    assert_eq!(state(&*store, "", None).await, ["a=2@2/1", "c=1@1/1", "d=2@2/2"]);
    assert_eq!(state(&*store, "", Some(1)).await, ["a=1@1/1", "b=1@1/1", "c=1@1/1"]);
}

pub async fn no_change_takes_no_revision(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let newest = commit(&*store, [put("a", "1")]).await;
    assert_eq!(commit(&*store, []).await, newest, "an empty transaction");
    let check = Op::Check { key: "a".into(), expect: Expect::At(newest) };
    assert_eq!(commit(&*store, [check]).await, newest, "only checks");
    assert_eq!(commit(&*store, [delete("absent")]).await, newest, "deleting what is not there");
    assert_eq!(commit(&*store, [put("a", "1")]).await, newest + 1, "the same value is a change");
}

pub async fn limits_are_kept(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let many =
        |count: usize| Txn { ops: (0..count).map(|i| put(&format!("k{i:04}"), "")).collect() };
    let large = |bytes: usize| Txn::put("k", vec![b'x'; bytes - 1], Expect::Anything);
    let ok = |answer: Result<Revision, CommitError>| answer.is_ok();
    assert!(ok(store.commit(many(TXN_OPS_MAX)).await));
    assert!(ok(store.commit(large(TXN_BYTES_MAX)).await));
    let before = store.revision();
    let refused = |answer| matches!(answer, Err(CommitError::TooLarge { .. }));
    assert!(refused(store.commit(many(TXN_OPS_MAX + 1)).await));
    assert!(refused(store.commit(large(TXN_BYTES_MAX + 1)).await));
    let twice = Txn { ops: vec![put("a", "1"), put("b", "1"), delete("a")] };
    assert!(matches!(store.commit(twice).await, Err(CommitError::Invalid { .. })));
    assert_eq!(store.revision(), before);
    let read = get(&*store, "k", None).await.expect("it was stored");
    assert_eq!(read.value.len(), TXN_BYTES_MAX - 1);
}

pub async fn created_restarts_after_a_delete(backend: &dyn Backend) {
    let store = backend.fresh().await;
    commit(&*store, [put("a", "1")]).await;
    commit(&*store, [put("a", "2")]).await;
    assert_eq!(state(&*store, "a", None).await, ["a=2@2/1"]);
    commit(&*store, [delete("a")]).await;
    assert_eq!(get(&*store, "a", None).await, None);
    commit(&*store, [put("a", "4")]).await;
    commit(&*store, [put("a", "5")]).await;
    assert_eq!(state(&*store, "a", None).await, ["a=5@5/4"]);
    assert_eq!(state(&*store, "a", Some(2)).await, ["a=2@2/1"]);
}

pub async fn concurrent_increments_lose_nothing(backend: &dyn Backend) {
    const WRITERS: usize = 8;
    const INCREMENTS: usize = 25;
    let store = backend.fresh().await;
    commit(&*store, [put("counter", "0")]).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..INCREMENTS {
                    increment(&store).await;
                }
            })
        })
        .collect();
    for writer in writers {
        soon("a writer", writer).await.expect("the writer does not panic");
    }
    let counter = get(&*store, "counter", None).await.expect("it is there");
    assert_eq!(counter.value, Bytes::from((WRITERS * INCREMENTS).to_string()));
    assert_eq!(store.revision() as usize, WRITERS * INCREMENTS + 1);
}

async fn increment(store: &Arc<dyn Store>) {
    let mut current = get(&**store, "counter", None).await.expect("it is there");
    loop {
        let number: u64 = String::from_utf8_lossy(&current.value).parse().expect("a number");
        let txn = Txn::put("counter", (number + 1).to_string(), Expect::At(current.revision));
        match soon("a commit", store.commit(txn)).await {
            Ok(_) => return,
            Err(CommitError::Conflict { current: Some(newer), .. }) => current = newer,
            Err(other) => panic!("{other}"),
        }
    }
}

pub async fn revisions_of_concurrent_writers_have_no_gaps(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut revisions = Vec::new();
                for i in 0..25 {
                    let key = format!("{writer}/{i}");
                    let revision = commit(&*store, [put(&key, "x")]).await;
                    let read = get(&*store, &key, None).await.expect("it was acknowledged");
                    assert_eq!(read.revision, revision, "a writer reads its own write");
                    revisions.push(revision);
                }
                assert!(revisions.is_sorted(), "one writer's revisions grow");
                revisions
            })
        })
        .collect();
    let mut all = Vec::new();
    for writer in writers {
        all.extend(soon("a writer", writer).await.expect("the writer does not panic"));
    }
    all.sort_unstable();
    assert_eq!(all, (1..=200).collect::<Vec<Revision>>());
}
