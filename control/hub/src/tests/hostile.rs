//! Bytes that are not the protocol, from a machine whose certificate is good: its connection is closed with
//! the cause, and nothing else suffers.

use super::*;
use rimward_tunnel::call::{CallError, call};
use rimward_tunnel::close::closed_by_peer;
use rimward_tunnel::quinn::crypto::rustls::QuicClientConfig;
use rimward_tunnel::quinn::{ClientConfig, Connection, Endpoint};
use rimward_tunnel::wire::codec::{FORMAT, Frame};
use rimward_tunnel::wire::{Applied, FetchRequest, FrameReader, Welcome, encode};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A connection as the node, on which nothing was said yet: no code of ours in between.
async fn connect(world: &World, name: &str) -> (Connection, Endpoint) {
    world.join(&world.token().await, name, name).await.unwrap();
    let dir = world.dir.path().join(name);
    let pem = |file: &str| std::fs::read(dir.join(file)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&pem("node.crt")).unwrap()],
            PrivateKeyDer::from_pem_slice(&pem("node.key")).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![rimward_tunnel::ALPN_CONTROL.to_vec()];
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = world.hub.local_addr().unwrap();
    let connection = endpoint.connect_with(config, to, rimward_tunnel::SERVER_NAME).unwrap();
    (connection.await.unwrap(), endpoint)
}

/// Why the other end closed.
async fn why(connection: &Connection) -> (CloseCode, String) {
    let closed = tokio::time::timeout(Duration::from_secs(20), connection.closed()).await;
    let closed = closed.expect("the hub must close the connection");
    closed_by_peer(&closed).unwrap_or_else(|| panic!("{closed}"))
}

fn frame(kind: u16, claimed: u32, fields: &[u8]) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(claimed.to_be_bytes());
    bytes.extend(fields);
    bytes
}

fn encoded(frame: &impl Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes);
    bytes
}

/// The good node is still told what changes.
async fn unharmed(world: &World, good: &mut Tunnel, value: &str) {
    world.api.put("/api/v1/namespaces/a/configmaps/settings", config_map(value));
    loop {
        let delta = delta(good).await;
        let has = |json: &Vec<u8>| String::from_utf8_lossy(json).contains(value);
        // An earlier value may still be on its way.
        if delta.kind == "ConfigMap" && delta.upserts.iter().any(has) {
            break;
        }
    }
    assert!(good.connection.close_reason().is_none());
}

async fn good_node(world: &World) -> Tunnel {
    let mut good = world.node("good").await;
    world.api.put("/api/v1/namespaces/a/pods/web", pod("good"));
    while delta(&mut good).await.kind != "Pod" {}
    good
}

#[tokio::test]
async fn first_words_that_are_no_hello() {
    let world = World::new();
    let mut good = good_node(&world).await;
    let newer = Hello { protocol_min: 900, protocol_max: 901, ..hello() };
    let cases: [(&str, Vec<u8>, CloseCode, &str); 6] = [
        ("http", b"GET / HTTP/1.1\r\n\r\n".to_vec(), CloseCode::Malformed, "format 71"),
        ("oversized", frame(Hello::KIND, u32::MAX, b"x"), CloseCode::Malformed, "4294967295 bytes"),
        ("garbage", frame(Hello::KIND, 4, &[0xff; 4]), CloseCode::Malformed, "cannot be decoded"),
        ("no-hello", encoded(&Applied::default()), CloseCode::Malformed, "did not say hello first"),
        ("cut-off", frame(Hello::KIND, 100, b"half"), CloseCode::Malformed, "inside a frame"),
        ("newer", encoded(&newer), CloseCode::Protocol, "upgrade the control plane"),
    ];
    for (name, bytes, code, text) in cases {
        let (connection, _endpoint) = connect(&world, name).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        let (closed, message) = why(&connection).await;
        assert_eq!(closed, code, "{name}: {message}");
        assert!(message.contains(text), "{name}: {message}");
    }
    unharmed(&world, &mut good, "after first words").await;
}

#[tokio::test]
async fn unknown_frames_are_skipped() {
    let world = World::new();
    let (connection, _endpoint) = connect(&world, "from-the-future").await;
    let (mut send, recv) = connection.open_bi().await.unwrap();
    let mut bytes = frame(65_000, 3, b"new");
    bytes.extend(encoded(&hello()));
    bytes.extend(frame(65_001, 0, b""));
    send.write_all(&bytes).await.unwrap();
    let mut frames = FrameReader::new(recv);
    let first = tokio::time::timeout(Duration::from_secs(20), frames.next()).await;
    let first = first.expect("an answer").unwrap().expect("a frame");
    assert!(first.decode::<Welcome>().unwrap().is_some(), "kind {}", first.kind);
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn garbage_after_the_hello() {
    let world = World::new();
    let mut good = good_node(&world).await;
    for (name, bytes, text) in [
        ("garbage", vec![0xff; 64], "format 255"),
        ("oversized", frame(Applied::KIND, u32::MAX, &[]), "at most 4194304"),
        ("twice", encoded(&hello()), "hello twice"),
    ] {
        let (connection, _endpoint) = connect(&world, name).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&encoded(&hello())).await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let (code, message) = why(&connection).await;
        assert_eq!(code, CloseCode::Malformed, "{name}: {message}");
        assert!(message.contains(text), "{name}: {message}");
    }
    unharmed(&world, &mut good, "after garbage").await;
}

#[tokio::test]
async fn requests_that_are_none() {
    let world = World::new();
    let mut good = good_node(&world).await;
    for (name, bytes) in [
        ("noise", b"\0\0\0\0\0\0\0\0\0\0".to_vec()),
        ("huge", frame(FetchRequest::KIND, u32::MAX, &[])),
        ("bent", frame(FetchRequest::KIND, 3, &[0xff; 3])),
    ] {
        let bad = world.node(name).await;
        let (mut send, _recv) = bad.connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        assert_eq!(closed(&world, &bad).await.0, CloseCode::Malformed, "{name}");
    }
    // What another node's pod references is not told, and asking alone is no offence: a pod may just have
    // gone.
    world.api.put("/api/v1/namespaces/a/configmaps/settings", config_map("1"));
    let curious = world.node("curious").await;
    let fetch =
        FetchRequest { kind: "ConfigMap".into(), namespace: "a".into(), name: "settings".into() };
    let refused = call(&curious.connection, &fetch).await.err().expect("a refusal");
    assert!(matches!(refused, CallError::Refused { code: 403, .. }), "{refused}");
    unharmed(&world, &mut good, "after requests").await;
}
