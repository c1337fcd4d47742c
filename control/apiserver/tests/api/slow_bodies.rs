//! Clients that take their time to send a body.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::cluster::{CONFIG_MAPS, Cluster};
use crate::kubectl::{Authority, tls};

async fn connect(ca: &Authority, port: u16) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let (cert, key) = ca.sign(&[], Some(("kubernetes-admin", "system:masters")));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// A server for one test, and its end.
async fn serve(cluster: &Cluster, ca: &Authority) -> (u16, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    let (server, config, stop) = (cluster.server.clone(), tls(ca), shutdown.clone());
    let serving = tokio::spawn(async move { server.serve(listener, config, None, stop).await });
    let end = async move {
        shutdown.cancel();
        serving.await.unwrap();
    };
    (port, end)
}

/// What is refused before its body was read is answered all the same, to clients too that write all of a
/// body before they read; and the connection goes on.
#[tokio::test]
async fn a_refused_body_is_read_over() {
    let (cluster, ca) = (Cluster::start().await, Authority::new());
    let (port, end) = serve(&cluster, &ca).await;
    let mut stream = connect(&ca, port).await;
    for (path, length, begins) in [
        ("/apis/nowhere/v1/things", 8 << 20, "HTTP/1.1 404 "),
        ("/api/v1/namespaces/default/configmaps", 6 << 20, "HTTP/1.1 413 "),
        ("/apis/nowhere/v1/things", 1, "HTTP/1.1 404 "),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; length]).await.unwrap();
        let mut answer = Vec::new();
        let whole = async {
            while !answer.ends_with(b"}\n")
                && !answer.ends_with(b"}")
                && !answer.ends_with(b"found\n")
            {
                assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "it is not closed");
            }
        };
        tokio::time::timeout(Duration::from_secs(60), whole).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with(begins), "{text}");
    }
    drop(stream);
    end.await;
}

/// A body that never ends is waited for no longer than the request may take, and the answer says so in
/// a Status.
#[tokio::test]
async fn a_body_that_never_ends() {
    let (cluster, ca) = (Cluster::start().await, Authority::new());
    let (port, end) = serve(&cluster, &ca).await;
    for (length, begins) in
        [("Content-Length: 100000", "{"), ("Transfer-Encoding: chunked", "1\r\n{\r\n")]
    {
        let mut stream = connect(&ca, port).await;
        let head = format!(
            "POST {CONFIG_MAPS}?timeout=1s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
        );
        let began = Instant::now();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(begins.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _cut_or_closed = tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 504 "), "{text}");
        let body = text.split_once("\r\n\r\n").unwrap().1;
        let status: Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (status["code"].as_u64(), status["reason"].as_str()),
            (Some(504), Some("Timeout"))
        );
    }
    end.await;
}
