//! Exec, attach, port-forward and the node's own API, as the control plane asks for them.

use super::*;
use rimward_node_pod::outside::Image;
use rimward_node_pod::runtime::{
    ContainerSpec, ExecRequest, Exit, Known, RunId, Runtime, RuntimeEvent, StartError, Streams,
    Usage,
};
use rimward_tunnel::call::{Body, CallError, FrameSender, call};
use rimward_tunnel::quinn::Connection;
use rimward_tunnel::wire::{
    DialRequest, DialTarget, FrameReader, PortForwardRequest, SessionData, SessionEnd, SessionOut,
    SessionRequest, SessionResize,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Commands: `cat` copies, `exit N` ends so, `hang` never ends, `size` says the terminal's size.
#[derive(Default)]
struct Shell {
    hanging: watch::Sender<usize>,
}

struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

fn exit(code: i32) -> Exit {
    let now = Timestamp::now();
    Exit {
        code,
        signal: None,
        reason: String::new(),
        message: String::new(),
        started_at: now,
        finished_at: now,
    }
}

#[async_trait]
impl Runtime for Shell {
    fn name(&self) -> &'static str {
        "shell"
    }

    fn runs(&self, _: &Image) -> bool {
        true
    }

    async fn adopt(&self, _: mpsc::Sender<RuntimeEvent>) -> Result<Vec<Known>, StartError> {
        Ok(Vec::new())
    }

    async fn prepare(&self, _: &Image) -> Result<(), StartError> {
        Ok(())
    }

    async fn start(&self, _: ContainerSpec) -> Result<(), StartError> {
        Ok(())
    }

    async fn stop(&self, _: &RunId, _: Duration) {}

    async fn remove(&self, _: &RunId) {}

    async fn usage(&self, _: &RunId) -> Option<Usage> {
        None
    }

    async fn exec(
        &self,
        _: &RunId,
        request: ExecRequest,
        streams: Streams,
    ) -> Result<Exit, StartError> {
        let words: Vec<&str> = request.argv.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["cat"] => {
                let (mut stdin, mut stdout) = (streams.stdin.unwrap(), streams.stdout.unwrap());
                tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
                streams.stderr.unwrap().write_all(b"done").await.unwrap();
                Ok(exit(0))
            }
            ["exit", code] => Ok(exit(code.parse().unwrap())),
            ["size"] => {
                let size = streams.resize.unwrap().recv().await.unwrap();
                let text = format!("{}x{}", size.width, size.height);
                streams.stdout.unwrap().write_all(text.as_bytes()).await.unwrap();
                Ok(exit(0))
            }
            ["hang"] => {
                self.hanging.send_modify(|n| *n += 1);
                let _counted = Counted(self.hanging.clone());
                std::future::pending().await
            }
            _ => Err(StartError { reason: "NotFound".into(), message: "no such command".into() }),
        }
    }

    async fn attach(&self, _: &RunId, streams: Streams) -> Result<(), StartError> {
        streams.stdout.unwrap().write_all(b"attached").await.unwrap();
        Ok(())
    }
}

async fn node(control: &ControlPlane, dir: &Path) -> (NodeTunnel, Arc<Shell>, CancellationToken) {
    let (agent, node, shutdown) = control.agent(dir).await;
    let (pods, shell) = (Arc::new(Recording::default()), Arc::new(Shell::default()));
    let id = RunId { pod_uid: "u".into(), container: "c".into(), attempt: 0 };
    *pods.runs.lock() = Some(RunningContainer { runtime: shell.clone(), id });
    agent.attach(pods, Arc::new(Loopback));
    (node, shell, shutdown)
}

async fn session(to: &Connection, command: &[&str], tty: bool) -> (FrameSender, FrameReader<Body>) {
    let request = SessionRequest {
        pod: "web".into(),
        container: "c".into(),
        command: command.iter().map(|w| (*w).to_owned()).collect(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty,
        ..SessionRequest::default()
    };
    let (_, duplex) = call(to, &request).await.unwrap();
    duplex.into_frames()
}

/// stdout, stderr and the end of a session.
async fn outcome(receive: &mut FrameReader<Body>) -> (String, String, SessionEnd) {
    let mut out = [Vec::new(), Vec::new()];
    let read = async {
        loop {
            let frame = receive.next().await.unwrap().expect("a session has an end");
            match SessionOut::decode(&frame).unwrap().unwrap() {
                SessionOut::SessionData(SessionData { stream, bytes }) => {
                    out[usize::from(stream) - 1].extend(bytes);
                }
                SessionOut::SessionEnd(end) => return end,
            }
        }
    };
    let end = tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
    let [stdout, stderr] = out.map(|bytes| String::from_utf8(bytes).unwrap());
    (stdout, stderr, end)
}

#[tokio::test]
async fn commands_run_with_their_streams_and_codes() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (node, _shell, _shutdown) = node(&control, dir.path()).await;
    let to = &node.connection;
    let (mut send, mut receive) = session(to, &["cat"], false).await;
    send.send(&SessionData { stream: 0, bytes: b"typed".to_vec() }).await.unwrap();
    send.send(&SessionData { stream: 0, bytes: Vec::new() }).await.unwrap();
    let (stdout, stderr, end) = outcome(&mut receive).await;
    assert_eq!((stdout.as_str(), stderr.as_str(), end.exit_code), ("typed", "done", Some(0)));

    let (_send, mut receive) = session(to, &["exit", "42"], false).await;
    assert_eq!(outcome(&mut receive).await.2.exit_code, Some(42));
    let (_send, mut receive) = session(to, &["fly"], false).await;
    let end = outcome(&mut receive).await.2;
    assert_eq!((end.exit_code, end.message.as_str()), (None, "no such command"));
    let (_send, mut receive) = session(to, &[], false).await;
    let (stdout, _, end) = outcome(&mut receive).await;
    assert_eq!((stdout.as_str(), end), ("attached", SessionEnd::default()));

    let (mut send, mut receive) = session(to, &["size"], true).await;
    send.send(&SessionResize { width: 132, height: 43 }).await.unwrap();
    assert_eq!(outcome(&mut receive).await.0, "132x43");
}

#[tokio::test]
async fn a_client_that_goes_ends_its_command() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (node, shell, _shutdown) = node(&control, dir.path()).await;
    let mut hanging = shell.hanging.subscribe();
    let (mut send, receive) = session(&node.connection, &["hang"], false).await;
    hanging.wait_for(|n| *n == 1).await.unwrap();
    // Sessions do not wait for each other.
    let (_send, mut other) = session(&node.connection, &["exit", "0"], false).await;
    outcome(&mut other).await;
    send.abort();
    drop(receive);
    let ended = hanging.wait_for(|n| *n == 0);
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_refused() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (node, _shell, _shutdown) = node(&control, dir.path()).await;
    for (pod, container, code, text) in [
        ("missing", "c", 404, "pod does not exist"),
        ("web", "d", 500, "container not found (\"d\")"),
    ] {
        let request = SessionRequest {
            pod: pod.into(),
            container: container.into(),
            ..SessionRequest::default()
        };
        let refused = call(&node.connection, &request).await.err().unwrap();
        assert!(
            matches!(&refused, CallError::Refused { code: c, message } if *c == code && message == text),
            "{refused:?}"
        );
    }
    let request = PortForwardRequest { pod: "missing".into(), port: 80, ..<_>::default() };
    let refused = call(&node.connection, &request).await.err().unwrap();
    assert!(matches!(refused, CallError::Refused { code: 404, .. }), "{refused}");
}

#[tokio::test]
async fn ports_are_forwarded() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (node, _shell, _shutdown) = node(&control, dir.path()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let pod = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        // The client's half is closed: its answer still comes.
        stream.read_to_end(&mut asked).await.unwrap();
        stream.write_all(b"pong").await.unwrap();
        asked
    });
    let request = PortForwardRequest { pod: "web".into(), port, ..<_>::default() };
    let (_, mut stream) = call(&node.connection, &request).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    stream.finish();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!((answer.as_slice(), pod.await.unwrap().as_slice()), (&b"pong"[..], &b"ping"[..]));
    let request = PortForwardRequest { pod: "web".into(), port, ..<_>::default() };
    let refused = call(&node.connection, &request).await.err().unwrap();
    let text = format!("failed to connect to localhost:{port} inside the pod");
    assert!(
        matches!(&refused, CallError::Refused { code: 502, message } if message.contains(&text))
    );
}

#[tokio::test]
async fn the_nodes_own_api() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (mut node, _shell, _shutdown) = node(&control, dir.path()).await;
    say_delta(&mut node, "Pod", &[pod("web", "u1")], &[]).await;
    let get = async |path: &str| {
        let request = DialRequest { target: DialTarget::Node as u8, ..DialRequest::default() };
        let (_, mut stream) = call(&node.connection, &request).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    assert!(get("/healthz").await.ends_with("\r\n\r\nok"));
    let metrics = get("/metrics/resource").await;
    assert!(metrics.contains("\nnode_memory_working_set_bytes "), "{metrics}");
    let summary = get("/stats/summary").await;
    for field in ["nodeName", "usageNanoCores", "workingSetBytes", "capacityBytes", "curproc"] {
        assert!(summary.contains(&format!("\"{field}\":")), "{field}: {summary}");
    }
    let brief = get("/stats/summary?only_cpu_and_memory=true").await;
    assert!(brief.contains("usageNanoCores") && !brief.contains("capacityBytes"), "{brief}");
    assert!(get("/containerLogs/a/web/c?tailLines=1").await.contains("log of web"));
    assert!(get("/containerLogs/a/web/c?tailLines=x").await.starts_with("HTTP/1.1 400"));
    assert!(get("/nothing").await.starts_with("HTTP/1.1 404"));
    while !get("/pods").await.contains("\"web\"") {
        tokio::task::yield_now().await;
    }
}
