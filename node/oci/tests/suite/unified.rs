//! What only cgroup v2 has, and what it wants. Machines without it have the rest of this suite.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rimward_node_oci::Swap;
use rimward_node_pod::runtime::{ContainerSpec, PodLimits, QosClass, Resources, Runtime};

use crate::commands::{request, run};
use crate::node::{Node, cgroups, config, shims, until};

/// Whether cgroup v2 alone is what limits.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Says loudly that a test does nothing here.
fn skip_without(what: &str, there: bool, test: &str) -> bool {
    if !there {
        eprintln!("SKIPPED {test}: it needs {what}: run scripts/test-in-vm");
    }
    !there
}

/// A row of /proc/meminfo in bytes.
fn machine(row: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(row)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A container that asks for CPU and memory, and waits.
fn burstable(node: &Node, script: &str) -> ContainerSpec {
    let mut spec = node.spec(script);
    spec.linux.qos = QosClass::Burstable;
    spec.resources = Resources {
        memory_limit_bytes: Some(64 << 20),
        cpu_limit_millis: Some(500),
        cpu_request_millis: 100,
    };
    spec.linux.pod = PodLimits {
        cpu_request_millis: 100,
        cpu_limit_millis: Some(500),
        memory_limit_bytes: Some(64 << 20),
    };
    spec
}

async fn start(node: &Node, spec: &ContainerSpec) {
    node.runtime.start(spec.clone()).await.unwrap();
}

async fn end(node: &mut Node, spec: &ContainerSpec) {
    node.runtime.stop(&spec.id, Duration::ZERO).await;
    node.exit(&spec.id).await;
}

fn read(dir: impl AsRef<Path>, file: &str) -> String {
    let path = dir.as_ref().join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

fn kubepods(node: &Node) -> PathBuf {
    let base = cgroups(&node.dir);
    assert_eq!(base.len(), 1, "{base:?}");
    base[0].join("kubepods")
}

#[tokio::test]
async fn files_of_the_unified_hierarchy() {
    let test = "files_of_the_unified_hierarchy";
    if skip_without("cgroup v2", is_unified(), test) {
        return;
    }
    let mut node = Node::new().await;
    let script = "cat /proc/self/cgroup; cd /sys/fs/cgroup; cat cgroup.controllers memory.max memory.swap.max \
                  cpu.max cpu.weight memory.oom.group memory.high memory.min; \
                  mkdir sub 2>&1; echo ready; sleep 60";
    let spec = burstable(&node, script);
    start(&node, &spec).await;
    node.until_logged(&spec, "ready").await;
    let log = crate::node::log(&spec);
    let said: Vec<&str> = log.iter().map(|line| &line["stdout F ".len()..]).collect();
    assert_eq!(said[0], "0::/", "it sees its own cgroup as the root");
    for controller in ["cpu", "memory", "pids", "cpuset", "io"] {
        assert!(said[1].split(' ').any(|name| name == controller), "{controller}: {said:?}");
    }
    let rest = &said[2..];
    let expected = ["67108864", "0", "50000 100000", "17", "1", "max", "0"];
    assert_eq!(rest[..expected.len()], expected);
    assert!(rest[expected.len()].contains("Read-only file system"), "{said:?}");
    let (exit, out, _) =
        run(&node, &spec.id, request(&["cat", "/proc/self/cgroup"], false), "").await;
    assert_eq!((exit.code, out.as_str()), (0, "0::/\n"), "commands are in the same cgroup");

    // Above it: the pod, its class and the other one, as the kubelet weighs them.
    let (pods, uid) = (kubepods(&node), spec.id.pod_uid.clone());
    let pod = pods.join("burstable").join(format!("pod{uid}"));
    assert_eq!(read(&pod, "memory.max"), "67108864");
    assert_eq!(read(&pod, "cpu.max"), "50000 100000");
    assert_eq!(read(&pod, "cpu.weight"), "4");
    assert_eq!(read(pods.join("burstable"), "cpu.weight"), "4");
    let other = node.spec("sleep 60");
    start(&node, &other).await;
    assert_eq!(read(pods.join("besteffort"), "cpu.weight"), "1");
    assert_eq!(read(pods.join("burstable"), "cpu.weight"), "4");
    let cores = std::thread::available_parallelism().unwrap().get() as u64;
    let whole = (1 + (cores * 1024 - 2) * 9999 / 262_142).to_string();
    assert_eq!(read(&pods, "cpu.weight"), whole);
    assert_eq!(read(pods.parent().unwrap(), "cpu.weight"), whole);
    // Nothing is in a cgroup that hands on controllers.
    for dir in [&pod, &pods, pods.parent().unwrap()] {
        assert_eq!(read(dir, "cgroup.procs"), "");
    }

    // Shims are not where the agent is, which a service manager ends with all that is there.
    let tending = read(pods.parent().unwrap().join("shims"), "cgroup.procs");
    let mut tending: Vec<i32> = tending.lines().map(|pid| pid.parse().unwrap()).collect();
    let mut all = shims(&node.dir);
    tending.sort_unstable();
    all.sort_unstable();
    assert_eq!(tending, all);
    assert_eq!(all.len(), 2);

    let more = Resources { cpu_request_millis: 200, ..spec.resources.clone() };
    let of_pod = PodLimits { cpu_request_millis: 200, ..spec.linux.pod.clone() };
    node.runtime.update(&spec.id, &more, &of_pod).await.unwrap();
    assert_eq!(read(pod.join("main.0"), "cpu.weight"), "29", "more than before");
    assert_eq!(read(&pod, "cpu.weight"), "8");
    assert_eq!(read(pods.join("burstable"), "cpu.weight"), "8");

    let usage = node.runtime.usage(&spec.id).await.unwrap();
    assert!(usage.cpu_nanos > 0 && usage.memory_bytes > 0, "{usage:?}");
    if Path::new("/proc/pressure/cpu").exists() {
        assert!(usage.pressure.is_some(), "{usage:?}");
        assert!(node.runtime.pressure(&uid).await.is_some());
    }
    end(&mut node, &spec).await;
    node.runtime.remove(&spec.id).await;
    node.runtime.release(&uid).await;
    assert_eq!(read(pods.join("burstable"), "cpu.weight"), "1");
    node.end().await;
}

#[tokio::test]
async fn who_is_killed_for_memory_is_killed_whole() {
    let test = "who_is_killed_for_memory_is_killed_whole";
    if skip_without("cgroup v2", is_unified(), test) {
        return;
    }
    let mut node = Node::new().await;
    let mut spec = burstable(&node, "tail /dev/zero; echo survived; sleep 60");
    spec.resources.memory_limit_bytes = Some(16 << 20);
    let exit = node.run(&spec).await;
    assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(crate::node::log(&spec), Vec::<String>::new());
    // Its pod has too little for two containers that each have enough: only one of them ends.
    let mut one = node.spec("echo ready; sleep 60");
    one.linux.pod.memory_limit_bytes = Some(24 << 20);
    let two = crate::sharing::beside(&one, "greedy", "tail /dev/zero");
    start(&node, &one).await;
    node.until_logged(&one, "ready").await;
    let exit = node.run(&two).await;
    assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
    assert!(node.runtime.usage(&one.id).await.is_some(), "the other goes on");
    end(&mut node, &one).await;
    node.end().await;
}

#[tokio::test]
async fn swap_is_had_by_who_asks_for_memory() {
    let test = "swap_is_had_by_who_asks_for_memory";
    let swap = machine("SwapTotal:");
    if skip_without("cgroup v2 and swap", is_unified() && swap > 0, test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.swap = Swap::Limited;
    let mut node = Node::with(settings).await;
    // Takes 48 MiB where 32 MiB are memory, and keeps them. Not zeros, which the kernel would not keep.
    let script = "head -c 50331648 /dev/urandom > /dev/shm/file; sleep 60";
    let asks = |node: &Node, may_swap| {
        let mut spec = burstable(node, script);
        spec.linux.memory_request_bytes = machine("MemTotal:") / 4;
        spec.linux.may_swap = may_swap;
        spec.resources.memory_limit_bytes = Some(32 << 20);
        spec
    };
    let swapping = asks(&node, true);
    start(&node, &swapping).await;
    let pod = kubepods(&node).join("burstable").join(format!("pod{}", swapping.id.pod_uid));
    let max: u64 = read(pod.join("main.0"), "memory.swap.max").parse().unwrap();
    assert_eq!(max, swap / 4 / 4096 * 4096, "a quarter, in whole pages");
    let mut used = 0;
    until("it is swapped out", async || {
        let usage = node.runtime.usage(&swapping.id).await.unwrap().swap.unwrap();
        assert_eq!(usage.limit_bytes, Some(max));
        used = usage.used_bytes;
        used > 8 << 20
    })
    .await;
    end(&mut node, &swapping).await;
    // What has none is killed.
    let bounded = asks(&node, false);
    assert_eq!(node.run(&bounded).await.reason, "OOMKilled");
    node.end().await;
}

#[tokio::test]
async fn huge_pages_are_for_who_asks_for_them() {
    let test = "huge_pages_are_for_who_asks_for_them";
    let there = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists();
    if skip_without("cgroup v2 and huge pages", is_unified() && there, test) {
        return;
    }
    let mut node = Node::new().await;
    let script = "cat /sys/fs/cgroup/hugetlb.2MB.max /sys/fs/cgroup/hugetlb.2MB.rsvd.max";
    let none = node.spec(script);
    assert_eq!(node.output(&none).await, ["0", "0"]);
    let mut some = node.spec(script);
    some.linux.huge_pages = vec![(2 << 20, 4 << 20)];
    assert_eq!(node.output(&some).await, ["4194304", "4194304"]);
    node.end().await;
}

#[tokio::test]
async fn a_container_may_have_cgroups_of_its_own() {
    let test = "a_container_may_have_cgroups_of_its_own";
    if skip_without("cgroup v2", is_unified(), test) {
        return;
    }
    let mut node = Node::new().await;
    // As service managers and container engines in containers do it.
    let script = "cd /sys/fs/cgroup; mkdir init; echo 1 > init/cgroup.procs; echo $$ > init/cgroup.procs; \
                  echo +memory > cgroup.subtree_control; cat cgroup.subtree_control; echo ready; \
                  while :; do sleep 60; done";
    let mut spec = node.spec(script);
    spec.linux.privileged = true;
    start(&node, &spec).await;
    node.until_logged(&spec, "ready").await;
    let log = crate::node::log(&spec);
    assert!(log.contains(&"stdout F memory".to_owned()), "{log:?}");
    let (exit, out, err) =
        run(&node, &spec.id, request(&["cat", "/proc/self/cgroup"], false), "").await;
    assert_eq!((exit.code, out.as_str(), err.as_str()), (0, "0::/init\n", ""));
    end(&mut node, &spec).await;
    node.end().await;
}

#[tokio::test]
async fn a_node_may_itself_be_in_a_container() {
    let test = "a_node_may_itself_be_in_a_container";
    if skip_without("cgroup v2", is_unified(), test) {
        return;
    }
    // A cgroup with this test's processes in it is the root of what the node sees.
    let outer = PathBuf::from(format!("/sys/fs/cgroup/test-{}", std::process::id()));
    for controller in ["+cpu", "+memory", "+pids", "+io", "+cpuset", "+hugetlb"] {
        std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", controller).unwrap();
    }
    std::fs::create_dir(&outer).unwrap();
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --cgroup --mount sh -c '
         umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
         cat /proc/self/cgroup && exec \"$0\" --exact --nocapture \
         unified::files_of_the_unified_hierarchy limits::limits_are_the_kernels' \"$0\"",
        outer.display()
    );
    let test_binary = std::env::current_exe().unwrap();
    let output = Command::new("sh").arg("-c").arg(script).arg(test_binary).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{wrong}");
    assert!(said.starts_with("0::/\n") && said.contains("2 passed"), "{said}");
    std::fs::remove_dir(outer.join("init")).unwrap();
    std::fs::remove_dir(outer).unwrap();
}
