//! The spec of a pod or a pod template, and the Pod's own rules on top.

use std::collections::HashSet;

use rimward_api::names;
use serde_json::Value;

use super::container::{self, Surroundings};
use super::volume::Volumes;
use super::{affinity, security};
use crate::check::{self, meta, net};
use crate::path::{Errors, Path};
use crate::read::{Read, is_empty, members};

const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];

/// `ValidatePodCreate`, without the object's metadata.
pub fn create(pod: &Value, e: &mut Errors) {
    let (spec, path) = (pod.at("spec"), Path::Root.field("spec"));
    pod_spec(spec, pod.at("metadata").text("name"), &path, e);
    if !spec.list("ephemeralContainers").is_empty() {
        e.forbidden(&path.field("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.text("nodeName").is_empty() && !spec.list("schedulingGates").is_empty() {
        e.forbidden(
            &path.field("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        );
    }
}

/// `ValidatePodTemplateSpec`: a template's metadata has labels and annotations only.
pub fn template(template: &Value, path: &Path<'_>, e: &mut Errors) {
    // Kubernetes leaves `metadata` out of these paths.
    meta::labels(template.deep(&["metadata", "labels"]), &path.field("labels"), e);
    meta::annotations(template.deep(&["metadata", "annotations"]), &path.field("annotations"), e);
    let (spec, at) = (template.at("spec"), path.field("spec"));
    pod_spec(spec, "", &at, e);
    if !spec.list("ephemeralContainers").is_empty() {
        e.forbidden(
            &at.field("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// `ValidatePodSpec`. `pod_name` is empty in a template.
pub fn pod_spec(spec: &Value, pod_name: &str, path: &Path<'_>, e: &mut Errors) {
    let volumes = Volumes::checked(spec, pod_name, &path.field("volumes"), e);
    let claims: HashSet<&str> =
        spec.list("resourceClaims").iter().map(|c| c.text("name")).collect();
    let around = Surroundings {
        volumes: &volumes,
        claims: &claims,
        grace_seconds: spec.int("terminationGracePeriodSeconds").unwrap_or(30),
    };
    resource_claims(spec, &path.field("resourceClaims"), e);
    container::containers(spec.list("containers"), &around, &path.field("containers"), e);
    container::init(spec, &around, &path.field("initContainers"), e);
    container::ephemeral(spec, &around, &path.field("ephemeralContainers"), e);
    if spec.has("resources") {
        check::resources::container_resources(
            spec.at("resources"),
            &claims,
            &path.field("resources"),
            e,
        );
    }
    check::required_one_of(
        spec.at("restartPolicy"),
        &["Always", "OnFailure", "Never"],
        &path.field("restartPolicy"),
        e,
    );
    check::required_one_of(spec.at("dnsPolicy"), &DNS_POLICIES, &path.field("dnsPolicy"), e);
    affinity::node_selector(spec.at("nodeSelector"), &path.field("nodeSelector"), e);
    security::pod(spec.at("securityContext"), spec, &path.field("securityContext"), e);
    pull_secrets(spec, &path.field("imagePullSecrets"), e);
    affinity::affinity(spec.at("affinity"), &path.field("affinity"), e);
    dns_config(spec, &path.field("dnsConfig"), e);
    gates(spec, path, e);
    affinity::spread(
        spec.list("topologySpreadConstraints"),
        &path.field("topologySpreadConstraints"),
        e,
    );
    identity(spec, path, e);
    affinity::tolerations(spec.list("tolerations"), &path.field("tolerations"), e);
    host_aliases(spec, &path.field("hostAliases"), e);
    for (field, rule) in [
        ("priorityClassName", names::dns1123_subdomain as fn(&str) -> _),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        let name = spec.text(field);
        if !name.is_empty() {
            e.invalid_each(&path.field(field), name, rule(name));
        }
    }
    check::one_of(
        spec.at("preemptionPolicy"),
        &["Never", "PreemptLowerPriority"],
        &path.field("preemptionPolicy"),
        e,
    );
    for (name, value) in members(spec.at("overhead")) {
        check::resources::resource_value(name, value, &path.field("overhead").key(name), e);
    }
    os(spec, path, e);
}

/// Names that a pod goes by and runs as.
fn identity(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    for (field, rule) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns1123_subdomain),
    ] {
        let name = spec.text(field);
        if !name.is_empty() {
            e.invalid_each(&path.field(field), name, rule(name));
        }
    }
    if let Some(seconds) = spec.int("activeDeadlineSeconds")
        && !(1..=2_147_483_647).contains(&seconds)
    {
        e.invalid(
            &path.field("activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for field in ["hostname", "subdomain"] {
        let name = spec.text(field);
        if !name.is_empty() {
            e.invalid_each(&path.field(field), name, names::dns1123_label(name));
        }
    }
}

fn pull_secrets(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    for (i, secret) in spec.list("imagePullSecrets").iter().enumerate() {
        if is_empty(secret.at("name")) {
            e.required(&path.index(i).field("name"), "");
        }
    }
}

fn dns_config(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let (config, policy) = (spec.at("dnsConfig"), spec.text("dnsPolicy"));
    if policy == "None" && !config.is_object() {
        return e.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
    }
    if !config.is_object() {
        return;
    }
    let servers = config.list("nameservers");
    let list = path.field("nameservers");
    if policy == "None" && servers.is_empty() {
        e.required(&list, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    if servers.len() > 3 {
        e.invalid(&list, Value::Array(servers.to_vec()), "must not have more than 3 nameservers");
    }
    for (i, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        net::ip(server, &list.index(i), e);
    }
    let searches = config.list("searches");
    let list = path.field("searches");
    if searches.len() > 32 {
        e.invalid(
            &list,
            Value::Array(searches.to_vec()),
            "must not have more than 32 search paths",
        );
    }
    for (i, search) in searches.iter().filter_map(Value::as_str).enumerate() {
        // A trailing dot and underscores are common in search paths.
        let name = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
        if search != "." {
            e.invalid_each(&list.index(i), search, names::dns1123_subdomain(&name));
        }
    }
    for (i, option) in config.list("options").iter().enumerate() {
        if option.text("name").is_empty() {
            e.required(&path.field("options").index(i), "must not be empty");
        }
    }
}

fn gates(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    for (i, gate) in spec.list("readinessGates").iter().enumerate() {
        let name = gate.text("conditionType");
        e.invalid_each(
            &path.field("readinessGates").index(i).field("conditionType"),
            name,
            names::qualified_name(name),
        );
    }
    let gates = spec.list("schedulingGates");
    let list = path.field("schedulingGates");
    let mut seen = check::Seen::default();
    for (i, gate) in gates.iter().enumerate() {
        let name = gate.text("name");
        e.invalid_each(&list.index(i), name, names::qualified_name(name));
        if seen.again(name) {
            e.duplicate(&list.index(i), name);
        }
    }
}

fn host_aliases(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    for (i, alias) in spec.list("hostAliases").iter().enumerate() {
        let at = path.index(i);
        net::ip(alias.text("ip"), &at.field("ip"), e);
        for name in alias.list("hostnames").iter().filter_map(Value::as_str) {
            e.invalid_each(&at.field("hostnames"), name, names::dns1123_subdomain(name));
        }
    }
}

fn os(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let os = spec.at("os");
    if !os.is_object() {
        return;
    }
    let at = path.field("os");
    match os.text("name") {
        "" => e.required(&at.field("name"), "cannot be empty"),
        name => check::one_of(&name.into(), &["linux", "windows"], &at.field("name"), e),
    }
}

fn resource_claims(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let claims = spec.list("resourceClaims");
    let mut seen = check::Seen::default();
    for (i, claim) in claims.iter().enumerate() {
        let (at, name) = (path.index(i), claim.text("name"));
        match name {
            "" => e.required(&at.field("name"), ""),
            _ if seen.again(name) => e.duplicate(&at.field("name"), name),
            _ => e.invalid_each(&at.field("name"), name, names::dns1123_label(name)),
        }
        match (claim.has("resourceClaimName"), claim.has("resourceClaimTemplateName")) {
            (true, true) => e.invalid(&at, claim.clone(), "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"),
            (false, false) => e.invalid(&at, claim.clone(), "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            _ => {}
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if let Some(name) = claim.at(field).as_str() {
                e.invalid_each(&at.field(field), name, names::dns1123_subdomain(name));
            }
        }
    }
}
