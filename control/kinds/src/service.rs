//! Service. Cluster IPs and node ports are allocated by the API server between `prepare_*` and
//! validation, as Kubernetes does it.

mod validation;

use std::collections::{HashMap, HashSet};

use rimward_api::names;
use serde_json::{Value, json};

use crate::kind::Write;
use crate::print;
use crate::read::{Read, fill, fill_text, items_mut, member, remove};
use crate::rules::{Field, Rules};

pub(crate) const SERVICE: Rules = Rules {
    default,
    prepare_create,
    prepare_update,
    create: validation::create,
    update: validation::update,
    name: names::dns1035_label,
    status: true,
    fields: &[
        ("spec.clusterIP", Field::Text(&["spec", "clusterIP"])),
        ("spec.type", Field::Text(&["spec", "type"])),
    ],
    cells: print::network::service,
    warnings: crate::warnings::service,
    ..Rules::PLAIN
};

const SINGLE_STACK: &str = "SingleStack";

fn default(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    fill_text(spec, "sessionAffinity", "None");
    match spec.text("sessionAffinity") {
        "None" => remove(spec, "sessionAffinityConfig"),
        "ClientIP" => {
            if let Some(client) =
                member(spec, "sessionAffinityConfig").and_then(|c| member(c, "clientIP"))
            {
                fill(client, "timeoutSeconds", 3 * 60 * 60);
            }
        }
        _ => {}
    }
    fill_text(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        fill_text(port, "protocol", "TCP");
        if matches!(port.at("targetPort"), Value::Null)
            || port["targetPort"] == 0
            || port["targetPort"] == ""
        {
            let number = port.int("port").unwrap_or_default();
            port["targetPort"] = number.into();
        }
    }
    if externally_accessible(spec) {
        fill_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
    if spec.text("type") == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn externally_accessible(spec: &Value) -> bool {
    match spec.text("type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec.list("externalIPs").is_empty(),
        _ => false,
    }
}

/// Whether the node answers health checks of a load balancer for it.
fn needs_health_check(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}

/// Whether it has no cluster IP on purpose.
pub fn is_headless(spec: &Value) -> bool {
    spec.text("clusterIP") == "None"
        || spec.list("clusterIPs").first().is_some_and(|ip| ip == "None")
}

/// Whether the API server allocates a cluster IP for it. Allocation comes before validation: what is of
/// no known type gets one too, and is refused then.
pub fn needs_cluster_ip(spec: &Value) -> bool {
    spec.text("type") != "ExternalName"
}

/// Whether the API server allocates node ports for it.
pub fn needs_node_port(spec: &Value) -> bool {
    match spec.text("type") {
        "NodePort" => true,
        "LoadBalancer" => spec.at("allocateLoadBalancerNodePorts") != &Value::Bool(false),
        _ => false,
    }
}

fn prepare_create(object: &mut Value) {
    object["status"] = json!({ "loadBalancer": {} });
    if let Some(spec) = object.get_mut("spec") {
        cluster_ips(spec);
        families(spec);
    }
}

/// Who knows only `clusterIP` means the first of `clusterIPs`. The other way round is the client's to
/// say.
fn cluster_ips(spec: &mut Value) {
    let ip = spec.text("clusterIP").to_owned();
    if !ip.is_empty() && spec.list("clusterIPs").is_empty() {
        spec["clusterIPs"] = json!([ip]);
    }
}

/// One address family, IPv4, unless the client asked otherwise.
fn families(spec: &mut Value) {
    if !needs_cluster_ip(spec) {
        return;
    }
    // To a headless Service without a selector nobody routes: it may speak both, wherever it is.
    let selects = spec.entries("selector").is_some_and(|s| !s.is_empty());
    let both = is_headless(spec) && !selects;
    fill(spec, "ipFamilyPolicy", if both { "RequireDualStack" } else { SINGLE_STACK });
    if spec.list("ipFamilies").is_empty() {
        let single = !both || spec.text("ipFamilyPolicy") == SINGLE_STACK;
        spec["ipFamilies"] = if single { json!(["IPv4"]) } else { json!(["IPv4", "IPv6"]) };
    }
}

fn prepare_update(write: Write<'_>, new: &mut Value, old: &Value) {
    if write != Write::Main {
        return;
    }
    let before = old.at("spec");
    let Some(spec) = member(new, "spec") else { return };
    keep_allocated(spec, before);
    link_addresses(spec, before);
    families(spec);
    drop_what_the_type_lost(spec, before);
}

/// A client that does not repeat what was allocated does not give it up: `patchAllocatedValues`.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if new.text("clusterIP").is_empty() {
            crate::read::keep(new, old, "clusterIP");
        }
        if new.list("clusterIPs").is_empty() && new.at("clusterIP") == old.at("clusterIP") {
            crate::read::keep(new, old, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if crate::read::is_empty(new.at(field)) && new.at(field) != "" {
                crate::read::keep(new, old, field);
            }
        }
    }
    if may_have_node_ports(old) && may_have_node_ports(new) {
        keep_node_ports(new, old);
    }
    if needs_health_check(old)
        && needs_health_check(new)
        && new.int("healthCheckNodePort").unwrap_or_default() == 0
    {
        crate::read::keep(new, old, "healthCheckNodePort");
    }
}

/// Ports are known by their names; a number that another port took over is not given back.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let of = |spec: &Value| -> HashSet<i64> {
        spec.list("ports").iter().filter_map(|p| p.int("nodePort")).collect()
    };
    let mut taken: HashSet<i64> = of(new).intersection(&of(old)).copied().collect();
    let allocated: HashMap<&str, i64> = old
        .list("ports")
        .iter()
        .filter_map(|p| Some((p.text("name"), p.int("nodePort")?)))
        .collect();
    for port in items_mut(new, "ports") {
        if port.int("nodePort").unwrap_or_default() == 0
            && let Some(number) = allocated.get(port.text("name"))
            && taken.insert(*number)
        {
            port["nodePort"] = (*number).into();
        }
    }
}

fn may_have_node_ports(spec: &Value) -> bool {
    matches!(spec.text("type"), "NodePort" | "LoadBalancer")
}

/// A client that knows only `clusterIP`, and changes or clears it, means `clusterIPs` too.
fn link_addresses(new: &mut Value, old: &Value) {
    let (is, was) = (new.text("clusterIP").to_owned(), old.text("clusterIP"));
    if is == was || new.at("clusterIPs") != old.at("clusterIPs") {
        return;
    }
    match is.is_empty() {
        true => remove(new, "clusterIPs"),
        false => new["clusterIPs"] = Value::from(vec![is]),
    }
}

/// A client that changes the type, and leaves fields of the old type as they were, means them gone.
fn drop_what_the_type_lost(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, field: &str| new.at(field) == old.at(field);
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if unchanged(new, "clusterIP") && unchanged(new, "clusterIPs") {
            remove(new, "clusterIP");
            remove(new, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if unchanged(new, field) {
                remove(new, field);
            }
        }
    }
    if may_have_node_ports(old) && !may_have_node_ports(new) {
        let of = |spec: &Value| -> HashSet<i64> {
            spec.list("ports").iter().filter_map(|p| p.int("nodePort")).collect()
        };
        if of(old).is_superset(&of(new)) {
            items_mut(new, "ports").for_each(|p| remove(p, "nodePort"));
        }
    }
    if needs_health_check(old) && !needs_health_check(new) && unchanged(new, "healthCheckNodePort")
    {
        remove(new, "healthCheckNodePort");
    }
    if old.text("type") == "LoadBalancer" && new.text("type") != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if unchanged(new, field) {
                remove(new, field);
            }
        }
    }
    if externally_accessible(old)
        && !externally_accessible(new)
        && unchanged(new, "externalTrafficPolicy")
    {
        remove(new, "externalTrafficPolicy");
    }
}
