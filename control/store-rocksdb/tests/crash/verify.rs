//! Whether what is left is right.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use rimward_control_store::{Entry, Event, ListRequest, Revision, Store};
use rimward_control_store_rocksdb::{Options, RocksStore};

use crate::writer::{Written, parse_value};

type State = BTreeMap<Arc<str>, Entry>;

/// Opens the store and checks it against what was acknowledged; answers its newest and its oldest
/// revision, or what is wrong.
pub async fn verify(
    directory: &Path,
    acknowledged: &[Written],
) -> Result<(Revision, Revision), String> {
    let store =
        RocksStore::open(directory, Options { disk_reserve_bytes: 0, ..Options::default() });
    let store = store.map_err(|error| error.to_string())?;
    let checked = check(&*store, acknowledged).await;
    store.close().await;
    checked
}

async fn check(
    store: &dyn Store,
    acknowledged: &[Written],
) -> Result<(Revision, Revision), String> {
    let (newest, oldest) = (store.revision(), store.oldest());
    if let Some(lost) = acknowledged.iter().find(|written| written.revision > newest) {
        return Err(format!("ends at {newest}, but {lost:?} was acknowledged"));
    }
    let events = events(store, oldest, newest).await?;
    let found = transactions(&events)?;
    let revisions: Vec<Revision> = found.keys().copied().collect();
    if revisions != (oldest + 1..=newest).collect::<Vec<_>>() {
        return Err(format!("the log of {oldest} to {newest} has gaps: {revisions:?}"));
    }
    let state = list(store, Some(oldest)).await?;
    for written in acknowledged {
        if written.revision > oldest {
            let there = &found[&written.revision];
            if there != written {
                return Err(format!("{written:?} was acknowledged, but {there:?} is there"));
            }
        } else {
            compacted_is_not_older(written, &state)?;
        }
    }
    replay(state, &events, &list(store, None).await?)?;
    Ok((newest, oldest))
}

/// Of a compacted transaction only this is left to say: no key is older than it.
fn compacted_is_not_older(written: &Written, state: &State) -> Result<(), String> {
    for change in &written.changes {
        let key = change[1..].split('#').next().unwrap_or_default();
        match state.get(key) {
            Some(entry) if entry.revision < written.revision => {
                return Err(format!(
                    "{key} is from {}, but {written:?} was acknowledged",
                    entry.revision
                ));
            }
            Some(entry) if entry.revision == written.revision && change.starts_with('-') => {
                return Err(format!("{key} is there, but {written:?} was acknowledged"));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn events(
    store: &dyn Store,
    after: Revision,
    until: Revision,
) -> Result<Vec<Arc<Event>>, String> {
    let mut events = Vec::new();
    let mut watch = store.watch("", after).map_err(|error| error.to_string())?;
    let mut reached = after;
    while reached < until {
        let batch = watch.next().await.map_err(|error| error.to_string())?;
        events.extend(batch.events);
        reached = batch.revision;
    }
    Ok(events)
}

async fn list(store: &dyn Store, at: Option<Revision>) -> Result<State, String> {
    let page = store.list(ListRequest { at, ..ListRequest::default() }).await;
    let entries = page.map_err(|error| error.to_string())?.entries;
    Ok(entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect())
}

/// The transactions in the log, each as its own values say that it was.
fn transactions(events: &[Arc<Event>]) -> Result<BTreeMap<Revision, Written>, String> {
    let mut found: BTreeMap<Revision, Written> = BTreeMap::new();
    let mut declared: BTreeMap<Revision, BTreeSet<String>> = BTreeMap::new();
    for event in events {
        let (revision, key) = (event.revision, &event.key);
        let written = found.entry(revision).or_insert_with(|| Written {
            revision,
            id: String::new(),
            changes: BTreeSet::new(),
        });
        let Some(entry) = &event.entry else {
            written.changes.insert(format!("-{key}"));
            continue;
        };
        let (id, changes, sum) =
            parse_value(&entry.value).ok_or_else(|| format!("{key} at {revision} is not whole"))?;
        let changes: BTreeSet<String> = changes.into_iter().collect();
        if !written.id.is_empty() && (written.id != id || declared[&revision] != changes) {
            return Err(format!("revision {revision} mixes {} and {id}", written.id));
        }
        written.id = id;
        written.changes.insert(format!("+{key}#{sum}"));
        declared.insert(revision, changes);
    }
    for (revision, written) in &found {
        let without_sums: BTreeSet<String> = written
            .changes
            .iter()
            .map(|change| change.split('#').next().unwrap_or_default().to_owned())
            .collect();
        if declared.get(revision) != Some(&without_sums) {
            return Err(format!("{written:?} is not the whole of {:?}", declared.get(revision)));
        }
    }
    Ok(found)
}

/// The log must lead from the oldest state to the newest.
fn replay(mut state: State, events: &[Arc<Event>], newest: &State) -> Result<(), String> {
    for event in events {
        let before = match &event.entry {
            Some(entry) => state.insert(event.key.clone(), entry.clone()),
            None => state.remove(&event.key),
        };
        if before != event.previous {
            return Err(format!("{} at {}: the log tells another past", event.key, event.revision));
        }
    }
    if state != *newest {
        return Err("the log does not lead to the newest state".into());
    }
    Ok(())
}
