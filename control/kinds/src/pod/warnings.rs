//! Hints on pods: fields and labels that do nothing or soon will not, definitions that hide one another.
//! In the order in which Kubernetes says them.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use crate::check;
use crate::read::{Read, members};
use crate::warnings::{
    OLD_PLUGINS, claim_spec, fractional_bytes, node_selector_term, old_annotations, old_node_label,
};

const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";
/// The lists of containers, in the order in which Kubernetes visits them.
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Of a pod, or of a template that stands at `at`; a pod itself stands nowhere.
pub fn of(pod: &Value, at: &str) -> Vec<String> {
    let is_template = !at.is_empty();
    let at = if is_template { format!("{at}.") } else { String::new() };
    let (spec, metadata) = (pod.at("spec"), pod.at("metadata"));
    let mut found = nodes(spec, &at);
    found.extend(old_annotations(metadata, &at));
    found.extend(volumes(spec, &at));
    found.extend(repeated(spec.list("hostAliases"), "ip", &format!("{at}spec.hostAliases"), "ip"));
    let secrets = (spec.list("imagePullSecrets"), format!("{at}spec.imagePullSecrets"));
    found.extend(repeated(secrets.0, "name", &secrets.1, "name"));
    for (i, secret) in secrets.0.iter().enumerate() {
        if secret.text("name").is_empty() {
            found.push(format!("{}[{i}].name: invalid empty name \"\"", secrets.1));
        }
    }
    for name in ["memory", "ephemeral-storage"] {
        let overhead = format_args!("{at}spec.overhead");
        found.extend(fractional_bytes(spec.at("overhead"), name, overhead));
    }
    let annotated = |key: &str| metadata.at("annotations").get(key).is_some();
    let seccomp = |key: &str| {
        format!(
            "{at}metadata.annotations[{key}]: non-functional in v1.27+; use the \"seccompProfile\" field instead"
        )
    };
    let key = "seccomp.security.alpha.kubernetes.io/pod";
    if !spec.at("securityContext").has("seccompProfile") && annotated(key) {
        found.push(seccomp(key));
    }
    let pod_has_armor = spec.at("securityContext").has("appArmorProfile");
    for (container, path) in containers(spec, &at) {
        let (name, context) = (container.text("name"), container.at("securityContext"));
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
        if !context.has("seccompProfile") && annotated(&key) {
            found.push(seccomp(&key));
        }
        let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
        if is_template && !pod_has_armor && !context.has("appArmorProfile") && annotated(&key) {
            found.push(format!(
                "{at}metadata.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            ));
        }
        for name in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                let amounts = container.at("resources").at(list);
                let path = format_args!("{path}.resources.{list}");
                found.extend(fractional_bytes(amounts, name, path));
            }
        }
        found.extend(hidden_variables(container, &path));
    }
    found.extend(ports(spec, &at));
    if spec.int("terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        found.push(format!(
            "{at}spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    found.extend(pod_affinity(spec, &at));
    found
}

fn containers<'v>(spec: &'v Value, at: &str) -> Vec<(&'v Value, String)> {
    let mut all = Vec::new();
    for list in CONTAINERS {
        let each = spec.list(list).iter().enumerate();
        all.extend(each.map(|(i, container)| (container, format!("{at}spec.{list}[{i}]"))));
    }
    all
}

/// What selects nodes by labels that have another name today.
fn nodes(spec: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (key, _) in members(spec.at("nodeSelector")) {
        let said = old_node_label(key).map(|why| format!("{at}spec.nodeSelector[{key}]: {why}"));
        found.extend(said);
    }
    let affinity = spec.deep(&["affinity", "nodeAffinity"]);
    let path = format!("{at}spec.affinity.nodeAffinity");
    let (required, preferred) = (
        "requiredDuringSchedulingIgnoredDuringExecution",
        "preferredDuringSchedulingIgnoredDuringExecution",
    );
    for (i, term) in affinity.at(required).list("nodeSelectorTerms").iter().enumerate() {
        found
            .extend(node_selector_term(term, &format!("{path}.{required}.nodeSelectorTerms[{i}]")));
    }
    for (i, term) in affinity.list(preferred).iter().enumerate() {
        let path = format!("{path}.{preferred}[{i}].preference");
        found.extend(node_selector_term(term.at("preference"), &path));
    }
    for (i, spread) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let path = format!("{at}spec.topologySpreadConstraints[{i}]");
        let key = spread.text("topologyKey");
        found.extend(old_node_label(key).map(|why| format!("{path}.topologyKey: {key} is {why}")));
        if !spread.has("labelSelector") {
            found.push(format!("{path}.labelSelector: {NO_SELECTOR}"));
        }
    }
    found
}

fn volumes(spec: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        if volume.has("gitRepo") {
            found.push(format!("{at}spec.volumes[{i}].gitRepo: deprecated in v1.11"));
        }
        for (plugin, since) in OLD_PLUGINS.iter().filter(|(plugin, _)| volume.has(plugin)) {
            found.push(format!("{at}spec.volumes[{i}].{plugin}: {since}"));
        }
        let template = volume.deep(&["ephemeral", "volumeClaimTemplate", "spec"]);
        if template.is_object() {
            let path = format!("{at}spec.volumes[{i}].ephemeral.volumeClaimTemplate.spec");
            found.extend(claim_spec(template, &path));
        }
    }
    found.extend(shadowed_tokens(spec, at));
    found
}

/// Projected files that take the place of a token.
fn shadowed_tokens(spec: &Value, at: &str) -> Vec<String> {
    fn sources(volume: &Value) -> &[Value] {
        volume.at("projected").list("sources")
    }
    let tokens: BTreeSet<&str> = spec
        .list("volumes")
        .iter()
        .flat_map(sources)
        .filter(|source| source.has("serviceAccountToken"))
        .map(|source| source.at("serviceAccountToken").text("path"))
        .collect();
    let mut found = Vec::new();
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        for source in sources(volume) {
            for (field, shown) in
                [("configMap", "configMap"), ("secret", "secrets"), ("downwardAPI", "downwardAPI")]
            {
                for (j, item) in source.at(field).list("items").iter().enumerate() {
                    let path = item.text("path");
                    if tokens.contains(path) {
                        found.push(format!(
                            "{at}spec.volumes[{i}].projected.sources.{shown}[{j}]: has duplicated path with ServiceAccountToken {path:?}"
                        ));
                    }
                }
            }
        }
    }
    found
}

fn repeated(list: &[Value], field: &str, at: &str, what: &str) -> Vec<String> {
    let mut seen = check::Seen::default();
    let each = list.iter().enumerate();
    let again = each.filter(|(_, item)| seen.again(item.text(field).to_owned()));
    again
        .map(|(i, item)| format!("{at}[{i}].{field}: duplicate {what} {:?}", item.text(field)))
        .collect()
}

/// A variable that is defined twice, unless the second one is made of the first.
fn hidden_variables(container: &Value, at: &str) -> Vec<String> {
    let mut seen = check::Seen::default();
    let mut found = Vec::new();
    for (i, variable) in container.list("env").iter().enumerate() {
        let (name, value) = (variable.text("name"), variable.text("value"));
        let reference = format!("$({name})");
        let builds_on_it =
            !variable.has("valueFrom") && value != reference && value.contains(&reference);
        if seen.again(name.to_owned()) && !builds_on_it {
            found.push(format!(
                "{at}.env[{i}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
    found
}

/// Ports of one number that a port is compared with. Whoever has more of them has read enough.
const SAME_PORTS_MAX: usize = 16;

/// Ports that say the same, or contradict one another.
fn ports(spec: &Value, at: &str) -> Vec<String> {
    struct Port<'v> {
        host: (&'v str, i64),
        path: String,
    }
    let mut all: HashMap<(i64, &str), Vec<Port<'_>>> = HashMap::new();
    let mut found = Vec::new();
    for (container, path) in containers(spec, at) {
        for (i, port) in container.list("ports").iter().enumerate() {
            let number = |field: &str| port.int(field).unwrap_or(0);
            let protocol = Some(port.text("protocol")).filter(|p| !p.is_empty()).unwrap_or("TCP");
            let same = all.entry((number("containerPort"), protocol)).or_default();
            let new = Port {
                host: (port.text("hostIP"), number("hostPort")),
                path: format!("{path}.ports[{i}]"),
            };
            if !new.host.0.is_empty() && new.host.1 == 0 {
                found.push(format!(
                    "{}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{protocol} HostIP:{}}}",
                    new.path,
                    port.text("name"),
                    number("containerPort"),
                    new.host.0
                ));
            }
            for other in same.iter() {
                let one_sided = new.host.0.is_empty() != other.host.0.is_empty();
                let how = if new.host == other.host {
                    "duplicate"
                } else if new.host.1 == 0 || other.host.1 == 0 {
                    "overlapping"
                } else if new.host.1 == other.host.1 && one_sided {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                found.push(format!("{}: {how} port definition with {}", new.path, other.path));
            }
            if same.len() < SAME_PORTS_MAX {
                same.push(new);
            }
        }
    }
    found
}

fn pod_affinity(spec: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = spec.at("affinity").at(kind);
        for (list, below) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            ("preferredDuringSchedulingIgnoredDuringExecution", "podAffinityTerm"),
        ] {
            for (i, term) in affinity.list(list).iter().enumerate() {
                let (term, dot) = match below {
                    "" => (term, String::new()),
                    below => (term.at(below), format!(".{below}")),
                };
                if !term.has("labelSelector") {
                    found.push(format!(
                        "{at}spec.affinity.{kind}.{list}[{i}]{dot}.labelSelector: {NO_SELECTOR}"
                    ));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        assert_eq!(of(&json!({ "spec": spec }), ""), expected, "{spec}");
    }

    #[test]
    fn kubernetes_words() {
        let containers = |c: Value| json!({ "containers": [c] });
        check(containers(json!({ "name": "c", "image": "i" })), &[]);
        check(
            containers(json!({ "env": [
                { "name": "A", "value": "1" }, { "name": "A", "value": "$(A)2" },
                { "name": "A", "value": "3" }, { "name": "B" }, { "name": "B", "value": "$(B)" },
            ] })),
            &[
                "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].env[4]: hides previous definition of \"B\", which may be dropped when using apply",
            ],
        );
        check(
            containers(json!({ "ports": [
                { "containerPort": 80 }, { "containerPort": 80, "hostPort": 8080 },
                { "containerPort": 80, "hostPort": 8080, "hostIP": "1.1.1.1" }, { "containerPort": 80 },
                { "containerPort": 80, "protocol": "UDP" },
            ] })),
            &[
                "spec.containers[0].ports[1]: overlapping port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: dangerously ambiguous port definition with spec.containers[0].ports[1]",
                "spec.containers[0].ports[3]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[3]: overlapping port definition with spec.containers[0].ports[1]",
                "spec.containers[0].ports[3]: overlapping port definition with spec.containers[0].ports[2]",
            ],
        );
        check(
            json!({
                "nodeSelector": { "beta.kubernetes.io/os": "linux" },
                "volumes": [{ "name": "v", "gitRepo": {} }, { "name": "w", "glusterfs": {} }],
                "imagePullSecrets": [{ "name": "a" }, { "name": "a" }, {}],
                "terminationGracePeriodSeconds": -1,
                "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{ "podAffinityTerm": {} }] } },
            }),
            &[
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.volumes[0].gitRepo: deprecated in v1.11",
                "spec.volumes[1].glusterfs: deprecated in v1.25, non-functional in v1.26+",
                "spec.imagePullSecrets[1].name: duplicate name \"a\"",
                "spec.imagePullSecrets[2].name: invalid empty name \"\"",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod",
            ],
        );
        let template = json!({ "spec": { "containers": [{ "resources": { "limits": { "memory": "100m" } } }] } });
        assert_eq!(
            of(&template, "spec.template"),
            [
                "spec.template.spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer"
            ]
        );
    }
}
