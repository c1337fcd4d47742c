//! Exec, attach and port-forward, by the real kubectl (both protocols) and by hand.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use futures::{SinkExt as _, StreamExt as _};
use rimward_api::UserInfo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, PODS, pod};
use crate::kubectl::{Authority, Kubectl, connect, tls};
use crate::shell::Shell;

const SPDY: [(&str, &str); 2] =
    [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];

/// A server with a running pod `p` on a node, and kubectl.
struct World {
    cluster: Cluster,
    ca: Authority,
    port: u16,
    shell: Arc<Shell>,
    kubectl: Kubectl,
    stop: CancellationToken,
}

impl World {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        let shell = Arc::new(Shell::default());
        cluster.server.set_nodes(shell.clone());
        for (name, node) in [("p", "n1"), ("far", "n2")] {
            let mut p = pod(name);
            p["spec"]["nodeName"] = node.into();
            cluster.admin.post(PODS, &p).await.expect(201);
            let status =
                json!({ "status": { "phase": "Running", "podIPs": [{ "ip": "10.42.0.5" }] } });
            cluster.admin.merge(&format!("{PODS}/{name}/status"), &status).await.expect(200);
        }
        let ca = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, server, tls) = (CancellationToken::new(), cluster.server.clone(), tls(&ca));
        let stopping = stop.clone();
        tokio::spawn(async move { server.serve(listener, tls, None, stopping).await });
        let kubectl = Kubectl::new(&ca, port);
        Self { cluster, ca, port, shell, kubectl, stop }
    }

    /// kubectl with both protocols, one after the other: exit code, stdout, stderr.
    async fn both(&self, args: &[&str], stdin: &[u8], check: impl Fn(i32, &str, &str)) {
        for spdy in [false, true] {
            let mut command = self.kubectl.words(args);
            if spdy {
                command.envs(SPDY);
            }
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut typed = child.stdin.take().unwrap();
            let stdin = stdin.to_vec();
            tokio::spawn(async move {
                let _it_may_not_read = typed.write_all(&stdin).await;
            });
            let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output());
            let output = output.await.expect("kubectl ends").unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            eprintln!("kubectl {args:?}, spdy {spdy}: {err}");
            check(output.status.code().unwrap(), &out, &err);
        }
    }

    /// A token of somebody with these verbs on pods/exec.
    async fn token(&self, verbs: &[&str]) -> String {
        let admin = &self.cluster.admin;
        let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
        let role = json!({ "metadata": { "name": "r" }, "rules": [
            { "apiGroups": [""], "resources": ["pods/exec", "pods/portforward"], "verbs": verbs }] });
        admin.post(&format!("{rbac}/roles"), &role).await.expect(201);
        let binding = json!({ "metadata": { "name": "r" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r" },
            "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": "default" }] });
        admin.post(&format!("{rbac}/rolebindings"), &binding).await.expect(201);
        let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let token = admin.post(path, &json!({ "spec": {} })).await.expect(201);
        token["status"]["token"].as_str().unwrap().to_owned()
    }

    /// A WebSocket to a path below the pod, or the refusal.
    async fn socket(
        &self,
        token: &str,
        path: &str,
        protocol: &str,
    ) -> Result<
        tokio_tungstenite::WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>,
        (u16, String),
    > {
        let url = format!("wss://localhost{PODS}/{path}");
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let stream = connect(&self.ca, self.port).await;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, response)) => {
                let chosen = response.headers().get("sec-websocket-protocol");
                assert_eq!(chosen.map_or("", |c| c.to_str().unwrap()), protocol);
                Ok(socket)
            }
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((response.status().as_u16(), String::from_utf8(body).unwrap()))
            }
            Err(other) => panic!("{other}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        self.cluster.server.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_runs_commands() {
    let world = World::new().await;
    world
        .both(&["exec", "p", "--", "both"], b"", |code, out, err| {
            assert_eq!((code, out, err), (0, "to stdout\n", "to stderr\n"));
        })
        .await;
    world
        .both(&["exec", "p", "--", "exit", "42"], b"", |code, _, err| {
            assert_eq!(code, 42);
            assert!(err.contains("command terminated with exit code 42"), "{err}");
        })
        .await;
    let long = "0123456789abcde\n".repeat(20_000);
    world
        .both(&["exec", "-i", "p", "--", "cat"], long.as_bytes(), |code, out, _| {
            assert_eq!((code, out.len(), out == long), (0, long.len(), true));
        })
        .await;
    world
        .both(&["exec", "p", "--", "fly"], b"", |code, _, err| {
            assert_eq!(code, 1);
            let text = "error executing command in container: no such command";
            assert!(err.contains(text), "{err}");
        })
        .await;
    world
        .both(&["exec", "p", "--", "gone"], b"", |code, _, err| {
            assert_eq!(code, 1);
            assert!(err.contains("container not found (\"c\")"), "{err}");
        })
        .await;
    world
        .both(&["exec", "p", "-c", "x", "--", "both"], b"", |code, _, err| {
            assert_eq!(code, 1);
            assert!(err.contains("container x is not valid for pod p"), "{err}");
        })
        .await;
    world
        .both(&["exec", "far", "--", "both"], b"", |code, _, err| {
            assert_eq!(code, 1);
            assert!(err.contains("node \"n2\" is not connected"), "{err}");
        })
        .await;
    world
        .both(&["attach", "-i", "p"], b"typed\n", |code, out, _| {
            assert_eq!((code, out), (0, "attached\ntyped\n"));
        })
        .await;
    world.shell.until_running(0).await;
    // What was tried above as two protocols were two.
    for (spdy, said) in [(false, "GET https://"), (true, "POST https://")] {
        let mut command = world.kubectl.words(&["exec", "-v=6", "p", "--", "both"]);
        if spdy {
            command.envs(SPDY);
        }
        let output = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let asked = text.lines().find(|line| line.contains("/pods/p/exec"));
        assert!(asked.is_some_and(|line| line.contains(said)), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubectl_that_is_ended_ends_its_command() {
    let world = World::new().await;
    for spdy in [false, true] {
        let mut command = world.kubectl.words(&["exec", "p", "--", "hang"]);
        if spdy {
            command.envs(SPDY);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "hanging");
        world.shell.until_running(1).await;
        child.kill().await.unwrap();
        world.shell.until_running(0).await;
    }
}

/// A client that reads nothing holds its own command back, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_does_not_stop_others() {
    let world = World::new().await;
    let token = world.token(&["get", "create"]).await;
    let path = "p/exec?command=flood&command=1000&stdout=true";
    let slow = world.socket(&token, path, "v5.channel.k8s.io").await.unwrap();
    let mut flooded = world.shell.flooded.subscribe();
    flooded.wait_for(|mib| *mib >= 1).await.unwrap();
    world
        .both(&["exec", "p", "--", "flood", "3"], b"", |code, out, _| {
            assert_eq!((code, out.len()), (0, 3 << 20));
        })
        .await;
    let held = *flooded.borrow();
    assert!(held < 40, "{held} MiB were printed to a client that does not read");
    drop(slow);
    world.shell.until_running(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_of_kubectl() {
    let world = World::new().await;
    for spdy in [false, true] {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let near = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&near).unwrap();
        rustix::pty::unlockpt(&near).unwrap();
        let far = rustix::pty::ioctl_tiocgptpeer(&near, flags).unwrap();
        let size = rustix::termios::Winsize { ws_row: 43, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&near, size).unwrap();
        let mut command = world.kubectl.words(&["exec", "-it", "p", "--", "size"]);
        if spdy {
            command.envs(SPDY);
        }
        let mut child = command
            .stdin(far.try_clone().unwrap())
            .stdout(far.try_clone().unwrap())
            .stderr(far)
            .spawn()
            .unwrap();
        drop(command);
        let read = tokio::task::spawn_blocking(move || {
            use std::io::Read as _;
            let (mut near, mut seen) = (std::fs::File::from(near), Vec::new());
            let mut bytes = [0; 1024];
            // The last close of the other end is an error here.
            while let Ok(n @ 1..) = near.read(&mut bytes) {
                seen.extend_from_slice(&bytes[..n]);
            }
            String::from_utf8_lossy(&seen).into_owned()
        });
        let status = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
        assert!(status.expect("kubectl ends").unwrap().success());
        let seen = read.await.unwrap();
        assert!(seen.contains("132 columns, 43 lines"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports() {
    let world = World::new().await;
    for spdy in [false, true] {
        let mut command = world.kubectl.words(&["port-forward", "pod/p", ":80", ":81", ":82"]);
        if spdy {
            command.envs(SPDY);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut ports = Vec::new();
        while ports.len() < 3 {
            let line = lines.next_line().await.unwrap().expect("it says where it listens");
            if let Some(rest) = line.strip_prefix("Forwarding from 127.0.0.1:") {
                let (local, remote) = rest.split_once(" -> ").unwrap();
                ports.push((remote.to_owned(), local.parse::<u16>().unwrap()));
            }
        }
        let at = |remote: &str| ports.iter().find(|(r, _)| r == remote).unwrap().1;
        let open =
            async |remote: &str| TcpStream::connect(("127.0.0.1", at(remote))).await.unwrap();
        // One that nobody answers is in nobody's way.
        let mut stuck = open("82").await;
        stuck.write_all(&[0; 2048]).await.unwrap();
        let (mut one, mut two) = (open("80").await, open("80").await);
        for round in 0..3 {
            for stream in [&mut one, &mut two] {
                let said = vec![b'0' + round; 100_000];
                let (mut read, mut write) = stream.split();
                let mut echoed = vec![0; said.len()];
                let (wrote, got) =
                    tokio::join!(write.write_all(&said), read.read_exact(&mut echoed));
                wrote.unwrap();
                got.unwrap();
                assert!(echoed == said);
            }
        }
        // The end of the client's half comes through, and what the pod says after it.
        one.shutdown().await.unwrap();
        let mut rest = Vec::new();
        one.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"bye");
        // kubectl gives up the whole forward after an error, so it comes last.
        let _refused = open("81").await;
        let error = loop {
            let line = errors.next_line().await.unwrap().expect("the error is told");
            if line.contains("81") {
                break line;
            }
        };
        assert!(error.contains("error forwarding port 81 to pod p"), "{error}");
        let _it_may_have_ended = child.kill().await;
    }
}

#[tokio::test]
async fn channels_by_hand() {
    let world = World::new().await;
    let token = world.token(&["get", "create"]).await;
    let path = "p/exec?command=cat&stdin=true&stdout=true";
    // v5: stdin is closed by a message, and the client is told the end.
    let mut socket = world.socket(&token, path, "v5.channel.k8s.io").await.unwrap();
    let mut next = async || match socket.next().await {
        Some(Ok(Message::Binary(bytes))) => bytes.to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!(next().await, [1], "an empty message says that it stands");
    socket.send(Message::binary(b"\x00foo".to_vec())).await.unwrap();
    socket.send(Message::binary(b"\x09not a channel".to_vec())).await.unwrap();
    socket.send(Message::Ping("x".into())).await.unwrap();
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let (mut out, mut status, mut pongs) = (Vec::new(), Value::Null, 0);
    let close = loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Binary(bytes) if bytes[0] == 1 => out.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) if bytes[0] == 3 => {
                status = serde_json::from_slice(&bytes[1..]).unwrap();
            }
            Message::Pong(_) => pongs += 1,
            Message::Close(frame) => break frame.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((out.as_slice(), pongs, u16::from(close.code)), (&b"foo"[..], 1, 1000));
    assert_eq!(status, json!({ "metadata": {}, "status": "Success" }));

    // v4 in base64: the exit code is in the Status.
    let path = "p/exec?command=exit&command=7&stdout=true";
    let mut socket = world.socket(&token, path, "v4.base64.channel.k8s.io").await.unwrap();
    let mut texts = Vec::new();
    while let Some(Ok(Message::Text(text))) = socket.next().await {
        texts.push(text.to_string());
    }
    assert_eq!(texts[0], "1");
    let status = base64::engine::general_purpose::STANDARD.decode(&texts[1][1..]).unwrap();
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!((status["reason"].as_str(), &texts[1][..1]), (Some("NonZeroExitCode"), "3"));
    assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "7" }));

    // Without a name, as the first clients: an error is a text.
    let mut socket = world.socket(&token, "p/exec?command=fly&stdout=true", "").await.unwrap();
    let mut last = Vec::new();
    while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
        last = bytes.to_vec();
    }
    assert!(String::from_utf8_lossy(&last[1..]).contains("no such command"), "{last:?}");

    // Ports as channels: each begins with its number.
    let path = "p/portforward?ports=80&ports=81";
    let mut socket = world.socket(&token, path, "v4.channel.k8s.io").await.unwrap();
    socket.send(Message::binary(b"\x00ping".to_vec())).await.unwrap();
    let mut channels = vec![Vec::new(); 4];
    while channels[0].len() < 6 || channels[3].len() < 3 {
        let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() else { continue };
        channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
    }
    assert_eq!(channels[0], b"\x50\x00ping");
    assert_eq!(channels[1], b"\x50\x00");
    assert!(String::from_utf8_lossy(&channels[3][2..]).contains("error forwarding port 81"));
}

#[tokio::test]
async fn logs_and_watches_as_messages() {
    let world = World::new().await;
    let token = world.token(&["get"]).await;
    let rules = json!({ "rules": [
        { "apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "watch"] }] });
    let role = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/r";
    world.cluster.admin.merge(role, &rules).await.expect(200);
    for (protocol, log) in [
        ("", "one\ntwo\n"),
        ("binary.k8s.io", "one\ntwo\n"),
        ("base64.binary.k8s.io", "b25lCg==dHdvCg=="),
    ] {
        let mut socket = world.socket(&token, "p/log", protocol).await.unwrap();
        let mut all = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(_) | Message::Text(_) => all.extend(message.into_data()),
                Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 1000),
                other => panic!("{other}"),
            }
        }
        assert_eq!(String::from_utf8_lossy(&all), log, "{protocol}");
    }
    let (code, _) = world.socket(&token, "far/log", "binary.k8s.io").await.err().unwrap();
    assert_eq!(code, 503);
    let (code, _) = world.socket(&token, "p/log", "v4.channel.k8s.io").await.err().unwrap();
    assert_eq!(code, 403);

    // A browser's token, and an event a message.
    let stream = connect(&world.ca, world.port).await;
    let url = format!("wss://localhost{PODS}?watch=true&fieldSelector=metadata.name%3Dp");
    let mut request = url.into_client_request().unwrap();
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let words = format!("base64url.bearer.authorization.k8s.io.{}, mine", engine.encode(&token));
    request.headers_mut().insert("sec-websocket-protocol", words.parse().unwrap());
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "mine");
    let labels = json!({ "metadata": { "labels": { "seen": "twice" } } });
    world.cluster.admin.merge(&format!("{PODS}/p"), &labels).await.expect(200);
    for kind in ["ADDED", "MODIFIED"] {
        let message = socket.next().await.unwrap().unwrap();
        let event: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        assert_eq!(
            (event["type"].as_str(), &event["object"]["metadata"]["name"]),
            (Some(kind), &json!("p"))
        );
        if event["object"]["metadata"]["labels"]["seen"] == "twice" {
            break;
        }
    }
}

#[tokio::test]
async fn what_is_refused() {
    let world = World::new().await;
    let admin = &world.cluster.admin;
    let check = async |path: &str, code: u16, text: &str| {
        let status = admin.get(&format!("{PODS}/{path}")).await.expect(code);
        assert!(status["message"].as_str().unwrap().contains(text), "{status}");
    };
    check("p/exec?command=x&stdout=true", 400, "Upgrade request required").await;
    check("p/portforward", 400, "Upgrade request required").await;
    check("p/exec?command=x", 400, "at least 1 of stdin, stdout, stderr").await;
    check("p/exec?stdout=true", 400, "at least one command").await;
    check("p/exec?command=x&stdout=true&dryRun=All", 400, "dryRun is not supported").await;
    check("none/exec?command=x&stdout=true", 404, "pods \"none\" not found").await;
    check("p/attach?stdout=true&container=x", 400, "container x is not valid for pod p").await;

    // A WebSocket is a GET, but to get is not enough.
    let token = world.token(&["get"]).await;
    let exec = "p/exec?command=both&stdout=true";
    for path in [exec, "p/portforward?ports=80"] {
        let (code, text) = world.socket(&token, path, "v4.channel.k8s.io").await.err().unwrap();
        assert_eq!(code, 403);
        assert!(text.contains("cannot create resource"), "{text}");
    }
    let rules = json!({ "rules": [{ "apiGroups": [""], "resources": ["pods/exec", "pods/portforward"], "verbs": ["*"] }] });
    let role = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/r";
    admin.merge(role, &rules).await.expect(200);
    let (code, text) = world.socket(&token, exec, "v9.channel.k8s.io").await.err().unwrap();
    assert!(code == 403 && text.contains("unable to negotiate protocol"), "{code} {text}");
    let (code, text) =
        world.socket(&token, "p/portforward?ports=x", "v4.channel.k8s.io").await.err().unwrap();
    assert!(code == 400 && text.contains("unable to parse"), "{code} {text}");
    let (code, _) =
        world.socket(&token, "far/portforward?ports=80", "v4.channel.k8s.io").await.err().unwrap();
    assert_eq!(code, 503);
    let nobody = world.cluster.client(UserInfo::authenticated("eve", &[]));
    nobody.get(&format!("{PODS}/{exec}")).await.expect(403);
}
