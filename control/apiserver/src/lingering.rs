//! Bodies of refused requests.
//!
//! A server that answers before it has read a body, and then closes, loses its answer: a client that still
//! sends sees a broken connection first. So what was not read is read over, within bounds, as Go's server
//! does it too; the connection then serves the next request.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};

use crate::body::{BoxBody, BoxError};

/// The most that is read over. More than Go's 256 KiB: clients of registries begin an upload of a blob
/// without credentials, to be asked for them.
const REST_BYTES_MAX: u64 = 16 << 20;
/// And how long it may take to come, as a whole and between two pieces.
const REST_MAX: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The request with a body that is read over when it is dropped half read.
pub(crate) fn lingering(request: Request<Incoming>) -> Request<BoxBody> {
    // A stream of HTTP/2 is reset alone, and whoever waits for a "100 Continue" has sent nothing.
    let linger = request.version() < Version::HTTP_2
        && !request.headers().contains_key(header::EXPECT)
        && !request.body().is_end_stream();
    request.map(|body| match linger {
        true => Lingering(Some(body)).boxed_unsync(),
        false => body.map_err(BoxError::from).boxed_unsync(),
    })
}

struct Lingering(Option<Incoming>);

impl Body for Lingering {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(cx).map_err(BoxError::from),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        if body.size_hint().lower() > REST_BYTES_MAX {
            return;
        }
        // Without a runtime the process is about to end.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let read_over = async {
                let mut left = REST_BYTES_MAX;
                while let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE_MAX, body.frame()).await
                {
                    let read = frame.data_ref().map_or(0, Bytes::len) as u64;
                    match left.checked_sub(read) {
                        Some(rest) => left = rest,
                        None => break,
                    }
                }
            };
            let _it_took_too_long = tokio::time::timeout(REST_MAX, read_over).await;
        });
    }
}
