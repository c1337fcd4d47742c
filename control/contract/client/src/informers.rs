//! One informer per kind in a process, started when somebody first asks for it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::client::Client;
use crate::reflector::{self, Source};
use crate::resource::Object;

/// The shared set. Each kind is listed, watched and decoded once, whoever reads it.
#[derive(Clone)]
pub struct Informers {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    shutdown: CancellationToken,
    /// `Cache<K>` by the TypeId of K.
    caches: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
}

impl Informers {
    /// `client` must be allowed to list and watch what will be asked for.
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Self { inner: Arc::new(Inner { client, shutdown, caches: Mutex::default() }) }
    }

    /// Who lists and watches.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The cache of all objects of a kind. Must be called within a tokio runtime.
    pub fn of<K: Object>(&self) -> Cache<K> {
        let mut caches = self.inner.caches.lock();
        let cache = caches
            .entry(TypeId::of::<K>())
            .or_insert_with(|| Box::new(self.start::<K>(Source::of_kind::<K>())));
        cache.downcast_ref::<Cache<K>>().expect("the TypeId says so").clone()
    }

    /// A cache of some objects of a kind, not shared: every call starts another watch.
    pub fn filtered<K: Object>(&self, source: Source) -> Cache<K> {
        self.start(source)
    }

    fn start<K: Object>(&self, source: Source) -> Cache<K> {
        let cache = Cache::new();
        let (client, shutdown) = (self.inner.client.clone(), self.inner.shutdown.clone());
        tokio::spawn(reflector::run::<K>(client, source, Arc::new(cache.clone()), shutdown));
        cache
    }
}
