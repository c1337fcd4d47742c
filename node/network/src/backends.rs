//! Which pods stand behind a Service: an index over EndpointSlices, updated a slice at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Delta};
use tokio::sync::broadcast;

/// The label by which an EndpointSlice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// How many changed Services a slow reader may fall behind before it looks at all.
const BACKLOG: usize = 4096;

/// One address and port that serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub address: SocketAddr,
    /// The node that the pod is on, where the slice says so.
    pub node: Option<String>,
}

/// A Service's ready backends by port name ("" for an unnamed port).
pub type ByPort = BTreeMap<String, Vec<Backend>>;

/// A handle on the index; clones share it.
#[derive(Clone)]
pub struct Backends {
    inner: Arc<Inner>,
}

struct Inner {
    state: RwLock<State>,
    changed: broadcast::Sender<ObjectKey>,
}

#[derive(Default)]
struct State {
    by_service: HashMap<ObjectKey, Arc<ByPort>>,
    slices_of: HashMap<ObjectKey, BTreeSet<String>>,
    service_of: HashMap<ObjectKey, ObjectKey>,
}

impl Default for Backends {
    fn default() -> Self {
        Self::new()
    }
}

impl Backends {
    pub fn new() -> Self {
        let changed = broadcast::channel(BACKLOG).0;
        Self { inner: Arc::new(Inner { state: RwLock::default(), changed }) }
    }

    /// The ready backends of a Service; empty when there are none.
    pub fn of(&self, service: &ObjectKey) -> Arc<ByPort> {
        self.inner.state.read().by_service.get(service).cloned().unwrap_or_default()
    }

    /// Keys of Services whose backends changed, from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ObjectKey> {
        self.inner.changed.subscribe()
    }

    /// Keeps the index in step with the slices; runs until the cache is gone.
    pub async fn follow(self, slices: Cache<EndpointSlice>) {
        let mut deltas = slices.subscribe();
        while let Some(delta) = deltas.next().await {
            self.apply(&delta, &slices);
        }
    }

    fn apply(&self, delta: &Delta, slices: &Cache<EndpointSlice>) {
        let mut touched = BTreeSet::new();
        {
            let mut state = self.inner.state.write();
            match delta {
                Delta::Key(key) => state.relink(key, slices, &mut touched),
                Delta::All => {
                    let gone: Vec<ObjectKey> = state.service_of.keys().cloned().collect();
                    gone.iter().for_each(|key| state.relink(key, slices, &mut touched));
                    for (key, _) in slices.list() {
                        state.relink(&key, slices, &mut touched);
                    }
                }
            }
            for service in &touched {
                state.refresh(service, slices);
            }
        }
        for service in touched {
            let _nobody_listens_is_fine = self.inner.changed.send(service);
        }
    }
}

impl State {
    fn relink(
        &mut self,
        slice: &ObjectKey,
        slices: &Cache<EndpointSlice>,
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        if let Some(old) = self.service_of.remove(slice) {
            if let Some(names) = self.slices_of.get_mut(&old) {
                names.remove(&slice.name);
            }
            touched.insert(old);
        }
        let object = slices.get_key(slice);
        let name =
            object.as_ref().and_then(|s| s.metadata.labels.as_ref()?.get(SERVICE_NAME).cloned());
        if let Some(name) = name {
            let service = ObjectKey::new(slice.namespace.clone(), name);
            self.slices_of.entry(service.clone()).or_default().insert(slice.name.clone());
            self.service_of.insert(slice.clone(), service.clone());
            touched.insert(service);
        }
    }

    fn refresh(&mut self, service: &ObjectKey, slices: &Cache<EndpointSlice>) {
        let mut by_port = ByPort::new();
        for name in self.slices_of.get(service).into_iter().flatten() {
            if let Some(slice) = slices.get(&service.namespace, name) {
                collect(&slice, &mut by_port);
            }
        }
        for backends in by_port.values_mut() {
            backends.sort();
            backends.dedup();
        }
        if self.slices_of.get(service).is_none_or(BTreeSet::is_empty) {
            self.slices_of.remove(service);
        }
        if by_port.is_empty() {
            self.by_service.remove(service);
        } else {
            self.by_service.insert(service.clone(), Arc::new(by_port));
        }
    }
}

fn collect(slice: &EndpointSlice, by_port: &mut ByPort) {
    for endpoint in slice.endpoints.iter().flatten() {
        if !endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true) {
            continue;
        }
        for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
            for port in slice.ports.iter().flatten() {
                let Some(number) = port.port.and_then(|p| u16::try_from(p).ok()) else { continue };
                by_port.entry(port.name.clone().unwrap_or_default()).or_default().push(Backend {
                    address: SocketAddr::new(ip, number),
                    node: endpoint.node_name.clone(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(service: &str, ready: bool, ip: &str) -> Arc<EndpointSlice> {
        let slice = serde_json::json!({
            "metadata": {"labels": {SERVICE_NAME: service}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": ready}, "nodeName": "n1"}],
        });
        Arc::new(serde_json::from_value(slice).expect("a slice"))
    }

    #[test]
    fn follows_slices() {
        let (backends, slices) = (Backends::new(), Cache::new());
        let addresses = |service: &str| -> Vec<String> {
            let by_port = backends.of(&ObjectKey::new("a", service));
            by_port.get("http").into_iter().flatten().map(|b| b.address.to_string()).collect()
        };
        let set = |name: &str, object: Option<Arc<EndpointSlice>>| {
            let key = ObjectKey::new("a", name);
            match object {
                Some(object) => drop(slices.apply(key.clone(), object)),
                None => drop(slices.remove(&key)),
            }
            backends.apply(&Delta::Key(key), &slices);
        };
        set("s1", Some(slice("web", true, "10.42.0.1")));
        set("s2", Some(slice("web", true, "10.42.0.2")));
        assert_eq!(addresses("web"), ["10.42.0.1:8080", "10.42.0.2:8080"]);
        set("s1", Some(slice("web", false, "10.42.0.1")));
        assert_eq!(addresses("web"), ["10.42.0.2:8080"]);
        set("s2", Some(slice("other", true, "10.42.0.2")));
        assert_eq!((addresses("web").len(), addresses("other").len()), (0, 1));
        set("s2", None);
        backends.apply(&Delta::All, &slices);
        assert_eq!(addresses("other").len(), 0);
        assert!(backends.inner.state.read().by_service.is_empty());
    }
}
