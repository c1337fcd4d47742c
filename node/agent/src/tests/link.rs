//! Connecting, hearing, telling, serving.

use super::*;
use k8s_openapi::api::core::v1::PodStatus;
use rimward_tunnel::CloseCode;
use rimward_tunnel::call::{CallError, call};
use rimward_tunnel::close::close;
use rimward_tunnel::wire::{Ack, DialRequest, LogsRequest, Offer, Reply, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn joins_connects_and_becomes_ready() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (agent, mut node, shutdown) = control.agent(dir.path()).await;
    let said: Value = serde_json::from_slice(&node.hello.node).unwrap();
    assert_eq!(said["metadata"]["labels"]["rimward.dev/wasm"], "true");
    assert_eq!(said["metadata"]["labels"]["site"], "x");
    assert_eq!(said["status"]["addresses"][0]["address"], "192.0.2.7");
    assert_eq!(said["status"]["conditions"][3]["status"], "False");
    assert_eq!(agent.welcome().await.unwrap().pod_cidr, "10.42.7.0/24");

    let pods = Arc::new(Recording::default());
    agent.attach(pods.clone(), Arc::new(Loopback));
    say_delta(&mut node, "Pod", &[pod("web", "u1")], &[]).await;
    say_synced(&mut node).await;
    pods.until(&["set u1", "synced"]).await;
    loop {
        if let Up::NodeReport(report) = hear(&mut node).await {
            let said: Value = serde_json::from_slice(&report.node).unwrap();
            if said["status"]["conditions"][3]["status"] == "True" {
                break;
            }
        }
    }
    shutdown.cancel();
    assert!(agent.ended().await.is_ok());
}

#[tokio::test]
async fn deltas_reach_the_caches_and_the_pods() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (agent, mut node, _shutdown) = control.agent(dir.path()).await;
    let pods = Arc::new(Recording::default());
    agent.attach(pods.clone(), Arc::new(Loopback));
    let mut changes = agent.desired().configuration();
    say_delta(&mut node, "ConfigMap", &[object("c", "uc", "1")], &[]).await;
    changes.wait_for(|count| *count == 1).await.unwrap();
    assert!(agent.objects().config_map("a", "c").await.is_ok());
    // The same name with another UID is another pod; an unreadable object is left out.
    say_delta(&mut node, "Pod", &[pod("web", "u1"), json!({"metadata": 5})], &[]).await;
    pods.until(&["set u1"]).await;
    say_delta(&mut node, "Pod", &[pod("web", "u2")], &[]).await;
    pods.until(&["set u1", "remove u1", "set u2"]).await;
    say_delta(&mut node, "Pod", &[], &[("a", "web")]).await;
    pods.until(&["set u1", "remove u1", "set u2", "remove u2"]).await;
    // A kind of a newer control plane is nothing to stumble over.
    say_delta(&mut node, "Gadget", &[json!({})], &[]).await;
    say_delta(&mut node, "Service", &[object("s", "us", "1")], &[]).await;
    let mut services = agent.desired().services.subscribe();
    while agent.desired().services.get("a", "s").is_none() {
        services.next().await;
    }
    assert_eq!(agent.objects().services("a").len(), 1);
}

#[tokio::test]
async fn reconnects_with_what_it_holds_and_takes_what_it_lacks() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (agent, mut node, _shutdown) = control.agent(dir.path()).await;
    let pods = Arc::new(Recording::default());
    agent.attach(pods.clone(), Arc::new(Loopback));
    say_delta(&mut node, "Pod", &[pod("gone", "u1"), pod("stays", "u2")], &[]).await;
    say_synced(&mut node).await;
    pods.until(&["set u1", "set u2", "synced"]).await;
    close(&node.connection, CloseCode::Stopping, "test");

    let mut node = control.connected().await;
    let held = node.hello.held.iter().find(|(kind, ..)| kind == "Pod").unwrap();
    assert_eq!(held.1, 2);
    let entry =
        |name: &str, uid: &str| ("a".to_owned(), name.to_owned(), uid.to_owned(), "1".to_owned());
    let entries = vec![entry("stays", "u2"), entry("new", "u3")];
    node.writer.push(&Offer { revision: 1, kind: "Pod".into(), entries });
    say_synced(&mut node).await;
    pods.until(&["set u1", "set u2", "synced", "remove u1"]).await;
    let want = loop {
        if let Up::Want(want) = hear(&mut node).await {
            break want;
        }
    };
    assert_eq!(want.keys, [("a".to_owned(), "new".to_owned())]);
}

#[tokio::test]
async fn malformed_bytes_from_the_control_plane_cost_a_reconnect_only() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (_agent, mut node, _shutdown) = control.agent(dir.path()).await;
    // A second welcome is against the protocol.
    node.writer.push(&Welcome::default());
    node.writer.flush().await.unwrap();
    let reason =
        tokio::time::timeout(Duration::from_secs(20), node.connection.closed()).await.unwrap();
    let (code, _) = rimward_tunnel::close::closed_by_peer(&reason).unwrap();
    assert_eq!(code, CloseCode::Malformed);
    control.connected().await;
}

#[tokio::test]
async fn statuses_are_sent_until_they_are_acknowledged() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (agent, mut node, _shutdown) = control.agent(dir.path()).await;
    let web: Pod = serde_json::from_value(pod("web", "u1")).unwrap();
    let status = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
    agent.reports().pod_status(&web, status);
    agent.reports().event(&web, "spec.containers{c}", false, "Started", "started c");
    let (mut first, mut event) = (None, None);
    while first.is_none() || event.is_none() {
        match hear(&mut node).await {
            Up::PodReport(report) => first = Some(report),
            Up::EventReport(report) => event = Some(report),
            _ => {}
        }
    }
    let event: Value = serde_json::from_slice(&event.unwrap().event).unwrap();
    assert_eq!(event["involvedObject"]["fieldPath"], "spec.containers{c}");
    close(&node.connection, CloseCode::Stopping, "test");
    let mut node = control.connected().await;
    let again = loop {
        if let Up::PodReport(report) = hear(&mut node).await {
            break report;
        }
    };
    assert_eq!(Some(&again), first.as_ref());
    node.writer.push(&Ack { seqs: vec![again.seq] });
    node.writer.flush().await.unwrap();
    // A next one shows that the first is forgotten: it alone comes on a third connection.
    let status = PodStatus { phase: Some("Succeeded".into()), ..PodStatus::default() };
    agent.reports().pod_terminated(&web, status);
    loop {
        if let Up::PodReport(report) = hear(&mut node).await {
            assert!(report.terminated && report.seq > again.seq);
            break;
        }
    }
}

#[tokio::test]
async fn serves_logs_and_dials_its_own_pods_only() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (agent, node, _shutdown) = control.agent(dir.path()).await;
    let logs = |pod: &str, follow| LogsRequest {
        namespace: "a".into(),
        pod: pod.into(),
        follow,
        ..LogsRequest::default()
    };
    let early = call(&node.connection, &logs("web", false)).await.err().unwrap();
    assert!(matches!(early, CallError::Refused { code: 503, .. }), "{early}");

    agent.welcome().await;
    agent.attach(Arc::new(Recording::default()), Arc::new(Loopback));
    let (_, stream) = call(&node.connection, &logs("web", false)).await.unwrap();
    let mut body = stream.into_body();
    assert_eq!(body.next().await.unwrap().unwrap(), "log of web\n");
    assert!(body.next().await.unwrap().is_none());
    let (_, stream) = call(&node.connection, &logs("web", true)).await.unwrap();
    assert_eq!(stream.into_body().next().await.unwrap().unwrap(), "log of web\n");
    let missing = call(&node.connection, &logs("missing", false)).await.err().unwrap();
    assert!(matches!(missing, CallError::Refused { code: 404, .. }), "{missing}");
    let negative = LogsRequest { tail_lines: Some(-1), ..logs("web", false) };
    let negative = call(&node.connection, &negative).await.err().unwrap();
    assert!(
        matches!(&negative, CallError::Refused { code: 400, message } if message.contains("tailLines")),
        "{negative}"
    );

    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let dial = |ip: &str| DialRequest { target: 0, ip: ip.into(), port };
    let (_, mut stream) = call(&node.connection, &dial("10.42.7.9")).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut text = [0; 4];
    stream.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"ping");
    for ip in ["127.0.0.1", "10.42.8.9", "192.0.2.7"] {
        let refused = call(&node.connection, &dial(ip)).await.err().unwrap();
        assert!(matches!(refused, CallError::Refused { code: 404, .. }), "{ip}: {refused}");
    }
}

#[tokio::test]
async fn asks_for_tokens_and_objects() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (agent, node, _shutdown) = control.agent(dir.path()).await;
    let serve = tokio::spawn(async move {
        loop {
            let opened = rimward_tunnel::call::accept(&node.connection).await.unwrap();
            let (request, incoming) = opened.request().await.unwrap();
            match request {
                Request::TokenRequest(request) => {
                    assert_eq!((request.pod_uid.as_str(), request.expiration_seconds), ("u1", 600));
                    let body = json!({"token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z"});
                    let body = body.to_string().into_bytes();
                    incoming.answer(Reply { code: 200, body, ..Reply::default() }).await;
                }
                Request::FetchRequest(request) if request.name == "there" => {
                    let body = object("there", "u", "1").to_string().into_bytes();
                    incoming.answer(Reply { code: 200, body, ..Reply::default() }).await;
                }
                _ => incoming.refuse(404, "configmaps \"x\" not found").await,
            }
        }
    });
    agent.welcome().await;
    let objects = agent.objects();
    while !agent.is_connected() {
        tokio::task::yield_now().await;
    }
    let web: Pod = serde_json::from_value(pod("web", "u1")).unwrap();
    let token = objects.token(&web, &[], 600).await.unwrap();
    assert_eq!(token.token, "t");
    assert_eq!(token.expires_at.to_string(), "2030-01-01T00:00:00Z");
    assert!(objects.config_map("a", "there").await.is_ok());
    let missing = objects.config_map("a", "x").await.unwrap_err();
    assert_eq!(missing.to_string(), "configmap \"x\" not found");
    serve.abort();
}
