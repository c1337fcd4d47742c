//! One question in, records out. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rimward_api::ObjectKey;

use crate::names::{EndpointName, Names, Port, ServiceNames};

/// Seconds; short, since endpoints move.
const TTL: u32 = 5;

/// What to say to a question.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// The name is this cluster's; `records` may be empty (the name exists with other types).
    Ours { code: ResponseCode, records: Vec<Record>, additional: Vec<Record>, soa: Option<Record> },
    /// A CNAME out of the cluster: the forwarder may complete it.
    External { record: Record, target: Name },
    /// Somebody else's name: forward it.
    Forward,
}

/// Answers a question about `name`; `zone` is the cluster domain (`cluster.local.`).
pub fn answer(names: &Names, zone: &Name, name: &Name, kind: RecordType) -> Answer {
    if let Some(address) = arpa_address(name) {
        return pointer(names, zone, name, kind, address);
    }
    if !zone.zone_of(name) {
        return Answer::Forward;
    }
    let labels: Vec<String> = name
        .iter()
        .take(name.iter().count() - zone.iter().count())
        .map(|label| String::from_utf8_lossy(label).to_lowercase())
        .collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let found = match labels.as_slice() {
        [] | ["svc"] | ["pod"] => Some(Found::empty()),
        ["dns-version"] => {
            Some(Found::one(RecordType::TXT, RData::TXT(TXT::new(vec!["1.1.0".into()]))))
        }
        [namespace, "svc"] => names.namespaces.contains_key(*namespace).then(Found::empty),
        [dashed, namespace, "pod"] => pod(dashed, names.namespaces.contains_key(*namespace)),
        [.., service, namespace, "svc"] => {
            let key = ObjectKey::new(*namespace, *service);
            match names.services.get(&key) {
                Some(ServiceNames::External { target }) if labels.len() == 3 => {
                    return external(name, target);
                }
                Some(service) => service_records(service, zone, &key, &labels[..labels.len() - 3]),
                None => None,
            }
        }
        _ => None,
    };
    let soa = || Some(soa(zone));
    match found {
        None => Answer::Ours {
            code: ResponseCode::NXDomain,
            records: vec![],
            additional: vec![],
            soa: soa(),
        },
        Some(found) => {
            let wanted = |k: RecordType| kind == k || kind == RecordType::ANY;
            let data = found.data.into_iter().filter(|(k, _)| wanted(*k));
            let records: Vec<Record> =
                data.map(|(_, data)| Record::from_rdata(name.clone(), TTL, data)).collect();
            let additional = if records.is_empty() { vec![] } else { found.additional };
            let soa = if records.is_empty() { soa() } else { None };
            Answer::Ours { code: ResponseCode::NoError, records, additional, soa }
        }
    }
}

/// The data at an existing name, of all types.
struct Found {
    data: Vec<(RecordType, RData)>,
    additional: Vec<Record>,
}

impl Found {
    fn empty() -> Self {
        Self { data: Vec::new(), additional: Vec::new() }
    }

    fn one(kind: RecordType, data: RData) -> Self {
        Self { data: vec![(kind, data)], additional: Vec::new() }
    }

    fn addresses<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> Self {
        Self { data: addresses.map(|a| address_data(*a)).collect(), additional: Vec::new() }
    }
}

fn address_data(address: IpAddr) -> (RecordType, RData) {
    match address {
        IpAddr::V4(ip) => (RecordType::A, RData::A(A(ip))),
        IpAddr::V6(ip) => (RecordType::AAAA, RData::AAAA(AAAA(ip))),
    }
}

/// `before` are the labels in front of `<service>.<namespace>.svc`.
fn service_records(
    service: &ServiceNames,
    zone: &Name,
    key: &ObjectKey,
    before: &[&str],
) -> Option<Found> {
    match (service, before) {
        (ServiceNames::ClusterIp { addresses, .. }, []) => Some(Found::addresses(addresses.iter())),
        (ServiceNames::Headless { endpoints }, []) => {
            // A headless Service without endpoints does not exist, as CoreDNS has it.
            (!endpoints.is_empty()).then(|| Found::addresses(endpoints.iter().map(|e| &e.address)))
        }
        (ServiceNames::Headless { endpoints }, [host]) => {
            let mut here = endpoints.iter().filter(|e| e.host == *host).peekable();
            here.peek()?;
            Some(Found::addresses(here.map(|e| &e.address)))
        }
        (_, [port, protocol]) => {
            let port = port.strip_prefix('_')?;
            let protocol = protocol.strip_prefix('_')?;
            srv_records(service, zone, key, &|p| p.name == port && p.protocol == protocol)
        }
        _ => None,
    }
}

fn srv_records(
    service: &ServiceNames,
    zone: &Name,
    key: &ObjectKey,
    fits: &dyn Fn(&&Port) -> bool,
) -> Option<Found> {
    let own = service_name(zone, key)?;
    let mut found = Found::empty();
    let mut add = |target: Name, port: &Port, addresses: &[IpAddr]| {
        found.data.push((RecordType::SRV, RData::SRV(SRV::new(0, 100, port.port, target.clone()))));
        let records =
            addresses.iter().map(|a| Record::from_rdata(target.clone(), TTL, address_data(*a).1));
        found.additional.extend(records);
    };
    match service {
        ServiceNames::ClusterIp { addresses, ports } => {
            ports.iter().filter(fits).for_each(|port| add(own.clone(), port, addresses));
        }
        ServiceNames::Headless { endpoints } => {
            for EndpointName { host, address, ports, .. } in endpoints {
                let Ok(target) = own.prepend_label(host.as_str()) else { continue };
                ports.iter().filter(fits).for_each(|p| add(target.clone(), p, &[*address]));
            }
        }
        ServiceNames::External { .. } => {}
    }
    (!found.data.is_empty()).then_some(found)
}

fn service_name(zone: &Name, key: &ObjectKey) -> Option<Name> {
    let svc = zone.prepend_label("svc").ok()?;
    svc.prepend_label(key.namespace.as_str()).ok()?.prepend_label(key.name.as_str()).ok()
}

fn external(name: &Name, target: &str) -> Answer {
    let target = Name::from_ascii(target).map(|mut target| {
        target.set_fqdn(true);
        target
    });
    match target {
        Ok(target) => {
            let record = Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
            Answer::External { record, target }
        }
        Err(_) => Answer::Ours {
            code: ResponseCode::ServFail,
            records: vec![],
            additional: vec![],
            soa: None,
        },
    }
}

/// `10-42-0-5.<namespace>.pod`: the address that the name spells.
fn pod(dashed: &str, namespace_exists: bool) -> Option<Found> {
    if !namespace_exists {
        return None;
    }
    let v4 = dashed.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    let address =
        v4.or_else(|_| dashed.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()?;
    Some(Found::addresses([address].iter()))
}

fn arpa_address(name: &Name) -> Option<IpAddr> {
    let is_arpa = name.iter().next_back().is_some_and(|l| l.eq_ignore_ascii_case(b"arpa"));
    let net = is_arpa.then(|| name.parse_arpa_name().ok()).flatten()?;
    let whole = net.prefix_len() == net.max_prefix_len();
    whole.then(|| net.addr())
}

fn pointer(names: &Names, zone: &Name, name: &Name, kind: RecordType, address: IpAddr) -> Answer {
    // Addresses that are not ours are for the forwarder.
    let Some(known) = names.addresses.get(&address) else { return Answer::Forward };
    let targets = known.iter().filter_map(|(key, host)| {
        let service = service_name(zone, key)?;
        match host {
            Some(host) => service.prepend_label(host.as_str()).ok(),
            None => Some(service),
        }
    });
    let records: Vec<Record> = match kind {
        RecordType::PTR | RecordType::ANY => targets
            .map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target))))
            .collect(),
        _ => Vec::new(),
    };
    Answer::Ours { code: ResponseCode::NoError, records, additional: vec![], soa: None }
}

/// What negative answers carry (RFC 2308): the time for which nothing is there, the TTL.
fn soa(zone: &Name) -> Record {
    let label = |l: &str| zone.prepend_label(l).unwrap_or_else(|_| zone.clone());
    let data = SOA::new(label("ns.dns"), label("hostmaster"), 1, 7200, 1800, 86400, TTL);
    Record::from_rdata(zone.clone(), TTL, RData::SOA(data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use rimward_client::{Cache, Delta};
    use rimward_node_network::Slices;
    use rimward_node_network::slices::SERVICE_NAME;
    use std::sync::Arc;

    fn world() -> (Cache<Service>, Cache<EndpointSlice>) {
        let (services, slices) = (Cache::new(), Cache::new());
        let service = |name: &str, spec: serde_json::Value| {
            let object =
                serde_json::json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
            let object: Service = serde_json::from_value(object).expect("a Service");
            services.apply(ObjectKey::new("shop", name), Arc::new(object));
        };
        service(
            "web",
            serde_json::json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}),
        );
        service("db", serde_json::json!({"clusterIP": "None"}));
        service("empty", serde_json::json!({"clusterIP": "None"}));
        service("out", serde_json::json!({"type": "ExternalName", "externalName": "example.com"}));
        let slice = serde_json::json!({
            "metadata": {"name": "db-1", "namespace": "shop", "labels": {SERVICE_NAME: "db"}},
            "addressType": "IPv4",
            "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.42.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.42.0.6"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.9"], "conditions": {"ready": false}},
            ],
        });
        let slice: EndpointSlice = serde_json::from_value(slice).expect("a slice");
        slices.apply(ObjectKey::new("shop", "db-1"), Arc::new(slice));
        (services, slices)
    }

    fn ask(names: &Names, name: &str, kind: RecordType) -> String {
        let zone = Name::from_ascii("cluster.local.").unwrap();
        match answer(names, &zone, &Name::from_ascii(name).unwrap(), kind) {
            Answer::Forward => "forward".into(),
            Answer::External { target, .. } => format!("cname {target}"),
            Answer::Ours { code, records, .. } => {
                let mut data: Vec<String> = records.iter().map(|r| r.data.to_string()).collect();
                data.sort();
                if data.is_empty() { format!("{code:?}") } else { data.join(" | ") }
            }
        }
    }

    #[test]
    fn names_of_services() {
        let (services, slices) = world();
        let mut names = Names::default();
        names.changed(&Delta::All, &services, &Slices::new(slices));
        let check = |name: &str, kind: RecordType, expected: &str| {
            assert_eq!(ask(&names, name, kind), expected, "{name} {kind}");
        };
        use RecordType::{A, AAAA, PTR, SRV, TXT};
        check("web.shop.svc.cluster.local.", A, "10.43.0.7");
        check("WEB.shop.svc.Cluster.Local.", A, "10.43.0.7");
        check("web.shop.svc.cluster.local.", AAAA, "NoError");
        check("none.shop.svc.cluster.local.", A, "NXDomain");
        check("web.other.svc.cluster.local.", A, "NXDomain");
        check("shop.svc.cluster.local.", A, "NoError");
        check(
            "_http._tcp.web.shop.svc.cluster.local.",
            SRV,
            "0 100 80 web.shop.svc.cluster.local.",
        );
        check("_http._udp.web.shop.svc.cluster.local.", SRV, "NXDomain");
        check("db.shop.svc.cluster.local.", A, "10.42.0.5 | 10.42.0.6");
        check("db-0.db.shop.svc.cluster.local.", A, "10.42.0.5");
        check("10-42-0-6.db.shop.svc.cluster.local.", A, "10.42.0.6");
        check("empty.shop.svc.cluster.local.", A, "NXDomain");
        check(
            "_sql._tcp.db.shop.svc.cluster.local.",
            SRV,
            "0 100 5432 10-42-0-6.db.shop.svc.cluster.local. | 0 100 5432 db-0.db.shop.svc.cluster.local.",
        );
        check("out.shop.svc.cluster.local.", A, "cname example.com.");
        check("10-1-2-3.shop.pod.cluster.local.", A, "10.1.2.3");
        check("7.0.43.10.in-addr.arpa.", PTR, "web.shop.svc.cluster.local.");
        check("5.0.42.10.in-addr.arpa.", PTR, "db-0.db.shop.svc.cluster.local.");
        check("1.1.1.1.in-addr.arpa.", PTR, "forward");
        check("dns-version.cluster.local.", TXT, "1.1.0");
        check("example.com.", A, "forward");
    }

    #[test]
    fn the_index_follows() {
        let (services, slices) = world();
        let mut names = Names::default();
        let index = Slices::new(slices.clone());
        names.changed(&Delta::All, &services, &index);
        slices.remove(&ObjectKey::new("shop", "db-1"));
        names.changed(&Delta::Key(ObjectKey::new("shop", "db")), &services, &index);
        assert_eq!(ask(&names, "db.shop.svc.cluster.local.", RecordType::A), "NXDomain");
        assert_eq!(ask(&names, "5.0.42.10.in-addr.arpa.", RecordType::PTR), "forward");
        for (key, _) in services.list() {
            services.remove(&key);
            names.changed(&Delta::Key(key), &services, &index);
        }
        assert!(
            names.services.is_empty() && names.addresses.is_empty() && names.namespaces.is_empty()
        );
    }
}
