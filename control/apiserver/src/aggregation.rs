//! Extension API servers: an APIService hands a group and version to a Service, and this server hands
//! it the requests, as whoever sent them.
//! <https://kubernetes.io/docs/concepts/extend-kubernetes/api-extension/apiserver-aggregation/>
//!
//! ```text
//! mirror of APIServices ─► availability (one task each) ─► status, discovery documents
//!          └─► proxy (requests), discovery (merged), register (those of our own groups)
//! ```
//!
//! While no APIService names a Service, requests pay for one look at a flag.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::watch;

use crate::mirror::Mirrored;
use crate::outbound::{CallError, Destination, Service, Target, Trust};
use crate::views::Stored;

pub mod availability;
pub mod discovery;
pub mod openapi;
pub mod proxy;
pub mod register;

/// An APIService, taken apart.
#[derive(Clone, Debug)]
pub struct ApiService {
    pub name: String,
    pub uid: String,
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    /// None when this server serves the group itself.
    pub destination: Option<Result<Destination, CallError>>,
    /// The condition `Available`.
    pub available: bool,
    /// `kube-aggregator.kubernetes.io/automanaged`
    pub managed: String,
}

impl ApiService {
    fn parse(stored: &Stored) -> Option<Self> {
        let object: Value = serde_json::from_slice(stored.record.body()).ok()?;
        let spec = object.get("spec")?;
        let text = |v: &Value, field: &str| {
            v.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let number = |field: &str| spec.get(field).and_then(Value::as_i64).unwrap_or(0);
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let available = conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Available" && c["status"] == "True");
        Some(Self {
            name: stored.name().to_owned(),
            uid: stored.record.uid().to_owned(),
            group: text(spec, "group"),
            version: text(spec, "version"),
            group_priority: number("groupPriorityMinimum"),
            version_priority: number("versionPriority"),
            destination: spec
                .get("service")
                .filter(|s| s.is_object())
                .map(|s| destination(spec, s)),
            available,
            managed: stored.record.label(register::MANAGED).unwrap_or_default().to_owned(),
        })
    }

    /// `/apis/GROUP/VERSION`
    pub fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }
}

fn destination(spec: &Value, service: &Value) -> Result<Destination, CallError> {
    let text = |v: &Value, field: &str| {
        v.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let port = service.get("port").and_then(Value::as_u64).unwrap_or(443);
    let port =
        u16::try_from(port).map_err(|_| CallError::Config(format!("{port} is not a port")))?;
    let trust = match spec.get("insecureSkipTLSVerify").and_then(Value::as_bool) {
        Some(true) => Trust::Anybody,
        _ => Trust::of_bundle(&text(spec, "caBundle"))?,
    };
    let service = Service {
        namespace: text(service, "namespace"),
        name: text(service, "name"),
        port,
        path: String::new(),
    };
    Ok(Destination { target: Target::Service(service), trust, identified: true })
}

/// What an extension API server says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Its version in an APIGroupDiscoveryList: `{version, resources, freshness}`.
    pub version: Option<Value>,
    /// Its entry in the index of OpenAPI v3.
    pub openapi: Option<Value>,
}

/// All APIServices, and what their servers said last.
pub struct Aggregation {
    services: RwLock<BTreeMap<String, Arc<ApiService>>>,
    told: RwLock<HashMap<String, Arc<Told>>>,
    any_remote: AtomicBool,
    /// Counts changes of either; what is made of both is kept by it.
    generation: watch::Sender<u64>,
    made: RwLock<HashMap<(String, bool), discovery::Made>>,
    v2: RwLock<Option<Arc<openapi::V2>>>,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self {
            services: RwLock::default(),
            told: RwLock::default(),
            any_remote: AtomicBool::new(false),
            generation: watch::Sender::new(0),
            made: RwLock::default(),
            v2: RwLock::default(),
        }
    }
}

impl Aggregation {
    /// Whether there is any group that another server serves.
    pub fn any_remote(&self) -> bool {
        self.any_remote.load(Ordering::Acquire)
    }

    /// The remote APIService of a path under `/apis/GROUP/VERSION`.
    pub fn owner(&self, path: &str) -> Option<Arc<ApiService>> {
        if !self.any_remote() {
            return None;
        }
        let mut words = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (words.next()?, words.next()?);
        let found = self.services.read().get(&format!("{version}.{group}")).cloned()?;
        found.destination.is_some().then_some(found)
    }

    pub fn all(&self) -> Vec<Arc<ApiService>> {
        self.services.read().values().cloned().collect()
    }

    fn get(&self, name: &str) -> Option<Arc<ApiService>> {
        self.services.read().get(name).cloned()
    }

    fn told(&self, name: &str) -> Option<Arc<Told>> {
        self.told.read().get(name).cloned()
    }

    /// Keeps what a server said; None when its APIService is gone.
    fn tell(&self, name: &str, told: Option<Told>) {
        let mut all = self.told.write();
        if all.get(name).map(|t| &**t) == told.as_ref() {
            return;
        }
        match told {
            Some(told) => all.insert(name.to_owned(), Arc::new(told)),
            None => all.remove(name),
        };
        drop(all);
        self.generation.send_modify(|g| *g += 1);
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Arc<ApiService>>)) {
        let mut services = self.services.write();
        change(&mut services);
        let any = services.values().any(|s| s.destination.is_some());
        drop(services);
        self.any_remote.store(any, Ordering::Release);
        self.generation.send_modify(|g| *g += 1);
    }
}

impl Mirrored for Aggregation {
    fn replace(&self, all: Vec<(String, Stored)>) {
        let parsed = all
            .iter()
            .filter_map(|(key, stored)| Some((key.clone(), Arc::new(ApiService::parse(stored)?))))
            .collect();
        self.change(|services| *services = parsed);
    }

    fn put(&self, key: &str, stored: &Stored) {
        if let Some(parsed) = ApiService::parse(stored) {
            self.change(|services| {
                services.insert(key.to_owned(), Arc::new(parsed));
            });
        }
    }

    fn remove(&self, key: &str) {
        self.change(|services| {
            services.remove(key);
        });
    }
}
