//! What the API server asks of nodes: the hub implements it.

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Sink;
use futures::stream::BoxStream;

/// Options of `pods/log` (`v1.PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub container: String,
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub since_seconds: Option<i64>,
    /// RFC 3339.
    pub since_time: Option<String>,
    pub tail_lines: Option<i64>,
    pub limit_bytes: Option<i64>,
}

/// A pod on the node that it was bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodOnNode {
    pub node: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Options of `pods/exec` and `pods/attach`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    pub container: String,
    /// Empty attaches to what runs.
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What a client sends into a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Stdin(Bytes),
    /// No more of it; the session goes on.
    StdinEnd,
    /// In characters.
    Resize {
        width: u16,
        height: u16,
    },
}

/// What comes out of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// No bytes: its end.
    Stdout(Bytes),
    /// No bytes: its end.
    Stderr(Bytes),
    /// The last: how the command ended. An attached session that is over has code 0.
    Exit(i32),
    /// The last: nothing could be run, and why.
    Failed(String),
}

/// A session in a container. Dropping it ends the command that runs in it.
pub struct Session {
    pub input: Pin<Box<dyn Sink<Input, Error = NodeError> + Send>>,
    pub output: BoxStream<'static, Result<Output, NodeError>>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum NodeError {
    /// The node is not connected to any control plane now.
    #[error("node {0:?} is not connected")]
    NotConnected(String),
    /// The node said no; (HTTP code, text).
    #[error("{1}")]
    Refused(u16, String),
}

/// Reaches nodes through their tunnels.
#[async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// A container's log as it is (or will be, with follow) written.
    async fn logs(
        &self,
        node: &str,
        pod_namespace: &str,
        pod_name: &str,
        pod_uid: &str,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, NodeError>>, NodeError>;

    /// When the node was last heard of, for the renewTime overlay of its Lease.
    fn last_heard(&self, node: &str) -> Option<jiff::Timestamp>;

    /// A byte stream to an address of the pod network, as that node reaches it: what the pod and
    /// service proxies use.
    async fn dial(
        &self,
        node: &str,
        pod_ip: std::net::IpAddr,
        port: u16,
    ) -> Result<Box<dyn Duplex>, NodeError>;

    /// Runs a command in a running container, or attaches to it.
    async fn session(&self, pod: &PodOnNode, _: SessionOptions) -> Result<Session, NodeError> {
        Err(NodeError::NotConnected(pod.node.clone()))
    }

    /// A byte stream to a port of a pod as the pod itself reaches it, its localhost included.
    async fn forward(&self, pod: &PodOnNode, _port: u16) -> Result<Box<dyn Duplex>, NodeError> {
        Err(NodeError::NotConnected(pod.node.clone()))
    }

    /// A byte stream to the node's own API: HTTP/1.1.
    async fn api(&self, node: &str) -> Result<Box<dyn Duplex>, NodeError> {
        Err(NodeError::NotConnected(node.to_owned()))
    }
}

/// A bidirectional byte stream.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}
