//! Who needs what: the objects in the shared caches, and for each connected node the keys that it
//! has yet to be told.
//!
//! A change marks keys, never sends: whoever sends looks the object up then, so a node that is slow
//! gets the newest state once and costs no more memory than the keys. The index of references is kept
//! incrementally, pod by pod.

mod echoes;
mod interest;
pub(crate) mod own_node;
mod references;
mod volumes;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::node::v1::RuntimeClass;
use parking_lot::Mutex;
use rimward_api::{ObjectKey, static_pods};
use rimward_client::{Cache, Client, Error, Informers, Object, Resource};
use rimward_control_lean::Pod;
use rimward_tunnel::wire::{Digest, ObjectKind};

use crate::runtime_classes;
use crate::world::echoes::Echoes;
use crate::world::interest::Interest;
pub use crate::world::interest::Outbox;
use crate::world::references::{of_ingress, of_pod};

/// Pods by the node that they are bound to.
const BY_NODE: &str = "hub/spec.nodeName";
/// Pods by their addresses.
const BY_IP: &str = "hub/status.podIPs";
/// Encodings of objects that every node is told are kept for the next node, up to so many bytes.
const ENCODED_BYTES_MAX: u64 = 32 << 20;
/// What an encoding costs beside its bytes.
const ENCODED_OVERHEAD: u64 = 128;
/// More Services than this are still told to every node, but the operator hears about it.
const SERVICES_FEW: usize = 5000;

pub struct World {
    pub pods: Cache<Pod>,
    pub nodes: Cache<Node>,
    config_maps: Cache<ConfigMap>,
    secrets: Cache<Secret>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    ingresses: Cache<Ingress>,
    namespaces: Cache<Namespace>,
    pub runtime_classes: Cache<RuntimeClass>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    encoded: quick_cache::sync::Cache<EncodedId, Bytes, ByBytes>,
    interest: Mutex<Interest>,
    /// What nodes need not be told because they said it.
    pub echoes: Echoes,
}

/// Kind, key and resourceVersion.
type EncodedId = (ObjectKind, ObjectKey, String);

#[derive(Clone)]
struct ByBytes;

impl quick_cache::Weighter<EncodedId, Bytes> for ByBytes {
    fn weight(&self, _id: &EncodedId, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + ENCODED_OVERHEAD
    }
}

/// One object of a node's share, as inventories name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: ObjectKey,
    pub uid: String,
    pub resource_version: String,
}

impl World {
    pub fn new(informers: &Informers) -> Arc<Self> {
        let world = Arc::new(Self {
            pods: informers.of(),
            nodes: informers.of(),
            config_maps: informers.of(),
            secrets: informers.of(),
            services: informers.of(),
            slices: informers.of(),
            ingresses: informers.of(),
            namespaces: informers.of(),
            runtime_classes: informers.of(),
            claims: informers.of(),
            volumes: informers.of(),
            encoded: quick_cache::sync::Cache::with_weighter(1024, ENCODED_BYTES_MAX, ByBytes),
            interest: Mutex::default(),
            echoes: Echoes::default(),
        });
        world.pods.add_index(BY_NODE, |pod| node_of(pod).map(str::to_owned).into_iter().collect());
        world.pods.add_index(BY_IP, |pod| {
            let ips = pod.status.iter().flat_map(|s| s.pod_ips.iter().flatten());
            ips.map(|ip| ip.ip.clone()).collect()
        });
        let weak = Arc::downgrade(&world);
        world.pods.on_change(move |change| {
            if let Some(world) = weak.upgrade() {
                world.pod_changed(change.key, change.old.map(|p| &**p), change.new.map(|p| &**p));
            }
        });
        let weak = Arc::downgrade(&world);
        world.ingresses.on_change(move |change| {
            if let Some(world) = weak.upgrade() {
                world.ingress_changed(
                    change.key,
                    change.old.map(|i| &**i),
                    change.new.map(|i| &**i),
                );
            }
        });
        let weak = Arc::downgrade(&world);
        world.runtime_classes.on_change(move |change| {
            if let (Some(world), Some(_)) = (weak.upgrade(), change.new) {
                world.class_appeared(&change.key.name);
            }
        });
        world.referenced(&world.config_maps, ObjectKind::ConfigMap);
        world.referenced(&world.secrets, ObjectKind::Secret);
        world.follow_volumes();
        world.follow_nodes();
        world.told_to_all(&world.services, ObjectKind::Service);
        world.told_to_all(&world.slices, ObjectKind::EndpointSlice);
        world.told_to_all(&world.namespaces, ObjectKind::Namespace);
        world
    }

    /// Waits until every cache holds the first full state.
    pub async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.nodes.synced(),
            self.config_maps.synced(),
            self.secrets.synced(),
            self.services.synced(),
            self.slices.synced(),
            self.ingresses.synced(),
            self.namespaces.synced(),
            self.runtime_classes.synced(),
            self.claims.synced(),
            self.volumes.synced(),
        );
        if self.services.len() > SERVICES_FEW {
            tracing::warn!(
                services = self.services.len(),
                "every node is told every Service; that is many"
            );
        }
    }

    /// From now on the node's keys collect in the answer. A second call for the same node takes over.
    pub fn connect(&self, node: &str) -> Arc<Outbox> {
        let outbox = Arc::new(Outbox::default());
        self.interest.lock().outboxes.insert(node.to_owned(), outbox.clone());
        outbox
    }

    /// Unless another connection of the node has taken over.
    pub fn disconnect(&self, node: &str, outbox: &Arc<Outbox>) {
        let mut interest = self.interest.lock();
        if interest.outboxes.get(node).is_some_and(|current| Arc::ptr_eq(current, outbox)) {
            interest.outboxes.remove(node);
        }
    }

    /// Everything of a kind that the node is told.
    pub fn share(&self, node: &str, kind: ObjectKind) -> Vec<Entry> {
        fn all<K: Object>(cache: &Cache<K>) -> Vec<Entry> {
            cache.list().into_iter().map(|(key, object)| entry(key, &*object)).collect()
        }
        match kind {
            ObjectKind::Pod => {
                let pods = self.pods.indexed(BY_NODE, node);
                let mut pods: Vec<Entry> =
                    pods.iter().map(|p| entry(ObjectKey::of_meta(&p.metadata), &**p)).collect();
                pods.sort_by(|a, b| a.key.cmp(&b.key));
                pods
            }
            ObjectKind::ConfigMap => self.referenced_by(node, kind, &self.config_maps),
            ObjectKind::Secret => self.referenced_by(node, kind, &self.secrets),
            ObjectKind::Service => all(&self.services),
            ObjectKind::EndpointSlice => all(&self.slices),
            ObjectKind::Ingress => all(&self.ingresses),
            ObjectKind::Namespace => all(&self.namespaces),
            ObjectKind::PersistentVolumeClaim => self.referenced_by(node, kind, &self.claims),
            ObjectKind::PersistentVolume => self.told_volumes(node),
            ObjectKind::Node => self.told_node(node).iter().map(own_node::entry).collect(),
        }
    }

    fn referenced_by<K: Object>(
        &self,
        node: &str,
        kind: ObjectKind,
        cache: &Cache<K>,
    ) -> Vec<Entry> {
        let keys = self.interest.lock().of_node(node, kind);
        let found = keys.into_iter().filter_map(|key| {
            let object = cache.get_key(&key)?;
            Some(entry(key, &*object))
        });
        found.collect()
    }

    /// Whether there is such an object and the node may see it.
    pub fn shows(&self, node: &str, kind: ObjectKind, key: &ObjectKey) -> bool {
        match kind {
            ObjectKind::Pod => self.pod_of(node, key).is_some(),
            ObjectKind::ConfigMap => {
                self.references(node, kind, key) && self.config_maps.get_key(key).is_some()
            }
            ObjectKind::Secret => {
                self.references(node, kind, key) && self.secrets.get_key(key).is_some()
            }
            ObjectKind::PersistentVolumeClaim => {
                self.references(node, kind, key) && self.claims.get_key(key).is_some()
            }
            ObjectKind::PersistentVolume => self.told_volume(node, key).is_some(),
            ObjectKind::Node => key.name == node && self.told_node(node).is_some(),
            ObjectKind::Service => self.services.get_key(key).is_some(),
            ObjectKind::EndpointSlice => self.slices.get_key(key).is_some(),
            ObjectKind::Ingress => self.ingresses.get_key(key).is_some(),
            ObjectKind::Namespace => self.namespaces.get_key(key).is_some(),
        }
    }

    /// The mirrors of the node's static pods.
    pub fn mirrors_of(&self, node: &str) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.indexed(BY_NODE, node);
        pods.retain(|pod| static_pods::annotation(&pod.metadata, static_pods::MIRROR).is_some());
        pods
    }

    fn pod_of(&self, node: &str, key: &ObjectKey) -> Option<Arc<Pod>> {
        self.pods.get_key(key).filter(|pod| node_of(pod) == Some(node))
    }

    /// The object as JSON if it exists and the node may see it. A pod is read from the API, its bytes as
    /// they are stored: the cache holds only what is decided by.
    ///
    /// # Errors
    /// The API did not answer.
    pub async fn look_up(
        &self,
        client: &Client,
        node: &str,
        kind: ObjectKind,
        key: &ObjectKey,
    ) -> Result<Option<Bytes>, Error> {
        if kind != ObjectKind::Pod {
            return Ok(self.held(node, kind, key));
        }
        if self.pod_of(node, key).is_none() {
            return Ok(None);
        }
        let path = Resource::of::<Pod>().path(&key.namespace, &key.name, "");
        match client.raw(Method::GET, &path, "application/json", None).await {
            // By now it may be another pod of that name.
            Ok(bytes) if !is_bound_to(node, &bytes) => Ok(None),
            Ok(bytes) => {
                Ok(Some(runtime_classes::resolved(&bytes, &self.runtime_classes).unwrap_or(bytes)))
            }
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// [`World::look_up`] of what the caches hold whole.
    fn held(&self, node: &str, kind: ObjectKind, key: &ObjectKey) -> Option<Bytes> {
        match kind {
            ObjectKind::Pod => None,
            ObjectKind::ConfigMap | ObjectKind::Secret | ObjectKind::PersistentVolumeClaim
                if !self.references(node, kind, key) =>
            {
                None
            }
            ObjectKind::PersistentVolumeClaim => json(&*self.claims.get_key(key)?),
            ObjectKind::PersistentVolume => json(&*self.told_volume(node, key)?),
            ObjectKind::Node if key.name != node => None,
            ObjectKind::Node => json(&self.told_node(node)?),
            ObjectKind::ConfigMap => json(&*self.config_maps.get_key(key)?),
            ObjectKind::Secret => json(&*self.secrets.get_key(key)?),
            ObjectKind::Service => self.shared_json(kind, key, &self.services),
            ObjectKind::EndpointSlice => self.shared_json(kind, key, &self.slices),
            ObjectKind::Ingress => self.shared_json(kind, key, &self.ingresses),
            ObjectKind::Namespace => self.shared_json(kind, key, &self.namespaces),
        }
    }

    /// Encoded once for all nodes.
    fn shared_json<K: Object>(
        &self,
        kind: ObjectKind,
        key: &ObjectKey,
        cache: &Cache<K>,
    ) -> Option<Bytes> {
        let object = cache.get_key(key)?;
        let version = object.metadata().resource_version.clone().unwrap_or_default();
        let id = (kind, key.clone(), version);
        if let Some(bytes) = self.encoded.get(&id) {
            return Some(bytes);
        }
        let bytes = json(&*object)?;
        self.encoded.insert(id, bytes.clone());
        Some(bytes)
    }

    /// Whether a pod of the node, or an Ingress, references the object, or it is the node's own.
    pub fn references(&self, node: &str, kind: ObjectKind, key: &ObjectKey) -> bool {
        match kind {
            ObjectKind::PersistentVolume => return self.told_volume(node, key).is_some(),
            ObjectKind::Node => return key.name == node,
            _ => {}
        }
        self.interest.lock().concerns(node, &(kind, key.clone()))
    }

    /// The node that runs the pod with this address.
    pub fn node_of_ip(&self, ip: &str) -> Option<String> {
        self.pods.indexed(BY_IP, ip).iter().find_map(|pod| node_of(pod).map(str::to_owned))
    }

    fn pod_changed(&self, key: &ObjectKey, old: Option<&Pod>, new: Option<&Pod>) {
        let (old_node, new_node) = (old.and_then(node_of), new.and_then(node_of));
        if old_node.is_none() && new_node.is_none() {
            return;
        }
        let mut interest = self.interest.lock();
        // Most changes are of status: the references stay, and nothing is counted.
        let same_spec = old_node == new_node && old.map(|p| &p.spec) == new.map(|p| &p.spec);
        if !same_spec {
            if let (Some(pod), Some(node)) = (new, new_node) {
                for reference in of_pod(pod) {
                    interest.mark_with_volume(node, &self.claims, &reference);
                    interest.add(node, reference);
                }
            }
            if let (Some(pod), Some(node)) = (old, old_node) {
                for reference in of_pod(pod) {
                    interest.mark_with_volume(node, &self.claims, &reference);
                    interest.release(node, reference);
                }
            }
        }
        if self.echoes.came(old, new) && same_spec {
            return;
        }
        let nodes: BTreeSet<&str> = old_node.into_iter().chain(new_node).collect();
        for node in nodes {
            if let Some(outbox) = interest.outboxes.get(node) {
                outbox.mark(ObjectKind::Pod, key.clone());
            }
        }
    }

    /// Pods may have been told by its name before it was seen here. Classes are made rarely.
    fn class_appeared(&self, name: &str) {
        for (key, pod) in self.pods.list() {
            let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref());
            if let (Some(node), true) = (node_of(&pod), class == Some(name)) {
                self.interest.lock().mark(node, (ObjectKind::Pod, key));
            }
        }
    }

    fn ingress_changed(&self, key: &ObjectKey, old: Option<&Ingress>, new: Option<&Ingress>) {
        let mut interest = self.interest.lock();
        for reference in new.into_iter().flat_map(of_ingress) {
            interest.share(reference);
        }
        for reference in old.into_iter().flat_map(of_ingress) {
            interest.unshare(reference);
        }
        interest.mark_everywhere(&(ObjectKind::Ingress, key.clone()));
    }

    /// Objects that only those nodes are told whose pods reference them.
    fn referenced<K: Object>(self: &Arc<Self>, cache: &Cache<K>, kind: ObjectKind) {
        let weak = Arc::downgrade(self);
        cache.on_change(move |change| {
            let Some(world) = weak.upgrade() else { return };
            world.interest.lock().mark_referrers(&(kind, change.key.clone()));
        });
    }

    fn told_to_all<K: Object>(self: &Arc<Self>, cache: &Cache<K>, kind: ObjectKind) {
        let weak = Arc::downgrade(self);
        cache.on_change(move |change| {
            let Some(world) = weak.upgrade() else { return };
            world.interest.lock().mark_everywhere(&(kind, change.key.clone()));
        });
    }
}

/// What an inventory sums up to.
pub fn digest(entries: &[Entry]) -> Digest {
    let mut digest = Digest::default();
    for e in entries {
        digest.add(&e.key.namespace, &e.key.name, &e.uid, &e.resource_version);
    }
    digest
}

fn entry<K: Object>(key: ObjectKey, object: &K) -> Entry {
    let meta = object.metadata();
    Entry {
        key,
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
    }
}

fn json<K: Object>(object: &K) -> Option<Bytes> {
    match serde_json::to_vec(object) {
        Ok(bytes) => Some(bytes.into()),
        Err(cause) => {
            tracing::error!(%cause, kind = K::KIND, "an object cannot be encoded for a node");
            None
        }
    }
}

/// Whether a pod's JSON says that it is bound to the node.
fn is_bound_to(node: &str, pod: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Bound<'a> {
        #[serde(borrow)]
        spec: Spec<'a>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec<'a> {
        #[serde(borrow)]
        node_name: Option<std::borrow::Cow<'a, str>>,
    }
    let read = serde_json::from_slice::<Bound<'_>>(pod);
    read.is_ok_and(|pod| pod.spec.node_name.as_deref() == Some(node))
}

/// The node that a pod is bound to.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}
