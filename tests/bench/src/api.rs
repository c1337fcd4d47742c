//! Clients of the API under the admin's client certificate: [`Api`] over HTTP/2 for whatever is asked,
//! [`Wire`] for rates, and what kubectl does with WebSockets.

mod streams;
mod wire;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use base64::Engine;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;

pub use wire::Wire;

/// How to reach a cluster: what its kubeconfig says, read once.
#[derive(Clone)]
pub struct Door {
    http2: tokio_rustls::TlsConnector,
    http1: tokio_rustls::TlsConnector,
    host: String,
    port: u16,
}

impl Door {
    pub fn of(kubeconfig: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(kubeconfig)?;
        let file: Value =
            serde_saphyr::from_str(&text).map_err(|e| anyhow::anyhow!("kubeconfig: {e}"))?;
        let (cluster, user) = (&file["clusters"][0]["cluster"], &file["users"][0]["user"]);
        let pem = |value: &Value| {
            let text = value.as_str().context("the kubeconfig lacks a certificate or key")?;
            anyhow::Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&pem(&cluster["certificate-authority-data"])?)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(&pem(&user["client-certificate-data"])?)?],
                PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?)?,
            )?;
        let mut http1 = tls.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let server: http::Uri =
            cluster["server"].as_str().context("the kubeconfig names no server")?.parse()?;
        let host =
            server.host().context("the server has no host")?.trim_matches(['[', ']']).to_owned();
        let (http2, http1) = (Arc::new(tls).into(), Arc::new(http1).into());
        Ok(Self { http2, http1, host, port: server.port_u16().unwrap_or(443) })
    }

    /// A connection of its own.
    pub async fn connect(&self) -> anyhow::Result<Api> {
        let stream = self.stream(&self.http2).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(64 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection);
        Ok(Api { sender, authority: self.authority() })
    }

    async fn stream(
        &self,
        tls: &tokio_rustls::TlsConnector,
    ) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(tls.connect(ServerName::try_from(self.host.clone())?, stream).await?)
    }

    fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// So many connections for rates.
    pub async fn wires(&self, count: usize) -> anyhow::Result<Vec<Wire>> {
        let connect = || async {
            let stream = self.stream(&self.http1).await?;
            let (buffer, request) = (BytesMut::new(), Vec::new());
            anyhow::Ok(Wire { stream, authority: self.authority(), buffer, request })
        };
        futures::future::try_join_all((0..count).map(|_| connect())).await
    }

    pub async fn connections(&self, count: usize) -> anyhow::Result<Vec<Api>> {
        futures::future::try_join_all((0..count).map(|_| self.connect())).await
    }
}

/// One connection; clones share it.
#[derive(Clone)]
pub struct Api {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
}

impl Api {
    /// Sends a request; a status of 400 or more is an error with its body.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &'static str)],
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request =
            Request::builder().method(&method).uri(format!("https://{}{path}", self.authority));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.sender.clone().send_request(request.body(Full::new(body))?).await?;
        if response.status().as_u16() >= 400 {
            let status = response.status();
            let text = response.into_body().collect().await?.to_bytes();
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&text));
        }
        Ok(response)
    }

    /// The whole answer to a GET.
    pub async fn read(
        &self,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> anyhow::Result<Bytes> {
        let response = self.send(Method::GET, path, headers, Bytes::new()).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.read(path, &[]).await?)?)
    }

    pub async fn create(&self, path: &str, object: Bytes) -> anyhow::Result<Bytes> {
        let json = [("content-type", "application/json")];
        let response = self.send(Method::POST, path, &json, object).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    pub async fn watch(&self, path: &str) -> anyhow::Result<Watch> {
        let response = self.send(Method::GET, path, &[], Bytes::new()).await?;
        Ok(Watch { body: response.into_body(), buffer: BytesMut::new() })
    }
}

/// A watch: one JSON document a line.
pub struct Watch {
    body: Incoming,
    buffer: BytesMut,
}

impl Watch {
    /// The next event, as its bytes.
    pub async fn line(&mut self) -> anyhow::Result<Bytes> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                return Ok(self.buffer.split_to(searched + end + 1).freeze());
            }
            searched = self.buffer.len();
            let more = self.chunk().await?;
            self.buffer.extend_from_slice(&more);
        }
    }

    pub async fn event(&mut self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.line().await?)?)
    }

    /// What arrived, not cut into events.
    pub async fn chunk(&mut self) -> anyhow::Result<Bytes> {
        loop {
            let frame = self.body.frame().await.context("the server ended the watch")??;
            if let Ok(data) = frame.into_data() {
                return Ok(data);
            }
        }
    }
}

pub fn condition(object: &Value, kind: &str) -> bool {
    rimward_tests_cluster::condition(object, kind) == "True"
}
