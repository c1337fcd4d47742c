//! What only a machine with cgroup v2 alone, swap, huge pages and an NFS server shows, in whole clusters by
//! kubectl. `scripts/test-in-vm` runs it; elsewhere it says so.

use std::path::Path;

use rimward_tests_cluster::busybox;
use rimward_tests_cluster::{Cluster, condition, eventually, skip_without_vm};
use serde_json::{Value, json};

/// The node is on the machine's own network, where the NFS server is.
fn cluster(dir: &Path, extra: &[&str]) -> (Cluster, String) {
    let mut cluster = Cluster::start_in(dir, extra);
    cluster.wait_ready();
    let run = json!({"Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"]});
    let image = busybox::push(&cluster, "busybox:v1", run);
    (cluster, image)
}

fn pod(name: &str, mut spec: Value) -> String {
    spec["terminationGracePeriodSeconds"] = json!(1);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A pod of one container; what is not the container's own is the pod's.
fn one(name: &str, image: &str, script: &str, more: Value) -> String {
    let mut container = json!({"name": "main", "image": image, "args": [script]});
    let mut spec = json!({});
    for (key, value) in more.as_object().expect("fields") {
        match key.as_str() {
            "resources" | "volumeMounts" | "resizePolicy" => container[key] = value.clone(),
            _ => spec[key] = value.clone(),
        }
    }
    spec["containers"] = json!([container]);
    pod(name, spec)
}

fn wait_ready(cluster: &Cluster, pods: &[&str]) {
    let pods: Vec<String> = pods.iter().map(|name| format!("pod/{name}")).collect();
    let words = ["wait", "--for=condition=Ready", "--timeout=400s"];
    let words: Vec<&str> = words.into_iter().chain(pods.iter().map(String::as_str)).collect();
    cluster.ok(&words);
}

fn sh(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.ok(&["exec", pod, "-c", "main", "--", "sh", "-c", script]).trim().to_owned()
}

/// A row of /proc/meminfo in bytes.
fn machine(row: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("it is there");
    let line = text.lines().find_map(|line| line.strip_prefix(row)).expect("the row is there");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn messages(cluster: &Cluster, pod: &str, reason: &str) -> Option<String> {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let path = "jsonpath={.items[*].message}";
    let found = cluster.ok(&["get", "events", "--field-selector", &selector, "-o", path]);
    (!found.is_empty()).then_some(found)
}

#[test]
fn memory_of_all_kinds() {
    if skip_without_vm("memory_of_all_kinds") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (cluster, image) = cluster(dir.path(), &["--limited-swap"]);
    let node = cluster.get(&["nodes"])["items"][0].clone();
    let status = &node["status"];
    assert_eq!(status["capacity"]["hugepages-2Mi"], "128Mi");
    assert_eq!(status["allocatable"]["hugepages-2Mi"], "128Mi");
    assert_eq!(status["capacity"]["hugepages-1Gi"], "0");
    assert_eq!(status["nodeInfo"]["swap"]["capacity"], json!(machine("SwapTotal:")));

    // Swap, by what a container asks for of memory.
    let memory = |request: &str, limit: &str| {
        json!({"resources": {"requests": {"memory": request, "cpu": "50m"},
                             "limits": {"memory": limit, "cpu": "1"}}})
    };
    let wait = "sleep 3600";
    cluster.apply(&one("swaps", &image, wait, memory("256Mi", "512Mi")));
    let mut critical = memory("256Mi", "512Mi");
    critical["priorityClassName"] = json!("system-node-critical");
    cluster.apply(&one("critical", &image, wait, critical));
    cluster.apply(&one("same", &image, wait, memory("64Mi", "64Mi")));
    cluster.apply(&one("anything", &image, wait, json!({})));
    // Huge pages, as files and as a limit.
    let mut huge = json!({"resources": {"limits": {"hugepages-2Mi": "8Mi", "memory": "64Mi", "cpu": "100m"}},
        "volumeMounts": [{"name": "huge", "mountPath": "/huge"}]});
    huge["volumes"] = json!([{"name": "huge", "emptyDir": {"medium": "HugePages"}}]);
    cluster.apply(&one("huge", &image, wait, huge.clone()));
    huge["resources"]["limits"]["hugepages-2Mi"] = json!("124Mi");
    cluster.apply(&one("larger", &image, wait, huge));
    // Secrets are never on a disk.
    cluster.ok(&["create", "secret", "generic", "secret", "--from-literal=key=word"]);
    let secret = json!({"volumeMounts": [{"name": "secret", "mountPath": "/secret"}, {"name": "memory", "mountPath": "/memory"}],
        "volumes": [{"name": "secret", "secret": {"secretName": "secret"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]});
    cluster.apply(&one("secret", &image, wait, secret));
    // More memory than it may have: all of the container ends, and says why.
    let greedy = "(tail /dev/zero); echo survived; sleep 3600";
    cluster.apply(&one("greedy", &image, greedy, memory("16Mi", "24Mi")));

    wait_ready(&cluster, &["swaps", "critical", "same", "anything", "huge", "secret"]);
    let limit = |pod: &str| sh(&cluster, pod, "cat /sys/fs/cgroup/memory.swap.max");
    let share = machine("SwapTotal:") * (256 << 20) / machine("MemTotal:") / 4096 * 4096;
    assert_eq!(limit("swaps"), share.to_string());
    for none in ["critical", "same", "anything"] {
        assert_eq!(limit(none), "0", "{none}");
    }
    let mounted = sh(&cluster, "huge", "grep ' /huge ' /proc/mounts");
    assert!(mounted.contains("hugetlbfs") && mounted.contains("pagesize=2M"), "{mounted}");
    let taken = "fallocate -l 4194304 /huge/a; cat /sys/fs/cgroup/hugetlb.2MB.current /sys/fs/cgroup/hugetlb.2MB.max; \
                 fallocate -l 16777216 /huge/b 2>&1; cat /sys/fs/cgroup/hugetlb.2MB.current";
    let taken = sh(&cluster, "huge", taken);
    let lines: Vec<&str> = taken.lines().collect();
    assert_eq!(lines[..2], ["4194304", "8388608"], "{taken}");
    assert!(lines[2].contains("No space left on device"), "{taken}");
    eventually("there are not so many huge pages", || {
        let why = messages(&cluster, "larger", "FailedScheduling")?;
        why.contains("Insufficient hugepages-2Mi").then_some(())
    });
    for place in ["/secret", "/memory"] {
        let mounted = sh(&cluster, "secret", &format!("grep ' {place} ' /proc/mounts"));
        assert!(mounted.contains("tmpfs") && mounted.contains("noswap"), "{mounted}");
    }
    let ended = eventually("the greedy one is ended", || {
        let pod = cluster.get(&["pod", "greedy"]);
        let state = &pod["status"]["containerStatuses"][0];
        let state = [&state["state"], &state["lastState"]].map(|s| s["terminated"].clone());
        state.into_iter().find(|terminated| !terminated.is_null())
    });
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    cluster.ok(&["delete", "pod", "greedy", "larger", "--now"]);

    // In place: CPU as ever, memory not where a share of swap hangs on it.
    let resize = |pod: &str, requests: Value| {
        let patch = json!({"spec": {"containers": [{"name": "main", "resources": {"requests": requests}}]}});
        cluster.ok(&["patch", "pod", pod, "--subresource", "resize", "-p", &patch.to_string()]);
    };
    assert_eq!(sh(&cluster, "swaps", "cat /sys/fs/cgroup/cpu.weight"), "10");
    resize("swaps", json!({"cpu": "200m"}));
    eventually("it weighs more", || {
        (sh(&cluster, "swaps", "cat /sys/fs/cgroup/cpu.weight") == "29").then_some(())
    });
    resize("swaps", json!({"memory": "300Mi"}));
    eventually("it is told that this cannot be", || {
        let pod = cluster.get(&["pod", "swaps"]);
        let conditions = pod["status"]["conditions"].as_array()?;
        let pending = conditions.iter().find(|c| c["type"] == "PodResizePending")?;
        let why = "In-place resize of containers with swap is not supported.";
        (pending["reason"] == "Infeasible" && pending["message"] == why).then_some(())
    });
    assert_eq!(limit("swaps"), share.to_string());

    // What is told of all this.
    let name = node["metadata"]["name"].as_str().expect("a name");
    let raw =
        |path: &str| cluster.ok(&["get", "--raw", &format!("/api/v1/nodes/{name}/proxy/{path}")]);
    let summary: Value = serde_json::from_str(&raw("stats/summary")).expect("JSON");
    let pods = summary["pods"].as_array().expect("pods");
    let swaps = pods.iter().find(|p| p["podRef"]["name"] == "swaps").expect("it runs");
    let container = &swaps["containers"][0];
    for stats in [&summary["node"], swaps, container] {
        for (part, line) in [("cpu", "some"), ("memory", "full"), ("io", "some")] {
            let stall = &stats[part]["psi"][line];
            assert!(stall["avg10"].is_f64() && stall["total"].is_u64(), "{part} {line}: {stats}");
        }
        assert!(stats["swap"]["swapUsageBytes"].is_u64(), "{stats}");
    }
    assert_eq!(container["swap"]["swapAvailableBytes"], json!(share));
    let metrics = raw("metrics/resource");
    let row = "container_swap_limit_bytes{container=\"main\",namespace=\"default\",pod=\"swaps\"} ";
    assert!(metrics.contains(&format!("{row}{share}")), "{metrics}");
    let metrics = raw("metrics/cadvisor");
    assert!(metrics.contains("container_pressure_memory_waiting_seconds_total{container=\"main\""));
    cluster.ok(&["delete", "pod", "--all", "--now"]);
}

#[test]
fn a_node_that_runs_short_of_memory() {
    if skip_without_vm("a_node_that_runs_short_of_memory") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    // The cluster takes a part of what is between, the greedy pod the rest.
    let wanted = machine("MemAvailable:").saturating_sub(1200 << 20) >> 20;
    let hard = format!("memory.available<{wanted}Mi,nodefs.available<1Mi");
    let (cluster, image) = cluster(dir.path(), &["--eviction-hard", &hard]);
    let modest = json!({"resources": {"requests": {"memory": "32Mi"}}});
    cluster.apply(&one("modest", &image, "sleep 3600", modest));
    wait_ready(&cluster, &["modest"]);
    // Takes a little more every moment, until it is over.
    let grow =
        "i=0; while :; do i=$((i+1)); head -c 33554432 /dev/zero > /memory/$i; sleep 0.2; done";
    let mut greedy = json!({"volumeMounts": [{"name": "memory", "mountPath": "/memory"}]});
    greedy["volumes"] = json!([{"name": "memory", "emptyDir": {"medium": "Memory"}}]);
    cluster.apply(&one("greedy", &image, grow, greedy));
    let evicted = eventually("the greedy one is evicted", || {
        let pod = cluster.get(&["pod", "greedy"]);
        (pod["status"]["reason"] == "Evicted").then_some(pod)
    });
    let message = evicted["status"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("The node was low on resource: memory."), "{message}");
    assert_eq!(condition(&evicted, "DisruptionTarget"), "True");
    assert_eq!(cluster.get(&["pod", "modest"])["status"]["phase"], "Running");
    eventually("the node has enough again", || {
        let node = cluster.get(&["nodes"])["items"][0].clone();
        (condition(&node, "MemoryPressure") == "False").then_some(())
    });
}

#[test]
fn volumes_of_an_nfs_server() {
    if skip_without_vm("volumes_of_an_nfs_server") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (cluster, image) = cluster(dir.path(), &[]);
    let nfs = |read_only: bool| json!([{"name": "nfs", "nfs": {"server": "127.0.0.1", "path": "/", "readOnly": read_only}}]);
    let mounts = json!([{"name": "nfs", "mountPath": "/nfs"}]);
    let spec = |volumes: Value| json!({"volumes": volumes, "volumeMounts": mounts});
    let write = "echo hello > /nfs/written; sleep 3600";
    cluster.apply(&one("writer", &image, write, spec(nfs(false))));
    cluster.apply(&one("reader", &image, "sleep 3600", spec(nfs(true))));
    let volume = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "nfs"}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "",
            "mountOptions": ["vers=4.2", "noatime"], "nfs": {"server": "127.0.0.1", "path": "/"}}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "nfs"}, "spec": {
            "resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteMany"], "storageClassName": ""}},
    ]});
    cluster.apply(&volume.to_string());
    let claim = json!([{"name": "nfs", "persistentVolumeClaim": {"claimName": "nfs"}}]);
    cluster.apply(&one("claimer", &image, "sleep 3600", spec(claim)));
    let mut own = spec(nfs(false));
    own["hostUsers"] = json!(false);
    cluster.apply(&one("own", &image, "sleep 3600", own));
    let gone = json!([{"name": "nfs", "nfs": {"server": "127.0.0.1", "path": "/gone"}}]);
    cluster.apply(&one("gone", &image, "sleep 3600", spec(gone)));

    wait_ready(&cluster, &["writer", "reader", "claimer"]);
    for reader in ["reader", "claimer"] {
        eventually(&format!("{reader} reads it"), || {
            (sh(&cluster, reader, "cat /nfs/written 2>/dev/null; true") == "hello").then_some(())
        });
    }
    let refused = sh(&cluster, "reader", "touch /nfs/no 2>&1; true");
    assert!(refused.contains("Read-only file system"), "{refused}");
    sh(&cluster, "claimer", "echo again >> /nfs/written");
    assert_eq!(sh(&cluster, "writer", "cat /nfs/written"), "hello\nagain");
    let options = sh(&cluster, "claimer", "grep ' /nfs ' /proc/mounts");
    assert!(options.contains("vers=4.2") && options.contains("noatime"), "{options}");
    let why = eventually("an export that is not there is told of", || {
        messages(&cluster, "gone", "FailedMount")
    });
    assert!(why.contains("mount.nfs") && why.contains("127.0.0.1:/gone"), "{why}");
    // The kernel maps no users on NFS.
    eventually("users of its own cannot have it", || {
        let waiting =
            &cluster.get(&["pod", "own"])["status"]["containerStatuses"][0]["state"]["waiting"];
        let said = waiting["message"].as_str()?;
        (waiting["reason"] == "CreateContainerError" && said.contains("_volumes/nfs")).then_some(())
    });
    // The next agent finds them mounted; what is in them outlives the pods.
    let before =
        cluster.get(&["pod", "writer"])["status"]["containerStatuses"][0]["containerID"].clone();
    let cluster = cluster.kill_and_restart();
    let after =
        cluster.get(&["pod", "writer"])["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(before, after);
    cluster.ok(&["delete", "pod", "--all", "--timeout=400s"]);
    eventually("nothing of it is mounted", || {
        let mounts = std::fs::read_to_string("/proc/mounts").expect("it is there");
        (!mounts.lines().any(|line| line.contains(" nfs4 "))).then_some(())
    });
    let exported = std::env::var("RIMWARD_VM_EXPORTED").expect("scripts/test-in-vm tells");
    let kept = std::fs::read_to_string(Path::new(&exported).join("written")).expect("it is kept");
    assert_eq!(kept, "hello\nagain\n");
}
