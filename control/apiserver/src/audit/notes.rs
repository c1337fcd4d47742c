//! What admission has to say of a request, whoever says it: annotations of its audit event.
//!
//! They belong to the task that serves the request. Handing them through every step instead would give
//! an argument to all of admission that only a few steps of it ever use.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;

tokio::task_local! {
    static NOTES: Notes;
}

#[derive(Clone, Default)]
struct Notes {
    patches: bool,
    noted: Arc<Mutex<BTreeMap<String, String>>>,
}

/// Does some work; also what was noted in it. `patches`: whether patches are wanted.
pub async fn collected<T>(
    patches: bool,
    work: impl Future<Output = T>,
) -> (T, BTreeMap<String, String>) {
    let notes = Notes { patches, noted: Arc::default() };
    let done = NOTES.scope(notes.clone(), work).await;
    let noted = std::mem::take(&mut *notes.noted.lock());
    (done, noted)
}

/// Notes something of the request that is served. What is said first stands. Where nobody listens, the
/// value is not even made.
pub fn annotate(key: impl Into<String>, value: impl FnOnce() -> String) {
    let _nobody_listens = NOTES.try_with(|notes| {
        notes.noted.lock().entry(key.into()).or_insert_with(value);
    });
}

/// Whether the patches of webhooks are wanted: from the level at which bodies are.
pub fn wants_patches() -> bool {
    NOTES.try_with(|notes| notes.patches).unwrap_or(false)
}

/// A part of the request's work that another task does.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let notes = NOTES.try_with(Clone::clone).unwrap_or_default();
    NOTES.scope(notes, work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn notes_reach_their_request() {
        annotate("nobody", || unreachable!("nobody listens"));
        let (answer, noted) = collected(true, async {
            annotate("a", || "1".into());
            annotate("a", || "2".into());
            let other = carried(async { annotate("b", || wants_patches().to_string()) });
            tokio::spawn(other).await.expect("it ends");
            7
        })
        .await;
        assert_eq!(answer, 7);
        let expected = [("a", "1"), ("b", "true")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(noted, expected.into());
    }
}
