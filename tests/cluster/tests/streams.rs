//! Exec, attach, port-forward and proxies with the real kubectl, by both protocols: against a Wasm
//! task that copies its stdin, and a handler.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};

use nix::pty::{Winsize, openpty};
use rimward_tests_cluster::{Cluster, curl, eventually, repository, text};

/// WebSocket, then SPDY.
const PROTOCOLS: [&[(&str, &str)]; 2] = [
    &[],
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")],
];

/// Copies its stdin to its stdout, then ends with 2 if it has two or three arguments, else with 0.
const CAT: &str = r#"(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $args (i32.const 0) (i32.const 4)))
    (block $end (loop $again
      (i32.store (i32.const 16) (i32.const 1024)) (i32.store (i32.const 20) (i32.const 4096))
      (br_if $end (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 8)))
      (br_if $end (i32.eqz (i32.load (i32.const 8))))
      (i32.store (i32.const 20) (i32.load (i32.const 8)))
      (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 12)))
      (br $again)))
    (call $exit (i32.and (i32.sub (i32.load (i32.const 0)) (i32.const 1)) (i32.const 2)))))"#;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: cat}
spec:
  containers:
  - name: cat
    image: cat:v1
    stdin: true
    readinessProbe: {exec: {command: [one]}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers: [{name: cat, image: "cat:v1", stdin: true, stdinOnce: true}]
---
apiVersion: v1
kind: Pod
metadata: {name: failing}
spec:
  containers:
  - name: cat
    image: cat:v1
    stdin: true
    readinessProbe: {exec: {command: [one, two]}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: web, image: "hello:v1", ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
"#;

/// kubectl whose output is followed, ended with the test.
struct Followed(Child);

impl Drop for Followed {
    fn drop(&mut self) {
        let _gone_already_is_fine = self.0.kill();
        let _gone_already_is_fine = self.0.wait();
    }
}

fn start(cluster: &Cluster, args: &[&str], protocol: &[(&str, &str)]) -> Followed {
    let mut command = cluster.kubectl_command(args);
    command.envs(protocol.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Followed(command.spawn().expect("kubectl is on the PATH"))
}

/// Exit code, stdout and stderr of kubectl with text on its stdin.
fn run(
    cluster: &Cluster,
    args: &[&str],
    protocol: &[(&str, &str)],
    input: &str,
) -> (i32, String, String) {
    let mut started = start(cluster, args, protocol);
    let mut stdin = started.0.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    let typing = std::thread::spawn(move || {
        let _it_may_not_read = stdin.write_all(input.as_bytes());
    });
    let mut out = started.0.stdout.take().expect("it is piped");
    let mut err = started.0.stderr.take().expect("it is piped");
    let errors = std::thread::spawn(move || {
        let mut all = Vec::new();
        err.read_to_end(&mut all).map(|_| text(&all)).unwrap_or_default()
    });
    let mut all = Vec::new();
    out.read_to_end(&mut all).expect("kubectl's output can be read");
    let status = started.0.wait().expect("kubectl can be waited for");
    typing.join().expect("it does not panic");
    (status.code().unwrap_or(-1), text(&all), errors.join().expect("it does not panic"))
}

fn cluster() -> Cluster {
    let cluster = Cluster::up();
    let file = cluster.dir.join("cat.wasm");
    std::fs::write(&file, wat::parse_str(CAT).expect("it is WAT")).expect("a file");
    cluster.push(&file, "cat:v1");
    let hello = repository().join("node/wasm/testdata/http-rust-p2.wasm");
    cluster.push(&hello, "hello:v1");
    cluster.apply(PODS);
    cluster.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/cat",
        "pod/once",
        "pod/web",
        "--timeout=90s",
    ]);
    cluster
}

#[test]
fn commands_and_sessions() {
    let cluster = cluster();
    for protocol in PROTOCOLS {
        // More than any buffer on the way holds, through stdin and back; two arguments make a 2.
        let long = "0123456789abcde\n".repeat(100_000);
        let exec = ["exec", "-i", "cat", "--", "one", "two"];
        let (code, out, err) = run(&cluster, &exec, protocol, &long);
        assert!(code == 2 && out == long, "{code} {} bytes {err}", out.len());
        assert!(err.contains("command terminated with exit code 2"), "{err}");
        let (code, _, err) = run(&cluster, &["exec", "web", "--", "sh"], protocol, "");
        assert!(code != 0 && err.contains("exports no wasi:cli/run"), "{code} {err}");
        let (code, _, err) = run(&cluster, &["exec", "cat", "-c", "x", "--", "y"], protocol, "");
        assert!(code != 0 && err.contains("container x is not valid for pod cat"), "{code} {err}");
        terminal(&cluster, protocol);

        // Attached to the container itself: what is typed comes back, here and in its log.
        let mut attached = start(&cluster, &["attach", "-i", "cat"], protocol);
        let mut typing = attached.0.stdin.take().expect("stdin is piped");
        let lines = BufReader::new(attached.0.stdout.take().expect("it is piped"));
        let said = format!("typed over {} variables\n", protocol.len());
        typing.write_all(said.as_bytes()).expect("kubectl reads");
        let line = lines.lines().next().expect("a line comes").expect("it is text");
        assert_eq!(line, said.trim_end());
        assert!(cluster.ok(&["logs", "cat"]).contains(&said));
    }
    // The end of stdin ends a container that has it for one session.
    let (code, out, err) = run(&cluster, &["attach", "-i", "once"], PROTOCOLS[0], "last words\n");
    assert!(code == 0 && out == "last words\n", "{code} {out} {err}");
    let args = ["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/once", "--timeout=90s"];
    cluster.ok(&args);
    // The probe's command ends with 2.
    let ready = cluster.get(&["pod", "failing"]);
    assert_eq!(ready["status"]["containerStatuses"][0]["ready"], false);
    eventually("the probe's failure is told", || {
        let events = cluster.ok(&["get", "events", "--field-selector=involvedObject.name=failing"]);
        events.contains("Readiness probe failed").then_some(())
    });
}

/// `exec -it` at a pseudo-terminal: keys are echoed, lines edited, Ctrl-D ends.
fn terminal(cluster: &Cluster, protocol: &[(&str, &str)]) {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).expect("a pseudo-terminal");
    let mut command = cluster.kubectl_command(&["exec", "-it", "cat", "--", "x"]);
    command.envs(protocol.iter().copied());
    let end = || pty.slave.try_clone().expect("a second handle");
    command.stdin(end()).stdout(end()).stderr(end());
    let mut child = Followed(command.spawn().expect("kubectl is on the PATH"));
    drop((command, pty.slave));
    let mut near = std::fs::File::from(pty.master);
    let mut keys = near.try_clone().expect("a second handle");
    keys.write_all(b"hellp\x7fo\r").expect("the terminal takes keys");
    let mut seen = String::new();
    let mut bytes = [0; 1024];
    // Twice: as it is echoed, and as it comes back.
    while !seen.contains("hello\r\n") {
        match near.read(&mut bytes) {
            Ok(n @ 1..) => seen += &text(&bytes[..n]),
            _ => panic!("kubectl ended after {seen:?}"),
        }
    }
    keys.write_all(b"\x04").expect("the terminal takes keys");
    while let Ok(n @ 1..) = near.read(&mut bytes) {
        seen += &text(&bytes[..n]);
    }
    let status = child.0.wait().expect("kubectl can be waited for");
    assert_eq!(status.code(), Some(0), "{seen}");
}

#[test]
fn ports_and_proxies() {
    let cluster = cluster();
    for protocol in PROTOCOLS {
        for what in ["pod/web", "service/web"] {
            let port = if what == "pod/web" { ":8080" } else { ":80" };
            let mut forward = start(&cluster, &["port-forward", what, port], protocol);
            let mut lines = BufReader::new(forward.0.stdout.take().expect("it is piped")).lines();
            let line = lines.next().expect("it says where it listens").expect("it is text");
            let local = line.strip_prefix("Forwarding from ").and_then(|l| l.split_once(' '));
            let (local, _) = local.unwrap_or_else(|| panic!("{line}"));
            for _ in 0..3 {
                let answer = curl(cluster.wrap(), &[&format!("http://{local}/")]);
                assert!(answer.contains("hello from rust"), "{answer}");
            }
        }
    }
    let raw = |path: &str| cluster.ok(&["get", "--raw", path]);
    let base = "/api/v1/namespaces/default";
    for path in [
        "pods/web/proxy/",
        "pods/http:web:8080/proxy/x",
        "services/web:http/proxy/",
        "services/web:80/proxy/",
    ] {
        let answer = raw(&format!("{base}/{path}"));
        assert!(answer.contains("hello from rust"), "{path}: {answer}");
    }
    let refused = cluster.refused(&["get", "--raw", &format!("{base}/pods/web:81/proxy/")], "");
    assert!(refused.contains("error trying to reach service"), "{refused}");
    let nodes = cluster.get(&["nodes"]);
    let node = nodes["items"][0]["metadata"]["name"].as_str().expect("a node has a name");
    assert_eq!(raw(&format!("/api/v1/nodes/{node}/proxy/healthz")), "ok");
    assert!(raw(&format!("/api/v1/nodes/{node}/proxy/pods")).contains("\"name\":\"web\""));
}
