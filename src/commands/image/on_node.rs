//! A node's own API: on the socket in the directory of this machine's node, or of any node through the API
//! server's proxy.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::io::ReaderStream;

use crate::cli::OnNode;
use crate::kubeconfig::Kubeconfig;
use crate::remote::{BoxBody, Remote};

pub enum NodeApi {
    Here(PathBuf),
    Through(Box<Remote>, String),
}

impl NodeApi {
    pub fn new(on: &OnNode) -> anyhow::Result<Self> {
        match &on.node {
            None => Ok(Self::Here(on.data_dir.path()?.join("node/api.sock"))),
            Some(node) => {
                let kubeconfig = Kubeconfig::load(on.cluster.kubeconfig.as_deref())?;
                Ok(Self::Through(Box::new(Remote::new(&kubeconfig)?), node.clone()))
            }
        }
    }

    pub async fn call(
        &self,
        method: &str,
        path: &str,
        name: Option<&str>,
    ) -> anyhow::Result<Bytes> {
        let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
        self.send(method, path, name, body).await
    }

    /// `credentials` are laid out as docker's `config.json`, or nothing.
    pub async fn pull(&self, name: &str, credentials: Vec<u8>) -> anyhow::Result<Bytes> {
        let body =
            Full::new(Bytes::from(credentials)).map_err(|never| match never {}).boxed_unsync();
        self.send("POST", "/pull", Some(name), body).await
    }

    /// Sends an archive as it is read.
    pub async fn import(&self, file: &Path, name: Option<&str>) -> anyhow::Result<Bytes> {
        let named = || format!("cannot read {}", file.display());
        let opened = tokio::fs::File::open(file).await.with_context(named)?;
        let chunks: BoxStream<'static, _> = ReaderStream::with_capacity(opened, 128 << 10).boxed();
        let body = StreamBody::new(chunks.map_ok(Frame::data).map_err(anyhow::Error::from));
        self.send("POST", "/import", name, body.boxed_unsync()).await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        name: Option<&str>,
        body: BoxBody,
    ) -> anyhow::Result<Bytes> {
        let query = name.map_or_else(String::new, |name| format!("?name={name}"));
        let path = format!("/rimward/images{path}{query}");
        let request = |path: &str| {
            let request = Request::builder().method(method).uri(path).body(());
            request
                .with_context(|| format!("{:?} is no name of an image", name.unwrap_or_default()))
        };
        match self {
            Self::Here(socket) => ask(socket, request(&path)?.map(|()| body)).await,
            Self::Through(remote, node) => {
                let path = format!("/api/v1/nodes/{node}/proxy{path}");
                Ok(remote.call(request(&path)?.map(|()| body)).await?.into_body())
            }
        }
    }
}

async fn ask(socket: &Path, mut request: Request<BoxBody>) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no node of this machine listens at {}: give its --data-dir, or name a node of the cluster with --node",
            socket.display()
        )
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("node"));
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    if !head.status.is_success() {
        bail!("{}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}
