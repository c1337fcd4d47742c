//! Containers, init containers and ephemeral containers.

use std::collections::HashSet;

use rimward_api::names;
use serde_json::Value;

use super::volume::Volumes;
use super::{env, probe, security};
use crate::check::{self, resources, text};
use crate::path::{Errors, Path};
use crate::read::Read;

/// Kubernetes' bounds of what decides on a container's restart.
const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// What a container may refer to.
pub struct Surroundings<'a> {
    pub volumes: &'a Volumes<'a>,
    pub claims: &'a HashSet<&'a str>,
    pub grace_seconds: i64,
    /// Whether it is a pod, and no template of pods.
    pub in_pod: bool,
    /// Whether the pod's users are the host's.
    pub host_users: bool,
    pub restart_policy: &'a str,
}

pub fn containers(list: &[Value], around: &Surroundings<'_>, path: &Path<'_>, e: &mut Errors) {
    if list.is_empty() {
        return e.required(path, "");
    }
    let mut seen = check::Seen::default();
    for (i, container) in list.iter().enumerate() {
        let at = path.index(i);
        common(container, around, &at, e);
        let name = container.text("name");
        if seen.again(name) {
            e.duplicate(&at.field("name"), name);
        }
        probe::lifecycle(
            container.at("lifecycle"),
            around.grace_seconds,
            &at.field("lifecycle"),
            e,
        );
        probe::probes(container, &at, e);
        restart_policy(container, &at, e);
    }
    host_ports(list, path, e);
}

/// Init containers; those that restart always are sidecars and may have probes.
pub fn init(spec: &Value, around: &Surroundings<'_>, path: &Path<'_>, e: &mut Errors) {
    let list = spec.list("initContainers");
    let mut seen = names_of(spec, &["containers"]);
    for (i, container) in list.iter().enumerate() {
        let at = path.index(i);
        common(container, around, &at, e);
        let name = container.text("name");
        if seen.contains(name) {
            e.duplicate(&at.field("name"), name);
        } else if !name.is_empty() {
            seen.insert(name);
        }
        restart_policy(container, &at, e);
        host_ports(std::slice::from_ref(container), path, e);
        if container.at("restartPolicy") == "Always" {
            probe::lifecycle(
                container.at("lifecycle"),
                around.grace_seconds,
                &at.field("lifecycle"),
                e,
            );
            probe::probes(container, &at, e);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.has(field) {
                e.forbidden(
                    &at.field(field),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    }
}

/// A container's own restart policy, and what it makes of exit codes.
fn restart_policy(container: &Value, path: &Path<'_>, e: &mut Errors) {
    let policy = container.at("restartPolicy");
    check::one_of(policy, &["Always", "Never", "OnFailure"], &path.field("restartPolicy"), e);
    let (rules, list) = (container.list("restartPolicyRules"), path.field("restartPolicyRules"));
    if !rules.is_empty() && container.text("restartPolicy").is_empty() {
        e.required(
            &path.field("restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        );
    }
    if rules.len() > RESTART_RULES_MAX {
        e.too_many(&list, rules.len(), RESTART_RULES_MAX);
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = list.index(i);
        listed(rule.text("action"), &["Restart", "RestartAllContainers"], &at.field("action"), e);
        let (codes, at) = (rule.at("exitCodes"), at.field("exitCodes"));
        if !codes.is_object() {
            e.required(&at, "must be specified");
            continue;
        }
        listed(codes.text("operator"), &["In", "NotIn"], &at.field("operator"), e);
        let values = codes.list("values");
        if values.len() > EXIT_CODES_MAX {
            e.too_many(&at.field("values"), values.len(), EXIT_CODES_MAX);
        }
    }
}

/// What is missing is not supported either.
fn listed(text: &str, listed: &[&str], path: &Path<'_>, e: &mut Errors) {
    if !listed.contains(&text) {
        e.not_supported(path, text, listed);
    }
}

/// Ephemeral containers have no ports, probes, lifecycle or resources.
pub fn ephemeral(spec: &Value, around: &Surroundings<'_>, path: &Path<'_>, e: &mut Errors) {
    let list = spec.list("ephemeralContainers");
    let others = ["containers", "initContainers"];
    let (mut seen, targets) = (names_of(spec, &others), names_of(spec, &others));
    for (i, container) in list.iter().enumerate() {
        let at = path.index(i);
        common(container, around, &at, e);
        let name = container.text("name");
        if !seen.insert(name) {
            e.duplicate(&at.field("name"), name);
        }
        let target = container.text("targetContainerName");
        if !target.is_empty() && !targets.contains(target) {
            e.not_found(&at.field("targetContainerName"), target);
        }
        for field in [
            "ports",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
            "resizePolicy",
            "restartPolicy",
        ] {
            if !crate::read::is_empty(container.at(field)) {
                e.forbidden(&at.field(field), "cannot be set for an Ephemeral Container");
            }
        }
        if !crate::read::is_empty(container.at("resources")) {
            e.forbidden(&at.field("resources"), "cannot be set for an Ephemeral Container");
        }
        // Mounts of a part of a volume stay until the pod ends.
        let mounts = at.field("volumeMounts");
        for (j, mount) in container.list("volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.text(field).is_empty() {
                    let why = "cannot be set for an Ephemeral Container";
                    e.forbidden(&mounts.index(j).field(field), why);
                }
            }
        }
    }
}

fn names_of<'a>(spec: &'a Value, lists: &[&str]) -> HashSet<&'a str> {
    lists.iter().flat_map(|l| spec.list(l)).map(|c| c.text("name")).collect()
}

fn common(container: &Value, around: &Surroundings<'_>, path: &Path<'_>, e: &mut Errors) {
    match container.text("name") {
        "" => e.required(&path.field("name"), ""),
        name => e.invalid_each(&path.field("name"), name, names::dns1123_label(name)),
    }
    match container.text("image") {
        "" => e.required(&path.field("image"), ""),
        // In a template, an image may still be a placeholder.
        image if around.in_pod && image.trim() != image => {
            e.invalid(&path.field("image"), image, "must not have leading or trailing whitespace");
        }
        _ => {}
    }
    let policy = container.at("terminationMessagePolicy");
    let policy_at = path.field("terminationMessagePolicy");
    check::required_one_of(policy, &["FallbackToLogsOnError", "File"], &policy_at, e);
    ports(container.list("ports"), &path.field("ports"), e);
    env::env(container.list("env"), around.volumes, &path.field("env"), e);
    env::env_from(container.list("envFrom"), &path.field("envFrom"), e);
    around.volumes.mounts(container, path, e);
    let pull = container.at("imagePullPolicy");
    check::required_one_of(
        pull,
        &["Always", "IfNotPresent", "Never"],
        &path.field("imagePullPolicy"),
        e,
    );
    resources::container_resources(
        container.at("resources"),
        around.claims,
        &path.field("resources"),
        e,
    );
    resize_policy(container, around.restart_policy, &path.field("resizePolicy"), e);
    security::container(
        container.at("securityContext"),
        around.host_users,
        &path.field("securityContext"),
        e,
    );
}

fn ports(ports: &[Value], path: &Path<'_>, e: &mut Errors) {
    let mut seen = check::Seen::default();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            let wrong = text::port_name(name);
            if wrong.is_empty() && seen.again(name) {
                e.duplicate(&at.field("name"), name);
            }
            e.invalid_each(&at.field("name"), name, wrong);
        }
        match port.int("containerPort").unwrap_or_default() {
            0 => e.required(&at.field("containerPort"), ""),
            number if !text::is_port(number) => {
                e.invalid(&at.field("containerPort"), number, text::PORT_RANGE)
            }
            _ => {}
        }
        let host = port.int("hostPort").unwrap_or_default();
        if host != 0 && !text::is_port(host) {
            e.invalid(&at.field("hostPort"), host, text::PORT_RANGE);
        }
        check::required_one_of(
            port.at("protocol"),
            &["SCTP", "TCP", "UDP"],
            &at.field("protocol"),
            e,
        );
    }
}

/// No two containers take the same port of the host.
fn host_ports(containers: &[Value], path: &Path<'_>, e: &mut Errors) {
    let mut taken = check::Seen::default();
    for (i, container) in containers.iter().enumerate() {
        let (at, ports) = (path.index(i), container.list("ports"));
        let list = at.field("ports");
        for (j, port) in ports.iter().enumerate() {
            let number = port.int("hostPort").unwrap_or_default();
            if number == 0 {
                continue;
            }
            let key = (port.text("protocol"), port.text("hostIP"), number);
            if taken.again(key) {
                e.duplicate(
                    &list.index(j).field("hostPort"),
                    format!("{}/{}/{}", key.0, key.1, key.2),
                );
            }
        }
    }
}

/// What a resize of each resource takes. Which entry it is, Kubernetes does not say.
fn resize_policy(container: &Value, pod_policy: &str, path: &Path<'_>, e: &mut Errors) {
    let pod_policy = container.at("restartPolicy").as_str().unwrap_or(pod_policy);
    let mut seen = check::Seen::default();
    for (i, policy) in container.list("resizePolicy").iter().enumerate() {
        let resource = policy.text("resourceName");
        if seen.again(resource) {
            e.duplicate(&path.index(i), resource);
        }
        let resources = ["cpu", "memory"];
        check::required_one_of(policy.at("resourceName"), &resources, path, e);
        let restart = policy.at("restartPolicy");
        check::required_one_of(restart, &["NotRequired", "RestartContainer"], path, e);
        if pod_policy == "Never" && restart != "NotRequired" {
            let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            e.invalid(path, restart.clone(), why);
        }
    }
}
