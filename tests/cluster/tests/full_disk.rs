//! A full disk says where it is full: the node's condition, the pod's status, the API's answer.
//! Small file systems in memory stand for disks. Needs root.

use rimward_tests_cluster::disk::SmallDisk;
use rimward_tests_cluster::hosts::Hosts;
use rimward_tests_cluster::{
    Cluster, Process, binary, condition, eventually, repository, skip_without_root,
};
use serde_json::json;

#[test]
fn a_nodes_full_disk() {
    if skip_without_root("a_nodes_full_disk") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = SmallDisk::at(&dir.path().join("node"), 96);
    let images = SmallDisk::at(&dir.path().join("node/images"), 1);
    let mut cluster =
        Cluster::start_on(Hosts::new(1), dir.path(), &["--eviction-hard", "nodefs.available<5%"]);
    cluster.wait_ready();

    // The image store.
    cluster.push(&repository().join("examples/greeter/greeter.wasm"), "greeter:v1");
    images.fill(0);
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "greeter:v1"}]}})
        .to_string()
    };
    cluster.ok_with(&["create", "-f", "-"], &pod("unpulled"));
    eventually("the pod's status names the place", || {
        let pod = cluster.get(&["pod", "unpulled"]);
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let message = waiting["message"].as_str()?;
        (message.contains("No space left on device") && message.contains("node/images"))
            .then_some(())
    });
    images.free();
    cluster.ok(&["wait", "--for=condition=Ready", "pod/unpulled", "--timeout=90s"]);

    // The node: a condition, a taint, and both go when there is room.
    disk.fill(30);
    let node = || cluster.get(&["nodes"])["items"][0].clone();
    let tainted =
        || node()["spec"]["taints"].to_string().contains("node.kubernetes.io/disk-pressure");
    eventually("DiskPressure", || (condition(&node(), "DiskPressure") == "True").then_some(()));
    eventually("the taint", || tainted().then_some(()));
    let told = cluster.ok(&["describe", "node"]);
    assert!(told.contains("make room there"), "{told}");
    cluster.ok_with(&["create", "-f", "-"], &pod("elsewhere"));
    eventually("no pod comes to a full disk", || {
        (condition(&cluster.get(&["pod", "elsewhere"]), "PodScheduled") == "False").then_some(())
    });
    disk.free();
    eventually("room again", || (!tainted()).then_some(()));
    cluster.ok(&["wait", "--for=condition=Ready", "pod/elsewhere", "--timeout=90s"]);
    drop(cluster);
}

#[test]
fn a_control_planes_full_disk() {
    if skip_without_root("a_control_planes_full_disk") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = SmallDisk::at(&dir.path().join("control/store"), 64);
    let mut command = std::process::Command::new(binary("rimward-control"));
    command.args(["control", "--listen", "127.0.0.1", "--tunnel-port", "0", "--api-port", "0"]);
    command.arg("--data-dir").arg(dir.path());
    let process = Process::start("control", dir.path(), command);
    let mut cluster = Cluster::of(process, dir.path(), Vec::new());
    cluster.wait_api();
    cluster.ok(&["create", "configmap", "before", "--from-literal=a=b"]);
    disk.fill(0);
    let said = cluster.refused(&["create", "configmap", "full", "--from-literal=a=b"], "");
    assert!(said.contains("control/store") && said.contains("free some space"), "{said}");
    assert_eq!(cluster.get(&["configmap", "before"])["data"]["a"], "b", "reading goes on");
    cluster.ok(&["delete", "configmap", "before"]);
    disk.free();
    eventually("writing goes on, without a restart", || {
        let made = cluster.kubectl(&["create", "configmap", "after", "--from-literal=a=b"]);
        made.status.success().then_some(())
    });
    assert!(cluster.process.stop().success());
}
