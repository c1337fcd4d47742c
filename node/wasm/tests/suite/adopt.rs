use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rimward_node_pod::runtime::Runtime;

use crate::node::{Node, address, get, log, until};

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // A zombie is not alive, only not yet waited for.
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

/// Not a test: the agent that is killed in the one below, in a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn agent_that_will_be_killed() {
    let Ok(dir) = std::env::var("RIMWARD_TEST_AGENT_DIR") else { return };
    let node = Node::at(Path::new(&dir)).await;
    let handler = node.spec("http-wat-p2.wasm");
    let burner = node.spec("burn-rust-p2.wasm");
    let mut short = node.spec("burn-rust-p2.wasm");
    short.argv.push("3000000000".into());
    for spec in [&handler, &burner, &short] {
        node.runtime.start(spec.clone()).await.unwrap();
    }
    let told = serde_json::json!({ "specs": [handler, burner, short], "hosts": node.runtime.host_pids().await });
    std::fs::write(Path::new(&dir).join("told.new"), told.to_string()).unwrap();
    std::fs::rename(Path::new(&dir).join("told.new"), Path::new(&dir).join("told")).unwrap();
    std::future::pending::<()>().await;
}

fn agent(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "adopt::agent_that_will_be_killed"])
        .env("RIMWARD_TEST_AGENT_DIR", dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_restarts_no_task_and_fails_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = agent(dir.path());
    let told = dir.path().join("told");
    until("the agent has started everything", async || told.exists()).await;
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(told).unwrap()).unwrap();
    let specs: Vec<rimward_node_pod::runtime::ContainerSpec> =
        serde_json::from_value(told["specs"].clone()).unwrap();
    let [handler, burner, short] = &specs[..] else { panic!("three were started") };
    let host = told["hosts"][0].as_u64().unwrap() as u32;

    child.kill().unwrap();
    child.wait().unwrap();
    assert!(alive(host));
    assert!(
        get(address(handler)).await.contains("hello from wat"),
        "requests are answered without an agent"
    );
    until("the short task ends, unseen", async || !log(short).is_empty()).await;

    let mut node = Node::at(dir.path()).await;
    assert_eq!(node.runtime.host_pids().await, [host]);
    let known = |id| node.known.iter().find(|known| &known.id == id).unwrap();
    assert_eq!(known(&handler.id).exit, None);
    assert_eq!(known(&handler.id).spec_hash, handler.spec_hash);
    assert_eq!(known(&burner.id).exit, None);
    let unseen = known(&short.id).exit.clone();
    assert_eq!(
        match unseen {
            Some(exit) => exit.code,
            None => node.exit(&short.id).await.code,
        },
        0
    );

    // It is theirs to stop, and is not started twice.
    node.runtime.start(handler.clone()).await.unwrap();
    node.runtime.stop(&burner.id, Duration::from_secs(1)).await;
    assert_eq!(node.exit(&burner.id).await.code, 143);
    assert!(get(address(handler)).await.contains("hello from wat"));
    node.end().await;
    until("the host is gone", async || !alive(host)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_crashes_takes_its_pods_only() {
    let mut node = Node::new().await;
    let (one, other) = (node.spec("http-wat-p2.wasm"), node.spec("burn-rust-p2.wasm"));
    let mut alone = node.spec("http-wat-p2.wasm");
    alone.runtime_class = "wasm-isolated".into();
    node.runtime.start(one.clone()).await.unwrap();
    node.runtime.start(other.clone()).await.unwrap();
    let shared = node.runtime.host_pids().await;
    assert_eq!(shared.len(), 1);
    node.runtime.start(alone.clone()).await.unwrap();

    kill(shared[0]);
    for spec in [&one, &other] {
        let exit = node.exit(&spec.id).await;
        assert_eq!((exit.code, exit.reason.as_str()), (137, "Error"));
        assert!(exit.message.contains("was ended by signal 9"), "{}", exit.message);
    }
    assert!(get(address(&alone)).await.contains("hello from wat"));

    // The next start brings a new host.
    let mut again = one.clone();
    again.id.attempt = 1;
    node.runtime.remove(&one.id).await;
    node.runtime.start(again.clone()).await.unwrap();
    assert!(get(address(&again)).await.contains("hello from wat"));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_a_host_that_died_unseen_are_known_as_ended() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::at(dir.path()).await;
    let spec = node.spec("burn-rust-p2.wasm");
    node.runtime.start(spec.clone()).await.unwrap();
    let host = node.runtime.host_pids().await[0];
    let record = std::fs::read_dir(dir.path().join("run/wasm-runs"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let kept = std::fs::read(&record).unwrap();
    kill(host);
    until("the host is gone", async || !alive(host)).await;
    drop(node);
    // As if no agent had been there to see it.
    std::fs::write(&record, kept).unwrap();

    let node = Node::at(dir.path()).await;
    let exit = node.known[0].exit.clone().unwrap();
    assert_eq!((node.known[0].id.clone(), exit.code), (spec.id.clone(), 137));
    assert!(exit.message.contains("while no agent ran"), "{}", exit.message);
    node.runtime.remove(&spec.id).await;
    drop(node);
    assert!(Node::at(dir.path()).await.known.is_empty());
}
