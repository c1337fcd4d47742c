//! Getting manifests and blobs from the cluster's registry; [`crate::remote`] does so from any other.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::form::ACCEPT;

/// The largest manifest that is read, in bytes.
pub(crate) const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// How long a registry may take to say what an image is. Resolvers that are out of reach take far longer to
/// admit it, and a user watching the pod wants to know.
pub(crate) const MANIFEST_PATIENCE: Duration = Duration::from_secs(20);

/// The cluster's own registry, as the node reaches it: through its tunnel.
#[async_trait]
pub trait ClusterRegistry: Send + Sync + 'static {
    /// GET of a `/v2/…` path with an Accept header, from a byte on.
    ///
    /// # Errors
    /// A sentence when the control plane cannot be reached.
    async fn get(&self, path: &str, accept: &str, from: u64) -> Result<ClusterResponse, String>;

    /// `host:port` names that mean this registry.
    fn hosts(&self) -> Vec<String>;
}

pub struct ClusterResponse {
    /// 206 when it begins where it was asked to.
    pub status: u16,
    pub body: BoxStream<'static, Result<Bytes, String>>,
}

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}: not found")]
    NotFound(String),
    /// The credentials, or their absence, are not good enough.
    #[error("{0}")]
    Denied(String),
    /// It answers, but not with what was asked for. Somebody else may get another answer.
    #[error("{0}")]
    Refused(String),
    /// Whoever asks: it cannot be reached, or what it sends is not what it should be.
    #[error("{0}")]
    Failed(String),
}

impl FetchError {
    /// The same, told by where it happened.
    pub fn within(self, place: &str) -> Self {
        match self {
            Self::NotFound(what) => Self::NotFound(format!("{place}: {what}")),
            Self::Denied(why) => Self::Denied(format!("{place}: {why}")),
            Self::Refused(why) => Self::Refused(format!("{place}: {why}")),
            Self::Failed(why) => Self::Failed(format!("{place}: {why}")),
        }
    }
}

pub(crate) type Blob = BoxStream<'static, Result<Bytes, String>>;

/// A place that images come from.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    /// Tells it from other places: one that stalls must hold up nobody who gets the same from another.
    fn place(&self) -> &str;
    /// The manifest's bytes, digest not yet checked.
    async fn manifest(&self, version: &str) -> Result<Bytes, FetchError>;
    /// A blob's bytes from one on, or all of them where the place cannot do that: the answer says from which.
    async fn blob(&self, digest: &str, from: u64) -> Result<(u64, Blob), FetchError>;
}

/// A repository of the cluster's registry.
pub(crate) struct InCluster<'a> {
    pub registry: &'a dyn ClusterRegistry,
    pub repository: &'a str,
}

impl InCluster<'_> {
    /// From which byte on, and the bytes.
    async fn get(&self, path: String, accept: &str, from: u64) -> Result<(u64, Blob), FetchError> {
        let response = self.registry.get(&path, accept, from).await.map_err(FetchError::Failed)?;
        match response.status {
            200 => Ok((0, response.body)),
            206 => Ok((from, response.body)),
            404 => Err(FetchError::NotFound(format!("cluster registry {path}"))),
            code => Err(FetchError::Failed(format!("cluster registry {path}: HTTP status {code}"))),
        }
    }
}

#[async_trait]
impl Source for InCluster<'_> {
    fn place(&self) -> &str {
        ""
    }

    async fn manifest(&self, version: &str) -> Result<Bytes, FetchError> {
        let path = format!("/v2/{}/manifests/{version}", self.repository);
        let (_, mut body) = self.get(path, &ACCEPT.join(", "), 0).await?;
        let mut content = BytesMut::new();
        while let Some(chunk) = body.next().await {
            content.extend_from_slice(&chunk.map_err(FetchError::Failed)?);
            if content.len() > MANIFEST_BYTES_MAX {
                return Err(FetchError::Failed(format!(
                    "the manifest exceeds {MANIFEST_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(content.freeze())
    }

    async fn blob(&self, digest: &str, from: u64) -> Result<(u64, Blob), FetchError> {
        self.get(format!("/v2/{}/blobs/{digest}", self.repository), "*/*", from).await
    }
}
