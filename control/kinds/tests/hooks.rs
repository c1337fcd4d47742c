//! What hooks do beside defaults and refusals: selectable fields, names, what a write may change.

#![allow(clippy::unwrap_used, reason = "test data that is not as expected fails the test")]

use std::sync::Arc;

use rimward_control_kinds::{Catalog, Kind, Write};
use serde_json::{Value, json};

fn kind(group: &str, kind: &str) -> Arc<Kind> {
    Catalog::builtin().by_kind(group, "v1", kind).unwrap().clone()
}

#[test]
fn selectable_fields() {
    #[track_caller]
    fn check(group: &str, of: &str, object: Value, field: &str, expected: Option<&str>) {
        let kind = kind(group, of);
        let value = kind.hooks.field(&object, field);
        assert_eq!(value.as_deref(), expected, "{of} {field}");
        if expected.is_some() && !field.starts_with("metadata.") {
            assert!(kind.selectable_fields.iter().any(|f| f == field), "{of} {field}");
        }
    }
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n" } });
    check("", "Pod", pod.clone(), "spec.nodeName", Some("n"));
    check("", "Pod", pod.clone(), "metadata.name", Some("p"));
    check("", "Pod", pod.clone(), "status.phase", Some(""));
    check("", "Pod", pod.clone(), "spec.hostNetwork", Some("false"));
    check("", "Pod", pod, "spec.image", None);
    check("", "Secret", json!({ "type": "Opaque" }), "type", Some("Opaque"));
    check(
        "apps",
        "ReplicaSet",
        json!({ "status": { "replicas": 3 } }),
        "status.replicas",
        Some("3"),
    );
    check(
        "",
        "Node",
        json!({ "spec": { "unschedulable": true } }),
        "spec.unschedulable",
        Some("true"),
    );
    let event = json!({ "involvedObject": { "kind": "Pod" }, "reportingComponent": "kubelet" });
    check("", "Event", event.clone(), "source", Some("kubelet"));
    check("events.k8s.io", "Event", event, "regarding.kind", Some("Pod"));
}

#[test]
fn names() {
    #[track_caller]
    fn check(group: &str, of: &str, name: &str, prefix: bool, good: bool) {
        let wrong = kind(group, of).hooks.validate_name(name, prefix);
        assert_eq!(wrong.is_empty(), good, "{of} {name:?}: {wrong:?}");
    }
    check("", "Pod", "a.b", false, true);
    check("", "Pod", "a-", false, false);
    check("", "Pod", "a-", true, true);
    check("", "Namespace", "a.b", false, false);
    check("", "Service", "1a", false, false);
    check("rbac.authorization.k8s.io", "ClusterRole", "system:Some", false, true);
    check("rbac.authorization.k8s.io", "ClusterRole", "a/b", false, false);
}

#[test]
fn what_a_write_may_change() {
    #[track_caller]
    fn check(group: &str, of: &str, write: Write<'_>, new: Value, old: Value, expected: Value) {
        let mut written = new;
        kind(group, of).hooks.prepare_update(write, &mut written, &old);
        assert_eq!(written, expected, "{of} {write:?}");
    }
    let old = || json!({ "spec": { "replicas": 1 }, "status": { "replicas": 1 } });
    let new = || json!({ "spec": { "replicas": 2 }, "status": { "replicas": 2 } });
    let main = json!({ "spec": { "replicas": 2 }, "status": { "replicas": 1 } });
    let status = json!({ "spec": { "replicas": 1 }, "status": { "replicas": 2 } });
    check("apps", "Deployment", Write::Main, new(), old(), main);
    check("apps", "Deployment", Write::Sub("status"), new(), old(), status);

    let bound =
        json!({ "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" } });
    let emptied = json!({ "spec": { "finalizers": [] }, "status": { "phase": "Active" } });
    check("", "Namespace", Write::Main, emptied.clone(), bound.clone(), bound.clone());
    check("", "Namespace", Write::Sub("finalize"), emptied.clone(), bound, emptied);

    let signed = json!({ "spec": {}, "status": { "certificate": "c", "conditions": [{ "type": "Approved" }] } });
    let asked = json!({ "spec": {}, "status": {} });
    let approved = json!({ "spec": {}, "status": { "conditions": [{ "type": "Approved" }] } });
    check(
        "certificates.k8s.io",
        "CertificateSigningRequest",
        Write::Sub("approval"),
        signed,
        asked,
        approved,
    );

    // A service keeps what was allocated to it, and gives up what its new type cannot have.
    let node_port = json!({ "spec": { "type": "NodePort", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Cluster",
        "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30080 }] } });
    let silent = json!({ "spec": { "type": "NodePort", "externalTrafficPolicy": "Cluster",
        "ports": [{ "port": 80, "protocol": "TCP" }] } });
    check("", "Service", Write::Main, silent, node_port.clone(), node_port.clone());
    let mut cluster_ip = node_port.clone();
    cluster_ip["spec"]["type"] = "ClusterIP".into();
    let mut expected = cluster_ip.clone();
    expected["spec"].as_object_mut().unwrap().remove("externalTrafficPolicy");
    expected["spec"]["ports"][0].as_object_mut().unwrap().remove("nodePort");
    check("", "Service", Write::Main, cluster_ip, node_port, expected);
}

#[test]
fn pods() {
    let pod = kind("", "Pod");
    let spec = |more: Value| {
        let mut pod = json!({ "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        pod["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod
    };
    for (seconds, grace) in [
        (json!({}), 30),
        (json!({ "terminationGracePeriodSeconds": 5 }), 5),
        (json!({ "terminationGracePeriodSeconds": -3 }), 1),
    ] {
        assert_eq!(pod.hooks.grace_period(&spec(seconds)), Some(grace));
    }
    assert_eq!(kind("", "ConfigMap").hooks.grace_period(&json!({})), None);

    let mut gated =
        spec(json!({ "schedulingGates": [{ "name": "g" }], "status": { "phase": "Running" } }));
    pod.hooks.prepare_create(&mut gated);
    assert_eq!(gated["status"]["phase"], "Pending");
    assert_eq!(gated["status"]["qosClass"], "BestEffort");
    assert_eq!(gated["status"]["conditions"][0]["reason"], "SchedulingGated");

    // Only the resources of a resize are taken over.
    let (old, mut new) = (spec(json!({})), spec(json!({ "nodeName": "elsewhere" })));
    new["spec"]["containers"][0]["resources"] = json!({ "limits": { "cpu": "1" } });
    new["spec"]["containers"][0]["image"] = "other".into();
    pod.hooks.prepare_update(Write::Sub("resize"), &mut new, &old);
    let mut expected = old["spec"].clone();
    expected["containers"][0]["resources"] = json!({ "limits": { "cpu": "1" } });
    assert_eq!(new["spec"], expected);

    let twice =
        spec(json!({ "containers": [{ "name": "c", "env": [{ "name": "A" }, { "name": "A" }] }] }));
    assert_eq!(pod.hooks.warnings(&twice).len(), 1);
    assert_eq!(pod.hooks.warnings(&old), Vec::<String>::new());
}

#[test]
fn unfinished_kinds_say_so() {
    for kind in rimward_control_kinds::builtin() {
        let alive = matches!(
            kind.kind.as_str(),
            "Pod"
                | "Deployment"
                | "ReplicaSet"
                | "Service"
                | "ConfigMap"
                | "Secret"
                | "Namespace"
                | "Node"
                | "ServiceAccount"
                | "Ingress"
                | "Endpoints"
                | "EndpointSlice"
                | "Event"
                | "Lease"
                | "Role"
                | "ResourceQuota"
                | "LimitRange"
                | "ReplicationController"
                | "StatefulSet"
                | "DaemonSet"
                | "ControllerRevision"
                | "Job"
                | "CronJob"
                | "CustomResourceDefinition"
                | "PersistentVolume"
                | "PersistentVolumeClaim"
                | "StorageClass"
                | "RuntimeClass"
        );
        let unfinished = matches!(kind.kind.as_str(), "HorizontalPodAutoscaler" | "NetworkPolicy");
        assert!(!(alive && kind.not_yet.is_some()), "{}", kind.schema);
        assert!(!(unfinished && kind.not_yet.is_none()), "{}", kind.schema);
    }
}

/// A body of the largest size may hold lists of hundreds of thousands of items. Rules that compare
/// each item with all others would hold a core for hours; this test would then not end.
#[test]
fn long_lists_take_linear_time() {
    const LEN: usize = 50_000;
    let many = |item: Value| Value::Array(vec![item; LEN]);
    let numbered =
        |field: &str| -> Value { (0..LEN).map(|i| json!({ field: format!("n{i}") })).collect() };
    let pod = kind("", "Pod");
    for (list, items) in [
        ("containers", numbered("name")),
        ("initContainers", many(json!({ "name": "a" }))),
        ("volumes", numbered("name")),
        ("tolerations", many(json!({ "key": "a", "effect": "NoExecute" }))),
        ("schedulingGates", many(json!({ "name": "a" }))),
        ("topologySpreadConstraints", many(json!({ "topologyKey": "a" }))),
        ("resourceClaims", numbered("name")),
    ] {
        let object = json!({ "metadata": { "name": "p" }, "spec": { list: items } });
        let errors = pod.hooks.validate_create(&object);
        assert!((1..=1000).contains(&errors.len()), "{list}: {}", errors.len());
        pod.hooks.validate_update(Write::Main, &object, &object);
        pod.hooks.warnings(&object);
    }
    for (list, items) in [
        ("ports", many(json!({ "name": "a", "containerPort": 1, "hostPort": 1 }))),
        ("env", many(json!({ "name": "a" }))),
        ("volumeMounts", numbered("name")),
        ("volumeDevices", numbered("name")),
        ("resizePolicy", many(json!({}))),
    ] {
        let object = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", list: items }] } });
        assert!((1..=1000).contains(&pod.hooks.validate_create(&object).len()), "{list}");
        pod.hooks.warnings(&object);
    }
    let rule = json!({ "onExitCodes": { "containerName": "a", "values": [1] } });
    let job = json!({ "spec": {
        "podFailurePolicy": { "rules": many(rule) },
        "template": { "spec": { "containers": numbered("name") } },
    } });
    assert!(!kind("batch", "Job").hooks.validate_create(&job).is_empty());
    let service = json!({ "spec": { "type": "NodePort", "ports": many(json!({ "port": 1, "nodePort": 1 })) } });
    assert!(!kind("", "Service").hooks.validate_update(Write::Main, &service, &service).is_empty());
}
