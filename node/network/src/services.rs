//! What a node routes: every Service's addresses and ports, with where each leads. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use rimward_api::ObjectKey;

use crate::backends::ByPort;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As nftables spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One way into a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// A cluster IP or external IP.
    Address(IpAddr, Protocol, u16),
    /// A port on every address of the node.
    NodePort(Protocol, u16),
}

/// A Service port: its ways in and its ready backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub service: ObjectKey,
    pub port_name: String,
    pub entries: Vec<Entry>,
    pub backends: Vec<SocketAddr>,
    /// Seconds that a client stays with its backend (`sessionAffinity: ClientIP`).
    pub affinity_seconds: Option<u32>,
}

/// The routes of one Service. `node` is this node's name, for the Local traffic policies.
pub fn routes(key: &ObjectKey, service: &Service, by_port: &ByPort, node: &str) -> Vec<Route> {
    let Some(spec) = &service.spec else { return Vec::new() };
    if matches!(spec.type_.as_deref(), Some("ExternalName")) {
        return Vec::new();
    }
    let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        config.and_then(|c| c.timeout_seconds).map_or(10_800, |s| s.unsigned_abs())
    });
    let ways = Ways::of(service, spec);
    let mut found = Vec::new();
    for port in spec.ports.iter().flatten() {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            // SCTP needs a kernel module that edge devices lack.
            _ => continue,
        };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let at = |ips: &[IpAddr]| -> Vec<Entry> {
            ips.iter().map(|ip| Entry::Address(*ip, protocol, number)).collect()
        };
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        let mut outside = at(&ways.outside);
        outside.extend(node_port.map(|p| Entry::NodePort(protocol, p)));
        let port_name = port.name.clone().unwrap_or_default();
        let route = |entries: Vec<Entry>, local_only: bool| {
            let ready = by_port.get(&port_name).into_iter().flatten();
            let ready = ready.filter(|b| !local_only || b.node.as_deref() == Some(node));
            Route {
                service: key.clone(),
                backends: ready.map(|b| b.address).collect(),
                port_name: port_name.clone(),
                entries,
                affinity_seconds,
            }
        };
        if ways.local_inside == ways.local_outside {
            let entries = at(&ways.inside).into_iter().chain(outside).collect();
            found.push(route(entries, ways.local_inside));
        } else {
            found.push(route(at(&ways.inside), ways.local_inside));
            found.push(route(outside, ways.local_outside));
        }
    }
    found.retain(|route| !route.entries.is_empty());
    found
}

/// A Service's addresses, and whether only this node's backends answer there.
/// <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-policies>
struct Ways {
    /// For clients in the cluster: cluster IPs.
    inside: Vec<IpAddr>,
    /// For everybody else: external and load balancer IPs (and node ports).
    outside: Vec<IpAddr>,
    local_inside: bool,
    local_outside: bool,
}

impl Ways {
    fn of(service: &Service, spec: &ServiceSpec) -> Self {
        let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        // A balancer in mode Proxy answers by itself, and what it sends comes to node ports.
        let balanced = balancer
            .into_iter()
            .flat_map(|b| b.ingress.iter().flatten())
            .filter(|at| at.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|at| at.ip.as_ref());
        let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        let inside = parsed(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
        let mut outside = parsed(spec.external_ips.iter().flatten().chain(balanced));
        outside.retain(|ip| !inside.contains(ip));
        Self {
            inside,
            outside,
            local_inside: local(&spec.internal_traffic_policy),
            local_outside: local(&spec.external_traffic_policy),
        }
    }
}

fn parsed<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = texts.filter_map(|ip| ip.parse().ok()).collect();
    ips.sort();
    ips.dedup();
    ips
}

/// Routes of all Services, by Service.
pub type Table = BTreeMap<ObjectKey, Vec<Route>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::Backend;

    #[test]
    fn what_services_route() {
        let service = |spec: serde_json::Value| -> Service {
            serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec}))
                .expect("a Service")
        };
        let backend = |ip: &str, node: &str| Backend {
            address: format!("{ip}:8080").parse().unwrap(),
            node: Some(node.into()),
        };
        let by_port = ByPort::from([(
            "http".into(),
            vec![backend("10.42.0.1", "n1"), backend("10.42.1.1", "n2")],
        )]);
        let key = ObjectKey::new("a", "web");
        let of = |spec: serde_json::Value| routes(&key, &service(spec), &by_port, "n1");
        let ports = serde_json::json!([{"name": "http", "port": 80, "nodePort": 30001}]);
        let all = of(
            serde_json::json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "ports": ports}),
        );
        let ip = "10.43.0.7".parse().unwrap();
        let entries =
            [Entry::Address(ip, Protocol::Tcp, 80), Entry::NodePort(Protocol::Tcp, 30001)];
        assert_eq!((all.len(), &all[0].entries[..], all[0].backends.len()), (1, &entries[..], 2));
        let local =
            of(serde_json::json!({"clusterIP": "10.43.0.7", "internalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP", "ports": ports}));
        assert_eq!((local[0].backends.len(), local[0].affinity_seconds), (1, Some(10_800)));
        assert_eq!((local[1].entries.len(), local[1].backends.len()), (1, 2), "the node port");
        let outside = of(serde_json::json!({"type": "LoadBalancer", "clusterIP": "10.43.0.7",
            "externalIPs": ["192.0.2.7"], "externalTrafficPolicy": "Local", "ports": ports}));
        let shape: Vec<_> = outside.iter().map(|r| (r.entries.len(), r.backends.len())).collect();
        assert_eq!(shape, [(1, 2), (2, 1)], "from outside only this node's own answer");
        assert!(of(serde_json::json!({"clusterIP": "None", "ports": [{"port": 80}]})).is_empty());
        assert!(
            of(serde_json::json!({"type": "ExternalName", "ports": [{"port": 80}]})).is_empty()
        );
    }
}
