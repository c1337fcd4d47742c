//! From a Service to one of its endpoints, as kube-apiserver resolves them: by the EndpointSlices (or
//! the Endpoints that somebody wrote by hand), never by the cluster IP, which the control plane's
//! machine need not route.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use rimward_control_store::{ListRequest, Store};
use serde_json::Value;

use super::destination::Service;
use super::wire::tcp;
use crate::nodes::{Duplex, Nodes};
use crate::record::Record;
use crate::views::Stored;

const SLICE_OF: &str = "kubernetes.io/service-name";

/// What it takes to reach an endpoint.
pub struct Reach {
    pub store: Arc<dyn Store>,
    pub services_prefix: String,
    pub endpoints_prefix: String,
    pub slices_prefix: String,
    pub nodes: Arc<RwLock<Option<Arc<dyn Nodes>>>>,
}

/// One place that serves a port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    address: String,
    port: u16,
    /// Set for pods: the way leads through their node.
    node: Option<String>,
}

/// What is missing between a Service and a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    Service,
    /// The Service has no such port.
    Port,
    /// Nobody serves the port of this name.
    Endpoints(String),
    Other(String),
}

impl Missing {
    fn text(&self, service: &Service) -> String {
        match self {
            Self::Service => format!("service {:?} not found", service.name),
            Self::Port => {
                format!("no service port {} found for service {:?}", service.port, service.name)
            }
            Self::Endpoints(_) => {
                format!("no endpoints available for service {:?}", service.name)
            }
            Self::Other(why) => why.clone(),
        }
    }
}

impl Reach {
    /// A connection to one of the Service's endpoints.
    pub(super) async fn connect(&self, service: &Service) -> Result<Box<dyn Duplex>, String> {
        let endpoint = self.resolve(service).await.map_err(|m| m.text(service))?;
        let nodes = self.nodes.read().clone();
        match (&endpoint.node, nodes) {
            (Some(node), Some(nodes)) => {
                let address = endpoint
                    .address
                    .parse()
                    .map_err(|_| format!("{:?} is not an address", endpoint.address))?;
                let dialled = nodes.dial(node, address, endpoint.port).await;
                dialled.map_err(|e| format!("dial tcp {}:{}: {e}", endpoint.address, endpoint.port))
            }
            _ => tcp(&endpoint.address, endpoint.port).await.map_err(|e| e.0),
        }
    }

    /// Whether there is an endpoint, without connecting to it.
    pub async fn check(&self, service: &Service) -> Result<(), Missing> {
        self.resolve(service).await.map(|_| ())
    }

    /// A pod behind a Service's port, which is said by number, by name, or not: its node, its address
    /// and port. Endpoints that are no pods are none: the proxy leads into the cluster only.
    ///
    /// # Errors
    /// What is missing.
    pub async fn pod_behind(
        &self,
        namespace: &str,
        name: &str,
        port: &str,
    ) -> Result<(String, IpAddr, u16), Missing> {
        let found = self.object(&format!("{}{namespace}/{name}", self.services_prefix)).await?;
        let found = found.ok_or(Missing::Service)?;
        let port = match port.parse() {
            Ok(number) => named_port(&found, number)?,
            Err(_) => port.to_owned(),
        };
        let candidates = self.behind(namespace, name, &port).await?;
        let pods = candidates
            .into_iter()
            .filter_map(|e| Some((e.node?, e.address.parse().ok()?, e.port)))
            .collect();
        one_of(pods).ok_or(Missing::Endpoints(port))
    }

    async fn resolve(&self, service: &Service) -> Result<Endpoint, Missing> {
        let Service { namespace, name, .. } = service;
        let found = self.object(&format!("{}{namespace}/{name}", self.services_prefix)).await?;
        let port = named_port(&found.ok_or(Missing::Service)?, service.port)?;
        let candidates = self.behind(namespace, name, &port).await?;
        one_of(candidates).ok_or(Missing::Endpoints(port))
    }

    /// Everything that serves the port of this name.
    async fn behind(
        &self,
        namespace: &str,
        name: &str,
        port: &str,
    ) -> Result<Vec<Endpoint>, Missing> {
        let candidates = self.of_slices(namespace, name, port).await?;
        if !candidates.is_empty() {
            return Ok(candidates);
        }
        let endpoints =
            self.object(&format!("{}{namespace}/{name}", self.endpoints_prefix)).await?;
        Ok(endpoints.map_or_else(Vec::new, |endpoints| of_subsets(&endpoints, port)))
    }

    async fn object(&self, key: &str) -> Result<Option<Value>, Missing> {
        let entry = self.store.get(key, None).await.map_err(other)?;
        let Some(entry) = entry else { return Ok(None) };
        let stored = Stored::open(&entry).map_err(other)?;
        parsed(&stored.record).map(Some)
    }

    async fn of_slices(
        &self,
        namespace: &str,
        service: &str,
        port: &str,
    ) -> Result<Vec<Endpoint>, Missing> {
        let prefix = format!("{}{namespace}/", self.slices_prefix);
        let request = ListRequest { prefix, ..ListRequest::default() };
        let page = self.store.list(request).await.map_err(other)?;
        let mut all = Vec::new();
        for entry in &page.entries {
            let Ok(stored) = Stored::open(entry) else { continue };
            if stored.record.label(SLICE_OF) == Some(service) {
                all.extend(of_slice(&parsed(&stored.record)?, port));
            }
        }
        Ok(all)
    }
}

fn one_of<T>(mut all: Vec<T>) -> Option<T> {
    match all.len() {
        0 => None,
        n => Some(all.swap_remove(rand::random_range(0..n))),
    }
}

fn other(why: impl std::fmt::Display) -> Missing {
    Missing::Other(why.to_string())
}

fn parsed(record: &Record) -> Result<Value, Missing> {
    serde_json::from_slice(record.body()).map_err(other)
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, field: &str) -> Option<u16> {
    value.get(field).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok())
}

/// The name of the Service's port with that number: by it endpoints say theirs.
fn named_port(found: &Value, number_of: u16) -> Result<String, Missing> {
    let spec = &found["spec"];
    if text(spec, "type") == "ExternalName" {
        return Err(other("unsupported service type \"ExternalName\""));
    }
    items(spec, "ports")
        .find(|p| number(p, "port") == Some(number_of))
        .map(|p| text(p, "name").to_owned())
        .ok_or(Missing::Port)
}

fn of_slice(slice: &Value, port: &str) -> Vec<Endpoint> {
    let Some(number) =
        items(slice, "ports").find(|p| text(p, "name") == port).and_then(|p| number(p, "port"))
    else {
        return Vec::new();
    };
    items(slice, "endpoints")
        .filter(|e| e.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true))
        .filter_map(|e| {
            let address = items(e, "addresses").next()?.as_str()?.to_owned();
            Some(Endpoint { address, port: number, node: node_of(e) })
        })
        .collect()
}

fn of_subsets(endpoints: &Value, port: &str) -> Vec<Endpoint> {
    let mut all = Vec::new();
    for subset in items(endpoints, "subsets") {
        let Some(number) = items(subset, "ports")
            .find(|p| text(p, "name") == port)
            .and_then(|p| number(p, "port"))
        else {
            continue;
        };
        all.extend(items(subset, "addresses").map(|a| Endpoint {
            address: text(a, "ip").to_owned(),
            port: number,
            node: node_of(a),
        }));
    }
    all
}

fn node_of(endpoint: &Value) -> Option<String> {
    Some(text(endpoint, "nodeName").to_owned()).filter(|n| !n.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_endpoints_of_the_named_port() {
        let slice = json!({
            "ports": [{ "name": "a", "port": 1 }, { "name": "b", "port": 2 }],
            "endpoints": [
                { "addresses": ["10.0.0.1"], "nodeName": "n" },
                { "addresses": ["10.0.0.2"], "conditions": { "ready": false } },
                { "addresses": [] },
            ],
        });
        let found = of_slice(&slice, "b");
        let expected = Endpoint { address: "10.0.0.1".into(), port: 2, node: Some("n".into()) };
        assert_eq!(found, [expected]);
        assert!(of_slice(&slice, "c").is_empty());
    }

    #[test]
    fn ports_by_number() {
        let service =
            |port| Service { namespace: "n".into(), name: "s".into(), port, path: String::new() };
        let found = json!({ "spec": { "ports": [{ "name": "x", "port": 443 }] } });
        assert_eq!(named_port(&found, 443), Ok("x".into()));
        let refused = named_port(&found, 80).expect_err("is refused");
        assert_eq!(refused.text(&service(80)), "no service port 80 found for service \"s\"");
    }
}
