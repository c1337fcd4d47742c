//! Pods made and ended by an agent that is killed at random: nothing is left of them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rimward_node_pod::runtime::{ContainerSpec, Runtime};

use crate::node::{Node, PATIENCE, by_runc, cgroups, leftovers, shims, until};
use crate::sharing::beside;

/// Pods at the same time.
const HANDS: usize = 4;
/// Tells the test below that it is the agent.
const DIR: &str = "RIMWARD_SOAK_DIR";

fn by_chance(below: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.subsec_nanos().wrapping_mul(2_654_435_761) as u64 % below
}

/// Pods of every make: what each leaves behind is another.
fn pod(node: &Node, uid: &str) -> Vec<ContainerSpec> {
    let mut spec = node.spec("echo ready; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    spec.id.pod_uid = uid.into();
    let logs = node.dir.join("pods").join(uid).join("main");
    std::fs::create_dir_all(&logs).unwrap();
    spec.log_path = logs.join("0.log");
    let kind = by_chance(8);
    spec.linux.own_users = kind & 1 == 1;
    spec.linux.share_processes = kind & 2 == 2;
    spec.tty = kind & 4 == 4;
    let mut all = vec![spec];
    if kind & 2 == 2 {
        all.push(beside(&all[0], "beside", "exit 3"));
    }
    all
}

/// What the pod's own task does: begins it, and then ends it, asked or not, sooner or later.
async fn live(node: &Node, uid: &str) {
    let specs = pod(node, uid);
    for spec in &specs {
        node.runtime.start(spec.clone()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(by_chance(30))).await;
    for spec in &specs {
        node.runtime.stop(&spec.id, Duration::from_millis(by_chance(2) * 500)).await;
    }
    end(node, uid).await;
}

/// What is left of a pod goes.
async fn end(node: &Node, uid: &str) {
    let runs = node.dir.join("run/oci");
    let has_runs = || {
        let names = std::fs::read_dir(&runs).unwrap().flatten();
        let own = format!("{uid}.");
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(&own)).collect::<Vec<_>>()
    };
    until("the pod's runs are removed", async || {
        for name in has_runs() {
            let mut words = name.split('.').skip(1);
            let (container, attempt) = (words.next().unwrap(), words.next().unwrap());
            let id = rimward_node_pod::runtime::RunId {
                pod_uid: uid.into(),
                container: container.into(),
                attempt: attempt.parse().unwrap(),
            };
            node.runtime.stop(&id, Duration::ZERO).await;
            node.runtime.remove(&id).await;
        }
        has_runs().is_empty()
    })
    .await;
    node.runtime.release(uid).await;
    std::fs::remove_dir_all(node.dir.join("pods").join(uid)).unwrap();
}

fn pods(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("pods")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Lives until it is killed: the next one ends what is there first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the soak starts it"]
async fn agent() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let node = Node::at(&dir).await;
    for uid in pods(&dir) {
        end(&node, &uid).await;
    }
    let done = dir.join("done");
    let hand = async |hand: usize| {
        for number in 0.. {
            live(&node, &format!("pod-{}-{hand}-{number}", std::process::id())).await;
            let mut file = std::fs::File::options().create(true).append(true).open(&done).unwrap();
            file.write_all(b".").unwrap();
        }
    };
    let hands: [_; HANDS] = std::array::from_fn(hand);
    let [one, two, three, four] = hands;
    tokio::join!(one, two, three, four);
}

#[tokio::test]
async fn nothing_is_left_of_pods_whose_agent_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    // runc takes longer for each.
    let pods_wanted = if by_runc() { 60 } else { 200 };
    let done = || std::fs::metadata(dir.path().join("done")).map_or(0, |meta| meta.len() as usize);
    let (start, mut kills) = (std::time::Instant::now(), 0);
    while done() < pods_wanted || kills < 20 {
        assert!(start.elapsed() < 5 * PATIENCE, "{} pods after {kills} agents", done());
        let mut agent = Command::new(std::env::current_exe().unwrap());
        agent.args(["--exact", "soak::agent", "--ignored", "--nocapture"]).env(DIR, dir.path());
        let mut agent = agent.stdout(Stdio::null()).spawn().unwrap();
        // Nothing is waited for: an agent is to be killed at any moment.
        std::thread::sleep(Duration::from_millis(150 + by_chance(1500)));
        let early = agent.try_wait().unwrap();
        assert!(early.is_none(), "an agent ended by itself: {early:?}");
        agent.kill().unwrap();
        agent.wait().unwrap();
        kills += 1;
    }
    let node = Node::at(dir.path()).await;
    for uid in pods(dir.path()) {
        end(&node, &uid).await;
    }
    // Before what belongs to the whole node goes as well.
    until("no shim is left", async || shims(dir.path()).is_empty()).await;
    let of_pods: Vec<String> =
        leftovers(dir.path()).into_iter().filter(|what| !what.starts_with("cgroup ")).collect();
    assert_eq!(of_pods, Vec::<String>::new(), "after {kills} agents");
    let mut dirs = cgroups(dir.path());
    while let Some(dir) = dirs.pop() {
        let below = std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path());
        let below: Vec<PathBuf> = below.filter(|path| path.is_dir()).collect();
        let names = below.iter().map(|path| path.file_name().unwrap().to_str().unwrap());
        let pods: Vec<&str> = names.filter(|name| name.starts_with("pod")).collect();
        assert_eq!(pods, Vec::<&str>::new(), "below {}", dir.display());
        dirs.extend(below);
    }
    node.end().await;
}
