//! Housekeeping: Events end after their time, history after its own, and IPAddresses stay.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rimward_control_store::{CommitError, Error, Expect, ListRequest, Op, Revision, Txn};
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior};

use crate::health::Part;
use crate::server::Inner;
use crate::views::Stored;

const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Deletes that run at a time: the store makes one commit of them.
const TOGETHER: usize = 256;
const COMPACT_EVERY: Duration = Duration::from_secs(60);

pub fn start(server: &Arc<Inner>) {
    let (events, compact) = (expire_events(server.clone()), compact(server.clone()));
    let both = async {
        tokio::join!(events, compact);
    };
    server.parts.run(Part::Sweep, &server.stop, both);
}

/// A written Event, by when its time is over. Writes come in the order of time, so a queue is
/// sorted by itself; an Event that was written again stands in it twice, and the older entry finds
/// another revision and does nothing.
struct Due {
    at: Instant,
    key: Arc<str>,
    revision: Revision,
}

async fn expire_events(server: Arc<Inner>) {
    loop {
        match follow_events(&server).await {
            Err(Error::Closed) => return,
            Err(e) => {
                tracing::warn!(error = %e, "the expiry of Events starts over");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(never) => match never {},
        }
    }
}

async fn follow_events(server: &Inner) -> Result<std::convert::Infallible, Error> {
    let served = server.registry().resource("", "events").expect("a built-in kind");
    let prefix = served.kind.storage.clone();
    let ttl = server.config.event_ttl;
    let mut due = stored_events(server, &prefix).await?;
    let mut queue: VecDeque<Due> = std::mem::take(&mut due.0);
    let mut feed = server.store.watch(&prefix, due.1)?;
    let mut tick = tokio::time::interval(SWEEP_EVERY.min(ttl));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            batch = feed.next() => {
                for event in &batch?.events {
                    if let Some(entry) = &event.entry {
                        let at = Instant::now() + ttl;
                        queue.push_back(Due { at, key: entry.key.clone(), revision: entry.revision });
                    }
                }
            }
            _ = tick.tick() => expire(server, &mut queue).await?,
        }
    }
}

/// Deletes the Events whose time is over.
async fn expire(server: &Inner, queue: &mut VecDeque<Due>) -> Result<(), Error> {
    let now = Instant::now();
    loop {
        let over = queue.iter().take_while(|d| d.at <= now).count().min(TOGETHER);
        if over == 0 {
            return Ok(());
        }
        let deletes = queue.drain(..over).map(|Due { key, revision, .. }| async move {
            let op = Op::Delete { key: key.to_string(), expect: Expect::At(revision) };
            match server.store.commit(Txn { ops: vec![op] }).await {
                // Written again or deleted meanwhile.
                Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
                Err(CommitError::Store(e)) => Err(e),
                Err(e) => {
                    tracing::error!(%key, error = %e, "an Event cannot be expired");
                    Ok(())
                }
            }
        });
        futures::future::try_join_all(deletes).await?;
    }
}

/// The Events of an earlier run, the ones that end first in front.
async fn stored_events(server: &Inner, prefix: &str) -> Result<(VecDeque<Due>, Revision), Error> {
    let (mut all, mut after, mut at) = (Vec::new(), None, None);
    let now = Timestamp::now();
    loop {
        let request =
            ListRequest { prefix: prefix.to_owned(), after: after.take(), limit: 500, at };
        let page = server.store.list(request).await?;
        at = Some(page.revision);
        after = page.entries.last().map(|e| e.key.to_string());
        for entry in &page.entries {
            let age = Stored::open(entry).ok().and_then(|s| age(&s, now)).unwrap_or_default();
            let left = server.config.event_ttl.saturating_sub(age);
            all.push(Due {
                at: Instant::now() + left,
                key: entry.key.clone(),
                revision: entry.revision,
            });
        }
        if page.remaining == 0 {
            break;
        }
    }
    all.sort_by_key(|d| d.at);
    Ok((all.into(), at.unwrap_or(0)))
}

/// How long ago an Event was last seen.
fn age(stored: &Stored, now: Timestamp) -> Option<Duration> {
    let event: Value = serde_json::from_slice(stored.record.body()).ok()?;
    let times = [
        &event["lastTimestamp"],
        &event["series"]["lastObservedTime"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let last = times.into_iter().filter_map(|t| t.as_str()?.parse::<Timestamp>().ok()).max()?;
    Duration::try_from(now.duration_since(last)).ok()
}

/// Forgets what is older than the configured history.
async fn compact(server: Arc<Inner>) {
    let mut seen: VecDeque<(Instant, Revision)> = VecDeque::new();
    let every = COMPACT_EVERY.min(server.config.history);
    loop {
        tokio::time::sleep(every).await;
        let now = Instant::now();
        seen.push_back((now, server.store.revision()));
        let mut upto = None;
        while seen.front().is_some_and(|(at, _)| now.duration_since(*at) >= server.config.history) {
            upto = seen.pop_front().map(|(_, revision)| revision);
        }
        let Some(revision) = upto.filter(|r| *r > server.store.oldest()) else { continue };
        match server.store.compact(revision).await {
            Ok(()) => tracing::debug!(revision, "compacted"),
            Err(Error::Closed) => return,
            Err(e) => {
                tracing::error!(revision, error = %e, "compaction failed; history grows until it works")
            }
        }
    }
}
