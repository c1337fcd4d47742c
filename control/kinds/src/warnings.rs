//! Hints to whoever writes an object: what is deprecated, ignored, or likely a mistake. They come as
//! Warning headers and keep nothing from being stored. The texts are Kubernetes'.
//! <https://kubernetes.io/docs/reference/using-api/deprecation-policy/>

use std::fmt::Display;

use rimward_api::names;
use serde_json::Value;

use crate::check::resources::quantity;
use crate::path::Path;
use crate::read::{Read, members};

/// Labels of nodes that have another name today.
const OLD_NODE_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];

/// What is to be said of a node's label, if it is an old one.
pub fn old_node_label(key: &str) -> Option<String> {
    let (_, since, instead) = OLD_NODE_LABELS.iter().find(|(old, ..)| *old == key)?;
    Some(format!("deprecated since {since}; use {instead:?} instead"))
}

/// The complaint about a name that becomes part of host names.
pub fn host_name(object: &Value, used_in: &str) -> Option<String> {
    let wrong = names::dns1123_label(object.at("metadata").text("name"));
    let name = object.at("metadata").text("name");
    (!name.is_empty() && !wrong.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            wrong.join(" ")
        )
    })
}

/// The key of an annotation, as a field.
fn annotation(key: &str) -> String {
    Path::Root.field("metadata").field("annotations").key(key).to_string()
}

fn has_annotation(object: &Value, key: &str) -> bool {
    object.deep(&["metadata", "annotations"]).get(key).is_some()
}

/// An amount of bytes that is no whole number of them.
pub fn fractional_bytes(amounts: &Value, name: &str, at: impl Display) -> Option<String> {
    let amount = quantity(amounts.get(name)?)?;
    (amount.millis() % 1000 != 0).then(|| {
        format!(
            "{at}[{name}]: fractional byte value {:?} is invalid, must be an integer",
            amount.to_string()
        )
    })
}

pub fn service(service: &Value) -> Vec<String> {
    let spec = service.at("spec");
    let mut found = Vec::new();
    let mut say = |when: bool, text: &str| {
        if when {
            found.push(text.to_owned());
        }
    };
    let old_hints = "service.kubernetes.io/topology-aware-hints";
    say(
        has_annotation(service, old_hints),
        "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead",
    );
    let kind = spec.text("type");
    let headless = matches!(kind, "" | "ClusterIP") && spec.text("clusterIP") == "None";
    let (external, addresses) = (kind == "ExternalName", !spec.list("externalIPs").is_empty());
    say(
        headless && !spec.text("loadBalancerIP").is_empty(),
        "spec.loadBalancerIP is ignored for headless services",
    );
    say(headless && addresses, "spec.externalIPs is ignored for headless services");
    say(
        headless && !matches!(spec.text("sessionAffinity"), "" | "None"),
        "spec.SessionAffinity is ignored for headless services",
    );
    say(
        addresses && !headless && !external,
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
    );
    say(external && addresses, "spec.externalIPs is ignored when spec.type is \"ExternalName\"");
    say(
        !external && !spec.text("externalName").is_empty(),
        "spec.externalName is ignored when spec.type is not \"ExternalName\"",
    );
    say(
        spec.text("trafficDistribution") == "PreferClose",
        "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
    );
    found
}

pub fn ingress(ingress: &Value) -> Vec<String> {
    let old = "kubernetes.io/ingress.class";
    let said = has_annotation(ingress, old).then(|| {
        "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
            .to_owned()
    });
    said.into_iter().collect()
}

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn old_class(object: &Value, attribute: &str) -> Option<String> {
    has_annotation(object, OLD_CLASS).then(|| {
        format!(
            "{}: deprecated since v1.8; use {attribute:?} attribute instead",
            annotation(OLD_CLASS)
        )
    })
}

pub fn persistent_volume_claim(claim: &Value) -> Vec<String> {
    let mut found: Vec<String> = old_class(claim, "storageClassName").into_iter().collect();
    found.extend(claim_spec(claim.at("spec"), "spec"));
    found
}

/// The specification of a claim, its own or in a template.
pub fn claim_spec(spec: &Value, at: &str) -> Vec<String> {
    let requests = spec.deep(&["resources", "requests"]);
    fractional_bytes(requests, "storage", format_args!("{at}.resources.requests"))
        .into_iter()
        .collect()
}

pub fn persistent_volume(volume: &Value) -> Vec<String> {
    const OLD_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
    let spec = volume.at("spec");
    let mut found: Vec<String> = old_class(volume, "storageClassName").into_iter().collect();
    if has_annotation(volume, OLD_OPTIONS) {
        found.push(format!(
            "{}: deprecated since v1.31; use \"mountOptions\" attribute instead",
            annotation(OLD_OPTIONS)
        ));
    }
    if spec.text("persistentVolumeReclaimPolicy") == "Recycle" {
        found.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
    }
    let required = spec.deep(&["nodeAffinity", "required"]).list("nodeSelectorTerms");
    for (i, term) in required.iter().enumerate() {
        found.extend(node_selector_term(
            term,
            &format!("spec.nodeAffinity.required.nodeSelectorTerms[{i}]"),
        ));
    }
    for (plugin, since) in OLD_PLUGINS {
        if spec.has(plugin) {
            found.push(format!("spec.{plugin}: {since}"));
        }
    }
    found.extend(fractional_bytes(spec.at("capacity"), "storage", "spec.capacity"));
    found
}

/// Volume plugins that are gone, or going.
pub const OLD_PLUGINS: [(&str, &str); 8] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// A term that selects nodes.
pub fn node_selector_term(term: &Value, at: &str) -> Vec<String> {
    let expressions = term.list("matchExpressions").iter().enumerate();
    let old = expressions.filter_map(|(i, expression)| {
        let key = expression.text("key");
        Some(format!("{at}.matchExpressions[{i}].key: {key} is {}", old_node_label(key)?))
    });
    old.collect()
}

pub fn node(node: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if node.at("spec").has("configSource") {
        found.push("spec.configSource: the feature is no longer supported".into());
    }
    if !node.at("spec").text("externalID").is_empty() {
        found.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
    }
    found
}

pub fn service_account(account: &Value) -> Vec<String> {
    const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
    let said = has_annotation(account, MOUNTABLE).then(|| {
        format!(
            "{}: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets",
            annotation(MOUNTABLE)
        )
    });
    said.into_iter().collect()
}

pub fn cron_job(job: &Value) -> Vec<String> {
    let mut found: Vec<String> = host_name(job, "Pod names and hostnames").into_iter().collect();
    if job.at("spec").text("schedule").contains("TZ") {
        found.push("cannot use TZ or CRON_TZ in spec.schedule, use spec.timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#time-zones for more details".into());
    }
    let template = job.deep(&["spec", "jobTemplate", "spec", "template"]);
    found.extend(crate::pod::warnings::of(template, "spec.jobTemplate.spec.template"));
    found
}

/// A kind whose pods come from `spec.template`.
pub fn workload(object: &Value) -> Vec<String> {
    let mut found: Vec<String> = host_name(object, "Pod names and hostnames").into_iter().collect();
    found.extend(template(object));
    found
}

/// As [`workload`], where the name is of no matter.
pub fn template(object: &Value) -> Vec<String> {
    crate::pod::warnings::of(object.deep(&["spec", "template"]), "spec.template")
}

pub fn stateful_set(object: &Value) -> Vec<String> {
    let mut found = template(object);
    for (i, claim) in object.at("spec").list("volumeClaimTemplates").iter().enumerate() {
        let at = format!("spec.volumeClaimTemplates[{i}]");
        found.extend(claim_spec(claim.at("spec"), &format!("{at}.Spec")));
    }
    found
}

pub fn pod_template(object: &Value) -> Vec<String> {
    crate::pod::warnings::of(object.at("template"), "template")
}

pub fn pod(pod: &Value) -> Vec<String> {
    let name = host_name(pod, "the Pod's hostname");
    name.into_iter().chain(crate::pod::warnings::of(pod, "")).collect()
}

/// Annotations of old that start with a prefix or are a key, of pods.
pub fn old_annotations(metadata: &Value, at: &str) -> Vec<String> {
    const OLD: [(&str, &str); 3] = [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/unsafe-sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
    ];
    let there = members(metadata.at("annotations"));
    let keys: Vec<&str> = there.map(|(key, _)| key.as_str()).collect();
    let said = OLD.iter().filter(|(key, _)| keys.contains(key));
    said.map(|(key, why)| format!("{at}metadata.annotations[{key}]: {why}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(of: fn(&Value) -> Vec<String>, object: Value, expected: &[&str]) {
        assert_eq!(of(&object), expected, "{object}");
    }

    #[test]
    fn kubernetes_words() {
        check(service, json!({ "spec": { "type": "ClusterIP", "clusterIP": "10.0.0.1" } }), &[]);
        check(
            service,
            json!({ "spec": { "type": "ClusterIP", "clusterIP": "None", "sessionAffinity": "ClientIP", "externalName": "x" } }),
            &[
                "spec.SessionAffinity is ignored for headless services",
                "spec.externalName is ignored when spec.type is not \"ExternalName\"",
            ],
        );
        check(
            ingress,
            json!({ "metadata": { "annotations": { "kubernetes.io/ingress.class": "x" } } }),
            &[
                "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead",
            ],
        );
        check(
            persistent_volume_claim,
            json!({
                "metadata": { "annotations": { "volume.beta.kubernetes.io/storage-class": "x" } },
                "spec": { "resources": { "requests": { "storage": "1500m" } } },
            }),
            &[
                "metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated since v1.8; use \"storageClassName\" attribute instead",
                "spec.resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer",
            ],
        );
        check(
            pod,
            json!({ "metadata": { "name": "a.b" }, "spec": {} }),
            &[
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]",
            ],
        );
    }
}
