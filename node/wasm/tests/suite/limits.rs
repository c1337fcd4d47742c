//! What a guest may take, seen from the outside: CPU time as the kernel counts it, instances, system calls.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rimward_node_pod::runtime::{ContainerSpec, Runtime};

use crate::node::{Node, address, config, get, until};

/// Time that a process's threads of one name spent running, and waiting for a core to run on.
#[derive(Clone, Copy)]
struct Scheduled {
    ran: Duration,
    waited: Duration,
}

fn scheduled(pid: u32, threads: &str) -> Scheduled {
    let mut sum = Scheduled { ran: Duration::ZERO, waited: Duration::ZERO };
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() != threads {
            continue;
        }
        let nanos: Vec<u64> =
            read("schedstat").split_whitespace().filter_map(|field| field.parse().ok()).collect();
        if let [ran, waited, ..] = nanos[..] {
            sum.ran += Duration::from_nanos(ran);
            sum.waited += Duration::from_nanos(waited);
        }
    }
    sum
}

/// The threads' share of a core is that of a limit of 200m: not more, and not less but for what they had to
/// wait for a core on a machine that is busy with other tests.
#[track_caller]
fn check_share(what: &str, before: Scheduled, after: Scheduled, elapsed: Duration) {
    let share = |time: Duration| time.as_secs_f64() / elapsed.as_secs_f64();
    let ran = share(after.ran - before.ran);
    let wanted = ran + share(after.waited - before.waited);
    println!("{what}: ran {:.1} % of a core, {:.1} % with waiting", ran * 100.0, wanted * 100.0);
    assert!(ran <= 0.23 && wanted >= 0.17, "{what}: ran {ran}, with waiting {wanted}");
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() - 1) * percent / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_gets_its_cpu_limit_and_its_neighbour_does_not_notice() {
    let noisy = Node::new().await;
    let mut burner = noisy.spec("burn-rust-p2.wasm");
    burner.resources.cpu_limit_millis = Some(200);
    noisy.runtime.start(burner.clone()).await.unwrap();
    let beside_burner = noisy.spec("http-wat-p2.wasm");
    noisy.runtime.start(beside_burner.clone()).await.unwrap();
    let quiet = Node::new().await;
    let beside_nobody = quiet.spec("http-wat-p2.wasm");
    quiet.runtime.start(beside_nobody.clone()).await.unwrap();
    let usage =
        async || Duration::from_nanos(noisy.runtime.usage(&burner.id).await.unwrap().cpu_nanos);
    until("the first period is used up", async || usage().await > Duration::from_millis(25)).await;

    let host = noisy.runtime.host_pids().await[0];
    let (start, before, used) = (Instant::now(), scheduled(host, "tasks"), usage().await);
    // In turns, so that whatever else this machine does happens to both.
    let (mut near, mut far) = (Vec::new(), Vec::new());
    while start.elapsed() < Duration::from_secs(12) {
        for (spec, times) in [(&beside_burner, &mut near), (&beside_nobody, &mut far)] {
            let asked = Instant::now();
            assert!(get(address(spec)).await.contains("hello from wat"));
            times.push(asked.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let (elapsed, after, used) = (start.elapsed(), scheduled(host, "tasks"), usage().await - used);
    check_share("a task", before, after, elapsed);
    let told = used.as_secs_f64() / (after.ran - before.ran).as_secs_f64();
    assert!((0.9..=1.05).contains(&told), "usage tells {told} of what the kernel counted");

    let [p50, p99] = [50, 99].map(|p| (percentile(&mut near, p), percentile(&mut far, p)));
    println!(
        "latency beside a burner / beside nobody: p50 {p50:?}, p99 {p99:?}, {} each",
        near.len()
    );
    assert!(p50.0 <= p50.1.mul_f64(1.5) + Duration::from_millis(1), "p50 {p50:?}");
    assert!(p99.0 <= p99.1.mul_f64(2.0) + Duration::from_millis(10), "p99 {p99:?}");
    noisy.end().await;
    quiet.end().await;
}

/// A handler that never answers, and burns.
fn endless(node: &Node) -> ContainerSpec {
    let file = node.dir.join("endless.wasm");
    std::fs::write(&file, wat::parse_str(crate::handlers::endless()).unwrap()).unwrap();
    node.spec_of("endless", &file, "sha256:endless")
}

/// A request that is sent and not waited for.
fn ask(to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_requests_shares_its_handlers_cpu_limit() {
    let node = Node::new().await;
    let mut spec = endless(&node);
    spec.resources.cpu_limit_millis = Some(200);
    node.runtime.start(spec.clone()).await.unwrap();
    let _requests: Vec<TcpStream> = (0..8).map(|_| ask(address(&spec))).collect();
    let usage =
        async || Duration::from_nanos(node.runtime.usage(&spec.id).await.unwrap().cpu_nanos);
    until("the first period is used up", async || usage().await > Duration::from_millis(50)).await;
    let host = node.runtime.host_pids().await[0];
    let (start, before) = (Instant::now(), scheduled(host, "handlers"));
    tokio::time::sleep(Duration::from_secs(10)).await;
    check_share("eight requests", before, scheduled(host, "handlers"), start.elapsed());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pod_cannot_take_all_instances() {
    let temp = tempfile::tempdir().unwrap();
    let mut few = config(temp.path());
    few.slots = 16;
    let node = Node::with(few).await;
    let mut greedy = endless(&node);
    greedy.resources.cpu_limit_millis = Some(100);
    node.runtime.start(greedy.clone()).await.unwrap();
    let modest = node.spec("http-wat-p2.wasm");
    node.runtime.start(modest.clone()).await.unwrap();

    // Half of the sixteen are its to have; four more wait, then are told.
    let answers: Vec<_> = (0..12)
        .map(|_| {
            let mut stream = ask(address(&greedy));
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            tokio::task::spawn_blocking(move || {
                let mut answer = Vec::new();
                let _one_that_runs_times_out = stream.read_to_end(&mut answer);
                String::from_utf8_lossy(&answer).into_owned()
            })
        })
        .collect();
    // Its neighbour answers meanwhile.
    for _ in 0..20 {
        assert!(get(address(&modest)).await.contains("hello from wat"));
    }
    let mut refused = 0;
    for answer in answers {
        let answer = answer.await.unwrap();
        if !answer.is_empty() {
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.contains("no instance is free"), "{answer}");
            refused += 1;
        }
    }
    assert_eq!(refused, 4);
    // Those that ran were dropped with their connections: there is room again.
    let _requests: Vec<TcpStream> = (0..8).map(|_| ask(address(&greedy))).collect();
    assert!(get(address(&modest)).await.contains("hello from wat"));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_thread_of_a_host_is_behind_a_filter() {
    let node = Node::new().await;
    let spec = node.spec("http-wat-p2.wasm");
    node.runtime.start(spec.clone()).await.unwrap();
    assert!(get(address(&spec)).await.contains("hello from wat"));
    let host = node.runtime.host_pids().await[0];
    let threads: Vec<_> =
        std::fs::read_dir(format!("/proc/{host}/task")).unwrap().flatten().collect();
    assert!(threads.len() > 3);
    for thread in threads {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).unwrap_or_default().to_owned()
        };
        // 2 is a filter; see proc(5).
        assert_eq!((field("Seccomp:").as_str(), field("NoNewPrivs:").as_str()), ("2", "1"));
    }
    node.end().await;
}
