//! Bodies of requests and responses.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use parking_lot::Mutex;
use rimward_api::{Reason, Status};
use tokio::time::Instant;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any body; errors end the connection.
pub type BoxBody = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;
pub type Response = http::Response<BoxBody>;

/// The largest request body, as kube-apiserver has it.
pub const REQUEST_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Below this, compression costs more than it saves.
pub const GZIP_BYTES_MIN: usize = 128 * 1024;

pub fn full(bytes: impl Into<Bytes>) -> BoxBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> BoxBody {
    full(Bytes::new())
}

pub fn stream(chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> BoxBody {
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

/// Keeps something until a body that is made while it is sent is through, or until the time that is
/// given; a whole body is done already.
pub fn keep_until_sent<T: Send + 'static>(
    response: Response,
    kept: Option<T>,
    until: Option<Instant>,
) -> Response {
    use http_body::Body as _;
    let Some(kept) = kept.filter(|_| response.body().size_hint().exact().is_none()) else {
        return response;
    };
    let kept = Arc::new(Mutex::new(Some(kept)));
    if let Some(until) = until {
        let kept = Arc::downgrade(&kept);
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            drop(kept.upgrade().and_then(|kept| kept.lock().take()));
        });
    }
    response.map(|body| {
        body.map_frame(move |frame| {
            let _until_the_body_is_dropped = &kept;
            frame
        })
        .boxed_unsync()
    })
}

/// Compresses chunk by chunk; fast rather than small, since lists are read over local networks.
pub fn gzip_stream(
    chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    futures::stream::unfold((chunks.boxed(), Some(encoder)), |(mut chunks, encoder)| async move {
        let mut encoder = encoder?;
        loop {
            match chunks.next().await {
                Some(Ok(chunk)) => {
                    encoder.write_all(&chunk).expect("writing to a Vec cannot fail");
                    if !encoder.get_ref().is_empty() {
                        let out = std::mem::take(encoder.get_mut());
                        return Some((Ok(Bytes::from(out)), (chunks, Some(encoder))));
                    }
                }
                Some(Err(e)) => return Some((Err(e), (chunks, None))),
                None => {
                    let rest = encoder.finish().expect("writing to a Vec cannot fail");
                    return Some((Ok(Bytes::from(rest)), (chunks, None)));
                }
            }
        }
    })
}

pub fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(bytes).expect("writing to a Vec cannot fail");
    Bytes::from(encoder.finish().expect("writing to a Vec cannot fail"))
}

/// Reads a whole request body, refusing more than [`REQUEST_BYTES_MAX`] before holding it.
pub async fn read(mut body: BoxBody) -> Result<Bytes, Status> {
    let mut whole = Vec::new();
    let mut first = Bytes::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| Status::bad_request(format!("error reading the request body: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + first.len() + data.len() > REQUEST_BYTES_MAX {
            return Err(Status::new(
                413,
                Reason::RequestEntityTooLarge,
                format!("Request entity too large: limit is {REQUEST_BYTES_MAX}"),
            ));
        }
        // Most bodies are one frame, which needs no copy.
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        whole.extend_from_slice(&std::mem::take(&mut first));
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A client that does not read its answer cannot hold what belongs to the request for ever.
    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_given_back() {
        let kept = Arc::new(());
        let never = || http::Response::new(stream(futures::stream::pending()));
        let until = Instant::now() + Duration::from_secs(60);
        let whole = keep_until_sent(http::Response::new(full("x")), Some(kept.clone()), None);
        assert_eq!(Arc::strong_count(&kept), 1, "a whole body keeps nothing");
        let dropped = keep_until_sent(never(), Some(kept.clone()), Some(until));
        let unread = keep_until_sent(never(), Some(kept.clone()), Some(until));
        assert_eq!(Arc::strong_count(&kept), 3);
        drop((whole, dropped));
        assert_eq!(Arc::strong_count(&kept), 2);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(Arc::strong_count(&kept), 1);
        drop(unread);
    }
}
