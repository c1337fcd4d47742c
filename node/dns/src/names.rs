//! Which names exist: kept in step with Services and their EndpointSlices, a Service at a time.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Delta};
use rimward_node_network::Slices;

#[derive(Default)]
pub struct Names {
    pub(crate) services: HashMap<ObjectKey, ServiceNames>,
    /// Cluster IPs, and endpoints of headless Services, to the names that PTR answers with.
    pub(crate) addresses: HashMap<IpAddr, BTreeSet<(ObjectKey, Option<String>)>>,
    /// Namespaces by their number of Services.
    pub(crate) namespaces: HashMap<String, usize>,
}

/// What a Service's names lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServiceNames {
    ClusterIp { addresses: Vec<IpAddr>, ports: Vec<Port> },
    Headless { endpoints: Vec<EndpointName> },
    External { target: String },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub name: String,
    /// Lower case: `tcp`.
    pub protocol: String,
    pub port: u16,
}

/// One endpoint of a headless Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointName {
    /// The pod's hostname, else its address with dashes.
    pub host: String,
    pub has_hostname: bool,
    pub address: IpAddr,
    pub ports: Vec<Port>,
}

impl Names {
    /// Brings the index up to date with a Service that changed, itself or its slices, or with everything.
    pub fn changed(&mut self, delta: &Delta, services: &Cache<Service>, slices: &Slices) {
        match delta {
            Delta::Key(key) => self.refresh(key, services, slices),
            Delta::All => {
                *self = Self::default();
                services.list().iter().for_each(|(key, _)| self.refresh(key, services, slices));
            }
        }
    }

    fn refresh(&mut self, key: &ObjectKey, services: &Cache<Service>, slices: &Slices) {
        if let Some(old) = self.services.remove(key) {
            for (address, name) in reverse(key, &old) {
                if let Some(names) = self.addresses.get_mut(&address) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.addresses.remove(&address);
                    }
                }
            }
            let count = self.namespaces.entry(key.namespace.clone()).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.namespaces.remove(&key.namespace);
            }
        }
        let Some(service) = services.get_key(key) else { return };
        let Some(names) = service_names(&service, &slices.of(key)) else { return };
        for (address, name) in reverse(key, &names) {
            self.addresses.entry(address).or_default().insert(name);
        }
        *self.namespaces.entry(key.namespace.clone()).or_default() += 1;
        self.services.insert(key.clone(), names);
    }
}

fn reverse(key: &ObjectKey, names: &ServiceNames) -> Vec<(IpAddr, (ObjectKey, Option<String>))> {
    match names {
        ServiceNames::ClusterIp { addresses, .. } => {
            addresses.iter().map(|a| (*a, (key.clone(), None))).collect()
        }
        ServiceNames::Headless { endpoints } => {
            let named = endpoints.iter().filter(|e| e.has_hostname);
            named.map(|e| (e.address, (key.clone(), Some(e.host.clone())))).collect()
        }
        ServiceNames::External { .. } => Vec::new(),
    }
}

/// None for a Service that has no address yet.
fn service_names(service: &Service, slices: &[Arc<EndpointSlice>]) -> Option<ServiceNames> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.clone()?;
        return Some(ServiceNames::External { target });
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Some(ServiceNames::Headless { endpoints: endpoints(slices) });
    }
    let listed = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in listed.filter_map(|ip| ip.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let ports = spec.ports.iter().flatten().map(|p| Port {
        name: p.name.clone().unwrap_or_default(),
        protocol: p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
        port: p.port as u16,
    });
    (!addresses.is_empty()).then(|| ServiceNames::ClusterIp { addresses, ports: ports.collect() })
}

/// Ready endpoints; where publishNotReadyAddresses is set, the slices already say ready.
fn endpoints(slices: &[Arc<EndpointSlice>]) -> Vec<EndpointName> {
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter_map(|p| {
            Some(Port {
                name: p.name.clone().unwrap_or_default(),
                protocol: p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                port: p.port? as u16,
            })
        });
        let ports: Vec<Port> = ports.collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let address = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok());
            let (true, Some(address)) = (ready, address) else { continue };
            let dashed = || address.to_string().replace(['.', ':'], "-");
            found.push(EndpointName {
                host: endpoint.hostname.clone().unwrap_or_else(dashed),
                has_hostname: endpoint.hostname.is_some(),
                address,
                ports: ports.clone(),
            });
        }
    }
    found
}
