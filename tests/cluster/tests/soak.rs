//! Two hundred pods made and deleted while the agents of their nodes are killed at random: nothing is left of
//! them. As root.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rimward_tests_cluster::fleet::Fleet;
use rimward_tests_cluster::{busybox, eventually, skip_without_root, text};
use serde_json::{Value, json};

const ROUNDS: usize = 10;
const PODS: usize = 20;

/// Numbers by chance, which the test's output lets one repeat.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let seed = now.as_nanos() as u64;
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Pods of every make: what each leaves behind is another.
fn pod(image: &str, round: usize, number: usize) -> Value {
    let mut spec = json!({
        "nodeName": format!("n{}", 1 + number % 2), "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        "containers": [{"name": "main", "image": image, "args": ["echo here > /disk/file; exec sleep 3600"],
            "volumeMounts": [{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
                {"name": "token", "mountPath": "/token", "readOnly": true}]}],
    });
    let main = spec["containers"][0].clone();
    let another = |name: &str| {
        let mut other = main.clone();
        other["name"] = json!(name);
        other
    };
    match number / 2 {
        0 => spec["shareProcessNamespace"] = json!(true),
        1 => spec["hostUsers"] = json!(false),
        2 => {
            spec["hostUsers"] = json!(false);
            spec["shareProcessNamespace"] = json!(true);
            spec["containers"] = json!([main, another("beside")]);
        }
        3 => {
            let mut first = another("first");
            first["args"] = json!(["sleep 0.2"]);
            let mut sidecar = another("sidecar");
            sidecar["restartPolicy"] = json!("Always");
            spec["initContainers"] = json!([first, sidecar]);
        }
        // Over at once, begun anew, never begun, deaf to being asked.
        4 => {
            spec["containers"][0]["args"] = json!(["exit 3"]);
            spec["restartPolicy"] = json!("Never");
        }
        5 => spec["containers"][0]["args"] = json!(["exit 4"]),
        6 => spec["containers"][0]["image"] = json!("nothing/like-this:v1"),
        7 => spec["containers"][0]["args"] = json!(["trap '' TERM; while :; do sleep 1; done"]),
        8 => spec["hostNetwork"] = json!(true),
        _ => {
            spec["containers"][0]["ports"] =
                json!([{"containerPort": 80, "hostPort": 20_000 + number}])
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("r{round}-{number}")}, "spec": spec})
}

/// What there is on the machine of a node's pods, in words.
fn left(fleet: &Fleet, node: usize) -> BTreeSet<String> {
    let data_dir = fleet.dir.path().join(format!("n{node}")).join("node");
    let dir = data_dir.to_str().expect("a path of text").to_owned();
    let hash =
        dir.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let mut found = BTreeSet::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("this process has mounts");
    let mounted = mounts.lines().filter(|line| line.contains(&dir));
    found.extend(
        mounted.map(|line| format!("mount {}", line.split(' ').nth(4).unwrap_or_default())),
    );
    for name in ["pods", "run/oci", "run/oci-pods"] {
        found.extend(
            names(&data_dir.join(name))
                .into_iter()
                .map(|entry| format!("directory {name}/{entry}")),
        );
    }
    let processes =
        names(Path::new("/proc")).into_iter().filter(|name| name.parse::<i32>().is_ok());
    for pid in processes {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains("oci-shim") && command.contains(&dir) {
            found.insert(format!("process {pid} {}", command.replace('\0', " ")));
        }
    }
    for root in names(Path::new("/sys/fs/cgroup")) {
        let own = Path::new("/sys/fs/cgroup").join(root).join(format!("rimward-{hash:08x}"));
        cgroups(&own, &mut found);
    }
    cgroups(&Path::new("/sys/fs/cgroup").join(format!("rimward-{hash:08x}")), &mut found);
    let own = |name: &String| name.starts_with(&format!("rimward-{hash:08x}"));
    let namespaces = names(Path::new("/run/netns")).into_iter().filter(own);
    found.extend(namespaces.map(|name| format!("network namespace {name}")));
    let mut links = Command::new("nsenter");
    links.arg(format!("--net=/run/netns/{}", fleet.hosts.name(node)));
    let links = links.args(["ip", "-o", "link"]).output().expect("iproute2 is installed");
    for line in text(&links.stdout).lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        found.insert(format!("link {}", name.split('@').next().unwrap_or_default()));
    }
    found
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn cgroups(dir: &Path, found: &mut BTreeSet<String>) {
    for name in names(dir) {
        let below = dir.join(name);
        if below.is_dir() {
            found.insert(format!("cgroup {}", below.display()));
            cgroups(&below, found);
        }
    }
}

#[test]
fn nothing_is_left_of_pods_whose_agents_are_killed() {
    if skip_without_root("nothing_is_left_of_pods_whose_agents_are_killed") {
        return;
    }
    let mut fleet = Fleet::new();
    let config = json!({"Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"]});
    let image = busybox::push(&fleet.cluster, "busybox:v1", config);
    // What a node has once it ran a pod of each kind, it keeps.
    let list =
        |pods: Vec<Value>| json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
    fleet.cluster.apply(&list((0..PODS).map(|number| pod(&image, 99, number)).collect()));
    for number in [0, 1, 2, 3, 4, 5, 18, 19] {
        fleet.cluster.ok(&[
            "wait",
            "--for=condition=Ready",
            &format!("pod/r99-{number}"),
            "--timeout=90s",
        ]);
    }
    fleet.cluster.ok(&["delete", "pods", "--all", "--timeout=90s"]);
    let is_pods = |what: &String| {
        what.starts_with("directory ")
            || what.starts_with("process ")
            || what.starts_with("mount ")
            || what.contains("/pod")
    };
    let before = [1, 2].map(|node| {
        eventually(&format!("n{node} is quiet"), || {
            let left = left(&fleet, node);
            (!left.iter().any(is_pods)).then_some(left)
        })
    });

    let over = AtomicBool::new(false);
    let mut agents: Vec<_> =
        fleet.nodes.iter_mut().map(|node| node.take().expect("it runs")).collect();
    let fleet = &fleet;
    let mut chance = Chance::new();
    let mut killers = Chance(chance.below(u64::MAX));
    let (kills, agents) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut kills = 0;
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(200 + killers.below(1800)));
                let node = killers.below(2) as usize;
                agents[node].kill();
                agents[node] = fleet.spawn_node(node + 1, &fleet.token, &format!("n{}", node + 1));
                kills += 1;
            }
            (kills, agents)
        });
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..ROUNDS {
                fleet
                    .cluster
                    .apply(&list((0..PODS).map(|number| pod(&image, round, number)).collect()));
                // Some go before they are there, others when they are.
                for number in 0..PODS {
                    let name = format!("pod/r{round}-{number}");
                    if chance.below(2) == 0 && [0, 1, 2, 3].contains(&number) {
                        fleet.cluster.ok(&[
                            "wait",
                            "--for=condition=Ready",
                            &name,
                            "--timeout=90s",
                        ]);
                    }
                    std::thread::park_timeout(Duration::from_millis(chance.below(60)));
                    fleet.cluster.ok(&["delete", &name, "--wait=false"]);
                }
            }
            fleet.cluster.ok(&["wait", "--for=delete", "pods", "--all", "--timeout=180s"]);
        }));
        over.store(true, Ordering::Relaxed);
        killer.thread().unpark();
        let ended = killer.join().expect("the killer does not panic");
        work.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ended
    });
    println!("agents were killed {kills} times");
    assert!(kills >= 20, "agents were killed {kills} times only");
    for (node, before) in [1, 2].into_iter().zip(before) {
        let mut last = BTreeSet::new();
        let same = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&format!("n{node} is as before"), || {
                last = left(fleet, node);
                (last == before).then_some(())
            });
        }));
        let more: Vec<_> = last.difference(&before).collect();
        let less: Vec<_> = before.difference(&last).collect();
        assert!(same.is_ok(), "n{node} has more: {more:#?}, and less: {less:#?}");
    }
    drop(agents);
}
