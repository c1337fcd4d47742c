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
    create: service_cidr,
    update: |new, old, e| {
        if new.at("spec") != old.at("spec") {
            e.invalid(
                &Path::Root.field("spec").field("cidrs"),
                new.at("spec").at("cidrs").clone(),
                crate::check::IMMUTABLE,
            );
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
    if cidrs.is_empty() {
        e.required(&list, "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        e.invalid(&list, Value::Array(cidrs.to_vec()), "may only hold up to 2 values");
    }
    for (i, cidr) in cidrs.iter().filter_map(Value::as_str).enumerate() {
        net::cidr(cidr, &list.index(i), e);
    }
}

pub const IP_ADDRESS: Rules = Rules {
    create: |object, e| {
        let parent = object.deep(&["spec", "parentRef"]);
        let path = Path::Root.field("spec");
        let at = path.field("parentRef");
        if parent.is_null() {
            return e.required(&at, "");
        }
        for field in ["resource", "name"] {
            if parent.text(field).is_empty() {
                e.required(&at.field(field), "");
            }
        }
    },
    update: |new, old, e| {
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
        _ => vec!["must be a valid IP address in canonical form".to_owned()],
    },
    generation: true,
    cells: print::network::ip_address,
    ..Rules::PLAIN
};
