//! What the API server asks of nodes: the hub implements it.

use async_trait::async_trait;
use bytes::Bytes;
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

    /// A byte stream to an address of the pod network, as that node reaches it: what port-forward
    /// and the pod and service proxies use.
    async fn dial(
        &self,
        node: &str,
        pod_ip: std::net::IpAddr,
        port: u16,
    ) -> Result<Box<dyn Duplex>, NodeError>;
}

/// A bidirectional byte stream.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}
