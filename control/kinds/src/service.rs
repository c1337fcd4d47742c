//! Service. Cluster IPs and node ports are allocated by the API server between `prepare_*` and
//! validation, as Kubernetes does it.

use std::collections::{HashMap, HashSet};

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, meta, net, text};
use crate::kind::Write;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, fill_text, items_mut, member, remove};
use crate::rules::{Field, Rules};

pub(crate) const SERVICE: Rules = Rules {
    default,
    prepare_create,
    prepare_update,
    create,
    update,
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

/// Whether the API server allocates a cluster IP for it.
pub fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer")
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

/// `clusterIP` is the first of `clusterIPs`, whichever was given.
fn cluster_ips(spec: &mut Value) {
    if spec.text("type") == "ExternalName" {
        return;
    }
    match (spec.text("clusterIP").to_owned(), spec.list("clusterIPs").first().cloned()) {
        (ip, None) if !ip.is_empty() => spec["clusterIPs"] = json!([ip]),
        (ip, Some(first)) if ip.is_empty() => spec["clusterIP"] = first,
        _ => {}
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
    link_addresses(spec, before);
    drop_what_the_type_lost(spec, before);
    keep_allocated(spec, before);
    cluster_ips(spec);
    families(spec);
}

/// A client that knows only `clusterIP`, and changes or clears it, means `clusterIPs` too.
fn link_addresses(new: &mut Value, old: &Value) {
    let (is, was) = (new.text("clusterIP").to_owned(), old.text("clusterIP"));
    if is == was || new.at("clusterIPs") != old.at("clusterIPs") {
        return;
    }
    match is.is_empty() && !was.is_empty() {
        true => remove(new, "clusterIPs"),
        false => new["clusterIPs"] = Value::from(vec![is]),
    }
}

/// A client that changes the type, and leaves fields of the old type as they were, means them gone.
fn drop_what_the_type_lost(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, field: &str| new.at(field) == old.at(field);
    if needs_cluster_ip(old) && !needs_cluster_ip(new) && new.text("type") == "ExternalName" {
        for field in
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
        {
            if unchanged(new, field) {
                remove(new, field);
            }
        }
    }
    if needs_node_port(old) && !needs_node_port(new) {
        let same = new.list("ports").len() == old.list("ports").len()
            && new
                .list("ports")
                .iter()
                .zip(old.list("ports"))
                .all(|(a, b)| a.at("nodePort") == b.at("nodePort"));
        if same {
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

/// A client that does not repeat what was allocated does not give it up.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if crate::read::is_empty(new.at(field))
                && old.has(field)
                && new.at(field).as_str() != Some("")
            {
                new[field] = old.at(field).clone();
            }
        }
        if new.text("clusterIP").is_empty() && old.has("clusterIP") {
            new["clusterIP"] = old.at("clusterIP").clone();
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let taken: HashSet<i64> =
            new.list("ports").iter().filter_map(|p| p.int("nodePort")).collect();
        let key = |p: &Value| (p.text("protocol").to_owned(), p.int("port"));
        let allocated: HashMap<_, i64> =
            old.list("ports").iter().filter_map(|p| Some((key(p), p.int("nodePort")?))).collect();
        for port in items_mut(new, "ports") {
            if port.int("nodePort").unwrap_or_default() != 0 {
                continue;
            }
            if let Some(number) = allocated.get(&key(port))
                && !taken.contains(number)
            {
                port["nodePort"] = (*number).into();
            }
        }
    }
    if needs_health_check(old)
        && needs_health_check(new)
        && new.int("healthCheckNodePort").unwrap_or_default() == 0
    {
        crate::read::keep(new, old, "healthCheckNodePort");
    }
}

fn create(object: &Value, e: &mut Errors) {
    let spec = object.at("spec");
    let list = Path::Root.field("spec");
    let list = list.field("clusterIPs");
    // An address that cannot be allocated is refused before anything else is looked at.
    if needs_cluster_ip(spec) {
        let unusable = e.count(|e| {
            for (i, ip) in spec.list("clusterIPs").iter().filter_map(Value::as_str).enumerate() {
                if ip != "None" {
                    net::ip(ip, &list.index(i), e);
                }
            }
        });
        if unusable > 0 {
            return;
        }
    }
    service(object, e);
}

fn service(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let kind = spec.text("type");
    if spec.list("ports").is_empty() && !is_headless(spec) && kind != "ExternalName" {
        e.required(&path.field("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            let why = format!("may not be set to 'None' for {kind} services");
            e.invalid(&path.field("clusterIPs").index(0), "None", &why);
        }
        "ExternalName" => external_name(spec, &path, e),
        _ => {}
    }
    ports(spec, &path.field("ports"), e);
    meta::labels(spec.at("selector"), &path.field("selector"), e);
    session_affinity(spec, &path, e);
    addresses(spec, &path, e);
    check::required_one_of(
        spec.at("type"),
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        &path.field("type"),
        e,
    );
    node_ports(spec, &path.field("ports"), e);
    load_balancer(spec, &path, e);
    traffic(spec, &path, e);
}

fn external_name(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    if !spec.list("clusterIPs").is_empty() || !spec.text("clusterIP").is_empty() {
        e.forbidden(&path.field("clusterIPs"), "may not be set for ExternalName services");
    }
    if !spec.list("ipFamilies").is_empty() {
        e.forbidden(&path.field("ipFamilies"), "may not be set for ExternalName services");
    }
    if spec.has("ipFamilyPolicy") {
        e.forbidden(&path.field("ipFamilyPolicy"), "may not be set for ExternalName services");
    }
    let name = spec.text("externalName");
    let at = path.field("externalName");
    match name.strip_suffix('.').unwrap_or(name) {
        "" => e.required(&at, ""),
        bare => e.invalid_each(&at, bare, names::dns1123_subdomain(bare)),
    }
}

fn ports(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let ports = spec.list("ports");
    let mut seen = check::Seen::default();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = port.text("name");
        if name.is_empty() {
            if ports.len() > 1 {
                e.required(&at.field("name"), "");
            }
        } else {
            e.invalid_each(&at.field("name"), name, names::dns1123_label(name));
            if seen.again(name) {
                e.duplicate(&at.field("name"), name);
            }
        }
        net::port_number(port.at("port"), &at.field("port"), e);
        check::required_one_of(
            port.at("protocol"),
            &["SCTP", "TCP", "UDP"],
            &at.field("protocol"),
            e,
        );
        net::port_or_name(port.at("targetPort"), &at.field("targetPort"), e);
        if let Some(protocol) = port.at("appProtocol").as_str() {
            e.invalid_each(&at.field("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn session_affinity(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let config = path.field("sessionAffinityConfig");
    check::required_one_of(
        spec.at("sessionAffinity"),
        &["ClientIP", "None"],
        &path.field("sessionAffinity"),
        e,
    );
    match spec.text("sessionAffinity") {
        "ClientIP" => {
            let client = config.field("clientIP");
            match spec.deep(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]).as_i64() {
                None => e.required(
                    &client.field("timeoutSeconds"),
                    "when session affinity type is ClientIP",
                ),
                Some(seconds) if !(1..=86_400).contains(&seconds) => {
                    e.invalid(
                        &client.field("timeoutSeconds"),
                        seconds,
                        "must be greater than 0 and less than 86400",
                    );
                }
                Some(_) => {}
            }
        }
        "None" if spec.has("sessionAffinityConfig") => {
            e.forbidden(&config, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn addresses(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let list = path.field("externalIPs");
    for (i, ip) in spec.list("externalIPs").iter().filter_map(Value::as_str).enumerate() {
        net::not_special(ip, &list.index(i), e);
    }
    if spec.text("type") == "ExternalName" {
        return;
    }
    let (ips, list) = (spec.list("clusterIPs"), path.field("clusterIPs"));
    for (i, ip) in ips.iter().filter_map(Value::as_str).enumerate() {
        if ip == "None" && i == 0 {
            if ips.len() > 1 {
                e.invalid(
                    &list,
                    Value::Array(ips.to_vec()),
                    "'None' must be the first and only value",
                );
            }
        } else {
            net::ip(ip, &list.index(i), e);
        }
    }
    if let (Some(first), ip) = (ips.first(), spec.text("clusterIP"))
        && !ip.is_empty()
        && first != ip
    {
        e.invalid(&list, Value::Array(ips.to_vec()), "first value must match `clusterIP`");
    }
    let (families, list) = (spec.list("ipFamilies"), path.field("ipFamilies"));
    let mut seen = check::Seen::default();
    for (i, family) in families.iter().enumerate() {
        check::one_of(family, &["IPv4", "IPv6"], &list.index(i), e);
        if seen.again(family.as_str()) {
            e.duplicate(&list.index(i), family.clone());
        }
    }
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    check::one_of(spec.at("ipFamilyPolicy"), &policies, &path.field("ipFamilyPolicy"), e);
}

fn node_ports(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let (mut node_ports, mut numbers) = (check::Seen::default(), check::Seen::default());
    for (i, port) in spec.list("ports").iter().enumerate() {
        let at = path.index(i);
        let node_port = port.int("nodePort").unwrap_or_default();
        let protocol = port.text("protocol");
        if node_port != 0 {
            if spec.text("type") == "ClusterIP" {
                e.forbidden(&at.field("nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if node_ports.again((protocol, node_port)) {
                e.duplicate(&at.field("nodePort"), node_port);
            }
        }
        if numbers.again((protocol, port.int("port"))) {
            let shown = json!({ "protocol": port.at("protocol"), "port": port.at("port"), "targetPort": 0 });
            e.duplicate(&at, shown);
        }
    }
}

fn load_balancer(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let is = spec.text("type") == "LoadBalancer";
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges = spec.list("loadBalancerSourceRanges");
    let list = path.field("loadBalancerSourceRanges");
    if !ranges.is_empty() && !is {
        e.forbidden(&list, ONLY);
    }
    for (i, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
        net::cidr(range.trim(), &list.index(i), e);
    }
    match (is, spec.has("allocateLoadBalancerNodePorts")) {
        (true, false) => e.required(&path.field("allocateLoadBalancerNodePorts"), ""),
        (false, true) => e.forbidden(&path.field("allocateLoadBalancerNodePorts"), ONLY),
        _ => {}
    }
    if let Some(class) = spec.at("loadBalancerClass").as_str() {
        if is {
            e.invalid_each(&path.field("loadBalancerClass"), class, names::qualified_name(class));
        } else {
            e.forbidden(&path.field("loadBalancerClass"), ONLY);
        }
    }
}

fn traffic(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let external = path.field("externalTrafficPolicy");
    if externally_accessible(spec) {
        check::required_one_of(
            spec.at("externalTrafficPolicy"),
            &["Cluster", "Local"],
            &external,
            e,
        );
    } else if !spec.text("externalTrafficPolicy").is_empty() {
        e.invalid(
            &external,
            spec.text("externalTrafficPolicy"),
            "may only be set for externally-accessible services",
        );
    }
    let check_port = path.field("healthCheckNodePort");
    let number = spec.int("healthCheckNodePort").unwrap_or_default();
    if needs_health_check(spec) {
        if number != 0 && !text::is_port(number) {
            e.invalid(&check_port, number, text::PORT_RANGE);
        }
    } else if number != 0 {
        e.invalid(
            &check_port,
            number,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
    if matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
        match spec.at("internalTrafficPolicy") {
            Value::Null => e.required(&path.field("internalTrafficPolicy"), ""),
            policy => check::one_of(
                policy,
                &["Cluster", "Local"],
                &path.field("internalTrafficPolicy"),
                e,
            ),
        }
    }
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    check::one_of(
        spec.at("trafficDistribution"),
        &distributions,
        &path.field("trafficDistribution"),
        e,
    );
}

fn update(new: &Value, old: &Value, e: &mut Errors) {
    service(new, e);
    let (after, before, path) = (new.at("spec"), old.at("spec"), Path::Root.field("spec"));
    if !needs_cluster_ip(after) || !needs_cluster_ip(before) {
        return;
    }
    for field in ["clusterIPs", "ipFamilies"] {
        if let (Some(new), Some(old)) = (after.list(field).first(), before.list(field).first())
            && new != old
            && (field == "clusterIPs" || ["IPv4", "IPv6"].iter().any(|f| new == f))
        {
            e.invalid(
                &path.field(field).index(0),
                after.at(field).clone(),
                "may not change once set",
            );
        }
    }
    if before.text("type") == "LoadBalancer" && after.text("type") == "LoadBalancer" {
        let at = path.field("loadBalancerClass");
        if before.at("loadBalancerClass") != after.at("loadBalancerClass") {
            e.invalid(&at, after.at("loadBalancerClass").clone(), "may not change once set");
        }
    }
}
