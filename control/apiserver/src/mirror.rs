//! Small parts of the store that requests ask at every turn, kept in memory by a watch: roles and
//! bindings, priority classes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rimward_control_store::{Error, ListRequest, Revision, Store, Watch};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::views::Stored;

/// How long a write, or who reads or watches what was written, waits until a mirror has seen it.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);

/// What keeps a mirrored part. Keys are store keys without the prefix.
pub trait Mirrored: Send + Sync + 'static {
    /// Makes the content exactly this.
    fn replace(&self, all: Vec<(String, Stored)>);
    fn put(&self, key: &str, stored: &Stored);
    fn remove(&self, key: &str);
}

/// How far each mirrored prefix is.
#[derive(Default)]
pub struct Mirrors {
    positions: Vec<(String, watch::Receiver<Revision>)>,
    /// How many cannot be read at the moment.
    behind: Arc<AtomicUsize>,
}

impl Mirrors {
    /// Fills a mirror, then keeps it current until `stop`.
    pub async fn add(
        &mut self,
        store: &Arc<dyn Store>,
        prefix: &str,
        mirrored: Arc<dyn Mirrored>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let (position, seen) = watch::channel(0);
        let feed = load(store, prefix, &*mirrored, &position).await?;
        self.positions.push((prefix.to_owned(), seen));
        let (store, prefix) = (store.clone(), prefix.to_owned());
        let behind = self.behind.clone();
        tokio::spawn(async move {
            let follow = follow(store, &prefix, &*mirrored, position, feed, &behind);
            stop.run_until_cancelled(follow).await;
        });
        Ok(())
    }

    /// Whether all of them follow the store.
    pub fn are_current(&self) -> bool {
        let gone =
            |(_, position): &(String, watch::Receiver<Revision>)| position.has_changed().is_err();
        self.behind.load(Ordering::Relaxed) == 0 && !self.positions.iter().any(gone)
    }

    /// Waits until a write to a mirrored prefix is seen by all that mirror it; at once for any other.
    pub async fn caught_up(&self, prefix: &str, revision: Revision) {
        for (_, position) in self.positions.iter().filter(|(p, _)| p == prefix) {
            let mut position = position.clone();
            let wait = position.wait_for(|seen| *seen >= revision);
            if tokio::time::timeout(CATCH_UP_MAX, wait).await.is_err() {
                tracing::warn!(prefix, revision, "the index in memory lags behind the store");
            }
        }
    }
}

async fn load(
    store: &Arc<dyn Store>,
    prefix: &str,
    mirrored: &dyn Mirrored,
    position: &watch::Sender<Revision>,
) -> Result<Box<dyn Watch>, Error> {
    let page =
        store.list(ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() }).await?;
    let mut all = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        match Stored::open(entry) {
            Ok(stored) => all.push((relative(&entry.key, prefix), stored)),
            Err(e) => tracing::error!(key = %entry.key, error = %e, "left out of the index"),
        }
    }
    mirrored.replace(all);
    let feed = store.watch(prefix, page.revision)?;
    position.send_replace(page.revision);
    Ok(feed)
}

fn relative(key: &str, prefix: &str) -> String {
    key.strip_prefix(prefix).unwrap_or(key).to_owned()
}

async fn follow(
    store: Arc<dyn Store>,
    prefix: &str,
    mirrored: &dyn Mirrored,
    position: watch::Sender<Revision>,
    mut feed: Box<dyn Watch>,
    behind: &AtomicUsize,
) {
    loop {
        match feed.next().await {
            Ok(batch) => {
                for event in &batch.events {
                    let key = relative(&event.key, prefix);
                    match event.entry.as_ref().map(Stored::open) {
                        Some(Ok(stored)) => mirrored.put(&key, &stored),
                        Some(Err(e)) => tracing::error!(%key, error = %e, "left out of the index"),
                        None => mirrored.remove(&key),
                    }
                }
                position.send_replace(batch.revision);
            }
            Err(Error::Closed) => return,
            // Compacted while we lagged, or the backend hiccuped: look at everything again.
            Err(e) => {
                tracing::warn!(prefix, error = %e, "reading the index anew");
                behind.fetch_add(1, Ordering::Relaxed);
                feed = loop {
                    match load(&store, prefix, mirrored, &position).await {
                        Ok(feed) => break feed,
                        Err(Error::Closed) => return,
                        Err(e) => {
                            tracing::error!(prefix, error = %e, "the index cannot be read");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                };
                behind.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
