//! Guests that ask others: names by the pod's DNS policy, HTTP, and HTTPS with the node's CA bundle.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rimward_node_pod::runtime::{ContainerSpec, Runtime};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use crate::node::{Node, address, config, request};

fn caller() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cluster/guests/caller/caller.wasm")
}

fn spec(node: &Node) -> ContainerSpec {
    let file = caller();
    let digest = format!("sha256:caller-{}", std::fs::metadata(&file).unwrap().len());
    node.spec_of("caller", &file, &digest)
}

/// What the guest says to `path`: its answer's body, without the chunks' lengths.
async fn ask(spec: &ContainerSpec, path: &str) -> String {
    let (to, text) =
        (address(spec), format!("GET {path} HTTP/1.0\r\nhost: test\r\nconnection: close\r\n\r\n"));
    let answer = tokio::task::spawn_blocking(move || request(to, &text)).await.unwrap();
    answer.split_once("\r\n\r\n").map_or(answer.clone(), |(_, body)| body.to_owned())
}

/// An HTTPS server for `name`: where it listens, and the certificate that its clients must trust.
async fn https_server(name: &str) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut seen = vec![0; 4096];
                let len = stream.read(&mut seen).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&seen[..len]).into_owned();
                let first = text.lines().next().unwrap_or_default();
                let body = format!("a secret for {first}\n");
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _client_may_go = stream.write_all(format!("{head}{body}").as_bytes()).await;
                let _client_may_go = stream.shutdown().await;
            });
        }
    });
    (at, made.cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn https_trusts_the_nodes_ca_bundle_and_checks_names() {
    let (server, ca) = https_server("secrets.test").await;
    let temp = tempfile::tempdir().unwrap();
    let bundle = temp.path().join("bundle.pem");
    std::fs::write(&bundle, ca).unwrap();
    let mut trusting = config(&temp.path().join("trusting"));
    trusting.ca_bundle = Some(bundle);
    let trusting = Node::with(trusting).await;
    let doubting = Node::with(config(&temp.path().join("doubting"))).await;
    let mut answers = Vec::new();
    for (node, name) in
        [(&trusting, "secrets.test"), (&trusting, "another.test"), (&doubting, "secrets.test")]
    {
        let mut spec = spec(node);
        // The pod is where the server is, so that its loopback is the server's.
        spec.bind_ip = server.ip();
        spec.tcp_ports = vec![crate::node::free_port(server.ip())];
        spec.hosts = vec![(server.ip(), vec![name.to_owned()])];
        node.runtime.start(spec.clone()).await.unwrap();
        answers.push(ask(&spec, &format!("/fetch?https://{name}:{}/page", server.port())).await);
    }
    assert_eq!(answers[0], "200\na secret for GET /page HTTP/1.1\n");
    for refused in &answers[1..] {
        assert!(
            refused.starts_with("error: ") && refused.contains("TlsCertificateError"),
            "{refused}"
        );
    }
    trusting.end().await;
    doubting.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_is_none_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let mut settings = config(&temp.path().join("node"));
    let file = temp.path().join("bundle.pem");
    settings.ca_bundle = Some(file.clone());
    for text in [None, Some("no certificate")] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let error = rimward_node_wasm::WasmRuntime::new(settings.clone()).err().expect("an error");
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    }
}

/// A DNS server that knows `web.ns.svc.` only, and says so of all else.
async fn dns_server() -> SocketAddr {
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::{RData, Record, RecordType};
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let mut answer = Message::from_vec(&buffer[..len]).unwrap().into_response();
            let query = answer.queries[0].clone();
            if query.name.to_string() != "web.ns.svc." {
                answer.metadata.response_code = ResponseCode::NXDomain;
            } else if query.query_type == RecordType::A {
                let data = RData::A("10.43.0.7".parse::<std::net::Ipv4Addr>().unwrap().into());
                answer.add_answer(Record::from_rdata(query.name, 5, data));
            }
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_looked_up_as_the_pod_says() {
    let node = Node::new().await;
    let server = dns_server().await;
    let mut searching = spec(&node);
    searching.bind_ip = IpAddr::from([127, 0, 0, 1]);
    searching.tcp_ports = vec![crate::node::free_port(searching.bind_ip)];
    searching.dns.servers = vec![server];
    searching.dns.searches = vec!["ns.svc".into()];
    searching.dns.ndots = 5;
    searching.hosts = vec![("192.0.2.9".parse().unwrap(), vec!["db.test".into()])];
    let mut plain = searching.clone();
    plain.id.pod_uid.push_str("-plain");
    plain.tcp_ports = vec![crate::node::free_port(plain.bind_ip)];
    plain.dns.searches.clear();
    let mut without = searching.clone();
    without.id.pod_uid.push_str("-without");
    without.tcp_ports = vec![crate::node::free_port(without.bind_ip)];
    without.dns.servers.clear();
    for spec in [&searching, &plain, &without] {
        node.runtime.start(spec.clone()).await.unwrap();
    }
    for (spec, name, answer) in [
        (&searching, "web", "found\n10.43.0.7\n"),
        (&searching, "web.ns.svc", "found\n10.43.0.7\n"),
        (&searching, "db.test", "found\n192.0.2.9\n"),
        (&searching, "192.0.2.1", "found\n192.0.2.1\n"),
        (&searching, "nobody", "name-unresolvable"),
        (&plain, "web", "name-unresolvable"),
        (&plain, "web.ns.svc", "found\n10.43.0.7\n"),
        (&without, "web", "permanent-resolver-failure"),
    ] {
        let said = ask(spec, &format!("/lookup?{name}")).await;
        let fits = said == answer || (said.starts_with("error: ") && said.contains(answer));
        assert!(fits, "{name}: {said}");
    }
    node.end().await;
}
