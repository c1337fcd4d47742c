//! How a request reaches the API server.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// A response body: chunks as they come. A watch's body stays open.
pub type Body = BoxStream<'static, Result<Bytes, TransportError>>;

/// Sends one HTTP request to an API server as one fixed identity.
///
/// `request.uri()` is a path and query only (`/api/v1/pods?limit=5`). An HTTP error status is not a
/// TransportError: the response carries it with its Status body.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Body>, TransportError>;
}

/// Rides among the extensions of a request that does without `metadata.managedFields`, which is often
/// half of an object. A server that knows nothing of it (one at the other end of a socket) sends them.
#[derive(Clone, Copy, Debug)]
pub struct OmitManagedFields;

/// The request may or may not have been carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot reach the API server: {0}")]
pub struct TransportError(pub String);
