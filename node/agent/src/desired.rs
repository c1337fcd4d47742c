//! The desired state of this node: in the ledger first, then in memory, then acted upon.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use parking_lot::Mutex;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Object};
use rimward_tunnel::wire::{Delta, Digest, ObjectKind, Offer, Want};
use tokio::sync::watch;

use crate::PodHandler;
use crate::ledger::{Change, Ledger, LedgerError};

/// Keys asked for in one frame.
const WANT_KEYS: usize = 4096;

/// Objects that this node was told. Clones are handles.
#[derive(Clone)]
pub struct Desired {
    pub services: Cache<Service>,
    pub endpoint_slices: Cache<EndpointSlice>,
    pub ingresses: Cache<Ingress>,
    pub namespaces: Cache<Namespace>,
    /// Of this node's pods and of Ingresses.
    pub secrets: Cache<Secret>,
    pub config_maps: Cache<ConfigMap>,
    /// This node's pods.
    pub pods: Cache<Pod>,
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Arc<Ledger>,
    handler: Mutex<Handler>,
    /// Counts changes of ConfigMaps and Secrets.
    configuration: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

/// Who runs the pods, and which of them it was given: an object and its UID by name.
#[derive(Default)]
struct Handler {
    pods: Option<Arc<dyn PodHandler>>,
    given: HashMap<ObjectKey, String>,
}

/// What a frame asks for, read but not yet applied.
#[derive(Default)]
pub struct Batch {
    changes: Vec<(ObjectKind, ObjectKey, Option<Read>)>,
}

struct Read {
    json: Vec<u8>,
    object: Typed,
}

enum Typed {
    Namespace(Namespace),
    ConfigMap(ConfigMap),
    Secret(Secret),
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    Ingress(Ingress),
    Pod(Box<Pod>),
}

/// Where a synchronisation stands: what was asked for and has not come yet.
#[derive(Default)]
pub struct Progress {
    missing: BTreeSet<(ObjectKind, ObjectKey)>,
    told: bool,
}

impl Progress {
    /// The control plane has said everything.
    pub fn told(&mut self) {
        self.told = true;
    }

    /// Whether everything is here.
    pub fn complete(&self) -> bool {
        self.told && self.missing.is_empty()
    }
}

impl Typed {
    fn read(kind: ObjectKind, json: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(match kind {
            ObjectKind::Namespace => Self::Namespace(serde_json::from_slice(json)?),
            ObjectKind::ConfigMap => Self::ConfigMap(serde_json::from_slice(json)?),
            ObjectKind::Secret => Self::Secret(serde_json::from_slice(json)?),
            ObjectKind::Service => Self::Service(Box::new(serde_json::from_slice(json)?)),
            ObjectKind::EndpointSlice => Self::EndpointSlice(serde_json::from_slice(json)?),
            ObjectKind::Ingress => Self::Ingress(serde_json::from_slice(json)?),
            ObjectKind::Pod => Self::Pod(Box::new(serde_json::from_slice(json)?)),
        })
    }

    fn key(&self) -> ObjectKey {
        let meta = match self {
            Self::Namespace(o) => &o.metadata,
            Self::ConfigMap(o) => &o.metadata,
            Self::Secret(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::Ingress(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
        };
        ObjectKey::of_meta(meta)
    }
}

impl Batch {
    /// Adds what a Delta says. Objects that cannot be read are left out and logged: one of them must
    /// not keep the others from the node.
    pub fn add(&mut self, delta: Delta) {
        let Some(kind) = ObjectKind::from_name(&delta.kind) else { return };
        for (namespace, name) in delta.removes {
            self.changes.push((kind, ObjectKey { namespace, name }, None));
        }
        for json in delta.upserts {
            match Typed::read(kind, &json) {
                Ok(object) => self.changes.push((kind, object.key(), Some(Read { json, object }))),
                Err(cause) => {
                    tracing::warn!(kind = kind.name(), %cause, "an object cannot be read")
                }
            }
        }
    }
}

impl Desired {
    /// What the ledger holds.
    pub fn load(ledger: Arc<Ledger>) -> Result<Self, LedgerError> {
        let complete = ledger.is_complete()?;
        let desired = Self {
            services: Cache::new(),
            endpoint_slices: Cache::new(),
            ingresses: Cache::new(),
            namespaces: Cache::new(),
            secrets: Cache::new(),
            config_maps: Cache::new(),
            pods: Cache::new(),
            shared: Arc::new(Shared {
                ledger: ledger.clone(),
                handler: Mutex::default(),
                configuration: watch::Sender::new(0),
                synced: watch::Sender::new(false),
            }),
        };
        for stored in ledger.objects()? {
            match Typed::read(stored.kind, &stored.json) {
                Ok(object) => desired.remember(object.key(), object),
                Err(cause) => {
                    tracing::warn!(kind = stored.kind.name(), %cause, "an object in the ledger cannot be read")
                }
            }
        }
        if complete {
            desired.mark_synced();
        }
        Ok(desired)
    }

    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.shared.ledger
    }

    /// Counts changes of ConfigMaps and Secrets.
    pub fn configuration(&self) -> watch::Receiver<u64> {
        self.shared.configuration.subscribe()
    }

    /// Whether the whole desired state is known: from the control plane, now or before.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    pub(crate) fn watch_synced(&self) -> watch::Receiver<bool> {
        self.shared.synced.subscribe()
    }

    /// Gives a handler every pod, and every change from now on.
    pub fn attach(&self, pods: Arc<dyn PodHandler>) {
        let mut handler = self.shared.handler.lock();
        for (key, pod) in self.pods.list() {
            handler.given.insert(key, pod.metadata.uid.clone().unwrap_or_default());
            pods.set(pod);
        }
        if self.is_synced() {
            pods.synced();
        }
        handler.pods = Some(pods);
    }

    /// What is held, for the control plane to compare.
    pub fn digests(&self) -> Vec<(String, u64, u64)> {
        fn of<K: Object>(kind: ObjectKind, cache: &Cache<K>) -> (String, u64, u64) {
            let mut digest = Digest::default();
            for (key, object) in cache.list() {
                let meta = object.metadata();
                let (uid, version) = (meta.uid.as_deref(), meta.resource_version.as_deref());
                digest.add(
                    &key.namespace,
                    &key.name,
                    uid.unwrap_or_default(),
                    version.unwrap_or_default(),
                );
            }
            (kind.name().to_owned(), digest.count, digest.sum)
        }
        vec![
            of(ObjectKind::Namespace, &self.namespaces),
            of(ObjectKind::ConfigMap, &self.config_maps),
            of(ObjectKind::Secret, &self.secrets),
            of(ObjectKind::Service, &self.services),
            of(ObjectKind::EndpointSlice, &self.endpoint_slices),
            of(ObjectKind::Ingress, &self.ingresses),
            of(ObjectKind::Pod, &self.pods),
        ]
    }

    /// Compares an inventory with what is held: what must go is added to the batch, what is missing is
    /// answered.
    pub fn compare(&self, offer: Offer, batch: &mut Batch, progress: &mut Progress) -> Vec<Want> {
        let Some(kind) = ObjectKind::from_name(&offer.kind) else { return Vec::new() };
        let mut held = self.inventory(kind);
        let mut missing = Vec::new();
        for (namespace, name, uid, version) in offer.entries {
            let key = ObjectKey { namespace, name };
            if held.remove(&key) != Some((uid, version)) {
                missing.push(key);
            }
        }
        batch.changes.extend(held.into_keys().map(|key| (kind, key, None)));
        let wants = missing.chunks(WANT_KEYS).map(|keys| Want {
            kind: kind.name().into(),
            keys: keys.iter().map(|k| (k.namespace.clone(), k.name.clone())).collect(),
        });
        let wants = wants.collect();
        progress.missing.extend(missing.into_iter().map(|key| (kind, key)));
        wants
    }

    fn inventory(&self, kind: ObjectKind) -> BTreeMap<ObjectKey, (String, String)> {
        fn of<K: Object>(cache: &Cache<K>) -> BTreeMap<ObjectKey, (String, String)> {
            let entry = |(key, object): (ObjectKey, Arc<K>)| {
                let meta = object.metadata();
                let uid = meta.uid.clone().unwrap_or_default();
                (key, (uid, meta.resource_version.clone().unwrap_or_default()))
            };
            cache.list().into_iter().map(entry).collect()
        }
        match kind {
            ObjectKind::Namespace => of(&self.namespaces),
            ObjectKind::ConfigMap => of(&self.config_maps),
            ObjectKind::Secret => of(&self.secrets),
            ObjectKind::Service => of(&self.services),
            ObjectKind::EndpointSlice => of(&self.endpoint_slices),
            ObjectKind::Ingress => of(&self.ingresses),
            ObjectKind::Pod => of(&self.pods),
        }
    }

    /// Ledger, memory, action, in this order. Blocks for the disk.
    ///
    /// # Errors
    /// When the ledger cannot be written: then nothing was acted upon.
    pub fn apply(&self, batch: Batch, progress: &mut Progress) -> Result<(), LedgerError> {
        let changes: Vec<Change<'_>> = batch
            .changes
            .iter()
            .map(|(kind, key, read)| Change {
                kind: *kind,
                key,
                json: read.as_ref().map(|r| r.json.as_slice()),
            })
            .collect();
        self.shared.ledger.apply(&changes)?;
        let mut configured = false;
        for (kind, key, read) in batch.changes {
            configured |= matches!(kind, ObjectKind::ConfigMap | ObjectKind::Secret);
            progress.missing.remove(&(kind, key.clone()));
            match read {
                Some(read) => self.remember(key.clone(), read.object),
                None => self.forget(kind, &key),
            }
            if kind == ObjectKind::Pod {
                self.act(&key);
            }
        }
        if configured {
            self.shared.configuration.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// The desired state is whole. Blocks for the disk.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn complete(&self) -> Result<(), LedgerError> {
        if self.is_synced() {
            return Ok(());
        }
        self.shared.ledger.set_complete()?;
        self.mark_synced();
        let handler = self.shared.handler.lock();
        if let Some(pods) = &handler.pods {
            pods.synced();
        }
        Ok(())
    }

    fn mark_synced(&self) {
        self.services.mark_synced();
        self.endpoint_slices.mark_synced();
        self.ingresses.mark_synced();
        self.namespaces.mark_synced();
        self.secrets.mark_synced();
        self.config_maps.mark_synced();
        self.pods.mark_synced();
        self.shared.synced.send_replace(true);
    }

    /// Gives the handler the pod as it is now: set, removed, or one removed and another set when the
    /// name has a new UID.
    fn act(&self, key: &ObjectKey) {
        let mut handler = self.shared.handler.lock();
        let Some(pods) = handler.pods.clone() else { return };
        let pod = self.pods.get_key(key);
        let uid = pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        let given = handler.given.get(key).cloned();
        if let Some(old) = given.filter(|old| Some(old) != uid.as_ref()) {
            pods.remove(&old);
            handler.given.remove(key);
        }
        if let Some(pod) = pod {
            handler.given.insert(key.clone(), uid.unwrap_or_default());
            pods.set(pod);
        }
    }

    fn remember(&self, key: ObjectKey, object: Typed) {
        match object {
            Typed::Namespace(o) => drop(self.namespaces.apply(key, Arc::new(o))),
            Typed::ConfigMap(o) => drop(self.config_maps.apply(key, Arc::new(o))),
            Typed::Secret(o) => drop(self.secrets.apply(key, Arc::new(o))),
            Typed::Service(o) => drop(self.services.apply(key, Arc::from(o))),
            Typed::EndpointSlice(o) => drop(self.endpoint_slices.apply(key, Arc::new(o))),
            Typed::Ingress(o) => drop(self.ingresses.apply(key, Arc::new(o))),
            Typed::Pod(o) => drop(self.pods.apply(key, Arc::from(o))),
        }
    }

    fn forget(&self, kind: ObjectKind, key: &ObjectKey) {
        match kind {
            ObjectKind::Namespace => drop(self.namespaces.remove(key)),
            ObjectKind::ConfigMap => drop(self.config_maps.remove(key)),
            ObjectKind::Secret => drop(self.secrets.remove(key)),
            ObjectKind::Service => drop(self.services.remove(key)),
            ObjectKind::EndpointSlice => drop(self.endpoint_slices.remove(key)),
            ObjectKind::Ingress => drop(self.ingresses.remove(key)),
            ObjectKind::Pod => drop(self.pods.remove(key)),
        }
    }
}
