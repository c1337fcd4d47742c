//! What the objects that are told to nodes need beside them, by name.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::Ingress;
use rimward_api::ObjectKey;
use rimward_control_lean::Pod;
use rimward_tunnel::wire::ObjectKind;

use super::interest::Reference;

/// The ConfigMaps, Secrets and claims that a pod references: volumes, env, envFrom, imagePullSecrets.
pub(super) fn of_pod(pod: &Pod) -> BTreeSet<Reference> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut found = BTreeSet::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            found.insert((kind, ObjectKey::new(namespace, name)));
        }
    };
    let Some(spec) = &pod.spec else { return found };
    for secret in spec.image_pull_secrets.iter().flatten() {
        add(ObjectKind::Secret, &secret.name);
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(ObjectKind::ConfigMap, &source.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_ref()) {
            add(ObjectKind::Secret, name);
        }
        if let Some(source) = &volume.persistent_volume_claim {
            add(ObjectKind::PersistentVolumeClaim, &source.claim_name);
        }
        if volume.ephemeral.is_some() {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            add(ObjectKind::PersistentVolumeClaim, &format!("{pod}-{}", volume.name));
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(source) = &source.config_map {
                add(ObjectKind::ConfigMap, &source.name);
            }
            if let Some(source) = &source.secret {
                add(ObjectKind::Secret, &source.name);
            }
        }
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let all = containers.map(|c| (&c.env_from, &c.env));
    for (env_from, env) in all.chain(ephemeral.map(|c| (&c.env_from, &c.env))) {
        for source in env_from.iter().flatten() {
            if let Some(source) = &source.config_map_ref {
                add(ObjectKind::ConfigMap, &source.name);
            }
            if let Some(source) = &source.secret_ref {
                add(ObjectKind::Secret, &source.name);
            }
        }
        for source in env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            if let Some(source) = &source.config_map_key_ref {
                add(ObjectKind::ConfigMap, &source.name);
            }
            if let Some(source) = &source.secret_key_ref {
                add(ObjectKind::Secret, &source.name);
            }
        }
    }
    found
}

/// The Secrets with which an Ingress serves TLS.
pub(super) fn of_ingress(ingress: &Ingress) -> BTreeSet<Reference> {
    let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
    let tls = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
    let names = tls.filter_map(|tls| tls.secret_name.as_deref()).filter(|name| !name.is_empty());
    names.map(|name| (ObjectKind::Secret, ObjectKey::new(namespace, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_a_pod() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "ns", "name": "p"},
            "spec": {
                "imagePullSecrets": [{"name": "pull"}],
                "volumes": [
                    {"name": "a", "configMap": {"name": "cm-volume"}},
                    {"name": "b", "secret": {"secretName": "secret-volume"}},
                    {"name": "c", "projected": {"sources": [
                        {"configMap": {"name": "kube-root-ca.crt"}}, {"secret": {"name": "projected"}}]}},
                ],
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "cm-from"}}]}],
                "containers": [{"name": "c", "env": [
                    {"name": "X", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}},
                    {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "cm-key", "key": "k"}}},
                ]}],
            },
        })).unwrap();
        let found = of_pod(&pod);
        let names = |kind| {
            found
                .iter()
                .filter(|(k, _)| *k == kind)
                .map(|(_, key)| key.name.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(ObjectKind::ConfigMap),
            ["cm-from", "cm-key", "cm-volume", "kube-root-ca.crt"]
        );
        assert_eq!(names(ObjectKind::Secret), ["key", "projected", "pull", "secret-volume"]);
    }
}
