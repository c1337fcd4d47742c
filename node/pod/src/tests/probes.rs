//! Probes, by what they do to a pod; and over real sockets.

use super::*;
use crate::probe::{Outcome, Target, execute};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn with_probe(kind: &str, probe: Value) -> Value {
    let mut probe = probe;
    probe["exec"] = json!({"command": ["x"]});
    let mut c = json!({"name": "c", "image": "i:1"});
    c[kind] = probe;
    pod(json!({"containers": [c]}))
}

#[tokio::test(start_paused = true)]
async fn readiness_comes_and_goes() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { exec_codes: vec![1, 0, 1, 1, 1, 0], ..Script::default() }]);
    b.set(&with_probe("readinessProbe", json!({"initialDelaySeconds": 5, "periodSeconds": 10})));
    b.until(|s| s.phase.as_deref() == Some("Running") && !is_true(s, "Ready")).await;
    b.until_ready().await;
    assert_eq!(b.seconds(), 15);
    b.until(|s| !is_true(s, "Ready")).await;
    assert_eq!(b.seconds(), 45, "three failures in a row");
    b.until_ready().await;
    assert_eq!(b.seconds(), 55);
    let events = b.world.reports.events();
    let unhealthy = events.iter().find(|e| e.reason == "Unhealthy").unwrap();
    assert_eq!(unhealthy.message, "Readiness probe failed: command \"x\" ended with exit code 1");
    assert_eq!(unhealthy.field_path, "spec.containers{c}");
    assert_eq!(b.world.runtime.starts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_command_says_what_it_printed() {
    let b = Bench::new().await;
    let script =
        Script { exec_codes: vec![2], exec_output: "no leader\n".into(), ..<_>::default() };
    b.world.runtime.script("c", vec![script]);
    b.set(&with_probe("readinessProbe", json!({})));
    b.until_event("Unhealthy").await;
    assert_eq!(b.message("Unhealthy"), "Readiness probe failed: no leader\n");
}

#[tokio::test(start_paused = true)]
async fn liveness_restarts() {
    let b = Bench::new().await;
    b.world.runtime.script(
        "c",
        vec![
            Script {
                exec_codes: vec![0, 1],
                stop_delay: Duration::from_secs(60),
                ..Script::default()
            },
            Script::default(),
        ],
    );
    b.set(&with_probe(
        "livenessProbe",
        json!({"periodSeconds": 5, "failureThreshold": 2, "terminationGracePeriodSeconds": 3}),
    ));
    b.until_event("Killing").await;
    assert_eq!(
        (b.seconds(), b.message("Killing").as_str()),
        (10, "Container c failed liveness probe, will be restarted")
    );
    b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    assert_eq!(b.seconds(), 13, "the probe's own grace");
}

#[tokio::test(start_paused = true)]
async fn startup_holds_the_others_back() {
    let b = Bench::new().await;
    b.world.runtime.script("c", vec![Script { exec_codes: vec![1, 1, 0], ..Script::default() }]);
    let mut p = with_probe("startupProbe", json!({"periodSeconds": 10}));
    p["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["y"]}, "periodSeconds": 60});
    b.set(&p);
    let status = b.until(|s| s.phase.as_deref() == Some("Running")).await;
    assert_eq!(container(&status, "c").started, Some(false));
    b.until_ready().await;
    assert_eq!(b.seconds(), 20, "readiness is asked as soon as startup is done");

    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { exec_codes: vec![1], ..Script::default() }, Script::default()]);
    b.set(&with_probe("startupProbe", json!({"periodSeconds": 10, "failureThreshold": 3})));
    b.until(|s| container(s, "c").restart_count == 1).await;
    assert_eq!(
        (b.seconds(), b.message("Killing").as_str()),
        (20, "Container c failed startup probe, will be restarted")
    );
}

/// Answers each connection with `answer`; None accepts and says nothing.
async fn server(answer: Option<&'static str>) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            match answer {
                None => silent.push(stream),
                Some(answer) => {
                    let mut request = vec![0; 4096];
                    let n = stream.read(&mut request).await.unwrap();
                    let request = String::from_utf8_lossy(&request[..n]).into_owned();
                    let answer = if request.contains("GET /moved") {
                        "HTTP/1.1 302 Found\r\nlocation: /ok\r\ncontent-length: 0\r\n\r\n"
                            .to_owned()
                    } else {
                        answer.replace(
                            "{agent}",
                            if request.to_lowercase().contains("user-agent: kube-probe/") {
                                "200"
                            } else {
                                "400"
                            },
                        )
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        }
    });
    address
}

/// What one execution tells, with all ports of the pod reached at one address.
async fn check_probe(
    reach: Option<std::net::SocketAddr>,
    probe: Value,
    expected: Result<(), &str>,
) {
    let world = World::new(Timestamp::UNIX_EPOCH);
    *world.network.reach.lock() = reach;
    let c = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]});
    let container = serde_json::from_value(c).unwrap();
    let target = Target {
        network: &*world.network,
        runtime: &world.runtime,
        id: &run("c", 0),
        pod_ip: "10.42.0.5".parse().unwrap(),
        container: &container,
    };
    let outcome = execute(&serde_json::from_value(probe).unwrap(), &target).await;
    match expected {
        Ok(()) => assert_eq!(outcome, Outcome::Success),
        Err(why) => assert!(
            matches!(&outcome, Outcome::Failure(w) | Outcome::Unknown(w) | Outcome::Warned(w) if w == why),
            "{outcome:?}"
        ),
    }
}

#[tokio::test]
async fn over_sockets() {
    let get = |path: &str| json!({"httpGet": {"path": path, "port": "web"}});
    let good = Some(server(Some("HTTP/1.1 {agent} OK\r\ncontent-length: 2\r\n\r\nok")).await);
    let bad = Some(server(Some("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")).await);
    let away = "HTTP/1.1 302 Found\r\nlocation: http://0.0.0.0/\r\ncontent-length: 4\r\n\r\naway";
    let away = Some(server(Some(away)).await);
    check_probe(away, get("/"), Err("Probe terminated redirects, Response body: away")).await;
    let silent = Some(server(None).await);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = Some(free.local_addr().unwrap());
    drop(free);
    check_probe(good, get("/ok"), Ok(())).await;
    check_probe(good, get("/moved"), Ok(())).await;
    check_probe(good, json!({"tcpSocket": {"port": 1}}), Ok(())).await;
    check_probe(bad, get("/"), Err("HTTP probe failed with statuscode: 503")).await;
    check_probe(
        refused,
        get("/x"),
        Err(
            "Get \"http://10.42.0.5:8080/x\": dial tcp 10.42.0.5:8080: connect: connection refused",
        ),
    )
    .await;
    check_probe(
        refused,
        json!({"tcpSocket": {"port": 8080}}),
        Err("dial tcp 10.42.0.5:8080: connect: connection refused"),
    )
    .await;
    check_probe(silent, get("/"), Err("Get \"http://10.42.0.5:8080/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)")).await;
    check_probe(good, json!({"httpGet": {"port": "nope"}}), Err("couldn't find port: \"nope\""))
        .await;
    check_probe(good, json!({"httpGet": {"port": 99999}}), Err("invalid port number: 99999")).await;
    check_probe(good, json!({}), Err("missing probe handler")).await;
}

/// A gRPC health service that answers with this serving status, or with this gRPC status.
async fn health_server(serving: u8, code: &'static str) -> std::net::SocketAddr {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::{HeaderMap, Request, Response, body::Incoming};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |request: Request<Incoming>| async move {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&asked[5..], b"\x0a\x03svc");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]));
        let body = body.with_trailers(async move { Some(Ok(trailers)) });
        Ok::<_, std::convert::Infallible>(Response::new(body))
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(answer);
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// Answers 200 by HTTPS with a certificate that nobody trusts.
async fn tls_server() -> std::net::SocketAddr {
    let key = rcgen::generate_simple_self_signed(vec!["elsewhere.example".into()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut request = vec![0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn over_grpc_and_https() {
    let grpc = || json!({"grpc": {"port": 9000, "service": "svc"}});
    check_probe(Some(health_server(1, "0").await), grpc(), Ok(())).await;
    let unhealthy = "service unhealthy (responded with \"NOT_SERVING\")";
    check_probe(Some(health_server(2, "0").await), grpc(), Err(unhealthy)).await;
    let none = "this server does not implement the grpc health protocol (grpc.health.v1.Health)";
    check_probe(Some(health_server(0, "12").await), grpc(), Err(none)).await;
    let https = json!({"httpGet": {"scheme": "HTTPS", "port": 8443}});
    check_probe(Some(tls_server().await), https, Ok(())).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_while_something_is_being_ended() {
    let b = Bench::new().await;
    b.world.runtime.script("side", vec![exits(1, 12), Script::default()]);
    b.world.runtime.script("c", vec![Script { exec_codes: vec![1], ..Script::default() }]);
    b.set(&pod(json!({
        "initContainers": [{"name": "side", "image": "i:1", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "i:1",
            "livenessProbe": {"exec": {"command": ["no"]}, "initialDelaySeconds": 10, "failureThreshold": 1},
            "lifecycle": {"preStop": {"sleep": {"seconds": 20}}}}],
    })));
    let status = b.until(|s| container(s, "side").restart_count == 1).await;
    assert!((30..33).contains(&b.seconds()), "{}", b.seconds());
    assert_eq!(container(&status, "c").restart_count, 1);
}
