use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rimward_node_pod::runtime::{Runtime, RuntimeEvent};

use crate::node::{Node, address, get, until};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_handler_answers() {
    let node = Node::new().await;
    for (guest, said) in [
        ("http-wat-p2.wasm", "hello from wat\n"),
        ("http-rust-p2.wasm", "hello from rust\n"),
        ("http-rust-p2-nolibc.wasm", "hello from rust\n"),
        ("http-rust-p3.wasm", "hello from rust p3\n"),
    ] {
        let spec = node.spec(guest);
        node.runtime.start(spec.clone()).await.unwrap();
        let answer = get(address(&spec)).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(said),
            "{guest}: {answer}"
        );
        // A second start of what runs changes nothing.
        node.runtime.start(spec.clone()).await.unwrap();
        assert!(get(address(&spec)).await.contains(said));
    }
    assert_eq!(node.runtime.host_pids().await.len(), 1, "handlers share a host");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_stops_by_finishing_and_its_port_is_free() {
    let mut node = Node::new().await;
    let spec = node.spec("http-wat-p2.wasm");
    node.runtime.start(spec.clone()).await.unwrap();
    node.event(|event| matches!(event, RuntimeEvent::Started { id, .. } if *id == spec.id)).await;

    // Keep-alive: two requests on one connection, then a stop while it is idle.
    let to = address(&spec);
    let mut stream = TcpStream::connect(to).unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("\r\n0\r\n\r\n") {
            let mut buffer = [0; 1024];
            let len = stream.read(&mut buffer).unwrap();
            assert_ne!(len, 0, "the connection stays open");
            seen.extend_from_slice(&buffer[..len]);
        }
    }
    node.runtime.stop(&spec.id, Duration::from_secs(30)).await;
    let exit = node.exit(&spec.id).await;
    assert_eq!((exit.code, exit.reason.as_str()), (0, "Completed"));
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "the idle connection was closed");
    assert!(TcpStream::connect(to).is_err());
    node.runtime.remove(&spec.id).await;
    assert_eq!(node.runtime.usage(&spec.id).await, None);

    let mut again = spec.clone();
    again.id.attempt = 1;
    node.runtime.start(again).await.unwrap();
    assert!(get(to).await.contains("hello from wat"));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_and_memory_is_given_back() {
    let node = Node::new().await;
    let spec = node.spec("http-rust-p2.wasm");
    node.runtime.start(spec.clone()).await.unwrap();
    for _ in 0..50 {
        assert!(get(address(&spec)).await.contains("200 OK"));
    }
    until("all instances are gone", async || {
        let usage = node.runtime.usage(&spec.id).await.unwrap();
        usage.memory_bytes == 0 && usage.cpu_nanos > 0
    })
    .await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let node = Node::new().await;
    let spec = node.spec("http-wat-p2.wasm");
    let _taken = std::net::TcpListener::bind(address(&spec)).unwrap();
    let error = node.runtime.start(spec.clone()).await.unwrap_err();
    assert!(error.message.contains(&format!("cannot listen on {}", address(&spec))), "{error}");
    assert!(error.message.contains("in use"), "{error}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_prior_knowledge_is_spoken() {
    let node = Node::new().await;
    let spec = node.spec("http-rust-p2-nolibc.wasm");
    node.runtime.start(spec.clone()).await.unwrap();
    let stream = tokio::net::TcpStream::connect(address(&spec)).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://{}/", address(&spec));
    let request =
        http::Request::get(uri).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(&body[..], b"hello from rust\n");
    node.end().await;
}

/// A guest that grows its memory without end when it is asked.
const GREEDY: &str = r#"(component
    (import "wasi:http/types@0.2.0" (instance $types
        (export "incoming-request" (type (sub resource)))
        (export "response-outparam" (type (sub resource)))))
    (alias export $types "incoming-request" (type $request))
    (alias export $types "response-outparam" (type $out))
    (core module $m
        (memory 1)
        (func (export "handle") (param i32 i32)
            (loop $again (drop (memory.grow (i32.const 16))) (br $again))))
    (core instance $i (instantiate $m))
    (func $handle (param "request" (own $request)) (param "response-out" (own $out)) (canon lift (core func $i "handle")))
    (component $c
        (import "import-type-incoming-request" (type $request (sub resource)))
        (import "import-type-response-outparam" (type $out (sub resource)))
        (import "import-func-handle" (func $handle (param "request" (own $request)) (param "response-out" (own $out))))
        (export $r "incoming-request" (type $request))
        (export $o "response-outparam" (type $out))
        (export "handle" (func $handle) (func (param "request" (own $r)) (param "response-out" (own $o)))))
    (instance $h (instantiate $c
        (with "import-type-incoming-request" (type $request))
        (with "import-type-response-outparam" (type $out))
        (with "import-func-handle" (func $handle))))
    (export "wasi:http/incoming-handler@0.2.0" (instance $h)))"#;

/// A guest that runs without end when it is asked.
pub fn endless() -> String {
    GREEDY.replace("(drop (memory.grow (i32.const 16)))", "")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_the_memory_limit_fails_alone_and_is_noticed() {
    let mut node = Node::new().await;
    let file = node.dir.join("greedy.wasm");
    std::fs::write(&file, wat::parse_str(GREEDY).unwrap()).unwrap();
    let mut spec = node.spec_of("greedy", &file, "sha256:greedy");
    spec.resources.memory_limit_bytes = Some(16 << 20);
    node.runtime.start(spec.clone()).await.unwrap();
    for _ in 0..3 {
        let answer = get(address(&spec)).await;
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("memory limit"), "{answer}");
    }
    node.event(
        |event| matches!(event, RuntimeEvent::Notice { reason, .. } if reason == "OOMRequest"),
    )
    .await;
    assert_eq!(node.runtime.usage(&spec.id).await.unwrap().memory_bytes, 0);
    // One a minute, not one a request.
    node.runtime.stop(&spec.id, Duration::from_secs(5)).await;
    let next = node.event(|event| !matches!(event, RuntimeEvent::Started { .. })).await;
    assert!(matches!(next, RuntimeEvent::Exited { .. }), "{next:?}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_its_guest() {
    let node = Node::new().await;
    let file = node.dir.join("endless.wasm");
    std::fs::write(&file, wat::parse_str(endless()).unwrap()).unwrap();
    let spec = node.spec_of("endless", &file, "sha256:endless");
    node.runtime.start(spec.clone()).await.unwrap();
    let memory = async || node.runtime.usage(&spec.id).await.unwrap().memory_bytes;
    let mut stream = TcpStream::connect(address(&spec)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    until("the guest runs", async || memory().await > 0).await;
    drop(stream);
    until("the guest is gone", async || memory().await == 0).await;
    node.end().await;
}

/// By hand: RIMWARD_TEST_IDLE=10000 cargo test -p rimward-node-wasm -- idle_handlers --ignored --nocapture
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and ten thousand addresses; prints what idle handlers cost"]
async fn idle_handlers_cost_little() {
    let count: u32 =
        std::env::var("RIMWARD_TEST_IDLE").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    let node = Node::new().await;
    let start = std::time::Instant::now();
    let mut slowest = Duration::ZERO;
    for number in 0..count {
        let mut spec = node.spec("http-rust-p2.wasm");
        let ip = std::net::IpAddr::V4(std::net::Ipv4Addr::from(0x7f80_0001 + number));
        (spec.bind_ip, spec.pod_ip, spec.tcp_ports) = (ip, ip, vec![8080]);
        spec.id.pod_uid = format!("idle-{number}");
        spec.log_path = node.dir.join("pods").join(&spec.id.pod_uid).join("guest/0.log");
        let begun = std::time::Instant::now();
        node.runtime.start(spec).await.unwrap();
        slowest = if number == 0 { Duration::ZERO } else { slowest.max(begun.elapsed()) };
    }
    let resident = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned()
    };
    println!("{count} handlers in {:?}, slowest {slowest:?}", start.elapsed());
    println!(
        "host {}, agent {}",
        resident(node.runtime.host_pids().await[0]),
        resident(std::process::id())
    );
    if let Ok(seconds) = std::env::var("RIMWARD_TEST_SERVE") {
        println!("serving on 127.128.0.1:8080");
        tokio::time::sleep(Duration::from_secs(seconds.parse().unwrap())).await;
    }
    node.end().await;
}
