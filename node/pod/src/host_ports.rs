//! Ports of the machine that pods ask for: which they are, and that no two pods of a node have the same.
//!
//! The scheduler sees to that too, but a pod may be bound past it. As the kubelet does, the node then turns
//! the later one away for good.
//! <https://kubernetes.io/docs/concepts/configuration/overview/#services>

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use parking_lot::Mutex;

use crate::outside::{HostPort, Transport};

/// What the pod's containers ask for. Init containers have none unless they stay (sidecars).
pub(crate) fn of(spec: &PodSpec) -> Vec<HostPort> {
    let stays = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(stays);
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    let mut found: Vec<HostPort> = ports
        .filter_map(|port| {
            Some(HostPort {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Transport::Udp,
                    Some("SCTP") => Transport::Sctp,
                    _ => Transport::Tcp,
                },
                host_ip: address(port.host_ip.as_deref()),
                host_port: number(port.host_port?)?,
                container_port: number(port.container_port)?,
            })
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Empty and `0.0.0.0` are every address.
fn address(text: Option<&str>) -> Option<IpAddr> {
    let ip: IpAddr = text?.parse().ok()?;
    (ip != IpAddr::from([0, 0, 0, 0])).then_some(ip)
}

fn collide(one: &HostPort, other: &HostPort) -> bool {
    let same = (one.protocol, one.host_port) == (other.protocol, other.host_port);
    let apart = matches!((one.host_ip, other.host_ip), (Some(a), Some(b)) if a != b);
    same && !apart
}

/// Who has which port of the machine.
#[derive(Default)]
pub(crate) struct Claims(Mutex<HashMap<Arc<str>, Vec<HostPort>>>);

impl Claims {
    /// Whether the pod has its ports now. A pod that ran before an agent's restart keeps them in any case.
    pub fn take(&self, uid: &Arc<str>, ports: Vec<HostPort>, keeps: bool) -> bool {
        if ports.is_empty() {
            return true;
        }
        let mut claims = self.0.lock();
        let mut others = claims.iter().filter(|(other, _)| *other != uid).flat_map(|(_, p)| p);
        let taken = others.any(|theirs| ports.iter().any(|ours| collide(ours, theirs)));
        if keeps || !taken {
            claims.insert(uid.clone(), ports);
        }
        keeps || !taken
    }

    pub fn release(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ports(list: Value) -> Vec<HostPort> {
        of(&serde_json::from_value(json!({"containers": [{"name": "c", "ports": list}]})).unwrap())
    }

    #[test]
    fn ports_are_had_once() {
        let claims = Claims::default();
        let take = |uid: &str, list: Value| claims.take(&uid.into(), ports(list), false);
        let port = |ip: &str, protocol: &str| json!([{"containerPort": 80, "hostPort": 8080, "hostIP": ip, "protocol": protocol}]);
        assert!(take("a", port("", "TCP")));
        assert!(take("a", port("", "TCP")), "it is its own");
        assert!(!take("b", port("10.0.0.1", "TCP")));
        assert!(take("b", port("", "UDP")));
        assert!(take("c", json!([{"containerPort": 80}])));
        claims.release("a");
        assert!(take("d", port("10.0.0.1", "TCP")));
        assert!(take("e", port("10.0.0.2", "TCP")));
        assert!(!take("f", port("0.0.0.0", "TCP")));
    }
}
