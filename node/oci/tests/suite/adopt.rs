//! Agents come and go; containers stay.

use std::time::Duration;

use rimward_node_pod::runtime::Runtime;

use crate::commands::{request, run};
use crate::node::{Node, leftovers, log, shims};

#[tokio::test]
async fn the_next_agent_finds_what_runs_and_what_ended() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::at(dir.path()).await;
    let long =
        node.spec("echo ready; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo done; exit 3");
    let short = node.spec("exit 9");
    node.runtime.start(long.clone()).await.unwrap();
    node.until_logged(&long, "ready").await;
    let mut node = node;
    node.runtime.start(short.clone()).await.unwrap();
    node.exit(&short.id).await;
    drop(node);

    let mut node = Node::at(dir.path()).await;
    node.known.sort_by(|a, b| a.id.cmp(&b.id));
    let [first, second] = &node.known[..] else { panic!("{:?}", node.known) };
    assert_eq!((&first.id, &first.spec_hash), (&long.id, &long.spec_hash));
    assert!(first.exit.is_none() && first.started_at.is_some());
    assert_eq!(second.exit.as_ref().unwrap().code, 9);
    let (exit, ..) = run(&node, &long.id, request(&["touch", "/tmp/go"], false), "").await;
    assert_eq!(exit.code, 0);
    assert_eq!(node.exit(&long.id).await.code, 3);
    assert_eq!(log(&long), ["stdout F ready", "stdout F done"]);
    node.end().await;
}

#[tokio::test]
async fn a_shim_that_is_killed_takes_its_container_along() {
    let mut node = Node::new().await;
    let spec = node.spec("echo ready; sleep 60");
    node.runtime.start(spec.clone()).await.unwrap();
    node.until_logged(&spec, "ready").await;
    let shim = rustix::process::Pid::from_raw(shims(&node.dir)[0]).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    let exit = node.exit(&spec.id).await;
    assert_eq!((exit.code, exit.reason.as_str()), (137, "ContainerStatusUnknown"));
    node.end().await;
}

#[tokio::test]
async fn what_belongs_to_nothing_goes_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::at(dir.path()).await;
    let spec = node.spec("echo ready; sleep 60");
    node.runtime.start(spec.clone()).await.unwrap();
    node.until_logged(&spec, "ready").await;
    drop(node);
    // As if the node had lost its memory of the pod.
    std::fs::remove_dir_all(dir.path().join("pods")).unwrap();
    let run = dir.path().join("run/oci").join(format!("{}.main.0", spec.id.pod_uid));
    std::fs::remove_file(run.join("spec.json")).unwrap();
    let node = Node::at(dir.path()).await;
    assert!(node.known.is_empty());
    assert!(!run.exists());
    crate::node::until("its shim is gone", async || shims(dir.path()).is_empty()).await;
    node.end().await;
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn many_containers_leave_nothing() {
    let mut node = Node::new().await;
    for round in 0..20 {
        let specs: Vec<_> = (0..5).map(|_| node.spec("echo hi; sleep 60")).collect();
        for spec in &specs {
            node.runtime.start(spec.clone()).await.unwrap();
        }
        for spec in &specs {
            node.runtime.stop(&spec.id, Duration::ZERO).await;
            assert_eq!(node.exit(&spec.id).await.code, 137, "round {round}");
            node.runtime.remove(&spec.id).await;
            node.runtime.release(&spec.id.pod_uid).await;
        }
    }
    node.end().await;
}
