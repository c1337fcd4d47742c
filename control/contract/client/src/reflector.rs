//! Keeps something equal to what the server holds: lists by pages, watches from there, resumes where
//! a watch ended, and lists again only when the revision is gone.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rimward_api::ObjectKey;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::client::{Client, decode, list_path};
use crate::error::Error;
use crate::options::ListOptions;
use crate::resource::{Object, Resource, Watched, revision};
use crate::watch::{self, WatchEvent};

const PAGE: usize = 500;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A watch that lasted this long, or said anything, counts as a success.
const HEALTHY: Duration = Duration::from_secs(1);

/// What to mirror.
#[derive(Clone, Debug)]
pub struct Source {
    pub resource: Resource,
    /// Empty: all.
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
    /// Ask for PartialObjectMetadata only.
    pub metadata_only: bool,
}

impl Source {
    pub fn of(resource: Resource) -> Self {
        Self {
            resource,
            namespace: String::new(),
            label_selector: String::new(),
            field_selector: String::new(),
            metadata_only: false,
        }
    }

    pub fn of_kind<K: Object>() -> Self {
        Self::of(Resource::of::<K>())
    }

    pub fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }

    pub fn with_field(mut self, selector: impl Into<String>) -> Self {
        self.field_selector = selector.into();
        self
    }

    fn options(&self) -> ListOptions {
        ListOptions {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            ..ListOptions::default()
        }
    }

    fn accept(&self, list: bool) -> &'static str {
        match (self.metadata_only, list) {
            (false, _) => "application/json",
            (true, true) => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            (true, false) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        }
    }
}

/// What the mirrored objects go into. Called from one task, in revision order.
pub trait Sink<K>: Send + Sync + 'static {
    /// The whole state at a revision.
    fn replace(&self, objects: Vec<K>, revision: u64);
    fn apply(&self, object: K, revision: u64);
    /// The last state of an object that is gone.
    fn remove(&self, object: K, revision: u64);
    /// Nothing else happened up to this revision.
    fn advance(&self, _revision: u64) {}
}

impl<K: Watched> Sink<K> for Cache<K> {
    /// Objects that did not change since are left alone: a relist after a long disconnection must not
    /// wake every controller for every object.
    fn replace(&self, objects: Vec<K>, revision: u64) {
        let mut seen = HashSet::with_capacity(objects.len());
        for object in objects {
            let key = object.key();
            let known = self.get_key(&key);
            let same = known.is_some_and(|k| k.resource_version() == object.resource_version());
            if !same {
                self.apply(key.clone(), Arc::new(object));
            }
            seen.insert(key);
        }
        for (key, _) in self.list() {
            if !seen.contains(&key) {
                self.remove(&key);
            }
        }
        self.advance(revision);
        self.mark_synced();
    }

    fn apply(&self, object: K, revision: u64) {
        self.apply_at(object.key(), Arc::new(object), revision);
    }

    fn remove(&self, object: K, revision: u64) {
        self.remove_at(&object.key(), revision);
    }

    fn advance(&self, revision: u64) {
        Cache::advance(self, revision);
    }
}

/// Where the mirror stands.
enum Position {
    /// Nothing usable is known: list.
    Unknown,
    /// Everything up to this resourceVersion is in the sink: watch from it.
    At(String),
}

/// Mirrors until `shutdown`. Failures are logged and retried with exponential back-off and jitter.
pub async fn run<K: Watched>(
    client: Client,
    source: Source,
    sink: Arc<dyn Sink<K>>,
    shutdown: CancellationToken,
) {
    let client = client.omitting_managed_fields();
    shutdown.run_until_cancelled(mirror(&client, &source, sink.as_ref())).await;
}

async fn mirror<K: Watched>(client: &Client, source: &Source, sink: &dyn Sink<K>) {
    let mut position = Position::Unknown;
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let outcome = match &mut position {
            Position::Unknown => list(client, source, sink).await.map(|at| {
                position = Position::At(at);
                true
            }),
            Position::At(at) => follow(client, source, sink, at).await,
        };
        match outcome {
            Ok(true) => failures = 0,
            Ok(false) if started.elapsed() >= HEALTHY => failures = 0,
            Ok(false) => failures += 1,
            Err(e) if e.is_expired() => {
                tracing::debug!(
                    resource = source.resource.name,
                    "the watched revision is gone, listing again"
                );
                position = Position::Unknown;
                failures += 1;
            }
            Err(e) => {
                tracing::warn!(resource = source.resource.name, error = %e, "cannot list or watch, trying again");
                failures += 1;
            }
        }
        // The first retry is immediate: a server that restarts or ends watches on time is no failure.
        if failures > 1 {
            tokio::time::sleep(backoff(failures - 2, BACKOFF_MIN, BACKOFF_MAX)).await;
        }
    }
}

/// `min × 2^failures`, at most `max`, less up to half of it at random so that clients that failed
/// together do not come back together.
pub fn backoff(failures: u32, min: Duration, max: Duration) -> Duration {
    let full = min.saturating_mul(1u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX)).min(max);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

/// Lists into the sink; answers the resourceVersion to watch from.
async fn list<K: Watched>(
    client: &Client,
    source: &Source,
    sink: &dyn Sink<K>,
) -> Result<String, Error> {
    let mut options = ListOptions { limit: PAGE, ..source.options() };
    let mut objects: BTreeMap<ObjectKey, K> = BTreeMap::new();
    loop {
        let path = list_path(&source.resource, &source.namespace, &options);
        let page = client.list_raw(&path, source.accept(true)).await?;
        for raw in &page.items {
            match decode::<K>(raw.get().as_bytes(), &path) {
                Ok(mut object) => {
                    object.strip();
                    objects.insert(object.key(), object);
                }
                Err(e) => tracing::warn!(error = %e, "an object is left out"),
            }
        }
        if page.metadata.continue_token.is_empty() {
            let at = page.metadata.resource_version;
            sink.replace(objects.into_values().collect(), revision(&at));
            return Ok(at);
        }
        options.continue_token = page.metadata.continue_token;
    }
}

/// Watches into the sink until the watch ends, moving `at` along; answers whether anything came.
async fn follow<K: Watched>(
    client: &Client,
    source: &Source,
    sink: &dyn Sink<K>,
    at: &mut String,
) -> Result<bool, Error> {
    let options = ListOptions { resource_version: at.clone(), ..source.options() };
    // Spread over time, so that the watches of a fleet do not all end in the same second.
    let timeout = rand::random_range(300..600);
    let events = watch::open::<K>(
        client,
        &source.resource,
        &source.namespace,
        &options,
        source.accept(false),
        timeout,
    );
    let mut events = std::pin::pin!(events.await?);
    let mut any = false;
    while let Some(event) = events.next().await {
        let event = match event {
            Err(e @ Error::Decode { .. }) => {
                tracing::warn!(error = %e, "an event is left out");
                continue;
            }
            event => event?,
        };
        any = true;
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                object.resource_version().clone_into(at);
                sink.apply(object, revision(at));
            }
            WatchEvent::Deleted(object) => {
                object.resource_version().clone_into(at);
                sink.remove(object, revision(at));
            }
            WatchEvent::Bookmark { resource_version } => {
                *at = resource_version;
                sink.advance(revision(at));
            }
        }
    }
    Ok(any)
}
