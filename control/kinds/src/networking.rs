//! networking.k8s.io and what tells where Services lead: Ingress, IngressClass, NetworkPolicy,
//! ServiceCIDR, IPAddress, Endpoints, EndpointSlice.

pub mod endpoints;
pub mod ingress;
pub mod policy;

use serde_json::Value;

use crate::check::net;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::Read;
use crate::rules::Rules;

pub const SERVICE_CIDR: Rules = Rules {
    create: |object, e| service_cidr(object, e),
    update: |new, old, e| {
        service_cidr(new, e);
        let [now, were] = [new, old].map(|object| object.at("spec").list("cidrs"));
        let path = Path::Root.field("spec");
        let list = path.field("cidrs");
        // A second family may join the first, and nothing else.
        if now.len() != were.len() && (were.len(), now.len()) != (1, 2) {
            return e.invalid(&list, now.to_vec(), crate::check::IMMUTABLE);
        }
        for (i, (now, was)) in now.iter().zip(were).enumerate() {
            if now != was {
                e.invalid(&list.index(i), now.clone(), crate::check::IMMUTABLE);
            }
        }
    },
    status: true,
    generation: true,
    cells: print::network::service_cidr,
    ..Rules::PLAIN
};

fn service_cidr(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    let list = path.field("cidrs");
    let cidrs = object.at("spec").list("cidrs");
    match cidrs {
        [] => return e.required(&list, "at least one CIDR required"),
        [_] => {}
        [a, b] => {
            let family = |cidr: &Value| {
                net::parse_cidr(cidr.as_str().unwrap_or_default()).map(|(ip, _)| ip.is_ipv4())
            };
            if family(a).zip(family(b)).is_none_or(|(a, b)| a == b) {
                let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
                return e.invalid(&list, cidrs.to_vec(), why);
            }
        }
        _ => return e.invalid(&list, cidrs.to_vec(), "may only hold up to 2 values"),
    }
    for (i, cidr) in cidrs.iter().filter_map(Value::as_str).enumerate() {
        net::canonical_cidr(cidr, &list.index(i), e);
    }
}

pub const IP_ADDRESS: Rules = Rules {
    create: |object, e| ip_address(object, e),
    update: |new, old, e| {
        ip_address(new, e);
        let path = Path::Root.field("spec");
        crate::check::immutable(
            new.at("spec").at("parentRef"),
            old.at("spec").at("parentRef"),
            &path.field("parentRef"),
            e,
        );
    },
    name: |name| match name.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.to_string() == name => Vec::new(),
        Ok(ip) => vec![format!("must be in canonical form ({:?})", ip.to_string())],
        _ => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    },
    generation: true,
    cells: print::network::ip_address,
    ..Rules::PLAIN
};

/// Whose address it is.
fn ip_address(object: &Value, e: &mut Errors) {
    let parent = object.deep(&["spec", "parentRef"]);
    let path = Path::Root.field("spec");
    let at = path.field("parentRef");
    if !parent.is_object() {
        return e.required(&at, "");
    }
    let group = parent.text("group");
    if !group.is_empty() {
        e.invalid_each(&at.field("group"), group, rimward_api::names::dns1123_subdomain(group));
    }
    for field in ["resource", "name", "namespace"] {
        match parent.text(field) {
            "" if field == "namespace" => {}
            "" => e.required(&at.field(field), ""),
            text => {
                let wrong = crate::check::text::path_segment(text);
                e.invalid_each(&at.field(field), text, wrong);
            }
        }
    }
}
