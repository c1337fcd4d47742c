//! Requests that are handed on (to extension API servers, to pods, Services and nodes): which headers
//! go with them, and connections that are joined.

use std::sync::Arc;

use futures::StreamExt as _;
use http::{HeaderName, StatusCode};
use http_body_util::{BodyDataStream, BodyExt as _};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::body::{self, BoxError, Response};
use crate::server::Inner;

/// Headers that are about one connection, or about the client and this server only.
const NOT_FORWARDED: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "authorization",
];

/// Whether a header goes on with a request or an answer.
pub fn is_forwarded(name: &HeaderName) -> bool {
    let name = name.as_str();
    !NOT_FORWARDED.contains(&name)
        && !name.starts_with("x-remote-")
        && !name.starts_with("impersonate-")
}

/// An answer's bytes as they come, until the server stops.
pub fn chunks(
    server: &Arc<Inner>,
    incoming: Incoming,
) -> impl futures::Stream<Item = Result<bytes::Bytes, BoxError>> + Send + 'static {
    let stop = server.stop.clone();
    BodyDataStream::new(incoming.map_err(BoxError::from))
        .take_until(async move { stop.cancelled().await })
}

/// Both connections become one, until either end closes it.
pub fn join(
    server: &Arc<Inner>,
    mut response: http::Response<Incoming>,
    client: hyper::upgrade::OnUpgrade,
) -> Response {
    let backend = hyper::upgrade::on(&mut response);
    let stop = server.stop.clone();
    tokio::spawn(async move {
        let copy = async {
            let (client, backend) = tokio::try_join!(client, backend)?;
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            tokio::io::copy_bidirectional(&mut client, &mut backend).await?;
            Ok::<(), BoxError>(())
        };
        if let Some(Err(e)) = stop.run_until_cancelled(copy).await {
            tracing::debug!(error = %e, "an upgraded connection ended");
        }
    });
    let mut out = http::Response::new(body::empty());
    *out.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in response.headers() {
        out.headers_mut().append(name.clone(), value.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header;

    #[test]
    fn what_is_not_handed_on() {
        for name in ["authorization", "impersonate-user", "x-remote-user", "connection", "host"] {
            assert!(!is_forwarded(&HeaderName::from_static(name)), "{name}");
        }
        assert!(is_forwarded(&header::ACCEPT));
    }
}
