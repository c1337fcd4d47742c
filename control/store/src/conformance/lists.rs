//! Lists that are exact, whatever revision they are at and whatever goes on meanwhile.

use super::{Backend, commit, delete, get, kind, list, put, state};
use crate::{ListRequest, Revision, Store};

fn keys(page: &crate::Page) -> Vec<&str> {
    page.entries.iter().map(|entry| &*entry.key).collect()
}

pub async fn order_prefix_and_limit(backend: &dyn Backend) {
    let store = backend.fresh().await;
    for key in ["/b/2", "/a/2", "/a0", "/b/1", "/a/1", "/a/10", "/a", "/c/1"] {
        commit(&*store, [put(key, "x")]).await;
    }
    let check = async |prefix: &str,
                       after: Option<&str>,
                       limit: usize,
                       want: &[&str],
                       rest: usize| {
        let request =
            ListRequest { prefix: prefix.into(), after: after.map(Into::into), limit, at: None };
        let page = list(&*store, request).await;
        assert_eq!(keys(&page), want, "{prefix} after {after:?} limit {limit}");
        assert_eq!(page.remaining, rest, "what remains of {prefix} after {after:?} limit {limit}");
        assert_eq!(page.revision, 8);
    };
    check("/a/", None, 0, &["/a/1", "/a/10", "/a/2"], 0).await;
    check("/a", None, 0, &["/a", "/a/1", "/a/10", "/a/2", "/a0"], 0).await;
    check("/a/", None, 2, &["/a/1", "/a/10"], 1).await;
    check("/a/", Some("/a/10"), 2, &["/a/2"], 0).await;
    check("/a/", Some("/a/1z"), 1, &["/a/2"], 0).await;
    check("/a/", Some("/a/2"), 0, &[], 0).await;
    check("/a/", Some("/b"), 0, &[], 0).await;
    check("/b/", Some("/a/1"), 0, &["/b/1", "/b/2"], 0).await;
    check("/b/1", None, 0, &["/b/1"], 0).await;
    check("/x", None, 0, &[], 0).await;
    check("", None, 1, &["/a"], 7).await;
    check("", Some("/b/2"), 5, &["/c/1"], 0).await;
}

/// Pages at the first page's revision show one state, although the keys change between pages.
pub async fn pages_are_consistent(backend: &dyn Backend) {
    let store = backend.fresh().await;
    for i in 0..30 {
        commit(&*store, [put(&format!("/k/{i:02}"), "old")]).await;
    }
    let whole = state(&*store, "/k/", None).await;
    let mut request = ListRequest { prefix: "/k/".into(), limit: 7, ..Default::default() };
    let mut seen = Vec::new();
    for round in 0.. {
        let page = list(&*store, request.clone()).await;
        assert_eq!(*request.at.get_or_insert(page.revision), page.revision);
        seen.extend(page.entries.iter().map(super::show_entry));
        assert_eq!(seen.len() + page.remaining, whole.len());
        request.after = page.entries.last().map(|entry| entry.key.to_string());
        if page.remaining == 0 {
            break;
        }
        // Ahead of the page: one goes, one comes, one changes, one goes and comes back.
        let n = 29 - 3 * round;
        commit(&*store, [delete(&format!("/k/{n:02}")), put(&format!("/k/{n:02}+"), "new")]).await;
        commit(&*store, [put(&format!("/k/{:02}", n - 1), "new"), delete("/k/14")]).await;
        commit(&*store, [put("/k/14", "back")]).await;
    }
    assert_eq!(seen, whole);
}

/// A random-looking history; after it, every revision still lists as it did.
pub async fn any_retained_revision_is_exact(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let (revision, states) = history(&*store, 120).await;
    for (at, expected) in states.iter().enumerate() {
        check_state(&*store, at as Revision, expected).await;
    }
    let half = revision / 2;
    store.compact(half).await.expect("it is retained");
    for (at, expected) in states.iter().enumerate().skip(half as usize) {
        check_state(&*store, at as Revision, expected).await;
    }
}

/// Writes a history of a dozen keys; answers the newest revision and the state at each.
pub(super) async fn history(store: &dyn Store, transactions: u64) -> (Revision, Vec<Vec<String>>) {
    let mut states = vec![state(store, "/h/", None).await];
    let mut random = 7_u64;
    for round in 0..transactions {
        let mut ops = Vec::new();
        for slot in 0..3 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let key = format!("/h/{slot}{}", (random >> 33) % 4);
            let value = format!("{round}");
            ops.push(if (random >> 40).is_multiple_of(3) {
                delete(&key)
            } else {
                put(&key, &value)
            });
        }
        if commit(store, ops).await as usize == states.len() {
            states.push(state(store, "/h/", None).await);
        }
    }
    (store.revision(), states)
}

pub(super) async fn check_state(store: &dyn Store, at: Revision, expected: &[String]) {
    assert_eq!(state(store, "/h/", Some(at)).await, expected, "the state at revision {at}");
    let request = ListRequest { prefix: "/h/".into(), limit: 2, at: Some(at), after: None };
    let page = list(store, request).await;
    assert_eq!(page.entries.len() + page.remaining, expected.len(), "the size at revision {at}");
    for slot in 0..12 {
        let key = format!("/h/{}{}", slot / 4, slot % 4);
        let entry = get(store, &key, Some(at)).await.map(|entry| super::show_entry(&entry));
        let listed = expected.iter().find(|e| e.starts_with(&format!("{key}=")));
        assert_eq!(entry.as_ref(), listed, "{key} at revision {at}");
    }
}

pub async fn any_text_is_a_key(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let mut texts = vec![
        "",
        "a",
        "a\0",
        "a\0\0",
        "a\0b",
        "a\u{1}",
        "a/b",
        "a\u{7f}",
        "aé",
        "a\u{10ffff}",
        "b",
        "ÿ",
    ];
    for text in texts.iter().rev() {
        commit(&*store, [put(text, "1")]).await;
        commit(&*store, [put(text, "2")]).await;
    }
    texts.sort_unstable();
    let page = list(&*store, ListRequest::default()).await;
    assert_eq!(keys(&page), texts, "byte order");
    let at = Some(store.revision());
    commit(&*store, texts.iter().map(|text| put(text, "3")).collect::<Vec<_>>()).await;
    let page = list(&*store, ListRequest { at, ..Default::default() }).await;
    assert_eq!(keys(&page), texts, "byte order at an older revision");
    for text in texts {
        let entry = get(&*store, text, at).await.expect("it is there");
        assert_eq!((&*entry.key, &*entry.value), (text, &b"2"[..]));
    }
}

pub async fn unreadable_revisions_say_so(backend: &dyn Backend) {
    let store = backend.fresh().await;
    for _ in 0..5 {
        commit(&*store, [put("a", "x")]).await;
    }
    let at = |at| ListRequest { at: Some(at), ..Default::default() };
    assert_eq!(kind(store.get("a", Some(6)).await), "6 is after 5");
    assert_eq!(kind(store.list(at(9)).await), "9 is after 5");
    assert_eq!(kind(store.compact(6).await), "6 is after 5");
    assert_eq!(get(&*store, "a", Some(0)).await, None, "nothing was there at the beginning");

    store.compact(3).await.expect("it is retained");
    assert_eq!(store.oldest(), 3);
    assert_eq!(kind(store.get("a", Some(2)).await), "2 compacted up to 3");
    assert_eq!(kind(store.list(at(0)).await), "0 compacted up to 3");
    assert_eq!(kind(store.list(at(3)).await), "ok");
    assert_eq!(kind(store.compact(3).await), "ok");
    assert_eq!(kind(store.compact(1).await), "ok");
    assert_eq!(store.oldest(), 3, "compaction never goes back");
    store.compact(5).await.expect("all of the past");
    assert_eq!(state(&*store, "", None).await, ["a=x@5/1"]);
}

pub async fn compaction_keeps_the_state(backend: &dyn Backend) {
    let store = backend.fresh().await;
    commit(&*store, [put("stays", "1"), put("changes", "1"), put("goes", "1")]).await;
    commit(&*store, [put("changes", "2"), delete("goes")]).await;
    commit(&*store, [put("comes", "3"), put("goes", "3")]).await;
    commit(&*store, [delete("goes"), delete("stays")]).await;
    let at_3 = ["changes=2@2/1", "comes=3@3/3", "goes=3@3/3", "stays=1@1/1"];
    let at_4 = ["changes=2@2/1", "comes=3@3/3"];
    store.compact(3).await.expect("it is retained");
    assert_eq!(state(&*store, "", Some(3)).await, at_3);
    assert_eq!(state(&*store, "", None).await, at_4);
    store.compact(4).await.expect("it is retained");
    assert_eq!(state(&*store, "", Some(4)).await, at_4);
    commit(&*store, [put("goes", "5")]).await;
    assert_eq!(get(&*store, "goes", None).await.expect("it is back").created, 5);
    assert_eq!(state(&*store, "", Some(4)).await, at_4);
}

pub async fn counts_follow_changes(backend: &dyn Backend) {
    let store = backend.fresh().await;
    let check = async |prefix: &str, expected: usize| {
        assert_eq!(store.count(prefix).await.expect("it counts"), expected, "{prefix}");
    };
    check("", 0).await;
    commit(&*store, [put("/a/1", ""), put("/a/2", ""), put("/b/1", "")]).await;
    commit(&*store, [put("/a/1", "again")]).await;
    check("", 3).await;
    check("/a/", 2).await;
    check("/a/1", 1).await;
    check("/c", 0).await;
    commit(&*store, [delete("/a/1")]).await;
    check("/a/", 1).await;
    commit(&*store, [put("/a/1", "")]).await;
    check("/a/", 2).await;
}
