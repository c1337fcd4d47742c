//! What containers of a pod share with each other, and with the machine.

use std::time::Duration;

use rimward_node_pod::runtime::{ContainerSpec, Runtime};

use crate::node::Node;

/// Another container of the same pod.
pub fn beside(spec: &ContainerSpec, name: &str, script: &str) -> ContainerSpec {
    let mut other = spec.clone();
    other.id.container = name.into();
    let pod_dir = spec.log_path.parent().unwrap().parent().unwrap();
    let logs = pod_dir.join(name);
    std::fs::create_dir_all(&logs).unwrap();
    other.log_path = logs.join("0.log");
    other.argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    other
}

#[tokio::test]
async fn containers_that_share_their_processes_see_and_end_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::at(dir.path()).await;
    let mut main =
        node.spec("trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.1; done");
    main.linux.share_processes = true;
    node.runtime.start(main.clone()).await.unwrap();
    node.until_logged(&main, "ready").await;
    let script = "head -1 /proc/1/status; ls -A /proc/1/root 2>/dev/null | wc -l; kill -9 1; \
                  for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || ! grep -q 'asked' $p/cmdline || kill ${p#/proc/}; done";
    let mut other = beside(&main, "other", script);
    other.linux.capabilities_add = vec!["SYS_PTRACE".into()];
    let lines = node.output(&other).await;
    assert_eq!(lines, ["Name:\tpause", "0"], "the first process shows nothing of the machine");
    assert_eq!(node.exit(&main.id).await.code, 3);

    // The next agent finds what the pod shares.
    drop(node);
    let mut node = Node::at(dir.path()).await;
    let mut again = beside(
        &main,
        "main",
        "sleep 60 & until grep -q 60 /proc/$!/cmdline; do :; done; echo ready; wait",
    );
    again.id.attempt = 1;
    again.log_path.set_file_name("1.log");
    node.runtime.start(again.clone()).await.unwrap();
    node.until_logged(&again, "ready").await;
    let sees = beside(
        &main,
        "sees",
        "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cx '6[0]'; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true",
    );
    assert_eq!(node.output(&sees).await, ["1", "max"]);
    node.runtime.stop(&again.id, Duration::ZERO).await;
    node.exit(&again.id).await;
    node.end().await;
}

#[tokio::test]
async fn a_pod_has_the_machines_namespaces_where_it_asks_for_them() {
    let mut node = Node::new().await;
    let script = "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc";
    let of_machine =
        ["pid", "ipc"].map(|kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
    let of_machine = of_machine.map(|link| link.to_str().unwrap().to_owned());
    let own = node.spec(script);
    let lines = node.output(&own).await;
    assert!(lines[0] != of_machine[0] && lines[1] != of_machine[1], "{lines:?}");
    let mut host =
        node.spec(&format!("{script}; tr '\\0' ' ' < /proc/{}/cmdline", std::process::id()));
    (host.linux.host_pid, host.linux.host_ipc) = (true, true);
    let lines = node.output(&host).await;
    assert_eq!(lines[..2], of_machine);
    let own = std::env::args().next().unwrap();
    assert!(lines.last().unwrap().starts_with(&own), "the machine's processes: {lines:?}");
    node.end().await;
}
