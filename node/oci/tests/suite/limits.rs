//! What a container may take, and what its shim takes.

use std::path::Path;

use rimward_node_pod::runtime::{PodLimits, QosClass, Resources, Runtime};

use crate::node::{Node, cgroups, shims, until};
use crate::unified::is_unified;

#[tokio::test]
async fn a_container_that_takes_too_much_memory_is_told_so() {
    let mut node = Node::new().await;
    let mut spec = node.spec("tail /dev/zero");
    spec.linux.qos = QosClass::Burstable;
    spec.resources = Resources { memory_limit_bytes: Some(16 << 20), ..Resources::default() };
    let exit = node.run(&spec).await;
    assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
    // Its child may be what the kernel ends; it still was for memory, and the container's own end counts. In
    // cgroup v2 the kernel ends all of it.
    let mut child = node.spec("tail /dev/zero; exit 0");
    child.resources = spec.resources.clone();
    let expected = if is_unified() { "OOMKilled" } else { "Completed" };
    assert_eq!(node.run(&child).await.reason, expected);
    node.end().await;
}

#[tokio::test]
async fn limits_are_the_kernels() {
    let mut node = Node::new().await;
    let mut spec = node.spec("cat /proc/self/oom_score_adj; cat /proc/self/cgroup; sleep 60");
    spec.linux.qos = QosClass::Burstable;
    spec.resources = Resources {
        memory_limit_bytes: Some(64 << 20),
        cpu_limit_millis: Some(300),
        cpu_request_millis: 100,
    };
    spec.linux.pod = PodLimits {
        cpu_request_millis: 100,
        cpu_limit_millis: Some(300),
        memory_limit_bytes: Some(64 << 20),
    };
    node.runtime.start(spec.clone()).await.unwrap();
    let find = |name: &str| -> Vec<String> {
        let pod = format!("kubepods/burstable/pod{}", spec.id.pod_uid);
        let read = |dir: &Path| std::fs::read_to_string(dir.join(name)).ok();
        cgroups(&node.dir)
            .iter()
            .flat_map(|base| [base.join(&pod).join("main.0"), base.join(&pod)])
            .filter_map(|dir| read(&dir))
            .map(|text| text.trim().to_owned())
            .collect()
    };
    let v2 = is_unified();
    let (memory, cpu) = match v2 {
        true => (find("memory.max"), find("cpu.max")),
        false => (find("memory.limit_in_bytes"), find("cpu.cfs_quota_us")),
    };
    let limit = (64u64 << 20).to_string();
    assert_eq!(memory, [limit.clone(), limit]);
    let swap = if v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
    let none = if v2 { "0".to_owned() } else { (64u64 << 20).to_string() };
    if let Some(of_run) = find(swap).first() {
        assert_eq!(*of_run, none, "containers have no swap");
    }
    let quota = if v2 { "30000 100000" } else { "30000" };
    assert_eq!(cpu, [quota, quota]);
    let usage = node.runtime.usage(&spec.id).await.unwrap();
    assert!(usage.memory_bytes > 0 && usage.memory_bytes < 64 << 20, "{usage:?}");
    until("CPU time is counted", async || {
        node.runtime.usage(&spec.id).await.is_some_and(|usage| usage.cpu_nanos > 0)
    })
    .await;
    let more = Resources {
        memory_limit_bytes: Some(96 << 20),
        cpu_limit_millis: Some(200),
        cpu_request_millis: 200,
    };
    let of_pod = PodLimits {
        cpu_request_millis: 200,
        cpu_limit_millis: Some(200),
        memory_limit_bytes: Some(96 << 20),
    };
    node.runtime.update(&spec.id, &more, &of_pod).await.unwrap();
    let (memory, cpu) = match v2 {
        true => (find("memory.max"), find("cpu.max")),
        false => (find("memory.limit_in_bytes"), find("cpu.cfs_quota_us")),
    };
    let limit = (96u64 << 20).to_string();
    assert_eq!(memory, [limit.clone(), limit.clone()]);
    let quota = if v2 { "20000 100000" } else { "20000" };
    assert_eq!(cpu, [quota, quota]);
    let nothing = Resources { memory_limit_bytes: Some(4096), ..more.clone() };
    let error = node.runtime.update(&spec.id, &nothing, &of_pod).await.unwrap_err();
    assert!(error.message.contains("below current usage"), "{error}");
    assert_eq!(if v2 { find("memory.max") } else { find("memory.limit_in_bytes") }[0], limit);
    let (none, none_of_pod) = (Resources::default(), PodLimits::default());
    node.runtime.update(&spec.id, &none, &none_of_pod).await.unwrap();
    assert_eq!(
        if v2 { find("cpu.max") } else { find("cpu.cfs_quota_us") }[0],
        if v2 { "max 100000" } else { "-1" }
    );
    node.runtime.stop(&spec.id, std::time::Duration::ZERO).await;
    node.exit(&spec.id).await;
    assert_eq!(node.runtime.usage(&spec.id).await, None);
    node.end().await;
}

#[tokio::test]
async fn a_fork_bomb_ends_at_its_pod() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = crate::node::config(dir.path());
    config.pids.pod = 20;
    let mut node = Node::with(config).await;
    let spec = node.spec("for i in $(seq 1 100); do sleep 60 & done; echo unreachable");
    let exit = node.run(&spec).await;
    assert_ne!(exit.code, 0, "{exit:?}");
    node.end().await;
}

#[tokio::test]
async fn a_shim_is_small() {
    let mut node = Node::new().await;
    let spec = node.spec("echo ready; sleep 60");
    node.runtime.start(spec.clone()).await.unwrap();
    node.until_logged(&spec, "ready").await;
    let pids = shims(&node.dir);
    assert_eq!(pids.len(), 1);
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pids[0])).unwrap();
    let kib = |name: &str| -> u64 {
        let line = rollup.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let private = kib("Private_Dirty:") + kib("Private_Clean:");
    println!(
        "a shim's own memory: {} KiB dirty, {private} KiB with its file's pages",
        kib("Private_Dirty:")
    );
    assert!(kib("Private_Dirty:") <= 2048, "{rollup}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", pids[0])).unwrap();
    assert!(status.contains("Threads:\t1\n"), "{status}");
    node.runtime.stop(&spec.id, std::time::Duration::ZERO).await;
    node.exit(&spec.id).await;
    node.end().await;
}
