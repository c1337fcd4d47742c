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
