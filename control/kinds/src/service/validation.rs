//! What a Service must be, alone and beside what it was.
//!
//! Kubernetes' `ValidateService`, `ValidateServiceUpdate` and, before both, what its allocation refuses
//! (pkg/registry/core/service/storage/alloc.go).

use rimward_api::names;
use serde_json::{Value, json};

use super::{
    SINGLE_STACK, externally_accessible, is_headless, needs_cluster_ip, needs_health_check,
};
use crate::check::{self, meta, net, text};
use crate::path::{Errors, Path};
use crate::read::Read;

pub fn create(object: &Value, e: &mut Errors) {
    if allocatable(object.at("spec"), None, e) {
        service(object, e);
    }
}

/// What Kubernetes finds before it allocates an address is all that it says (`initIPFamilyFields`).
/// This server has one family of addresses, IPv4.
fn allocatable(spec: &Value, old: Option<&Value>, e: &mut Errors) -> bool {
    if !needs_cluster_ip(spec) {
        return true;
    }
    let path = Path::Root.field("spec");
    if e.count(|e| address_fields(spec, &path, e)) > 0 {
        return false;
    }
    let (families, policy) = (spec.list("ipFamilies"), spec.text("ipFamilyPolicy"));
    let policy_at = path.field("ipFamilyPolicy");
    let refused = e.count(|e| {
        let fewer = |field: &str| {
            old.is_some_and(|old| needs_cluster_ip(old) && spec.list(field).len() < old.list(field).len())
        };
        for (field, what, one) in
            [("clusterIPs", "cluster IPs", "cluster IP"), ("ipFamilies", "IP families", "IP family")]
        {
            if policy == SINGLE_STACK && spec.list(field).len() == 2 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                e.invalid(&policy_at, policy, &why);
            } else if policy != SINGLE_STACK && fewer(field) {
                let why = format!("must be 'SingleStack' to release the secondary {one}");
                e.invalid(&policy_at, policy, &why);
            }
        }
    });
    if refused > 0 {
        return false;
    }
    let selects = spec.entries("selector").is_some_and(|s| !s.is_empty());
    if spec.text("clusterIP") == "None" && !selects {
        return true;
    }
    let refused = e.count(|e| {
        if policy == "RequireDualStack" {
            let why = "this cluster is not configured for dual-stack services";
            e.invalid(&policy_at, policy, why);
        }
        for (i, family) in families.iter().enumerate().filter(|(_, f)| *f != "IPv4") {
            let at = path.field("ipFamilies");
            e.invalid(&at.index(i), family.clone(), "not configured on this cluster");
        }
    });
    refused == 0
}

const KUBELET_PORT: i64 = 10_250;

/// `ValidateService`.
fn service(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    topology_annotations(object.at("metadata").at("annotations"), e);
    let kind = spec.text("type");
    let headless = spec.list("clusterIPs") == [Value::from("None")];
    if spec.list("ports").is_empty() && !headless && kind != "ExternalName" {
        e.required(&path.field("ports"), "");
    }
    if kind == "LoadBalancer" {
        let list = path.field("ports");
        for (i, port) in spec.list("ports").iter().enumerate() {
            if port.int("port") == Some(KUBELET_PORT) {
                let why = format!(
                    "may not expose port {KUBELET_PORT} externally since it is used by kubelet"
                );
                e.invalid(&list.index(i), KUBELET_PORT, &why);
            }
        }
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            e.invalid(&path.field("clusterIPs").index(0), "None", &why);
        }
        "ExternalName" => external_name(spec, &path, e),
        _ => {}
    }
    ports(spec, &path.field("ports"), e);
    meta::labels(spec.at("selector"), &path.field("selector"), e);
    session_affinity(spec, &path, e);
    if kind != "ExternalName" {
        address_fields(spec, &path, e);
    }
    let list = path.field("externalIPs");
    for (i, ip) in spec.list("externalIPs").iter().filter_map(Value::as_str).enumerate() {
        net::not_special(ip, &list.index(i), e);
    }
    check::required_one_of(
        spec.at("type"),
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        &path.field("type"),
        e,
    );
    node_ports(spec, &path.field("ports"), e);
    source_ranges(object, &path, e);
    load_balancer(spec, &path, e);
    traffic(spec, &path, e);
}

/// The old and the new way to ask for endpoints nearby must not contradict each other.
fn topology_annotations(annotations: &Value, e: &mut Errors) {
    let (old, new) =
        ("service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode");
    if let (Some(hints), Some(mode)) = (annotations.get(old), annotations.get(new))
        && hints != mode
    {
        let why = format!("must match annotations[{old}] when both are specified");
        let path = Path::Root.field("metadata");
        e.invalid(&path.field("annotations").key(new), mode.clone(), &why);
    }
}

fn external_name(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    if !spec.list("clusterIPs").is_empty() {
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
            const MISSING: &str = "when session affinity type is ClientIP";
            const SECONDS_MAX: i64 = 86_400;
            let given = spec.at("sessionAffinityConfig");
            let (client, seconds) =
                (config.field("clientIP"), given.at("clientIP").int("timeoutSeconds"));
            match seconds {
                None if given.is_null() => e.required(&config, MISSING),
                None if !given.has("clientIP") => e.required(&client, MISSING),
                None => e.required(&client.field("timeoutSeconds"), MISSING),
                Some(seconds) if !(1..=SECONDS_MAX).contains(&seconds) => {
                    let why = format!("must be greater than 0 and less than {SECONDS_MAX}");
                    e.invalid(&client.field("timeoutSeconds"), seconds, &why);
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

/// `ValidateServiceClusterIPsRelatedFields`: addresses and families, alone and together.
fn address_fields(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let (ips, list) = (spec.list("clusterIPs"), path.field("clusterIPs"));
    let shown = || Value::Array(ips.to_vec());
    match (spec.text("clusterIP"), ips.first()) {
        ("", Some(_)) => {
            e.invalid(&list, shown(), "must be empty when `clusterIP` is not specified");
        }
        ("", None) => {}
        (_, None) => e.required(&list, ""),
        (ip, Some(first)) => {
            if first != ip {
                e.invalid(&list, shown(), "first value must match `clusterIP`");
            }
        }
    }
    let (families, named) = (spec.list("ipFamilies"), path.field("ipFamilies"));
    let mut seen = check::Seen::default();
    for (i, family) in families.iter().enumerate() {
        check::one_of(family, &["IPv4", "IPv6"], &named.index(i), e);
        if seen.again(family.as_str()) {
            e.duplicate(&named.index(i), family.clone());
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    check::one_of(spec.at("ipFamilyPolicy"), &policies, &path.field("ipFamilyPolicy"), e);
    let mut addresses = Vec::new();
    let wrong = e.count(|e| {
        for (i, ip) in ips.iter().filter_map(Value::as_str).enumerate() {
            if ip == "None" && i == 0 {
                if ips.len() > 1 {
                    e.invalid(&list, shown(), "'None' must be the first and only value");
                }
            } else {
                addresses.extend(net::ip(ip, &list.index(i), e));
            }
        }
    });
    if ips.len() > 2 {
        e.invalid(&list, shown(), "may only hold up to 2 values");
    }
    if wrong > 0 {
        return;
    }
    let both = addresses.iter().any(|ip| ip.is_ipv4()) && addresses.iter().any(|ip| ip.is_ipv6());
    if ips.len() > 1 && !both {
        e.invalid(&list, shown(), "may specify no more than one IP for each IP family");
    }
    for (i, (ip, family)) in addresses.iter().zip(families).enumerate() {
        let wanted = family.as_str().unwrap_or_default();
        if (wanted == "IPv4" && ip.is_ipv6()) || (wanted == "IPv6" && ip.is_ipv4()) {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{i}]`");
            e.invalid(&list.index(i), ip.to_string(), &why);
        }
    }
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

const ONLY_LOAD_BALANCERS: &str = "may only be used when `type` is 'LoadBalancer'";
const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Who may reach a load balancer, in the field or in the annotation before it.
fn source_ranges(object: &Value, path: &Path<'_>, e: &mut Errors) {
    let spec = object.at("spec");
    let is = spec.text("type") == "LoadBalancer";
    let ranges = spec.list("loadBalancerSourceRanges");
    let annotation = object.deep(&["metadata", "annotations", RANGES_ANNOTATION]);
    if !ranges.is_empty() {
        // Spelt as Kubernetes spells it.
        let list = path.field("LoadBalancerSourceRanges");
        if !is {
            e.forbidden(&list, ONLY_LOAD_BALANCERS);
        }
        for (i, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
            net::cidr(range.trim(), &list.index(i), e);
        }
    } else if let Some(text) = annotation.as_str() {
        let at = Path::Root.field("metadata");
        let at = at.field("annotations");
        let at = at.key(RANGES_ANNOTATION);
        if !is {
            e.forbidden(&at, ONLY_LOAD_BALANCERS);
        }
        if !text.trim().is_empty() {
            text.split(',').for_each(|range| net::cidr(range.trim(), &at, e));
        }
    }
}

fn load_balancer(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let is = spec.text("type") == "LoadBalancer";
    const ONLY: &str = ONLY_LOAD_BALANCERS;
    match (is, spec.has("allocateLoadBalancerNodePorts")) {
        // Kubernetes leaves `spec` out of this path.
        (true, false) => e.required(&Path::Root.field("allocateLoadBalancerNodePorts"), ""),
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
    if !needs_health_check(spec) {
        if number != 0 {
            e.invalid(
                &check_port,
                number,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    } else if number == 0 {
        e.required(&check_port, "");
    } else if !text::is_port(number) {
        e.invalid(&check_port, number, text::PORT_RANGE);
    }
    let internal = path.field("internalTrafficPolicy");
    match spec.at("internalTrafficPolicy") {
        // For historical reasons an ExternalName may have one too.
        Value::Null if matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer") => {
            e.required(&internal, "");
        }
        policy => check::one_of(policy, &["Cluster", "Local"], &internal, e),
    }
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    check::one_of(
        spec.at("trafficDistribution"),
        &distributions,
        &path.field("trafficDistribution"),
        e,
    );
}

pub fn update(new: &Value, old: &Value, e: &mut Errors) {
    let (after, before, path) = (new.at("spec"), old.at("spec"), Path::Root.field("spec"));
    if !allocatable(after, Some(before), e) {
        return;
    }
    if needs_cluster_ip(after) && needs_cluster_ip(before) {
        kept_addresses(after, before, &path, e);
        kept_families(after, before, &path, e);
    }
    if before.text("type") == "LoadBalancer" && after.text("type") == "LoadBalancer" {
        let at = path.field("loadBalancerClass");
        if before.at("loadBalancerClass") != after.at("loadBalancerClass") {
            e.invalid(&at, after.at("loadBalancerClass").clone(), "may not change once set");
        }
    }
    let port = |spec: &Value| spec.int("healthCheckNodePort").unwrap_or_default();
    if needs_health_check(before) && needs_health_check(after) && port(before) != port(after) {
        e.forbidden(&path.field("healthCheckNodePort"), check::IMMUTABLE);
    }
    service(new, e);
}

const ONCE: &str = "may not change once set";

/// A first address stays; a second one may come, and go when the policy says so.
fn kept_addresses(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) {
    let (now, were, list) =
        (new.list("clusterIPs"), old.list("clusterIPs"), path.field("clusterIPs"));
    if is_headless(new) && is_headless(old) {
        return;
    }
    let shown = || Value::from(now.to_vec());
    if now.len() == were.len() {
        for (i, _) in now.iter().zip(were).enumerate().filter(|(_, (now, was))| now != was) {
            e.invalid(&list.index(i), shown(), ONCE);
        }
        return;
    }
    match (now.first(), were.first()) {
        (None, _) => e.invalid(&list.index(0), shown(), "primary clusterIP can not be unset"),
        (Some(now), Some(was)) if now != was => e.invalid(&list.index(0), shown(), ONCE),
        _ => {}
    }
    if now.len() == 1 && were.len() > 1 && new.text("ipFamilyPolicy") != SINGLE_STACK {
        let why = "must be set to 'SingleStack' when releasing the secondary clusterIP";
        e.invalid(&path.field("ipFamilyPolicy"), new.at("ipFamilyPolicy").clone(), why);
    }
}

fn kept_families(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) {
    if is_headless(new) || is_headless(old) {
        return;
    }
    let (now, were) = (new.list("ipFamilies"), old.list("ipFamilies"));
    let list = path.field("ipFamilies");
    let shown = || Value::from(now.to_vec());
    if now.len() == were.len() {
        // Which of them it is, Kubernetes does not say.
        for _ in now.iter().zip(were).filter(|(now, was)| now != was) {
            e.invalid(&list.index(0), shown(), ONCE);
        }
        return;
    }
    if now.len() < were.len() && new.list("clusterIPs").is_empty() {
        e.invalid(&list.index(0), shown(), "primary ipFamily can not be unset");
    }
    if let (Some(now), Some(was)) = (now.first(), were.first())
        && now != was
    {
        e.invalid(&list.index(0), shown(), ONCE);
    }
    if now.len() == 1 && were.len() > 1 && new.text("ipFamilyPolicy") != SINGLE_STACK {
        let why = "must be set to 'SingleStack' when releasing the secondary ipFamily";
        e.invalid(&path.field("ipFamilyPolicy"), new.at("ipFamilyPolicy").clone(), why);
    }
}
