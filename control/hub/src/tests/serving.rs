//! What a node may say and ask, and what ends its connection.

use super::*;
use rimward_control_apiserver::nodes::{LogOptions, NodeError, Nodes as _};
use rimward_tunnel::call::{self, CallError, call};
use rimward_tunnel::wire::{
    EventReport, FetchRequest, RegistryRequest, Reply, Request, TokenRequest,
};

const POD: &str = "/api/v1/namespaces/a/pods/web";

/// A node that knows of its pod.
async fn node_with_pod(world: &World) -> (Tunnel, Value) {
    let mut tunnel = world.node("edge-1").await;
    let stored = world.api.put(POD, pod("edge-1"));
    while delta(&mut tunnel).await.kind != "Pod" {}
    (tunnel, stored)
}

#[tokio::test]
async fn statuses_go_up_and_are_acknowledged() {
    let world = World::new();
    let (mut tunnel, stored) = node_with_pod(&world).await;
    tunnel.writer.push(&report(&stored, 1, "Running", false));
    tunnel.writer.flush().await.unwrap();
    world.api.until(POD, |pod| pod.unwrap()["status"]["phase"] == "Running").await;
    let status = world.api.get(POD).unwrap()["status"].clone();
    assert_eq!(status["conditions"][0]["type"], "PodScheduled", "others' conditions stay");
    let acked = loop {
        if let Down::Ack(ack) = next(&mut tunnel).await {
            break ack.seqs;
        }
    };
    assert_eq!(acked, [1]);

    // It is not told what it said itself. What another changes comes, with all that was said.
    let mut labelled = world.api.get(POD).unwrap();
    labelled["metadata"]["labels"] = json!({ "a": "b" });
    world.api.put(POD, labelled);
    let told = delta(&mut tunnel).await;
    let told: Value = serde_json::from_slice(&told.upserts[0]).unwrap();
    assert_eq!(told["metadata"]["labels"]["a"], "b");
    assert_eq!(told["status"]["phase"], "Running");
}

#[tokio::test]
async fn a_pod_that_has_ended_is_deleted() {
    let world = World::new();
    let (mut tunnel, mut stored) = node_with_pod(&world).await;
    stored["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let leaving = world.api.put(POD, stored);
    assert_eq!(names(&delta(&mut tunnel).await), ["web"]);
    tunnel.writer.push(&report(&leaving, 1, "Succeeded", true));
    tunnel.writer.flush().await.unwrap();
    world.api.until(POD, |pod| pod.is_none()).await;
}

#[tokio::test]
async fn an_older_pods_status_is_dropped() {
    let world = World::new();
    let (mut tunnel, mut stored) = node_with_pod(&world).await;
    stored["metadata"]["uid"] = json!("an-earlier-one");
    tunnel.writer.push(&report(&stored, 7, "Failed", true));
    tunnel.writer.flush().await.unwrap();
    let Down::Ack(ack) = next(&mut tunnel).await else { panic!("no ack") };
    assert_eq!(ack.seqs, [7]);
    assert_eq!(world.api.get(POD).unwrap()["status"]["phase"], "Pending");
}

#[tokio::test]
async fn another_nodes_objects_end_the_connection_and_nothing_else() {
    let world = World::new();
    let (mut good, stored) = node_with_pod(&world).await;
    let mut bad = world.node("edge-2").await;
    bad.writer.push(&report(&stored, 1, "Failed", true));
    bad.writer.flush().await.unwrap();
    let (code, message) = closed(&world, &bad).await;
    assert_eq!(code, CloseCode::Malformed);
    assert!(message.contains("a/web"), "{message}");

    let bad = world.node("edge-3").await;
    let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
    let request = TokenRequest {
        namespace: "a".into(),
        pod: "web".into(),
        pod_uid: uid,
        ..TokenRequest::default()
    };
    assert!(call(&bad.connection, &request).await.is_err());
    assert_eq!(closed(&world, &bad).await.0, CloseCode::Malformed);

    good.writer.push(&report(&stored, 2, "Running", false));
    good.writer.flush().await.unwrap();
    world.api.until(POD, |pod| pod.unwrap()["status"]["phase"] == "Running").await;
}

#[tokio::test]
async fn unreadable_reports_end_the_connection() {
    let world = World::new();
    let (mut tunnel, stored) = node_with_pod(&world).await;
    let mut bad = report(&stored, 1, "Running", false);
    bad.status = b"not json".to_vec();
    tunnel.writer.push(&bad);
    tunnel.writer.flush().await.unwrap();
    assert_eq!(closed(&world, &tunnel).await.0, CloseCode::Malformed);

    let mut other = world.node("edge-2").await;
    other.writer.push(&EventReport { event: b"{}".to_vec() });
    other.writer.flush().await.unwrap();
    assert_eq!(closed(&world, &other).await.0, CloseCode::Malformed);
}

#[tokio::test]
async fn tokens_and_objects_for_own_pods() {
    let world = World::new();
    let (tunnel, stored) = node_with_pod(&world).await;
    let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
    let request = TokenRequest {
        namespace: "a".into(),
        pod: "web".into(),
        pod_uid: uid,
        audiences: vec!["x".into()],
        expiration_seconds: 600,
    };
    let (reply, _) = call(&tunnel.connection, &request).await.unwrap();
    let status: Value = serde_json::from_slice(&reply.body).unwrap();
    assert!(status["token"].as_str().unwrap().contains("serviceaccounts/robot"), "{status}");

    // Referenced but made only now: the node need not wait for it to come down.
    world.api.put("/api/v1/namespaces/a/configmaps/settings", config_map("1"));
    let fetch = |kind: &str, name: &str| FetchRequest {
        kind: kind.into(),
        namespace: "a".into(),
        name: name.into(),
    };
    let (reply, _) = call(&tunnel.connection, &fetch("ConfigMap", "settings")).await.unwrap();
    assert!(String::from_utf8(reply.body).unwrap().contains("settings"));
    let (reply, _) = call(&tunnel.connection, &fetch("Node", "edge-1")).await.unwrap();
    let node: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(node["metadata"]["name"], "edge-1");
    assert!(node["status"].is_null(), "what it said itself: {node}");
    world.api.put("/api/v1/namespaces/a/secrets/foreign", json!({"metadata": {}}));
    for (kind, name) in [("Secret", "foreign"), ("ConfigMap", "other"), ("Node", "edge-2")] {
        let refused = call(&tunnel.connection, &fetch(kind, name)).await.err().unwrap();
        assert!(
            matches!(refused, CallError::Refused { code: 400 | 403, .. }),
            "{kind} {name}: {refused}"
        );
    }
}

#[tokio::test]
async fn registry_reads() {
    let world = World::new();
    let tunnel = world.node("edge-1").await;
    let request = |method: &str, path: &str| RegistryRequest {
        method: method.into(),
        path: path.into(),
        headers: vec![],
    };
    let (reply, stream) =
        call(&tunnel.connection, &request("GET", "/v2/app/blobs/x")).await.unwrap();
    assert!(reply.headers.contains(&("x-test".into(), "yes".into())));
    let mut body = stream.into_body();
    assert_eq!(body.next().await.unwrap().unwrap(), "GET /v2/app/blobs/x");
    assert!(body.next().await.unwrap().is_none());
    for (method, path, expect) in
        [("GET", "/v2/missing", 404), ("PUT", "/v2/app", 403), ("GET", "/api/v1/secrets", 403)]
    {
        let refused = call(&tunnel.connection, &request(method, path)).await.err().unwrap();
        assert!(
            matches!(refused, CallError::Refused { code, .. } if code == expect),
            "{method} {path}: {refused}"
        );
    }
}

#[tokio::test]
async fn logs_stream_and_end_when_nobody_reads() {
    let world = World::new();
    let tunnel = world.node("edge-1").await;
    let serve = tokio::spawn(async move {
        let (request, incoming) =
            call::accept(&tunnel.connection).await.unwrap().request().await.unwrap();
        let Request::LogsRequest(request) = request else { panic!("{request:?}") };
        assert_eq!(
            (request.pod.as_str(), request.tail_lines, request.follow),
            ("web", Some(5), true)
        );
        let mut stream = incoming.begin(Reply { code: 200, ..Reply::default() }).await.unwrap();
        stream.send(Bytes::from_static(b"line\n")).await.unwrap();
        stream.unwanted().await;
        let (_, incoming) =
            call::accept(&tunnel.connection).await.unwrap().request().await.unwrap();
        incoming.refuse(404, "no such pod").await;
        tunnel
    });
    let options = LogOptions { tail_lines: Some(5), follow: true, ..LogOptions::default() };
    let mut lines = world.hub.logs("edge-1", "a", "web", "u", options.clone()).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap(), "line\n");
    drop(lines);
    let refused = world.hub.logs("edge-1", "a", "web", "u", options.clone()).await.err().unwrap();
    assert!(matches!(refused, NodeError::Refused(404, _)), "{refused}");
    let _tunnel = serve.await.unwrap();
    let absent = world.hub.logs("edge-9", "a", "web", "u", options).await.err().unwrap();
    assert!(matches!(absent, NodeError::NotConnected(_)), "{absent}");
}

#[tokio::test]
async fn pod_packets_are_relayed_by_block() {
    let world = World::new();
    let token = world.token().await;
    let (one, two) = (
        world.join(&token, "1", "edge-1").await.unwrap(),
        world.join(&token, "2", "edge-2").await.unwrap(),
    );
    let (_a, _b) = (world.open(&one).await.unwrap(), world.open(&two).await.unwrap());
    let (first, second) =
        (world.dialer.packets(&one).await.unwrap(), world.dialer.packets(&two).await.unwrap());
    let packet = |source: [u8; 4], destination: [u8; 4]| {
        let mut bytes = vec![0x45; 40];
        bytes[12..16].copy_from_slice(&source);
        bytes[16..20].copy_from_slice(&destination);
        Bytes::from(bytes)
    };
    let good = packet([10, 42, 0, 5], [10, 42, 1, 9]);
    // Until both links are known to the relay, packets are lost, as packets are.
    let received = async {
        loop {
            first.send(packet([10, 42, 1, 7], [10, 42, 1, 9])).unwrap();
            first.send(good.clone()).unwrap();
            tokio::select! {
                packet = second.recv() => return packet.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    };
    let received = tokio::time::timeout(Duration::from_secs(20), received).await.unwrap();
    assert_eq!(received, good, "the one with a foreign source is dropped");
}

#[tokio::test]
async fn sessions_go_to_the_node_and_end_with_their_client() {
    use futures::SinkExt as _;
    use rimward_control_apiserver::nodes::{Input, Output, PodOnNode, SessionOptions};
    use rimward_tunnel::wire::{SessionData, SessionEnd, SessionIn};
    let world = World::new();
    let tunnel = world.node("edge-1").await;
    let serve = tokio::spawn(async move {
        let accept = async || {
            let opened = call::accept(&tunnel.connection).await.unwrap();
            let (request, incoming) = opened.request().await.unwrap();
            let Request::SessionRequest(request) = request else { panic!("{request:?}") };
            assert_eq!((request.pod.as_str(), request.tty), ("web", true));
            incoming.begin(Reply { code: 200, ..Reply::default() }).await.unwrap().into_frames()
        };
        let (mut send, mut receive) = accept().await;
        let ends = |last: Option<&SessionIn>| matches!(last, Some(SessionIn::SessionData(data)) if data.bytes.is_empty());
        let mut heard = Vec::new();
        while !ends(heard.last()) {
            let frame = receive.next().await.unwrap().unwrap();
            heard.extend(SessionIn::decode(&frame).unwrap());
        }
        send.send(&SessionData { stream: 1, bytes: b"out".to_vec() }).await.unwrap();
        send.send(&SessionData { stream: 9, bytes: b"of a newer node".to_vec() }).await.unwrap();
        send.send(&SessionEnd { exit_code: Some(3), message: String::new() }).await.unwrap();
        send.finish();
        // The second is dropped by its client, which is no orderly end.
        let (_send, mut receive) = accept().await;
        assert!(receive.next().await.is_err());
        heard
    });
    let pod = PodOnNode { node: "edge-1".into(), name: "web".into(), ..PodOnNode::default() };
    let options = SessionOptions { tty: true, ..SessionOptions::default() };
    let mut session = world.hub.session(&pod, options.clone()).await.unwrap();
    session.input.send(Input::Stdin("in".into())).await.unwrap();
    // Nothing is not the end, and more than a frame holds is no trouble.
    session.input.send(Input::Stdin(bytes::Bytes::new())).await.unwrap();
    session.input.send(Input::Stdin(vec![b'x'; 5 << 20].into())).await.unwrap();
    session.input.send(Input::Resize { width: 80, height: 24 }).await.unwrap();
    session.input.send(Input::StdinEnd).await.unwrap();
    let out: Vec<Output> = session.output.map(Result::unwrap).collect().await;
    assert_eq!(out, [Output::Stdout("out".into()), Output::Exit(3)]);
    drop(world.hub.session(&pod, options.clone()).await.unwrap());
    let heard = serve.await.unwrap();
    assert!(matches!(&heard[0], SessionIn::SessionData(data) if data.bytes == b"in"));
    let typed = |said: &SessionIn| match said {
        SessionIn::SessionData(data) => data.bytes.len(),
        SessionIn::SessionResize(_) => 0,
    };
    assert_eq!(heard.iter().map(typed).sum::<usize>(), 2 + (5 << 20));
    let absent = PodOnNode { node: "edge-9".into(), ..pod };
    let refused = world.hub.session(&absent, options).await.err().unwrap();
    assert!(matches!(refused, NodeError::NotConnected(_)), "{refused}");
}

#[tokio::test]
async fn clients_that_do_not_read_hold_nobody_else_up() {
    use rimward_control_apiserver::nodes::{Output, PodOnNode, SessionOptions};
    use rimward_tunnel::wire::{SessionData, SessionEnd};
    const ASLEEP: usize = 50;
    let world = World::new();
    let tunnel = world.node("edge-1").await;
    tokio::spawn(async move {
        loop {
            let opened = call::accept(&tunnel.connection).await.unwrap();
            tokio::spawn(async move {
                let (request, incoming) = opened.request().await.unwrap();
                let Request::SessionRequest(request) = request else { panic!("{request:?}") };
                let begun = incoming.begin(Reply { code: 200, ..Reply::default() }).await.unwrap();
                let (mut send, _receive) = begun.into_frames();
                let piece = SessionData { stream: 1, bytes: vec![b'x'; 32 << 10] };
                while request.command == ["flood"] && send.send(&piece).await.is_ok() {}
                let _its_client_may_be_gone =
                    send.send(&SessionEnd { exit_code: Some(0), message: String::new() }).await;
                send.finish();
            });
        }
    });
    let pod = PodOnNode { node: "edge-1".into(), name: "web".into(), ..PodOnNode::default() };
    let run = async |command: &str| {
        let command = vec![command.to_owned()];
        let options = SessionOptions { command, ..SessionOptions::default() };
        world.hub.session(&pod, options).await.unwrap()
    };
    let mut asleep = Vec::new();
    for _ in 0..ASLEEP {
        // It flows: from now on it fills what it may.
        let flows = async {
            let mut session = run("flood").await;
            assert!(matches!(session.output.next().await, Some(Ok(Output::Stdout(_)))));
            session
        };
        let flows = tokio::time::timeout(Duration::from_secs(30), flows).await;
        asleep.push(flows.expect("it is not held up"));
    }
    for _ in 0..20 {
        let end = async { run("quick").await.output.next().await };
        let end =
            tokio::time::timeout(Duration::from_secs(30), end).await.expect("it is not held up");
        assert!(matches!(end, Some(Ok(Output::Exit(0)))));
    }
}
