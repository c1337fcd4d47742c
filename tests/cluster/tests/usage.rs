//! What nodes and pods use, images from archives, and pods that write more than they may: the real kubectl,
//! real cgroups. As root.

use std::process::Command;

use rimward_tests_cluster::{
    Cluster, binary, busybox, condition, eventually, skip_without_root, text,
};
use serde_json::{Value, json};

/// `rimward image …` on the cluster's machine.
fn image(cluster: &Cluster, args: &[&str]) -> String {
    let dir = cluster.kubeconfig().parent().expect("it lies in a directory").to_owned();
    let output = Command::new(binary("rimward"))
        .arg("image")
        .args(args)
        .arg("--data-dir")
        .arg(dir)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "image {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn pod(name: &str, script: &str, more: Value) -> String {
    let mut container = json!({
        "name": "main", "image": "box:1", "imagePullPolicy": "Never", "args": ["sh", "-c", script],
    });
    let mut spec = json!({ "terminationGracePeriodSeconds": 1 });
    for (key, value) in more.as_object().expect("fields") {
        match key.as_str() {
            "resources" | "volumeMounts" => container[key] = value.clone(),
            _ => spec[key] = value.clone(),
        }
    }
    spec["containers"] = json!([container]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// `250m` of `NAME 250m 12Mi`.
fn millicores(row: &str) -> Option<u64> {
    row.split_whitespace().nth(1)?.strip_suffix('m')?.parse().ok()
}

#[test]
fn usage_archives_and_evictions() {
    if skip_without_root("usage_archives_and_evictions") {
        return;
    }
    let cluster = Cluster::up();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("box.tar");
    busybox::archive("docker-archive", &file, "box:1", json!({ "Env": ["PATH=/bin"] }));
    let file = file.display().to_string();
    let said = image(&cluster, &["import", &file]);
    assert_eq!(said.trim(), "imported docker.io/library/box:1");

    let requests = json!({ "requests": { "memory": "8Mi" } });
    cluster.apply(&pod("busy", "while :; do :; done", json!({ "resources": requests })));
    cluster.apply(&pod("quiet", "sleep 3600", json!({})));
    let limit = json!({ "name": "scratch", "emptyDir": { "sizeLimit": "1Mi" } });
    let mount = json!([{ "name": "scratch", "mountPath": "/scratch" }]);
    let writer = "head -c 3000000 /dev/zero > /scratch/file; sleep 3600";
    cluster.apply(&pod("writer", writer, json!({ "volumes": [limit], "volumeMounts": mount })));
    cluster.ok(&["wait", "--for=condition=Ready", "pod/busy", "pod/quiet", "--timeout=90s"]);

    eventually("kubectl top shows who is busy", || {
        let rows = cluster.kubectl(&["top", "pod", "--no-headers", "--sort-by=cpu"]);
        let rows = text(&rows.stdout);
        let first = rows.lines().next()?;
        (first.starts_with("busy ") && millicores(first)? > 100).then_some(())
    });
    let containers = cluster.ok(&["top", "pod", "-A", "--containers", "--no-headers"]);
    assert!(containers.contains("busy") && containers.contains("main"), "{containers}");
    let node = cluster.ok(&["top", "node", "--no-headers"]);
    assert!(node.contains("Mi") && node.contains('%'), "{node}");
    let table = cluster.ok(&["get", "podmetrics.metrics.k8s.io"]);
    assert!(table.starts_with("NAME") && table.contains("WINDOW"), "{table}");
    let name = cluster.get(&["nodes"])["items"][0]["metadata"]["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    let proxy = format!("/api/v1/nodes/{name}/proxy");
    let summary: Value =
        serde_json::from_str(&cluster.ok(&["get", "--raw", &format!("{proxy}/stats/summary")]))
            .expect("JSON");
    let pods = summary["pods"].as_array().expect("pods");
    let busy = pods.iter().find(|p| p["podRef"]["name"] == "busy").expect("it runs");
    assert!(busy["containers"][0]["memory"]["workingSetBytes"].as_u64() > Some(0), "{busy}");
    assert!(busy["containers"][0]["rootfs"]["usedBytes"].is_u64(), "{busy}");
    let metrics = cluster.ok(&["get", "--raw", &format!("{proxy}/metrics/resource")]);
    assert!(metrics.contains("pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"busy\"}"));

    // What is in use stays; the Node tells of it.
    assert!(image(&cluster, &["list"]).contains("docker.io/library/box:1"));
    let images = cluster.get(&["node", &name])["status"]["images"].to_string();
    assert!(images.contains("docker.io/library/box:1"), "{images}");

    // What writes more than it may is evicted.
    let evicted = eventually("the writer is evicted", || {
        let writer = cluster.get(&["pod", "writer"]);
        (writer["status"]["reason"] == "Evicted").then_some(writer)
    });
    assert_eq!(evicted["status"]["phase"], "Failed");
    let message = evicted["status"]["message"].as_str().unwrap_or_default();
    assert_eq!(
        message.trim_end(),
        "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\"."
    );
    assert_eq!(condition(&evicted, "DisruptionTarget"), "", "it is the pod's own doing");
    assert!(cluster.ok(&["get", "events"]).contains("Evicted"));

    cluster.ok(&["delete", "pod", "--all", "--now"]);
    eventually("the image can be removed", || {
        let done = Command::new(binary("rimward"))
            .args(["image", "rm", "box:1", "--data-dir"])
            .arg(cluster.kubeconfig().parent().expect("it lies in a directory"))
            .output()
            .expect("the binary runs");
        done.status.success().then_some(())
    });
    assert!(!image(&cluster, &["list"]).contains("box:1"));
}
