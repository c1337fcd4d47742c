//! The README's walk by hand: one `rimward up`, unchanged kubectl, the greeter example.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rimward_tests_cluster::{Cluster, condition, curl, eventually, is_root, repository};

fn greeter(cluster: &Cluster) {
    let example = repository().join("examples/greeter");
    cluster.push(&example.join("greeter.wasm"), "greeter:v1");
    cluster.apply(&std::fs::read_to_string(example.join("manifest.yaml")).expect("the manifest"));
    cluster.ok(&["rollout", "status", "deployment/greeter", "--timeout=90s"]);
}

/// Where the Service answers: its address, or in user mode the same on loopback.
fn service_url(cluster: &Cluster, user_mode: bool) -> String {
    let service = cluster.get(&["service", "greeter"]);
    let ip = service["spec"]["clusterIP"].as_str().expect("a cluster IP").to_owned();
    match user_mode {
        true => format!("http://{}:8080/", ip.replacen("10.", "127.", 1)),
        false => format!("http://{ip}/"),
    }
}

fn walk(cluster: &Cluster, user_mode: bool) {
    greeter(cluster);
    let wide = cluster.ok(&["get", "pods", "-o", "wide"]);
    assert_eq!(wide.matches("1/1     Running").count(), 3, "{wide}");
    assert!(
        curl(cluster.wrap(), &[&service_url(cluster, user_mode)])
            .starts_with("Hello from greeter-")
    );
    let ingress = format!("http://127.0.0.1:{}/", cluster.port_of("ingress"));
    let answer = curl(cluster.wrap(), &["-H", "Host: greeter.localhost", &ingress]);
    assert!(answer.starts_with("Hello from greeter-"), "{answer}");

    // Logs, followed while requests come.
    let mut follow = cluster
        .kubectl_command(&["logs", "-f", "deployment/greeter", "--all-pods=true"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl runs");
    let mut lines = BufReader::new(follow.stdout.take().expect("stdout is piped")).lines();
    curl(cluster.wrap(), &[&service_url(cluster, user_mode)]);
    // kubectl runs under a time limit, so this ends.
    let line = lines.by_ref().map(|l| l.expect("text")).find(|l| l.ends_with("/ 200"));
    assert!(line.is_some(), "the request shows in the log");
    follow.kill().expect("kubectl ends");
    follow.wait().expect("kubectl ends");

    // Scale, update, undo.
    cluster.ok(&["scale", "deployment/greeter", "--replicas=5"]);
    cluster.ok(&["rollout", "status", "deployment/greeter", "--timeout=90s"]);
    assert_eq!(cluster.get(&["deployment", "greeter"])["status"]["readyReplicas"], 5);
    cluster.ok(&["set", "env", "deployment/greeter", "COLOUR=blue"]);
    cluster.ok(&["rollout", "status", "deployment/greeter", "--timeout=90s"]);
    let history = cluster.ok(&["rollout", "history", "deployment/greeter"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    cluster.ok(&["rollout", "undo", "deployment/greeter"]);
    cluster.ok(&["rollout", "status", "deployment/greeter", "--timeout=90s"]);
    let template = &cluster.get(&["deployment", "greeter"])["spec"]["template"]["spec"];
    assert!(!template.to_string().contains("COLOUR"), "{template}");

    // The ConfigMap reaches running pods.
    let patch = r#"{"data":{"greeting":"Servus"}}"#;
    cluster.ok(&["patch", "configmap", "greeter", "--type=merge", "-p", patch]);
    eventually("the new greeting", || {
        curl(cluster.wrap(), &[&service_url(cluster, user_mode)])
            .starts_with("Servus")
            .then_some(())
    });

    // What one reads.
    let describe = cluster.ok(&["describe", "deployment", "greeter"]);
    assert!(describe.contains("ScalingReplicaSet"), "{describe}");
    let pods = cluster.get(&["pods"]);
    let pod = pods["items"][0]["metadata"]["name"].as_str().expect("a pod").to_owned();
    let describe = cluster.ok(&["describe", "pod", &pod]);
    for word in ["Started", "Pulled", "Scheduled", "Ready             True"] {
        assert!(describe.contains(word), "{word} in {describe}");
    }
    let explained = cluster.ok(&["explain", "pod.spec.containers"]);
    assert!(explained.contains("List of containers belonging to the pod"), "{explained}");
    let resources = cluster.ok(&["api-resources"]);
    assert!(resources.lines().count() > 60, "{resources}");
    assert!(cluster.ok(&["get", "events"]).contains("Normal"));
    cluster.ok(&["wait", "--for=condition=Available", "deployment/greeter", "--timeout=30s"]);
    cluster.ok(&["delete", "deployment", "greeter"]);
    eventually("the pods are gone", || {
        cluster.get(&["pods"])["items"].as_array()?.is_empty().then_some(())
    });
}

#[test]
fn a_walk_with_kubectl() {
    let cluster = Cluster::up();
    walk(&cluster, !is_root());
}

#[test]
fn the_same_walk_in_user_mode() {
    let cluster = Cluster::up_with(&["--user-mode"]);
    walk(&cluster, true);
}

#[test]
fn kill_9_loses_nothing_and_pods_run_on() {
    let cluster = Cluster::up();
    greeter(&cluster);
    let uids = |cluster: &Cluster| -> Vec<(String, i64)> {
        let pods = cluster.get(&["pods", "-l", "app=greeter"]);
        let mut all: Vec<_> = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| {
                let restarts = p["status"]["containerStatuses"][0]["restartCount"].as_i64();
                (
                    p["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
                    restarts.unwrap_or(-1),
                )
            })
            .collect();
        all.sort();
        all
    };
    let before = uids(&cluster);
    assert_eq!(before.len(), 3);
    cluster.ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    let cluster = cluster.kill_and_restart();
    assert_eq!(cluster.get(&["configmap", "kept"])["data"]["a"], "b");
    eventually("all pods Ready again", || {
        let deployment = cluster.get(&["deployment", "greeter"]);
        (deployment["status"]["readyReplicas"] == 3
            && condition(&deployment, "Available") == "True")
            .then_some(())
    });
    assert_eq!(uids(&cluster), before, "no pod was replaced or restarted");
}

#[test]
fn user_mode_with_the_usual_ports() {
    // The Ingress on 8080 must not take that port from pods and Services on their own addresses. The port
    // is free on a host of the test's own; as another user the host is shared, so any port must do.
    let port = if is_root() { "8080" } else { "0" };
    let cluster = Cluster::up_with(&["--user-mode", "--ingress-http-port", port]);
    greeter(&cluster);
    assert!(curl(cluster.wrap(), &[&service_url(&cluster, true)]).starts_with("Hello from"));
}
