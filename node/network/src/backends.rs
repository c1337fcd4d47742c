//! Which pods stand behind a Service: kept in step with the EndpointSlices, a Service at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use rimward_api::ObjectKey;
use rimward_client::Delta;
use tokio::sync::{broadcast, watch};

use crate::slices::Slices;

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
    by_service: RwLock<HashMap<ObjectKey, Arc<ByPort>>>,
    changed: broadcast::Sender<ObjectKey>,
    whole: watch::Sender<bool>,
}

impl Default for Backends {
    fn default() -> Self {
        Self::new()
    }
}

impl Backends {
    pub fn new() -> Self {
        let inner = Inner {
            by_service: RwLock::default(),
            changed: broadcast::channel(BACKLOG).0,
            whole: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The ready backends of a Service; empty when there are none.
    pub fn of(&self, service: &ObjectKey) -> Arc<ByPort> {
        self.inner.by_service.read().get(service).cloned().unwrap_or_default()
    }

    /// Keys of Services whose backends changed, from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ObjectKey> {
        self.inner.changed.subscribe()
    }

    /// Waits until every slice of the first full state is counted.
    pub async fn whole(&self) {
        let mut whole = self.inner.whole.subscribe();
        let _sender_lives_in_self = whole.wait_for(|whole| *whole).await;
    }

    /// Keeps the index in step with the slices; runs until their cache is gone.
    pub async fn follow(self, slices: Slices) {
        let mut deltas = slices.subscribe();
        let mut whole = false;
        loop {
            tokio::select! {
                delta = deltas.next() => match delta {
                    Some(delta) => self.apply(&delta, &slices),
                    None => return,
                },
                () = slices.synced(), if !whole => {
                    // All of the first full state was announced before it was called full.
                    while let Some(delta) = deltas.try_next() {
                        self.apply(&delta, &slices);
                    }
                    whole = true;
                    self.inner.whole.send_replace(true);
                }
            }
        }
    }

    fn apply(&self, delta: &Delta, slices: &Slices) {
        let touched: BTreeSet<ObjectKey> = match delta {
            Delta::Key(service) => BTreeSet::from([service.clone()]),
            Delta::All => {
                let known: Vec<ObjectKey> = self.inner.by_service.read().keys().cloned().collect();
                known.into_iter().chain(slices.services()).collect()
            }
        };
        for service in touched {
            let by_port = by_port(&slices.of(&service));
            if by_port == *self.of(&service) {
                continue;
            }
            match by_port.is_empty() {
                true => self.inner.by_service.write().remove(&service),
                false => self.inner.by_service.write().insert(service.clone(), Arc::new(by_port)),
            };
            let _nobody_listens_is_fine = self.inner.changed.send(service);
        }
    }
}

fn by_port(slices: &[Arc<EndpointSlice>]) -> ByPort {
    let mut by_port = ByPort::new();
    slices.iter().for_each(|slice| collect(slice, &mut by_port));
    for backends in by_port.values_mut() {
        backends.sort();
        backends.dedup();
    }
    by_port
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
    use crate::slices::SERVICE_NAME;
    use rimward_client::Cache;

    fn slice(service: &str, ready: bool, ip: &str) -> Arc<EndpointSlice> {
        let slice = serde_json::json!({
            "metadata": {"namespace": "a", "labels": {SERVICE_NAME: service}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": ready}, "nodeName": "n1"}],
        });
        Arc::new(serde_json::from_value(slice).expect("a slice"))
    }

    #[test]
    fn follows_slices() {
        let (backends, cache) = (Backends::new(), Cache::new());
        let slices = Slices::new(cache.clone());
        let mut deltas = slices.subscribe();
        let mut changed = backends.subscribe();
        let mut set = |name: &str, object: Option<Arc<EndpointSlice>>| -> Vec<String> {
            let key = ObjectKey::new("a", name);
            match object {
                Some(object) => drop(cache.apply(key, object)),
                None => drop(cache.remove(&key)),
            }
            while let Some(delta) = deltas.try_next() {
                backends.apply(&delta, &slices);
            }
            std::iter::from_fn(|| changed.try_recv().ok()).map(|key| key.name).collect()
        };
        let addresses = |service: &str| -> Vec<String> {
            let by_port = backends.of(&ObjectKey::new("a", service));
            by_port.get("http").into_iter().flatten().map(|b| b.address.to_string()).collect()
        };
        assert_eq!(set("s1", Some(slice("web", true, "10.42.0.1"))), ["web"]);
        set("s2", Some(slice("web", true, "10.42.0.2")));
        assert_eq!(addresses("web"), ["10.42.0.1:8080", "10.42.0.2:8080"]);
        set("s1", Some(slice("web", false, "10.42.0.1")));
        assert_eq!(addresses("web"), ["10.42.0.2:8080"]);
        assert!(set("s1", Some(slice("web", false, "10.42.0.1"))).is_empty(), "nothing changed");
        set("s2", Some(slice("other", true, "10.42.0.2")));
        assert_eq!((addresses("web").len(), addresses("other").len()), (0, 1));
        set("s2", None);
        assert_eq!(addresses("other").len(), 0);
        backends.apply(&Delta::All, &slices);
        assert!(backends.inner.by_service.read().is_empty());
    }

    #[tokio::test]
    async fn whole_is_said_when_all_slices_are_counted() {
        let (backends, cache) = (Backends::new(), Cache::new());
        tokio::spawn(backends.clone().follow(Slices::new(cache.clone())));
        tokio::task::yield_now().await;
        assert!(!*backends.inner.whole.borrow());
        for i in 0..2 * BACKLOG {
            cache.apply(
                ObjectKey::new("a", format!("s{i}")),
                slice(&format!("web{i}"), true, "10.42.0.1"),
            );
        }
        cache.mark_synced();
        backends.whole().await;
        assert_eq!(backends.inner.by_service.read().len(), 2 * BACKLOG);
    }
}
