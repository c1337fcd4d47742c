use serde_json::json;

use super::*;

const PODS: Resource<'_> = ("", "pods");

fn quota(spec: Value, hard: Value, used: Value) -> Value {
    json!({ "metadata": { "name": "q" }, "spec": spec, "status": { "hard": hard, "used": used } })
}

fn pod(requests: Value) -> Value {
    json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": requests } }] } })
}

#[test]
fn what_objects_count() {
    #[track_caller]
    fn check(resource: Resource<'_>, object: Value, expected: Value) {
        assert_eq!(to_value(&usage(resource, &object)), expected);
    }
    check(
        PODS,
        json!({ "spec": { "containers": [
            { "resources": { "requests": { "cpu": "1", "memory": "1Gi", "example.com/gpu": "2", "hugepages-2Mi": "4Mi" }, "limits": { "cpu": "2" } } },
            { "resources": { "requests": { "cpu": "500m" } } },
        ] } }),
        json!({
            "count/pods": "1", "pods": "1", "cpu": "1500m", "requests.cpu": "1500m", "limits.cpu": "2",
            "memory": "1Gi", "requests.memory": "1Gi", "requests.example.com/gpu": "2",
            "hugepages-2Mi": "4Mi", "requests.hugepages-2Mi": "4Mi",
        }),
    );
    let mut ended = pod(json!({ "cpu": "1" }));
    ended["status"] = json!({ "phase": "Failed" });
    check(PODS, ended, json!({ "count/pods": "1" }));
    let service = |spec: Value| json!({ "spec": spec });
    let counts = |ports: &str, balancers: &str| json!({ "count/services": "1", "services": "1", "services.nodeports": ports, "services.loadbalancers": balancers });
    check(("", "services"), service(json!({ "ports": [{}] })), counts("0", "0"));
    check(
        ("", "services"),
        service(json!({ "type": "NodePort", "ports": [{}, {}] })),
        counts("2", "0"),
    );
    check(
        ("", "services"),
        service(
            json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{ "nodePort": 30000 }, {}] }),
        ),
        counts("1", "1"),
    );
    check(
        ("", "persistentvolumeclaims"),
        json!({ "spec": { "storageClassName": "gold", "resources": { "requests": { "storage": "1Gi" } } }, "status": { "allocatedResources": { "storage": "2Gi" } } }),
        json!({
            "count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "2Gi",
            "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
            "gold.storageclass.storage.k8s.io/requests.storage": "2Gi",
        }),
    );
    check(("apps", "deployments"), json!({}), json!({ "count/deployments.apps": "1" }));
    check(("", "secrets"), json!({}), json!({ "count/secrets": "1", "secrets": "1" }));
}

#[test]
fn who_uses_what_up() {
    #[track_caller]
    fn check(name: &str, group: &str, resource: &str) {
        assert_eq!(counted_by(name), Some((group.to_owned(), resource.to_owned())), "{name}");
    }
    check("count/widgets.example.com", "example.com", "widgets");
    check("count/pods", "", "pods");
    check("requests.example.com/gpu", "", "pods");
    check("limits.memory", "", "pods");
    check("requests.storage", "", "persistentvolumeclaims");
    check("gold.storageclass.storage.k8s.io/requests.storage", "", "persistentvolumeclaims");
    check("services.nodeports", "", "services");
    assert_eq!(counted_by("whatever"), None);
}

#[test]
fn scopes() {
    #[track_caller]
    fn check(spec: Value, object: &Value, expected: bool) {
        assert_eq!(matches(&spec, PODS, object), expected, "{spec}");
    }
    let best = pod(json!({}));
    let burst = pod(json!({ "cpu": "1" }));
    check(json!({}), &best, true);
    check(json!({ "scopes": ["BestEffort"] }), &best, true);
    check(json!({ "scopes": ["BestEffort"] }), &burst, false);
    check(json!({ "scopes": ["NotBestEffort", "NotTerminating"] }), &burst, true);
    let mut ending = burst.clone();
    ending["spec"]["activeDeadlineSeconds"] = json!(5);
    check(json!({ "scopes": ["Terminating"] }), &ending, true);
    check(json!({ "scopes": ["NotTerminating"] }), &ending, false);
    let class = |operator: &str, values: Value| json!({ "scopeSelector": { "matchExpressions": [{ "scopeName": "PriorityClass", "operator": operator, "values": values }] } });
    let mut high = best.clone();
    high["spec"]["priorityClassName"] = json!("high");
    check(class("In", json!(["high"])), &high, true);
    check(class("In", json!(["low"])), &high, false);
    check(class("NotIn", json!(["low"])), &best, true);
    check(class("Exists", json!([])), &best, false);
    check(class("DoesNotExist", json!([])), &best, true);
    let mut crossing = best.clone();
    crossing["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!([{ "namespaces": ["x"] }]);
    check(json!({ "scopes": ["CrossNamespacePodAffinity"] }), &crossing, true);
    check(json!({ "scopes": ["CrossNamespacePodAffinity"] }), &best, false);
    let configmap = matches(&json!({ "scopes": ["BestEffort"] }), ("", "configmaps"), &json!({}));
    assert!(!configmap, "scopes are about pods");
}

#[test]
fn charges() {
    #[track_caller]
    fn check(quota: Value, change: Change<'_>, expected: Result<Option<Value>, &str>) {
        assert_eq!(charge(&quota, &change), expected.map_err(str::to_owned));
    }
    let (small, big) =
        (pod(json!({ "cpu": "1", "memory": "1Gi" })), pod(json!({ "cpu": "3", "memory": "1Gi" })));
    let create = |new| Change { resource: PODS, old: None, new: Some(new), enforced: true };
    let hard = json!({ "pods": "2", "requests.cpu": "3" });
    let plain = |used: Value| quota(json!({}), hard.clone(), used);
    check(
        plain(json!({ "pods": "1", "requests.cpu": "1" })),
        create(&small),
        Ok(Some(json!({ "pods": "2", "requests.cpu": "2" }))),
    );
    check(
        plain(json!({ "pods": "2", "requests.cpu": "1" })),
        create(&big),
        Err(
            "exceeded quota: q, requested: pods=1,requests.cpu=3, used: pods=2,requests.cpu=1, limited: pods=2,requests.cpu=3",
        ),
    );
    check(
        plain(json!({ "pods": "2" })),
        create(&small),
        Err("status unknown for quota: q, resources: pods,requests.cpu"),
    );
    let bare = pod(json!({}));
    check(
        plain(json!({ "pods": "0", "requests.cpu": "0" })),
        create(&bare),
        Err("failed quota: q: must specify requests.cpu for: c"),
    );
    let delete = Change { resource: PODS, old: Some(&small), new: None, enforced: false };
    check(
        plain(json!({ "pods": "9", "requests.cpu": "500m" })),
        delete,
        Ok(Some(json!({ "pods": "8", "requests.cpu": "0" }))),
    );
    // A quota lowered below what is used refuses only what grows.
    let (one, two) = (
        json!({ "spec": { "type": "NodePort", "ports": [{}] } }),
        json!({ "spec": { "type": "NodePort", "ports": [{}, {}] } }),
    );
    let ports = || {
        quota(
            json!({}),
            json!({ "services": "1", "services.nodeports": "1" }),
            json!({ "services": "3", "services.nodeports": "1" }),
        )
    };
    let update = |old, new| Change {
        resource: ("", "services"),
        old: Some(old),
        new: Some(new),
        enforced: true,
    };
    check(
        ports(),
        update(&one, &two),
        Err(
            "exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1",
        ),
    );
    check(
        ports(),
        update(&two, &one),
        Ok(Some(json!({ "services": "3", "services.nodeports": "0" }))),
    );
    check(ports(), create(&small), Ok(None));
    // Moving into a scope is charged in full.
    let scoped =
        quota(json!({ "scopes": ["Terminating"] }), json!({ "pods": "1" }), json!({ "pods": "0" }));
    let mut ending = small.clone();
    ending["spec"]["activeDeadlineSeconds"] = json!(5);
    let change = Change { resource: PODS, old: Some(&small), new: Some(&ending), enforced: false };
    check(scoped, change, Ok(Some(json!({ "pods": "1" }))));
}

#[test]
fn what_no_quota_needs_to_be_asked_about() {
    #[track_caller]
    fn check(resource: Resource<'_>, old: &Value, new: &Value, nothing: bool) {
        let change = Change { resource, old: Some(old), new: Some(new), enforced: false };
        assert_eq!(change.counts_nothing(), nothing);
    }
    let old = pod(json!({ "cpu": "1" }));
    let changed = |pointer: &str, value: Value| {
        let mut new = old.clone();
        new[pointer.split('/').next().expect("a part")]
            [pointer.split('/').nth(1).expect("another")] = value;
        new
    };
    check(PODS, &old, &changed("spec/nodeName", json!("n")), true);
    check(PODS, &old, &changed("status/phase", json!("Running")), true);
    check(PODS, &old, &changed("status/phase", json!("Failed")), false);
    check(PODS, &old, &changed("spec/activeDeadlineSeconds", json!(1)), false);
    check(("", "configmaps"), &json!({ "data": { "a": "1" } }), &json!({}), true);
    check(("", "events"), &json!({}), &json!({}), true);
}
