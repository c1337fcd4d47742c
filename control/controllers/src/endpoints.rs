//! Endpoints: the older form of the same news, one object per Service, for clients that still read
//! it. At most a thousand addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error};
use rimward_control_lean::Pod;

use crate::backends::{self, BATCH, Port, addresses, is_headless, publishes_not_ready};
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::indexes;
use crate::pods::{is_deleting, is_ready, node_name};
use crate::staleness::{OwnWrites, Pace};

pub const NAME: &str = "endpoint-controller";
const WORKERS: usize = 4;
const ADDRESSES_MAX: usize = 1000;
const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

struct EndpointsOfServices {
    client: Client,
    services: Cache<Service>,
    pods: Cache<Pod>,
    endpoints: Cache<Endpoints>,
    own_writes: OwnWrites,
    pace: Pace,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (services, pods) = (context.informers.of::<Service>(), context.informers.of::<Pod>());
    let endpoints = context.informers.of::<Endpoints>();
    indexes::pods_by_label(&pods);
    indexes::services_by_selector(&services);
    enqueue_changes(&services, &keys);
    enqueue_changes(&endpoints, &keys);
    backends::wake_services(&pods, &services, &keys);
    let caches = vec![synced(&services), synced(&pods), synced(&endpoints)];
    let controller = EndpointsOfServices {
        client: context.client.clone(),
        services,
        pods,
        endpoints,
        own_writes: OwnWrites::default(),
        pace: Pace::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// The Endpoints that a Service is to have. Pure.
pub fn plan(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Endpoints {
    let mut subsets: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> =
        BTreeMap::new();
    let published = publishes_not_ready(service);
    let ipv6 = service
        .spec
        .as_ref()
        .and_then(|s| s.ip_families.as_ref()?.first())
        .is_some_and(|f| f == "IPv6");
    let mut candidates: Vec<&Arc<Pod>> =
        pods.iter().filter(|p| published || !is_deleting(&p.metadata)).collect();
    let truncated = candidates.len() > ADDRESSES_MAX;
    if truncated {
        candidates.sort_by_key(|p| !is_ready(p));
        candidates.truncate(ADDRESSES_MAX);
    }
    for pod in candidates {
        let Some(ip) = addresses(pod).into_iter().find(|a| a.is_ipv6() == ipv6) else { continue };
        let ports = backends::ports(service, pod);
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        let address = EndpointAddress {
            ip: ip.to_string(),
            hostname: backends::hostname(service, pod),
            node_name: Some(node_name(pod).to_owned()).filter(|n| !n.is_empty()),
            target_ref: Some(backends::pod_reference(pod)),
        };
        let (ready, not_ready) = subsets.entry(ports).or_default();
        if published || is_ready(pod) { ready.push(address) } else { not_ready.push(address) }
    }
    let subsets = subsets.into_iter().map(|(ports, (mut ready, mut not_ready))| {
        ready.sort_by(|a, b| a.ip.cmp(&b.ip));
        not_ready.sort_by(|a, b| a.ip.cmp(&b.ip));
        let some = |v: Vec<EndpointAddress>| (!v.is_empty()).then_some(v);
        let ports: Vec<EndpointPort> = ports.into_iter().map(endpoint_port).collect();
        EndpointSubset {
            addresses: some(ready),
            not_ready_addresses: some(not_ready),
            ports: (!ports.is_empty()).then_some(ports),
        }
    });
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(MANAGED_BY.into(), NAME.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let subsets: Vec<EndpointSubset> = subsets.collect();
    let mut endpoints = existing.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    endpoints.metadata.labels = Some(labels);
    endpoints.subsets = (!subsets.is_empty()).then_some(subsets);
    let annotations = endpoints.metadata.annotations.get_or_insert_default();
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        endpoints.metadata.annotations = None;
    }
    endpoints
}

fn endpoint_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name).filter(|n| !n.is_empty()),
        protocol: Some(port.protocol),
        port: port.port,
        app_protocol: port.app_protocol,
    }
}

#[async_trait]
impl Controller for EndpointsOfServices {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if !self.own_writes.seen(key, &self.endpoints) {
            return Ok(Next::Change);
        }
        let existing = self.endpoints.get_key(key);
        let Some(service) = self.services.get_key(key) else {
            return self.service_gone(key, existing).await;
        };
        if backends::selector(&service).is_none() || is_deleting(&service.metadata) {
            return Ok(Next::Change);
        }
        let wait = self.pace.wait(key, BATCH);
        if !wait.is_zero() {
            return Ok(Next::After(wait));
        }
        let wanted = plan(&service, &backends::selected(&service, &self.pods), existing.as_deref());
        let written = match &existing {
            Some(existing) if **existing == wanted => return Ok(Next::Change),
            Some(_) => self.client.update(&wanted).await,
            None => self.client.create(&wanted).await,
        };
        self.pace.mark(key);
        match written {
            Ok(written) => self.own_writes.note(key, &written),
            Err(e) if e.is_namespace_terminating() => {}
            Err(e) => return Err(e),
        }
        Ok(Next::Change)
    }
}

impl EndpointsOfServices {
    /// Endpoints that this controller made go with their Service; those made by hand are their
    /// maker's.
    async fn service_gone(
        &self,
        key: &ObjectKey,
        existing: Option<Arc<Endpoints>>,
    ) -> Result<Next, Error> {
        let ours = |e: &Arc<Endpoints>| {
            let labels = e.metadata.labels.as_ref();
            labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == NAME)
        };
        if let Some(existing) = existing.filter(ours) {
            let options = DeleteOptions::uid(crate::pods::uid(&existing.metadata));
            match self.client.delete::<Endpoints>(&key.namespace, &key.name, &options).await {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        Ok(Next::Change)
    }
}
