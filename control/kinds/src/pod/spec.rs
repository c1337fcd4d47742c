//! The spec of a pod or a pod template, and the Pod's own rules on top.

use std::collections::HashSet;

use rimward_api::names;
use serde_json::Value;

use super::container::{self, Surroundings};
use super::volume::Volumes;
use super::{affinity, security};
use crate::check::{self, meta, net};
use crate::path::{Errors, Path};
use crate::read::{Read, is_empty};

const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];

/// `ValidatePodCreate`, without the object's metadata.
pub fn create(pod: &Value, e: &mut Errors) {
    let (spec, path) = (pod.at("spec"), Path::Root.field("spec"));
    of_pod(pod, e);
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

/// `validatePodMetadataAndSpec`, without the object's metadata: what a pod that is created and one
/// that is updated both must be.
pub fn of_pod(pod: &Value, e: &mut Errors) {
    let (spec, path) = (pod.at("spec"), Path::Root.field("spec"));
    pod_spec(spec, Some(pod.at("metadata").text("name")), &path, e);
    if !spec.text("serviceAccountName").is_empty() {
        return;
    }
    let list = path.field("volumes");
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        let at = list.index(i);
        let at = at.field("projected");
        let sources = at.field("sources");
        for (j, source) in volume.at("projected").list("sources").iter().enumerate() {
            if source.at("serviceAccountToken").is_object() {
                e.forbidden(
                    &sources.index(j).field("serviceAccountToken"),
                    "must not be specified when serviceAccountName is not set",
                );
            }
        }
    }
}

/// `ValidatePodTemplateSpec`: a template's metadata has labels and annotations only.
pub fn template(template: &Value, path: &Path<'_>, e: &mut Errors) {
    // Kubernetes leaves `metadata` out of these paths.
    meta::labels(template.deep(&["metadata", "labels"]), &path.field("labels"), e);
    meta::annotations(template.deep(&["metadata", "annotations"]), &path.field("annotations"), e);
    let (spec, at) = (template.at("spec"), path.field("spec"));
    pod_spec(spec, None, &at, e);
    if !spec.list("ephemeralContainers").is_empty() {
        e.forbidden(
            &at.field("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// `ValidatePodSpec`. There is no `pod_name` in a template.
pub fn pod_spec(spec: &Value, pod_name: Option<&str>, path: &Path<'_>, e: &mut Errors) {
    if !spec.has("terminationGracePeriodSeconds") {
        e.required(&path.field("terminationGracePeriodSeconds"), "");
    }
    let name = pod_name.unwrap_or_default();
    let volumes = Volumes::checked(spec, name, &path.field("volumes"), e);
    let claims: HashSet<&str> =
        spec.list("resourceClaims").iter().map(|c| c.text("name")).collect();
    let around = Surroundings {
        volumes: &volumes,
        claims: &claims,
        grace_seconds: spec.int("terminationGracePeriodSeconds").unwrap_or(30),
        in_pod: pod_name.is_some(),
        host_users: spec.at("hostUsers") != &Value::Bool(false),
        restart_policy: spec.text("restartPolicy"),
    };
    resource_claims(spec, &path.field("resourceClaims"), e);
    container::containers(spec.list("containers"), &around, &path.field("containers"), e);
    container::init(spec, &around, &path.field("initContainers"), e);
    container::ephemeral(spec, &around, &path.field("ephemeralContainers"), e);
    if spec.flag("hostNetwork") {
        host_network(spec, pod_name.is_some(), &path.field("containers"), e);
    }
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
    affinity::affinity(spec.at("affinity"), &path.field("affinity"), e);
    dns_config(spec, &path.field("dnsConfig"), e);
    gates(spec, path, e);
    affinity::spread(
        spec.list("topologySpreadConstraints"),
        &path.field("topologySpreadConstraints"),
        e,
    );
    security::host_process(spec, path, e);
    security::host_users(spec, path, e);
    identity(spec, path, e);
    affinity::tolerations(spec.list("tolerations"), &path.field("tolerations"), e);
    host_aliases(spec, &path.field("hostAliases"), e);
    let class = spec.text("priorityClassName");
    if !class.is_empty() {
        e.invalid_each(&path.field("priorityClassName"), class, names::dns1123_subdomain(class));
    }
    if let Some(class) = spec.at("runtimeClassName").as_str() {
        e.invalid_each(&path.field("runtimeClassName"), class, names::dns1123_subdomain(class));
    }
    if spec.has("preemptionPolicy") {
        check::required_one_of(
            spec.at("preemptionPolicy"),
            &["PreemptLowerPriority", "Never"],
            &path.field("preemptionPolicy"),
            e,
        );
    }
    overhead(spec, &path.field("overhead"), e);
    os(spec, path, e);
}

/// What the runtime takes is said as limits of a container are.
fn overhead(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    if spec.has("overhead") {
        let as_limits = serde_json::json!({ "limits": spec.at("overhead") });
        // Kubernetes shows the place of a container's limits below it.
        check::resources::container_resources(&as_limits, &HashSet::new(), path, e);
    }
}

/// On the host's network a container's port is the host's. In a template the latter may be left out.
fn host_network(spec: &Value, in_pod: bool, path: &Path<'_>, e: &mut Errors) {
    for (i, container) in spec.list("containers").iter().enumerate() {
        let at = path.index(i);
        let list = at.field("ports");
        for (j, port) in container.list("ports").iter().enumerate() {
            let number = |field: &str| port.int(field).unwrap_or_default();
            let host = number("hostPort");
            if (in_pod || host != 0) && host != number("containerPort") {
                let why = "must match `containerPort` when `hostNetwork` is true";
                e.invalid(&list.index(j).field("hostPort"), host, why);
            }
        }
    }
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
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return e.required(&list, why);
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
    let length: usize = searches.iter().filter_map(Value::as_str).map(|s| s.len() + 1).sum();
    if length > 2048 + 1 {
        let why = "must not have more than 2048 characters (including spaces) in the search list";
        e.invalid(&list, Value::Array(searches.to_vec()), why);
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
        let list = at.field("hostnames");
        for (j, name) in alias.list("hostnames").iter().filter_map(Value::as_str).enumerate() {
            e.invalid_each(&list.index(j), name, names::dns1123_subdomain(name));
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
        "linux" => os_fields(
            spec,
            &["windowsOptions"],
            &[],
            "windows options cannot be set for a linux pod",
            path,
            e,
        ),
        "windows" => os_fields(
            spec,
            &LINUX_POD,
            &LINUX_CONTAINER,
            "cannot be set for a windows pod",
            path,
            e,
        ),
        other => e.not_supported(&at, other, &["linux", "windows"]),
    }
}

/// Fields of a pod's security context that only Linux knows.
const LINUX_POD: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
];
/// And of a container's.
const LINUX_CONTAINER: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// Refuses what the other operating system alone knows; on Windows, sharing with the host too.
fn os_fields(
    spec: &Value,
    of_pod: &[&str],
    of_container: &[&str],
    why: &str,
    path: &Path<'_>,
    e: &mut Errors,
) {
    let windows = !of_container.is_empty();
    let of_container = if windows { of_container } else { of_pod };
    let context = path.field("securityContext");
    for field in of_pod {
        if !is_empty(spec.at("securityContext").at(field)) {
            e.forbidden(&context.field(field), why);
        }
    }
    if windows {
        for field in ["hostUsers", "shareProcessNamespace"] {
            if spec.has(field) {
                e.forbidden(&path.field(field), why);
            }
        }
        for field in ["hostPID", "hostIPC"] {
            if spec.flag(field) {
                e.forbidden(&path.field(field), why);
            }
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let at = path.field(list);
        for (i, container) in spec.list(list).iter().enumerate() {
            let at = at.index(i);
            let at = at.field("securityContext");
            for field in of_container {
                if !container.at("securityContext").at(field).is_null() {
                    e.forbidden(&at.field(field), why);
                }
            }
        }
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
