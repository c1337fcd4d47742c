//! What a node makes of pods that were bound to it past the scheduler, in a whole cluster by kubectl. As root.

use rimward_tests_cluster::pods::{busybox_cluster as cluster, phase, pod, status, until};
use rimward_tests_cluster::{Cluster, skip_without_root};
use serde_json::{Value, json};

/// The condition that tells why a pod was ended by others.
fn disrupted(pod: &Value) -> Value {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let found = conditions.into_iter().find(|c| c["type"] == "DisruptionTarget");
    found.map_or(Value::Null, |condition| condition["reason"].clone())
}

fn told(cluster: &Cluster, pod: &str, reason: &str) -> Value {
    let about = format!("involvedObject.name={pod},reason={reason}");
    cluster.get(&["events", "--field-selector", &about])["items"][0].clone()
}

#[test]
fn what_a_node_does_not_take() {
    if skip_without_root("what_a_node_does_not_take") {
        return;
    }
    let (cluster, image) = cluster();
    let node = cluster.get(&["nodes"])["items"][0].clone();
    let name = node["metadata"]["name"].as_str().expect("a name").to_owned();
    let sleeps = |requests: Value| json!({"image": image, "args": ["exec sleep 3600"], "resources": {"requests": requests}});
    let here = |more: Value| {
        let mut spec = json!({"nodeName": name});
        for (key, value) in more.as_object().expect("fields") {
            spec[key] = value.clone();
        }
        spec
    };
    let fast = || here(json!({"nodeSelector": {"disk": "fast"}}));

    cluster.apply(&pod("elsewhere", sleeps(json!({})), fast()));
    let status_ = phase(&cluster, "elsewhere", "Failed")["status"].clone();
    let why = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    assert_eq!(status_["reason"], "NodeAffinity");
    assert_eq!(status_["message"], format!("Pod was rejected: {why}"));
    let event = told(&cluster, "elsewhere", "NodeAffinity");
    assert_eq!(event["message"], why);
    assert_eq!(event["source"], json!({"component": "kubelet", "host": name}));
    assert_eq!(event["reportingComponent"], "kubelet");

    // A label counts from the moment that it is there, and does not end what runs when it goes.
    cluster.ok(&["label", "node", &name, "disk=fast"]);
    cluster.apply(&pod("fits", sleeps(json!({})), fast()));
    phase(&cluster, "fits", "Running");
    cluster.ok(&["label", "node", &name, "disk-"]);

    // What the node cannot do without makes others go: of those that asked for something.
    cluster.apply(&pod("asks", sleeps(json!({"cpu": "100m"})), here(json!({}))));
    phase(&cluster, "asks", "Running");
    let all = node["status"]["allocatable"]["cpu"].clone();
    let over = here(json!({"priorityClassName": "system-node-critical"}));
    cluster.apply(&pod("critical", sleeps(json!({"cpu": all})), over));
    phase(&cluster, "critical", "Running");
    let gone = phase(&cluster, "asks", "Failed");
    assert_eq!(gone["status"]["reason"], "Preempting");
    assert_eq!(disrupted(&gone), "TerminationByKubelet");
    assert_eq!(status(&cluster, "fits")["restartCount"], 0);
    assert_eq!(cluster.get(&["pod", "fits"])["status"]["phase"], "Running");
    cluster.apply(&pod("late", sleeps(json!({"cpu": "100m"})), here(json!({}))));
    let late = phase(&cluster, "late", "Failed");
    assert_eq!(late["status"]["reason"], "OutOfcpu");
}

#[test]
fn what_the_last_to_end_were() {
    if skip_without_root("what_the_last_to_end_were") {
        return;
    }
    let (cluster, image) = cluster();
    // Each tells of its signal on the file of a volume that outlives them; the pod's last status stays.
    let waits = |name: &str, then: &str| {
        let script = format!(
            "trap '{then}; echo {name} >> /told/order; exit 0' TERM; touch /told/{name}; while :; do sleep 0.1; done"
        );
        json!({"name": name, "image": image, "args": [script],
            "volumeMounts": [{"name": "told", "mountPath": "/told"}]})
    };
    let sidecar = |name: &str| {
        let mut sidecar = waits(name, ":");
        sidecar["restartPolicy"] = json!("Always");
        sidecar["startupProbe"] = json!({"exec": {"command": ["test", "-e", format!("/told/{name}")]}, "periodSeconds": 1});
        sidecar["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", format!("echo hook of {name} >> /told/order")]}}});
        sidecar
    };
    let dir = tempfile::tempdir().expect("a directory");
    let mut polite = waits("main", "sleep 1");
    polite["lifecycle"] = json!({"stopSignal": "SIGTERM"});
    let manifest = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "ordered"},
        "spec": {"os": {"name": "linux"}, "terminationGracePeriodSeconds": 30,
            "volumes": [{"name": "told", "hostPath": {"path": dir.path()}}],
            "initContainers": [sidecar("first"), sidecar("second")],
            "containers": [polite]}});
    cluster.apply(&manifest.to_string());
    let begun = dir.path().join("main");
    until(&cluster, "ordered", "runs", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["running"].is_object() && begun.exists()
    });
    assert_eq!(status(&cluster, "ordered")["stopSignal"], "SIGTERM");
    cluster.ok(&["delete", "pod", "ordered", "--timeout=60s"]);
    let order = std::fs::read_to_string(dir.path().join("order")).expect("they told");
    let order: Vec<&str> = order.lines().collect();
    // The hooks begin with the pod's end; the signals come in the reverse of how they began.
    let (mut hooks, ends) = order.split_at(2);
    let mut sorted = hooks.to_vec();
    sorted.sort_unstable();
    hooks = &sorted;
    assert_eq!(hooks, ["hook of first", "hook of second"]);
    assert_eq!(ends, ["main", "second", "first"]);
}
