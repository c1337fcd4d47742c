//! Endpoints and EndpointSlice.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, net};
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, fill_text, items_mut};
use crate::rules::Rules;

pub const ENDPOINTS: Rules = Rules {
    default: |object| {
        for subset in items_mut(object, "subsets") {
            items_mut(subset, "ports").for_each(|p| fill_text(p, "protocol", "TCP"));
        }
    },
    create: |object, e| endpoints(object, e),
    update: |new, _, e| endpoints(new, e),
    cells: print::network::endpoints,
    ..Rules::PLAIN
};

fn endpoints(object: &Value, e: &mut Errors) {
    let list = Path::Root.field("subsets");
    for (i, subset) in object.list("subsets").iter().enumerate() {
        let at = list.index(i);
        let [ready, other] = ["addresses", "notReadyAddresses"].map(|f| subset.list(f));
        if ready.is_empty() && other.is_empty() {
            e.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            let list = at.field(field);
            for (j, address) in subset.list(field).iter().enumerate() {
                self::address(address, &list.index(j), e);
            }
        }
        let (ports, list) = (subset.list("ports"), at.field("ports"));
        for (j, port) in ports.iter().enumerate() {
            self::port(port, ports.len() > 1, &list.index(j), e);
        }
    }
}

fn address(address: &Value, path: &Path<'_>, e: &mut Errors) {
    net::ip(address.text("ip"), &path.field("ip"), e);
    let host = address.text("hostname");
    if !host.is_empty() {
        e.invalid_each(&path.field("hostname"), host, names::dns1123_label(host));
    }
    if let Some(node) = address.at("nodeName").as_str() {
        e.invalid_each(&path.field("nodeName"), node, names::dns1123_subdomain(node));
    }
    net::special(address.text("ip"), &path.field("ip"), e);
}

fn port(port: &Value, needs_name: bool, path: &Path<'_>, e: &mut Errors) {
    match port.text("name") {
        "" if needs_name => e.required(&path.field("name"), ""),
        "" => {}
        name => e.invalid_each(&path.field("name"), name, names::dns1123_label(name)),
    }
    net::port_number(port.at("port"), &path.field("port"), e);
    check::required_one_of(
        port.at("protocol"),
        &["SCTP", "TCP", "UDP"],
        &path.field("protocol"),
        e,
    );
    if let Some(protocol) = port.at("appProtocol").as_str() {
        e.invalid_each(&path.field("appProtocol"), protocol, names::qualified_name(protocol));
    }
}

pub const ENDPOINT_SLICE: Rules = Rules {
    default: |object| {
        for port in items_mut(object, "ports") {
            fill(port, "name", "");
            fill(port, "protocol", "TCP");
        }
        items_mut(object, "endpoints").for_each(|e| fill(e, "conditions", json!({})));
    },
    create: |object, e| slice(object, e),
    update: |new, old, e| {
        slice(new, e);
        check::immutable(
            new.at("addressType"),
            old.at("addressType"),
            &Path::Root.field("addressType"),
            e,
        );
    },
    generation: true,
    cells: print::network::endpoint_slice,
    ..Rules::PLAIN
};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_TOPOLOGY_LABELS: usize = 16;
const MAX_HINTS: usize = 8;

fn slice(object: &Value, e: &mut Errors) {
    let kind = object.text("addressType");
    check::required_one_of(
        object.at("addressType"),
        &["FQDN", "IPv4", "IPv6"],
        &Path::Root.field("addressType"),
        e,
    );
    let (endpoints, list) = (object.list("endpoints"), Path::Root.field("endpoints"));
    if endpoints.len() > MAX_ENDPOINTS {
        return e.too_many(&list, endpoints.len(), MAX_ENDPOINTS);
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        self::endpoint(endpoint, kind, &list.index(i), e);
    }
    let (ports, list) = (object.list("ports"), Path::Root.field("ports"));
    if ports.len() > MAX_PORTS {
        return e.too_many(&list, ports.len(), MAX_PORTS);
    }
    let mut seen = check::Seen::default();
    for (i, port) in ports.iter().enumerate() {
        let at = list.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            e.invalid_each(&at.field("name"), name, names::dns1123_label(name));
        }
        if seen.again(name) {
            e.duplicate(&at.field("name"), name);
        }
        // Kubernetes takes any port number here.
        check::one_of(port.at("protocol"), &["SCTP", "TCP", "UDP"], &at.field("protocol"), e);
        if let Some(protocol) = port.at("appProtocol").as_str() {
            e.invalid_each(&at.field("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn endpoint(endpoint: &Value, kind: &str, path: &Path<'_>, e: &mut Errors) {
    let (addresses, list) = (endpoint.list("addresses"), path.field("addresses"));
    if addresses.is_empty() {
        e.required(&list, "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        e.too_many(&list, addresses.len(), MAX_ADDRESSES);
    }
    for (i, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
        let at = list.index(i);
        match kind {
            "IPv4" | "IPv6" => {
                let of_kind = |ip: std::net::IpAddr| ip.is_ipv4() == (kind == "IPv4");
                match address.parse() {
                    Ok(ip) if !of_kind(ip) => {
                        e.invalid(&at, address, &format!("must be a valid {kind} address"))
                    }
                    _ => net::not_special(address, &at, e),
                }
            }
            "FQDN" => full_name(address, &at, e),
            _ => {}
        }
    }
    if let Some(node) = endpoint.at("nodeName").as_str() {
        e.invalid_each(&path.field("nodeName"), node, names::dns1123_subdomain(node));
    }
    let (labels, topology) = (endpoint.at("deprecatedTopology"), path.field("deprecatedTopology"));
    let count = labels.as_object().map_or(0, |labels| labels.len());
    if count > MAX_TOPOLOGY_LABELS {
        e.too_many(&topology, count, MAX_TOPOLOGY_LABELS);
    }
    check::meta::labels(labels, &topology, e);
    if let Some(host) = endpoint.at("hostname").as_str() {
        e.invalid_each(&path.field("hostname"), host, names::dns1123_label(host));
    }
    let (hints, at) = (endpoint.at("hints"), path.field("hints"));
    hinted(hints.list("forZones"), names::label_value, &at.field("forZones"), e);
    hinted(hints.list("forNodes"), names::dns1123_subdomain, &at.field("forNodes"), e);
}

/// `validateHints`: a few names, each once.
fn hinted(list: &[Value], rule: fn(&str) -> Vec<String>, path: &Path<'_>, e: &mut Errors) {
    if list.len() > MAX_HINTS {
        return e.too_many(path, list.len(), MAX_HINTS);
    }
    let mut seen = check::Seen::default();
    for (i, hint) in list.iter().enumerate() {
        let (name, item) = (hint.text("name"), path.index(i));
        let at = item.field("name");
        if seen.again(name) {
            e.duplicate(&at, name);
        }
        e.invalid_each(&at, name, rule(name));
    }
}

/// `IsFullyQualifiedDomainName`: two labels at least, and a dot at the end if one likes.
fn full_name(name: &str, path: &Path<'_>, e: &mut Errors) {
    if name.is_empty() {
        return e.required(path, "");
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let wrong = names::dns1123_subdomain(name);
    if !wrong.is_empty() {
        return e.invalid(path, name, &wrong.join(","));
    }
    if !name.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        return e.invalid(path, name, why);
    }
    for label in name.split('.') {
        let wrong = names::dns1123_label(label);
        if !wrong.is_empty() {
            return e.invalid(path, label, &wrong.join(","));
        }
    }
}
