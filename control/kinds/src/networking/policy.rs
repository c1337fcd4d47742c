//! NetworkPolicy.

use serde_json::Value;

use crate::check::{self, net, selector, text};
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, items_mut};
use crate::rules::Rules;

pub const NETWORK_POLICY: Rules = Rules {
    default,
    create: |object, e| policy(object, e),
    update: |new, _, e| policy(new, e),
    generation: true,
    cells: print::network::network_policy,
    ..Rules::PLAIN
};

fn default(object: &mut Value) {
    let Some(spec) = crate::read::member(object, "spec") else { return };
    for direction in ["ingress", "egress"] {
        for rule in items_mut(spec, direction) {
            items_mut(rule, "ports").for_each(|p| fill(p, "protocol", "TCP"));
        }
    }
    if spec.list("policyTypes").is_empty() {
        let mut types = vec!["Ingress"];
        if !spec.list("egress").is_empty() {
            types.push("Egress");
        }
        spec["policyTypes"] = types.into();
    }
}

fn policy(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    selector::label_selector(spec.at("podSelector"), &path.field("podSelector"), e);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let list = path.field(direction);
        for (i, rule) in spec.list(direction).iter().enumerate() {
            let at = list.index(i);
            let ports = at.field("ports");
            for (j, port) in rule.list("ports").iter().enumerate() {
                self::port(port, &ports.index(j), e);
            }
            let list = at.field(peers);
            for (j, peer) in rule.list(peers).iter().enumerate() {
                self::peer(peer, &list.index(j), e);
            }
        }
    }
    let (types, list) = (spec.list("policyTypes"), path.field("policyTypes"));
    if types.len() > 2 {
        return e.invalid(
            &list,
            Value::Array(types.to_vec()),
            "may not specify more than two policyTypes",
        );
    }
    for (i, kind) in types.iter().enumerate() {
        check::one_of(kind, &["Egress", "Ingress"], &list.index(i), e);
    }
}

fn port(port: &Value, path: &Path<'_>, e: &mut Errors) {
    check::one_of(port.at("protocol"), &["SCTP", "TCP", "UDP"], &path.field("protocol"), e);
    let (from, end) = (port.at("port"), port.int("endPort"));
    if from.is_null() {
        if let Some(end) = end {
            let why = "may not be specified when `port` is not specified";
            e.invalid(&path.field("endPort"), end, why);
        }
        return;
    }
    net::port_or_name(from, &path.field("port"), e);
    let Some(end) = end else { return };
    let at = path.field("endPort");
    match from.as_i64() {
        None => {
            return e.invalid(&at, end, "may not be specified when `port` is non-numeric");
        }
        Some(from) if end < from => {
            e.invalid(&at, from, "must be greater than or equal to `port`");
        }
        Some(_) => {}
    }
    if !text::is_port(end) {
        e.invalid(&at, end, text::PORT_RANGE);
    }
}

fn peer(peer: &Value, path: &Path<'_>, e: &mut Errors) {
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer.has(field) {
            count += 1;
            selector::label_selector(peer.at(field), &path.field(field), e);
        }
    }
    let block = peer.at("ipBlock");
    if block.is_object() {
        count += 1;
        ip_block(block, &path.field("ipBlock"), e);
    }
    if count == 0 {
        e.required(path, "must specify a peer");
    } else if count > 1 && block.is_object() {
        e.forbidden(path, "may not specify both ipBlock and another peer");
    }
}

fn ip_block(block: &Value, path: &Path<'_>, e: &mut Errors) {
    let range = block.text("cidr");
    if range.is_empty() {
        return e.required(&path.field("cidr"), "");
    }
    net::cidr(range, &path.field("cidr"), e);
    let Some(outer) = net::parse_cidr(range) else { return };
    let list = path.field("except");
    for (i, except) in block.list("except").iter().filter_map(Value::as_str).enumerate() {
        net::cidr(except, &list.index(i), e);
        let inside = net::parse_cidr(except)
            .is_none_or(|inner| net::cidr_contains(outer, inner) && inner.1 > outer.1);
        if !inside {
            e.invalid(&list.index(i), except, "must be a strict subset of `cidr`");
        }
    }
}
