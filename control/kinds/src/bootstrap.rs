//! What a fresh cluster holds before anyone writes to it: namespaces, roles and bindings, priority
//! classes, flow schemas, and Rimward's own identities.

use serde_json::{Value, json};

const RBAC: &str = include_str!("../facts/rbac-defaults.json");
const OTHERS: &str = include_str!("../facts/bootstrap-objects.json");
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// The objects in the order in which they can be created: namespaces first.
pub fn objects() -> Vec<Value> {
    let mut objects: Vec<Value> = NAMESPACES.iter().map(|name| namespace(name)).collect();
    for (text, file) in [(OTHERS, "bootstrap-objects.json"), (RBAC, "rbac-defaults.json")] {
        let list: Vec<Value> = serde_json::from_str(text)
            .unwrap_or_else(|e| panic!("{file} is a list of objects: {e}"));
        objects.extend(list.into_iter().map(with_api_version));
    }
    objects.extend(hub());
    objects.extend(token_controller());
    objects.extend(ingress_controller());
    objects.extend(local_path_provisioner());
    objects.push(metrics_reader());
    objects
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
        "spec": { "finalizers": ["kubernetes"] },
    })
}

/// The facts name kinds only.
fn with_api_version(mut object: Value) -> Value {
    let version = match object["kind"].as_str() {
        Some("FlowSchema" | "PriorityLevelConfiguration") => "flowcontrol.apiserver.k8s.io/v1",
        Some("PriorityClass") => "scheduling.k8s.io/v1",
        _ => "rbac.authorization.k8s.io/v1",
    };
    object["apiVersion"] = version.into();
    if version.starts_with("rbac") {
        for subject in
            object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten()
        {
            if subject["kind"] != "ServiceAccount" && subject.get("apiGroup").is_none() {
                subject["apiGroup"] = "rbac.authorization.k8s.io".into();
            }
        }
    }
    object
}

/// What the hub may do in the nodes' name; nodes themselves have no right but through it.
fn hub() -> [Value; 2] {
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({ "apiGroups": groups, "resources": resources, "verbs": verbs });
    let read = ["get", "list", "watch"];
    let write = ["get", "list", "watch", "create", "update", "patch", "delete"];
    let rules = [
        rule(&[""], &["nodes"], &["get", "list", "watch", "create", "update", "patch"]),
        rule(&[""], &["nodes/status"], &["get", "update", "patch"]),
        // Mirrors of nodes' static pods are made by it.
        rule(&[""], &["pods"], &["get", "list", "watch", "create", "delete"]),
        rule(&[""], &["pods/status"], &["get", "update", "patch"]),
        rule(
            &[""],
            &["configmaps", "secrets", "services", "endpoints", "namespaces", "serviceaccounts"],
            &read,
        ),
        rule(&[""], &["persistentvolumes", "persistentvolumeclaims"], &read),
        rule(&["discovery.k8s.io"], &["endpointslices"], &read),
        rule(&["networking.k8s.io"], &["ingresses", "ingressclasses", "networkpolicies"], &read),
        rule(&["node.k8s.io"], &["runtimeclasses"], &["get", "list", "watch", "create"]),
        rule(&["coordination.k8s.io"], &["leases"], &write),
        rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(
            &["certificates.k8s.io"],
            &["certificatesigningrequests"],
            &["get", "list", "watch", "create", "update", "patch", "delete"],
        ),
        rule(
            &["certificates.k8s.io"],
            &["certificatesigningrequests/approval", "certificatesigningrequests/status"],
            &["get", "update", "patch"],
        ),
        rule(&["certificates.k8s.io"], &["signers"], &["approve", "sign"]),
    ];
    own_role("system:rimward:hub", "rimward-hub", &rules)
}

/// What the controller of tokens in Secrets may do. Kubernetes runs it as its whole controller manager.
fn token_controller() -> [Value; 2] {
    let rules = [
        json!({ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "update", "delete"] }),
        json!({ "apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"] }),
        json!({ "apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"] }),
    ];
    own_role("system:rimward:tokens-controller", "tokens-controller", &rules)
}

/// What the controller of Ingress statuses may do.
fn ingress_controller() -> [Value; 2] {
    let group = ["networking.k8s.io"];
    let rules = [
        json!({ "apiGroups": group, "resources": ["ingresses/status"], "verbs": ["update"] }),
        json!({ "apiGroups": group, "resources": ["ingressclasses"], "verbs": ["create"] }),
    ];
    own_role("system:rimward:ingress-controller", "ingress-controller", &rules)
}

/// What publishing the class of the nodes' own volumes takes.
fn local_path_provisioner() -> [Value; 2] {
    let rules = [
        json!({ "apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["create"] }),
    ];
    own_role("system:rimward:local-path-provisioner", "local-path-provisioner", &rules)
}

/// Who may look at a namespace may see what its pods use: the role that metrics-server brings, under its name.
fn metrics_reader() -> Value {
    let aggregate = |to: &str| format!("rbac.authorization.k8s.io/aggregate-to-{to}");
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {
            "name": "system:aggregated-metrics-reader",
            "labels": {
                "kubernetes.io/bootstrapping": "rbac-defaults",
                aggregate("admin"): "true", aggregate("edit"): "true", aggregate("view"): "true",
            },
            "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
        },
        "rules": [{
            "apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"],
        }],
    })
}

/// A role that Kubernetes does not have, and its binding to a ServiceAccount of kube-system.
fn own_role(name: &str, account: &str, rules: &[Value]) -> [Value; 2] {
    let meta = json!({
        "name": name,
        "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
        "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
    });
    [
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta, "rules": rules }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": meta,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": "kube-system" }],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_is_of_a_served_kind() {
        let catalog = crate::Catalog::builtin();
        let all = objects();
        assert!(all.len() > 150, "{} objects", all.len());
        for object in &all {
            let version =
                rimward_api::GroupVersion::parse(object["apiVersion"].as_str().unwrap()).unwrap();
            let kind =
                catalog.by_kind(&version.group, &version.version, object["kind"].as_str().unwrap());
            let kind = kind.unwrap_or_else(|| panic!("{object}"));
            assert_eq!(
                kind.namespaced(),
                object["metadata"].get("namespace").is_some(),
                "{object}"
            );
            let mut whole = object.clone();
            kind.hooks.default(&mut whole);
            kind.hooks.prepare_create(&mut whole);
            assert_eq!(kind.hooks.validate_create(&whole), vec![], "{object}");
        }
    }
}
