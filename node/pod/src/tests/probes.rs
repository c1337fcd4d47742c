//! Probes, by what they do to a pod; and over real sockets.

use super::*;
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

#[tokio::test]
async fn over_sockets() {
    use crate::probe::{Outcome, Target, execute};
    async fn check(reach: Option<std::net::SocketAddr>, probe: Value, expected: Result<(), &str>) {
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
                matches!(&outcome, Outcome::Failure(w) | Outcome::Unknown(w) if w == why),
                "{outcome:?}"
            ),
        }
    }
    let get = |path: &str| json!({"httpGet": {"path": path, "port": "web"}});
    let good = Some(server(Some("HTTP/1.1 {agent} OK\r\ncontent-length: 2\r\n\r\nok")).await);
    let bad = Some(server(Some("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")).await);
    let silent = Some(server(None).await);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = Some(free.local_addr().unwrap());
    drop(free);
    check(good, get("/ok"), Ok(())).await;
    check(good, get("/moved"), Ok(())).await;
    check(good, json!({"tcpSocket": {"port": 1}}), Ok(())).await;
    check(bad, get("/"), Err("HTTP probe failed with statuscode: 503")).await;
    check(
        refused,
        get("/x"),
        Err(
            "Get \"http://10.42.0.5:8080/x\": dial tcp 10.42.0.5:8080: connect: connection refused",
        ),
    )
    .await;
    check(
        refused,
        json!({"tcpSocket": {"port": 8080}}),
        Err("dial tcp 10.42.0.5:8080: connect: connection refused"),
    )
    .await;
    check(silent, get("/"), Err("Get \"http://10.42.0.5:8080/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)")).await;
    check(good, json!({"httpGet": {"port": "nope"}}), Err("couldn't find port: \"nope\"")).await;
    check(good, json!({"httpGet": {"port": 99999}}), Err("invalid port number: 99999")).await;
    check(good, json!({}), Err("missing probe handler")).await;
}
