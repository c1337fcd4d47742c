//! Small pods of Linux containers, and what becomes of them.

use serde_json::{Value, json};

use crate::{Cluster, busybox, eventually, text};

/// A cluster, and an image of busybox in its registry.
pub fn busybox_cluster() -> (Cluster, String) {
    let cluster = Cluster::up();
    let image = busybox::push(
        &cluster,
        "busybox:v1",
        json!({
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["echo from the image; sleep 3600"],
            "Env": ["PATH=/bin", "COLOUR=green"],
            "WorkingDir": "/tmp",
        }),
    );
    (cluster, image)
}

/// A pod of one container, `main`.
pub fn pod(name: &str, container: Value, more: Value) -> String {
    let mut containers = container;
    containers["name"] = json!("main");
    let mut spec = json!({"containers": [containers], "terminationGracePeriodSeconds": 2});
    for (key, value) in more.as_object().expect("fields") {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// Of a pod's first container.
pub fn status(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&["pod", name])["status"]["containerStatuses"][0].clone()
}

/// Waits for the end of a pod's first container.
pub fn terminated(cluster: &Cluster, name: &str) -> Value {
    eventually(&format!("{name} ends"), || {
        let state = status(cluster, name)["state"]["terminated"].clone();
        state.is_object().then_some(state)
    })
}

/// Waits until a pod is as the test wants.
#[track_caller]
pub fn until(cluster: &Cluster, name: &str, what: &str, test: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{name} {what}"), || {
        let pod = cluster.get(&["pod", name]);
        test(&pod).then_some(pod)
    })
}

/// Waits for a pod's phase.
#[track_caller]
pub fn phase(cluster: &Cluster, name: &str, phase: &str) -> Value {
    until(cluster, name, phase, |pod| pod["status"]["phase"] == phase)
}

/// Waits for the reason why a pod's first container waits; answers the message.
#[track_caller]
pub fn waiting(cluster: &Cluster, name: &str, reason: &str) -> String {
    let state = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let pod = until(cluster, name, reason, |pod| state(pod)["reason"] == reason);
    state(&pod)["message"].as_str().unwrap_or_default().to_owned()
}

/// All that a pod's containers have printed; empty while there is nothing to read.
pub fn printed(cluster: &Cluster, name: &str) -> String {
    text(&cluster.kubectl(&["logs", name, "--all-containers"]).stdout)
}
