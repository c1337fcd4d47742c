//! What the store is asked, and how long it takes, by the names that dashboards know of kube-apiserver:
//! `etcd_…`, whichever backend it is.
//!
//! A store that measures stands before the real one, so that no caller has to think of it.
//! <https://kubernetes.io/docs/reference/instrumentation/metrics/>

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use rimward_control_kinds::kind::CUSTOM_STORAGE;
use rimward_control_store::{
    CommitError, Entry, Error, Expect, ListRequest, Op, Page, Revision, Store, Txn, Watch,
};

use super::Histograms;

/// What is done to a store, in the words of kube-apiserver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Get,
    List,
    Count,
    Create,
    Update,
    Delete,
}

const WORDS: [&str; 6] = ["get", "list", "listWithCount", "create", "update", "delete"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    operation: &'static str,
    group: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    group: String,
    resource: String,
}

type Count = Counter<u64, AtomicU64>;

/// The measurements of a store.
#[derive(Clone)]
pub struct Meter {
    seconds: Histograms<Asked>,
    requests: Family<Asked, Count>,
    errors: Family<Asked, Count>,
    events: Family<Of, Count>,
    lists: Family<Of, Count>,
    fetched: Family<Of, Count>,
    /// By the part of a key that tells its resource: to find these costs less than to write out labels.
    series: Arc<RwLock<HashMap<String, Arc<Series>>>>,
}

/// Those of one resource.
struct Series {
    of: Of,
    /// In the order of [`WORDS`]; made when first used, so that nothing is told of what never happens.
    asked: [std::sync::OnceLock<(Histogram, Count)>; WORDS.len()],
    events: Count,
}

fn buckets() -> Histogram {
    Histogram::new([
        0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
        10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
    ])
}

impl Meter {
    pub fn new(registry: &mut Registry) -> Self {
        let meter = Self {
            seconds: Family::new_with_constructor(buckets as fn() -> Histogram),
            requests: Family::default(),
            errors: Family::default(),
            events: Family::default(),
            lists: Family::default(),
            fetched: Family::default(),
            series: Arc::default(),
        };
        registry.register(
            "etcd_request_duration_seconds",
            "Time that the store took, by operation and resource",
            meter.seconds.clone(),
        );
        for (name, help, family) in [
            ("etcd_requests", "What the store was asked", &meter.requests),
            ("etcd_request_errors", "What the store could not do", &meter.errors),
        ] {
            registry.register(name, help, family.clone());
        }
        for (name, help, family) in [
            ("apiserver_storage_events_received", "Changes of stored objects", &meter.events),
            ("apiserver_storage_list", "Lists that were read from the store", &meter.lists),
            (
                "apiserver_storage_list_fetched_objects",
                "Objects that were read from the store for lists",
                &meter.fetched,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        meter
    }

    /// A store that asks `store`, and measures.
    pub fn measure(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Measured { store, meter: self.clone() })
    }

    fn series(&self, key: &str) -> Arc<Series> {
        let part = resource_part(key);
        if let Some(known) = self.series.read().get(part) {
            return known.clone();
        }
        let of = told(part);
        let made = Arc::new(Series {
            events: self.events.get_or_create(&of).clone(),
            asked: Default::default(),
            of,
        });
        self.series.write().entry(part.to_owned()).or_insert(made).clone()
    }

    /// Counts an operation on a key that began then.
    fn done(&self, operation: Operation, key: &str, began: Instant, failed: bool) {
        let series = self.series(key);
        let (seconds, requests) = series.asked[operation as usize].get_or_init(|| {
            let asked = asked(operation, &series.of);
            let seconds = self.seconds.get_or_create(&asked).clone();
            (seconds, self.requests.get_or_create(&asked).clone())
        });
        seconds.observe(began.elapsed().as_secs_f64());
        requests.inc();
        if failed {
            self.errors.get_or_create(&asked(operation, &series.of)).inc();
        }
    }

    fn listed(&self, key: &str, fetched: usize) {
        let series = self.series(key);
        self.lists.get_or_create(&series.of).inc();
        self.fetched.get_or_create(&series.of).inc_by(fetched as u64);
    }
}

fn asked(operation: Operation, of: &Of) -> Asked {
    let Of { group, resource } = of.clone();
    Asked { operation: WORDS[operation as usize], group, resource }
}

/// The beginning of a key that says which resource it is of: `/GROUP/RESOURCE/`, of a custom resource
/// one word more.
fn resource_part(key: &str) -> &str {
    let words = if key.starts_with(CUSTOM_STORAGE) { 4 } else { 3 };
    let end = key.match_indices('/').nth(words - 1);
    end.map_or("", |(at, _)| &key[..=at])
}

fn told(part: &str) -> Of {
    let mut words = part.strip_prefix(CUSTOM_STORAGE).unwrap_or(part).trim_matches('/').split('/');
    let group = words.next().filter(|g| *g != "core").unwrap_or_default();
    Of { group: group.to_owned(), resource: words.next().unwrap_or_default().to_owned() }
}

/// What a transaction does, and to which key: its first operation that changes something. None of one
/// that only looks.
fn gist(txn: &Txn) -> Option<(Operation, &str)> {
    txn.ops.iter().find_map(|op| match op {
        Op::Put { key, expect: Expect::Absent, .. } => Some((Operation::Create, key.as_str())),
        Op::Put { key, .. } => Some((Operation::Update, key.as_str())),
        Op::Delete { key, .. } => Some((Operation::Delete, key.as_str())),
        Op::Check { .. } => None,
    })
}

struct Measured {
    store: Arc<dyn Store>,
    meter: Meter,
}

#[async_trait]
impl Store for Measured {
    fn revision(&self) -> Revision {
        self.store.revision()
    }

    fn oldest(&self) -> Revision {
        self.store.oldest()
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, Error> {
        let began = Instant::now();
        let got = self.store.get(key, at).await;
        self.meter.done(Operation::Get, key, began, got.is_err());
        got
    }

    async fn list(&self, request: ListRequest) -> Result<Page, Error> {
        let (began, prefix) = (Instant::now(), request.prefix.clone());
        let page = self.store.list(request).await;
        self.meter.done(Operation::List, &prefix, began, page.is_err());
        if let Ok(page) = &page {
            self.meter.listed(&prefix, page.entries.len());
        }
        page
    }

    async fn count(&self, prefix: &str) -> Result<usize, Error> {
        let began = Instant::now();
        let count = self.store.count(prefix).await;
        self.meter.done(Operation::Count, prefix, began, count.is_err());
        count
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let began = Instant::now();
        let gist = gist(&txn).map(|(operation, key)| (operation, key.to_owned()));
        let changed: Vec<Count> = txn
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Put { key, .. } | Op::Delete { key, .. } => Some(key),
                Op::Check { .. } => None,
            })
            .map(|key| self.meter.series(key).events.clone())
            .collect();
        let done = self.store.commit(txn).await;
        if let Some((operation, key)) = gist {
            // Somebody was quicker: that is an answer, as a comparison that does not hold is etcd's.
            let failed = matches!(done, Err(CommitError::Store(_) | CommitError::TooLarge { .. }));
            self.meter.done(operation, &key, began, failed);
        }
        if done.is_ok() {
            for events in &changed {
                events.inc();
            }
        }
        done
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Error> {
        self.store.watch(prefix, after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.store.compact(revision).await
    }

    async fn size(&self) -> Option<u64> {
        self.store.size().await
    }
}

#[cfg(test)]
mod tests {
    use rimward_control_store::MemoryStore;

    use super::*;

    fn put(key: &str, expect: Expect) -> Txn {
        Txn { ops: vec![Op::Put { key: key.into(), value: bytes::Bytes::new(), expect }] }
    }

    #[test]
    fn keys_tell_their_resource() {
        for (key, part, group, resource) in [
            ("/core/pods/default/a", "/core/pods/", "", "pods"),
            ("/apps/deployments/", "/apps/deployments/", "apps", "deployments"),
            ("/custom/a.example/things/x/y", "/custom/a.example/things/", "a.example", "things"),
            ("\0", "", "", ""),
        ] {
            assert_eq!(resource_part(key), part, "{key:?}");
            let of = told(part);
            assert_eq!((of.group.as_str(), of.resource.as_str()), (group, resource), "{key:?}");
        }
    }

    #[tokio::test]
    async fn what_is_asked_is_told() {
        let mut registry = Registry::default();
        let store = Meter::new(&mut registry).measure(MemoryStore::new());
        store.commit(put("/core/pods/a/b", Expect::Absent)).await.expect("nothing is there");
        store.commit(put("/core/pods/a/b", Expect::Absent)).await.expect_err("it is there");
        store.commit(put("/core/pods/a/b", Expect::Anything)).await.expect("it may be");
        store.get("/core/pods/a/b", None).await.expect("memory does not fail");
        let prefix = "/core/pods/".to_owned();
        store.list(ListRequest { prefix, ..Default::default() }).await.expect("likewise");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("it is a String");
        for (line, value) in [
            (
                "etcd_request_duration_seconds_count{operation=\"create\",group=\"\",resource=\"pods\"}",
                2,
            ),
            ("etcd_requests_total{operation=\"update\",group=\"\",resource=\"pods\"}", 1),
            ("etcd_requests_total{operation=\"get\",group=\"\",resource=\"pods\"}", 1),
            ("apiserver_storage_events_received_total{group=\"\",resource=\"pods\"}", 2),
            ("apiserver_storage_list_fetched_objects_total{group=\"\",resource=\"pods\"}", 1),
        ] {
            assert!(text.contains(&format!("{line} {value}\n")), "{line} {value} in {text}");
        }
        assert!(!text.contains("etcd_request_errors_total{"), "{text}");
        assert!(!text.contains("operation=\"delete\""), "{text}");
    }
}
