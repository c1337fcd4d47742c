//! Which pods a Service sends to, and at which ports: what Endpoints and EndpointSlices both say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rimward_api::ObjectKey;
use rimward_client::Cache;
use rimward_control_lean::Pod;

use crate::driver::Keys;
use crate::indexes::{self, BY_LABEL, BY_SELECTOR};
use crate::pods::{is_deleting, is_ready, is_terminal, node_name};

/// Ready pods arrive in swarms during a rollout: a swarm is to cost a few writes. The first change is
/// written at once, the next not sooner than this.
pub const BATCH: std::time::Duration = std::time::Duration::from_millis(20);

/// A port as a pod serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    pub protocol: String,
    pub port: i32,
    pub app_protocol: Option<String>,
}

/// The selector of a Service that wants endpoints kept; None for those that bring their own.
pub fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|s| !external && !s.is_empty())
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false)
}

/// The pods that a Service selects, those without an address or at their end left out.
pub fn selected(service: &Service, pods: &Cache<Pod>) -> Vec<Arc<Pod>> {
    let Some(selector) = selector(service) else { return Vec::new() };
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    // The rarest label leads to the fewest pods.
    let pairs = selector.iter().map(|(k, v)| indexes::pair(namespace, k, v));
    let rarest = pairs.min_by_key(|pair| pods.indexed_len(BY_LABEL, pair));
    let mut found = rarest.map(|pair| pods.indexed(BY_LABEL, &pair)).unwrap_or_default();
    found.retain(|pod| {
        let labels = pod.metadata.labels.as_ref();
        let matches = selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
        matches && !is_terminal(pod) && !addresses(pod).is_empty()
    });
    found.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    found
}

pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let many = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut found: Vec<IpAddr> = many.filter_map(|ip| ip.parse().ok()).collect();
    if found.is_empty() {
        found.extend(status.pod_ip.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()));
    }
    found
}

pub fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The name under which the pod is found beneath the Service in DNS, if it asked for one.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let here = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|h| here && !h.is_empty())
}

/// The Service's ports as this pod serves them; a port that it does not name is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let wanted = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let served = wanted.filter_map(|p| {
        let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
        let port = match &p.target_port {
            None | Some(IntOrString::Int(0)) => p.port,
            Some(IntOrString::Int(n)) => *n,
            Some(IntOrString::String(name)) if name.is_empty() => p.port,
            Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
        };
        Some(Port {
            name: p.name.clone().unwrap_or_default(),
            protocol,
            port,
            app_protocol: p.app_protocol.clone(),
        })
    });
    let mut ports: Vec<Port> = served.collect();
    ports.sort();
    ports
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let same = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
        p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.into_iter().find(same).map(|p| p.container_port)
}

/// Wakes the Services that select a pod, or did, whenever something changed that endpoints show.
pub fn wake_services(pods: &Cache<Pod>, services: &Cache<Service>, keys: &Keys) {
    let (services, keys) = (services.clone(), keys.clone());
    pods.on_change(move |change| {
        if let (Some(old), Some(new)) = (change.old, change.new)
            && shown(old) == shown(new)
            && old.metadata.labels == new.metadata.labels
        {
            return;
        }
        for pod in [change.old, change.new].into_iter().flatten() {
            for value in indexes::selector_values(&pod.metadata) {
                for service in services.indexed(BY_SELECTOR, &value) {
                    keys.add(ObjectKey::of_meta(&service.metadata));
                }
            }
        }
    });
}

/// What endpoints show of a pod, labels aside.
fn shown(pod: &Pod) -> impl PartialEq + use<> {
    (
        addresses(pod),
        is_ready(pod),
        is_terminal(pod),
        is_deleting(&pod.metadata),
        node_name(pod).to_owned(),
        pod.metadata.uid.clone(),
    )
}
