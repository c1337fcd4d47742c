//! DaemonSets and StatefulSets on two nodes, with the real kubectl: rollouts, partitions, undo, claims.

use std::collections::BTreeMap;

use rimward_tests_cluster::fleet::Fleet;
use rimward_tests_cluster::{Cluster, condition, eventually, repository, skip_without_root};
use serde_json::{Value, json};

#[test]
fn rollouts_on_two_nodes() {
    if skip_without_root("rollouts_on_two_nodes") {
        return;
    }
    let fleet = Fleet::new();
    let wasm = repository().join("examples/greeter/greeter.wasm");
    fleet.push(&wasm, "greeter:v1");
    fleet.push(&wasm, "greeter:v2");
    one_pod_a_node(&fleet.cluster);
    pods_with_names(&fleet.cluster);
}

fn template(app: &str) -> Value {
    let ready = json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 });
    json!({ "metadata": { "labels": { "app": app } }, "spec": { "terminationGracePeriodSeconds": 1,
        "containers": [{ "name": "c", "image": "greeter:v1", "readinessProbe": ready,
            "ports": [{ "containerPort": 8080 }] }] } })
}

/// Of an app's ready pods that stay: by name, what `of` says.
fn ready(cluster: &Cluster, app: &str, of: fn(&Value) -> &Value) -> BTreeMap<String, String> {
    let pods = cluster.get(&["pods", "-l", &format!("app={app}")]);
    let staying = pods["items"].as_array().into_iter().flatten().filter(|p| {
        p["metadata"]["deletionTimestamp"].is_null() && condition(p, "Ready") == "True"
    });
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    staying.map(|p| (text(&p["metadata"]["name"]), text(of(p)))).collect()
}

fn image(pod: &Value) -> &Value {
    &pod["spec"]["containers"][0]["image"]
}

fn node(pod: &Value) -> &Value {
    &pod["spec"]["nodeName"]
}

fn nodes_of(cluster: &Cluster) -> Vec<String> {
    let mut nodes: Vec<String> = ready(cluster, "d", node).into_values().collect();
    nodes.sort();
    nodes
}

#[track_caller]
fn rolled_out(cluster: &Cluster, what: &str) {
    cluster.ok(&["rollout", "status", what, "--timeout=90s"]);
}

fn one_pod_a_node(cluster: &Cluster) {
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": { "app": "d" } }, "template": template("d") },
    });
    cluster.apply(&set.to_string());
    rolled_out(cluster, "daemonset/d");
    assert_eq!(nodes_of(cluster), ["n1", "n2"]);
    cluster.ok(&["set", "image", "daemonset/d", "c=greeter:v2"]);
    rolled_out(cluster, "daemonset/d");
    let images = ready(cluster, "d", image);
    assert!(images.len() == 2 && images.values().all(|i| i == "greeter:v2"), "{images:?}");
    cluster.ok(&["rollout", "undo", "daemonset/d", "--to-revision=1"]);
    rolled_out(cluster, "daemonset/d");
    let images = ready(cluster, "d", image);
    assert!(images.len() == 2 && images.values().all(|i| i == "greeter:v1"), "{images:?}");
    let history = cluster.ok(&["rollout", "history", "daemonset/d"]);
    let numbers = history.lines().filter_map(|l| l.split_whitespace().next()?.parse().ok());
    assert_eq!(numbers.collect::<Vec<u32>>(), [2, 3], "{history}");
    // It comes back to a node that takes nothing else, and leaves one whose taint it does not bear.
    cluster.ok(&["cordon", "n1"]);
    let pods = ready(cluster, "d", node);
    let (lost, _) = pods.iter().find(|(_, n)| *n == "n1").expect("one is on n1");
    cluster.ok(&["delete", "pod", lost]);
    eventually("another on n1", || (nodes_of(cluster) == ["n1", "n2"]).then_some(()));
    cluster.ok(&["uncordon", "n1"]);
    cluster.ok(&["taint", "node", "n2", "example.com/out=:NoExecute"]);
    eventually("none is left on n2", || (nodes_of(cluster) == ["n1"]).then_some(()));
    rolled_out(cluster, "daemonset/d");
    cluster.ok(&["taint", "node", "n2", "example.com/out-"]);
    eventually("one is on n2 again", || (nodes_of(cluster) == ["n1", "n2"]).then_some(()));
    cluster.ok(&["delete", "daemonset", "d"]);
}

fn pods_with_names(cluster: &Cluster) {
    let mut pods = template("web");
    pods["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "data", "mountPath": "/data" }]);
    let claim = json!({ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": "1Mi" } } } });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "web" },
        "spec": { "replicas": 2, "serviceName": "web", "selector": { "matchLabels": { "app": "web" } },
            "template": pods, "volumeClaimTemplates": [claim],
            "persistentVolumeClaimRetentionPolicy": { "whenScaled": "Delete", "whenDeleted": "Retain" } },
    });
    let images = |expected: &[(&str, &str)]| {
        let wanted =
            expected.iter().map(|(k, v)| ((*k).to_owned(), format!("greeter:{v}"))).collect();
        eventually(&format!("pods are {expected:?}"), || {
            (ready(cluster, "web", image) == wanted).then_some(())
        });
    };
    cluster.apply(&set.to_string());
    rolled_out(cluster, "statefulset/web");
    images(&[("web-0", "v1"), ("web-1", "v1")]);
    let claims = || {
        cluster.ok(&[
            "get",
            "pvc",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}={.status.phase} {end}",
        ])
    };
    assert_eq!(claims().trim(), "data-web-0=Bound data-web-1=Bound");
    // A canary first.
    let partition = |n: u32| {
        let patch =
            format!(r#"{{"spec":{{"updateStrategy":{{"rollingUpdate":{{"partition":{n}}}}}}}}}"#);
        cluster.ok(&["patch", "statefulset", "web", "-p", &patch]);
    };
    partition(1);
    cluster.ok(&["set", "image", "statefulset/web", "c=greeter:v2"]);
    rolled_out(cluster, "statefulset/web");
    images(&[("web-0", "v1"), ("web-1", "v2")]);
    partition(0);
    rolled_out(cluster, "statefulset/web");
    images(&[("web-0", "v2"), ("web-1", "v2")]);
    cluster.ok(&["rollout", "undo", "statefulset/web"]);
    rolled_out(cluster, "statefulset/web");
    images(&[("web-0", "v1"), ("web-1", "v1")]);
    // An update that cannot work waits at the first pod; taken back, that pod has to be deleted by hand.
    cluster.ok(&["set", "image", "statefulset/web", "c=greeter:none"]);
    eventually("web-1 has no image", || {
        let pod = cluster.get(&["pod", "web-1"]);
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        waiting.as_str().is_some_and(|r| r.contains("Image")).then_some(())
    });
    images(&[("web-0", "v1")]);
    cluster.ok(&["rollout", "undo", "statefulset/web"]);
    cluster.ok(&["delete", "pod", "web-1"]);
    rolled_out(cluster, "statefulset/web");
    images(&[("web-0", "v1"), ("web-1", "v1")]);
    // Smaller: the claim goes with its pod. Gone: the other stays.
    cluster.ok(&["scale", "statefulset", "web", "--replicas=1"]);
    eventually("a claim goes", || (claims().trim() == "data-web-0=Bound").then_some(()));
    images(&[("web-0", "v1")]);
    cluster.ok(&["delete", "statefulset", "web"]);
    eventually("its pod goes", || ready(cluster, "web", image).is_empty().then_some(()));
    assert_eq!(claims().trim(), "data-web-0=Bound");
}
