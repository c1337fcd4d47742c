//! Containers by runc beside others, on one node.

use std::time::Duration;

use rimward_node_oci::LowLevel;
use rimward_node_pod::runtime::{ContainerSpec, Output, Runtime, Seccomp, Streams};
use tokio::io::AsyncReadExt;

use crate::commands::{request, run};
use crate::node::{Node, config, leftovers};

/// What made a run: the directory of its state.
fn has_state(node: &Node, spec: &ContainerSpec, name: &str) -> bool {
    let run = format!("{}.{}.{}", spec.id.pod_uid, spec.id.container, spec.id.attempt);
    node.dir.join("run/oci").join(run).join(name).exists()
}

#[tokio::test]
async fn a_pod_chooses_it_by_its_class_and_an_agent_keeps_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.low_level = LowLevel::Libcontainer;
    let node = Node::with(config.clone()).await;
    let names = |node: &Node| -> Vec<&str> {
        node.runtime.handlers().iter().map(|handler| handler.name).collect()
    };
    assert_eq!(names(&node), ["runc", "oci"]);
    let script = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'; ulimit -n; \
                  unshare -U true 2>/dev/null || echo refused; echo ready; until [ -e /tmp/go ]; do sleep 0.05; done; exit 6";
    let plain = node.spec(script);
    let mut classed = node.spec(script);
    classed.runtime_class = "runc".into();
    let both = [(plain, "lc", "runc"), (classed, "runc", "lc")].map(|(mut spec, own, other)| {
        spec.linux.seccomp = Seccomp::RuntimeDefault;
        spec.linux.no_new_privileges = true;
        (spec, own, other)
    });
    for (spec, own, other) in &both {
        node.runtime.start(spec.clone()).await.unwrap();
        node.until_logged(spec, "ready").await;
        assert!(has_state(&node, spec, own) && !has_state(&node, spec, other), "{own}");
    }
    let logs = both.each_ref().map(|(spec, ..)| crate::node::log(spec));
    assert_eq!(logs[0], logs[1], "what it may do is the same");
    assert!(logs[0].contains(&"stdout F Seccomp:2".to_owned()), "{:?}", logs[0]);

    // The next agent has another default, and tends both as they are.
    drop(node);
    config.low_level = LowLevel::Runc(config.runc.clone().unwrap());
    let mut node = Node::with(config.clone()).await;
    for (spec, ..) in &both {
        let go = request(&["touch", "/tmp/go"], false);
        let (exit, _, err) = run(&node, &spec.id, go, "").await;
        assert_eq!((exit.code, err.as_str()), (0, ""));
        assert_eq!(node.exit(&spec.id).await.code, 6);
    }
    let next = node.spec("exit 0");
    node.run(&next).await;
    assert!(has_state(&node, &next, "runc"));

    // And one that has no runc starts nothing in its place.
    drop(node);
    (config.low_level, config.runc) = Default::default();
    let node = Node::with(config).await;
    assert_eq!(names(&node), ["oci"]);
    let mut orphan = node.spec("exit 0");
    orphan.runtime_class = "runc".into();
    let error = node.runtime.start(orphan).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "CreateContainerError: the runtime handler \"runc\" is not on this node"
    );
    node.end().await;
}

#[tokio::test]
async fn what_it_says_is_what_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.low_level = LowLevel::Runc(config.runc.clone().unwrap());
    let mut node = Node::with(config).await;
    let error = node.runtime.start(node.spec_of(&["nosuch"])).await.unwrap_err();
    let why =
        "unable to start container process: exec: \"nosuch\": executable file not found in $PATH";
    assert_eq!(error.to_string(), format!("RunContainerError: runc create failed: {why}"));
    let spec = node.spec("echo ready; sleep 60");
    node.runtime.start(spec.clone()).await.unwrap();
    node.until_logged(&spec, "ready").await;
    for tty in [false, true] {
        let (out, mut printed) = tokio::io::duplex(1 << 16);
        let (err, mut odd) = tokio::io::duplex(1 << 16);
        let streams = Streams {
            stdout: Some(Box::new(out)),
            stderr: (!tty).then(|| Box::new(err) as Output),
            ..Default::default()
        };
        let error = node.runtime.exec(&spec.id, request(&["nosuch"], tty), streams).await;
        let expected = format!("ExecFailed: failed to exec in container: exec failed: {why}");
        assert_eq!(error.unwrap_err().to_string(), expected);
        // It is said once.
        let mut text = String::new();
        printed.read_to_string(&mut text).await.unwrap();
        odd.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "");
    }
    node.runtime.stop(&spec.id, Duration::ZERO).await;
    node.exit(&spec.id).await;
    let run = dir.path().join("run/oci").join(format!("{}.main.0", spec.id.pod_uid));
    let mut files: Vec<_> = std::fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let of_calls = |name: &&String| name.starts_with("exec-") || name.starts_with("runc");
    assert_eq!(files.iter().filter(of_calls).collect::<Vec<_>>(), ["runc"], "{files:?}");
    // What a runc leaves that is killed while it mounts itself there.
    std::fs::write(run.join("runc/c/runc.abcdef"), "").unwrap();
    rustix::mount::mount_bind("/bin/true", run.join("runc/c/runc.abcdef")).unwrap();
    node.runtime.remove(&spec.id).await;
    assert!(!run.exists(), "{:?}", leftovers(dir.path()));
    node.end().await;
}
