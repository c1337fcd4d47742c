//! Runs a controller: caches first, then workers over its queue. It knows no controller.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error, Informers, Object, Queue, Recorder};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Config;
use crate::indexes::{self, BY_SELECTOR};
use crate::pods::controller_of;

pub type Keys = Arc<Queue<ObjectKey>>;

/// One object's desired state, made real. Called for a key until it answers Ok, never twice at once.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error>;
}

/// When to look at the key again if nothing changes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Change,
    After(Duration),
}

/// What a controller is given at its start.
pub struct Context {
    pub name: &'static str,
    /// Acts as this controller.
    pub client: Client,
    /// Shared; reads as the control plane.
    pub informers: Informers,
    pub config: Arc<Config>,
    pub shutdown: CancellationToken,
    pub tasks: TaskTracker,
}

impl Context {
    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.client.clone(), self.name, self.shutdown.clone())
    }

    /// Runs `workers` workers once all of `caches` hold the first full state.
    pub fn run(
        &self,
        controller: Arc<impl Controller>,
        keys: Keys,
        workers: usize,
        caches: Vec<BoxFuture<'static, ()>>,
    ) {
        let (name, shutdown, tasks) = (self.name, self.shutdown.clone(), self.tasks.clone());
        // Kubernetes calls a queue by what it is about.
        self.config.queues.add(name.trim_end_matches("-controller"), &keys);
        self.tasks.spawn(async move {
            if shutdown.run_until_cancelled(join_all(caches)).await.is_none() {
                return;
            }
            tracing::debug!(controller = name, "caches are in, starting");
            for _ in 0..workers {
                tasks.spawn(work(name, controller.clone(), keys.clone()));
            }
            shutdown.cancelled().await;
            keys.close();
        });
    }
}

/// For [`Context::run`].
pub fn synced<K: Object>(cache: &Cache<K>) -> BoxFuture<'static, ()> {
    let cache = cache.clone();
    async move { cache.synced().await }.boxed()
}

/// Puts the key of every object that changes into a queue.
pub fn enqueue_changes<K: Object>(cache: &Cache<K>, keys: &Keys) {
    let keys = keys.clone();
    cache.on_change(move |change| keys.add(change.key.clone()));
}

/// Puts the key of the owner that controls a changed child into a queue, or, where nobody does, the keys
/// of those that might adopt it: `owners` must have the index [`BY_SELECTOR`].
pub fn enqueue_owners<C: Object, O: Object>(children: &Cache<C>, owners: &Cache<O>, keys: &Keys) {
    let (keys, owners) = (keys.clone(), owners.clone());
    children.on_change(move |change| {
        for child in [change.old, change.new].into_iter().flatten() {
            owners_of(child.metadata(), &owners).into_iter().for_each(|key| keys.add(key));
        }
    });
}

fn owners_of<O: Object>(child: &ObjectMeta, owners: &Cache<O>) -> Vec<ObjectKey> {
    match controller_of(child) {
        Some(owner) if owner.kind == O::KIND => {
            vec![ObjectKey::new(child.namespace.clone().unwrap_or_default(), owner.name.clone())]
        }
        Some(_) => Vec::new(),
        None => {
            let values = indexes::selector_values(child);
            let possible = values.iter().flat_map(|value| owners.indexed(BY_SELECTOR, value));
            possible.map(|owner| ObjectKey::of_meta(owner.metadata())).collect()
        }
    }
}

async fn work(name: &'static str, controller: Arc<impl Controller>, keys: Keys) {
    while let Some(key) = keys.get().await {
        // A panic is a bug in one controller about one object: all others go on.
        let outcome = std::panic::AssertUnwindSafe(controller.reconcile(&key)).catch_unwind().await;
        match outcome {
            Ok(Ok(next)) => {
                keys.forget(&key);
                if let Next::After(delay) = next {
                    keys.add_after(key.clone(), delay);
                }
            }
            Ok(Err(e)) => {
                if e.is_conflict() || e.is_already_exists() || e.is_not_found() {
                    tracing::debug!(controller = name, %key, error = %e, "the world moved on, trying again");
                } else {
                    tracing::warn!(controller = name, %key, error = %e, "trying again");
                }
                keys.retry(key.clone());
            }
            Err(_) => {
                tracing::error!(controller = name, %key, "panicked, trying again");
                keys.retry(key.clone());
            }
        }
        keys.done(&key);
    }
}
