//! The desired state of this node: in the ledger first, then in memory, then acted upon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Object};
use rimward_tunnel::wire::{Delta, Digest, ObjectKind, Offer, Want};
use tokio::sync::watch;

use crate::PodHandler;
use crate::ledger::{Change, Ledger, LedgerError};
use crate::volumes;

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
    /// Of this node's pods.
    pub claims: Cache<PersistentVolumeClaim>,
    /// Of those claims, and those that this node keeps itself.
    pub volumes: Cache<PersistentVolume>,
    /// What others say of this node: its labels and taints.
    pub own_node: Cache<Node>,
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Arc<Ledger>,
    pods: Mutex<Pods>,
    /// Where this node keeps volumes.
    directory: PathBuf,
    /// Counts changes of ConfigMaps, Secrets and claims.
    configuration: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

/// This node's pods. Their objects are the handler's to keep: a second copy here would be half of what an idle
/// pod costs.
#[derive(Default)]
struct Pods {
    handler: Option<Arc<dyn PodHandler>>,
    held: BTreeMap<ObjectKey, HeldPod>,
}

struct HeldPod {
    version: Version,
    host_network: bool,
    /// Until there is a handler to give it to.
    object: Option<Arc<Pod>>,
}

/// UID and resourceVersion.
type Version = (String, String);

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
    Volume(Box<PersistentVolume>),
    Claim(Box<PersistentVolumeClaim>),
    Node(Box<Node>),
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
            ObjectKind::PersistentVolume => Self::Volume(Box::new(serde_json::from_slice(json)?)),
            ObjectKind::PersistentVolumeClaim => {
                Self::Claim(Box::new(serde_json::from_slice(json)?))
            }
            ObjectKind::Node => Self::Node(Box::new(serde_json::from_slice(json)?)),
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
            Self::Volume(o) => &o.metadata,
            Self::Claim(o) => &o.metadata,
            Self::Node(o) => &o.metadata,
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
    /// What the ledger holds; `data_dir` is the node's own.
    pub fn load(ledger: Arc<Ledger>, data_dir: &Path) -> Result<Self, LedgerError> {
        let complete = ledger.is_complete()?;
        let desired = Self {
            services: Cache::new(),
            endpoint_slices: Cache::new(),
            ingresses: Cache::new(),
            namespaces: Cache::new(),
            secrets: Cache::new(),
            config_maps: Cache::new(),
            claims: Cache::new(),
            volumes: Cache::new(),
            own_node: Cache::new(),
            shared: Arc::new(Shared {
                ledger: ledger.clone(),
                pods: Mutex::default(),
                directory: volumes::directory(data_dir),
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
        desired.remove_volumes();
        Ok(desired)
    }

    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.shared.ledger
    }

    /// Counts changes of ConfigMaps, Secrets and claims.
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

    /// Gives a handler every pod, and every change from now on. To be called once.
    pub fn attach(&self, handler: Arc<dyn PodHandler>) {
        let mut pods = self.shared.pods.lock();
        pods.held.values_mut().filter_map(|pod| pod.object.take()).for_each(|pod| handler.set(pod));
        if self.is_synced() {
            handler.synced();
        }
        pods.handler = Some(handler);
    }

    /// Whether one of this node's pods is on its own network.
    pub(crate) fn has_pod_on_host(&self) -> bool {
        self.shared.pods.lock().held.values().any(|pod| pod.host_network)
    }

    /// What is held, for the control plane to compare.
    pub fn digests(&self) -> Vec<(String, u64, u64)> {
        let of = |kind: ObjectKind| {
            let mut digest = Digest::default();
            for (key, (uid, version)) in self.inventory(kind) {
                digest.add(&key.namespace, &key.name, &uid, &version);
            }
            (kind.name().to_owned(), digest.count, digest.sum)
        };
        ObjectKind::ALL.into_iter().map(of).collect()
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

    fn inventory(&self, kind: ObjectKind) -> BTreeMap<ObjectKey, Version> {
        fn of<K: Object>(cache: &Cache<K>) -> BTreeMap<ObjectKey, Version> {
            let entry = |(key, object): (ObjectKey, Arc<K>)| (key, version(object.metadata()));
            cache.list().into_iter().map(entry).collect()
        }
        match kind {
            ObjectKind::Namespace => of(&self.namespaces),
            ObjectKind::ConfigMap => of(&self.config_maps),
            ObjectKind::Secret => of(&self.secrets),
            ObjectKind::Service => of(&self.services),
            ObjectKind::EndpointSlice => of(&self.endpoint_slices),
            ObjectKind::Ingress => of(&self.ingresses),
            ObjectKind::PersistentVolume => of(&self.volumes),
            ObjectKind::PersistentVolumeClaim => of(&self.claims),
            ObjectKind::Node => of(&self.own_node),
            ObjectKind::Pod => {
                let pods = self.shared.pods.lock();
                pods.held.iter().map(|(key, pod)| (key.clone(), pod.version.clone())).collect()
            }
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
        let gone = self.set_aside(&batch);
        self.shared.ledger.apply(&changes)?;
        if gone {
            self.remove_volumes();
        }
        let mut configured = false;
        for (kind, key, read) in batch.changes {
            configured |= matches!(
                kind,
                ObjectKind::ConfigMap | ObjectKind::Secret | ObjectKind::PersistentVolumeClaim
            );
            progress.missing.remove(&(kind, key.clone()));
            match read {
                Some(read) => self.remember(key, read.object),
                None => self.forget(kind, &key),
            }
        }
        if configured {
            self.shared.configuration.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// The data of volumes that a batch says are gone; answers whether there was any.
    fn set_aside(&self, batch: &Batch) -> bool {
        let mut any = false;
        for (kind, key, read) in &batch.changes {
            if *kind != ObjectKind::PersistentVolume || read.is_some() {
                continue;
            }
            let Some(volume) = self.volumes.get_key(key) else { continue };
            any = true;
            if let Err(error) = volumes::set_aside(&self.shared.directory, &volume) {
                tracing::warn!(volume = key.name, %error, "the data of a volume that is gone stays");
            }
        }
        any
    }

    fn remove_volumes(&self) {
        let directory = self.shared.directory.clone();
        std::thread::spawn(move || volumes::remove_set_aside(&directory));
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
        let pods = self.shared.pods.lock();
        if let Some(handler) = &pods.handler {
            handler.synced();
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
        self.claims.mark_synced();
        self.volumes.mark_synced();
        self.own_node.mark_synced();
        self.shared.synced.send_replace(true);
    }

    fn remember(&self, key: ObjectKey, object: Typed) {
        match object {
            Typed::Namespace(o) => drop(self.namespaces.apply(key, Arc::new(o))),
            Typed::ConfigMap(o) => drop(self.config_maps.apply(key, Arc::new(o))),
            Typed::Secret(o) => drop(self.secrets.apply(key, Arc::new(o))),
            Typed::Service(o) => drop(self.services.apply(key, Arc::from(o))),
            Typed::EndpointSlice(o) => drop(self.endpoint_slices.apply(key, Arc::new(o))),
            Typed::Ingress(o) => drop(self.ingresses.apply(key, Arc::new(o))),
            Typed::Volume(o) => drop(self.volumes.apply(key, Arc::from(o))),
            Typed::Claim(o) => drop(self.claims.apply(key, Arc::from(o))),
            Typed::Node(o) => drop(self.own_node.apply(key, Arc::from(o))),
            Typed::Pod(o) => self.shared.pods.lock().set(key, Arc::from(o)),
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
            ObjectKind::PersistentVolume => drop(self.volumes.remove(key)),
            ObjectKind::PersistentVolumeClaim => drop(self.claims.remove(key)),
            ObjectKind::Node => drop(self.own_node.remove(key)),
            ObjectKind::Pod => self.shared.pods.lock().remove(key),
        }
    }
}

impl Pods {
    fn set(&mut self, key: ObjectKey, object: Arc<Pod>) {
        let version = version(&object.metadata);
        // The name has a new UID: that is another pod.
        if self.held.get(&key).is_some_and(|old| old.version.0 != version.0) {
            self.remove(&key);
        }
        let host_network = object.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        let object = match &self.handler {
            Some(handler) => {
                handler.set(object);
                None
            }
            None => Some(object),
        };
        self.held.insert(key, HeldPod { version, host_network, object });
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let (Some(old), Some(handler)) = (self.held.remove(key), &self.handler) {
            handler.remove(&old.version.0);
        }
    }
}

fn version(meta: &ObjectMeta) -> Version {
    (meta.uid.clone().unwrap_or_default(), meta.resource_version.clone().unwrap_or_default())
}
