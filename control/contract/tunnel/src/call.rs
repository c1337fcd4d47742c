//! One request: a bidirectional stream that starts with a request frame, is answered by a
//! [`Reply`], and carries raw bytes after that until an end finishes it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::codec::{Frame, FrameReader, Malformed, ReadError, encode};
use crate::wire::{Reply, Request};

/// How long the first frame of a stream may take to arrive.
const FIRST_FRAME_WAIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Why a request got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The other end answered with a code of 400 or more.
    #[error("{message}")]
    Refused { code: u16, message: String },
    /// The connection or the stream ended first.
    #[error("the tunnel broke: {0}")]
    Broken(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl From<ConnectionError> for CallError {
    fn from(e: ConnectionError) -> Self {
        Self::Broken(e.to_string())
    }
}

impl From<ReadError> for CallError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Malformed(malformed) => Self::Malformed(malformed),
            ReadError::Io(e) => Self::Broken(e.to_string()),
        }
    }
}

/// A stream after its reply: raw bytes both ways.
pub struct Duplex {
    send: SendStream,
    recv: Body,
}

/// The receiving half.
pub struct Body {
    first: Bytes,
    stream: RecvStream,
}

/// Sends a request and waits for the reply; what follows it is in the [`Duplex`].
pub async fn call<F: Frame>(
    connection: &Connection,
    request: &F,
) -> Result<(Reply, Duplex), CallError> {
    let (mut send, recv) = connection.open_bi().await?;
    let mut bytes = Vec::new();
    encode(request, &mut bytes);
    send.write_all(&bytes).await.map_err(|e| CallError::Broken(e.to_string()))?;
    let mut frames = FrameReader::new(recv);
    let reply = loop {
        let Some(frame) = frames.next().await? else {
            return Err(CallError::Broken("the request was dropped".into()));
        };
        if let Some(reply) = frame.decode::<Reply>()? {
            break reply;
        }
    };
    if reply.code >= 400 {
        return Err(CallError::Refused { code: reply.code, message: reply.message });
    }
    let (first, stream) = frames.into_rest();
    Ok((reply, Duplex { send, recv: Body { first, stream } }))
}

/// A request that the other end made and that waits for its answer. Dropping it unanswered resets
/// the stream.
pub struct Incoming {
    send: Option<SendStream>,
    frames: Option<FrameReader<RecvStream>>,
}

/// A stream whose request is not read yet. Accepting is quick, reading may take the other end's
/// time: do it in a task of its own.
pub struct Opened {
    send: SendStream,
    recv: RecvStream,
}

/// Waits for the other end to open a stream.
pub async fn accept(connection: &Connection) -> Result<Opened, ConnectionError> {
    let (send, recv) = connection.accept_bi().await?;
    Ok(Opened { send, recv })
}

impl Opened {
    /// Reads the request frame.
    pub async fn request(self) -> Result<(Request, Incoming), CallError> {
        let mut frames = FrameReader::new(self.recv);
        let frame = tokio::time::timeout(FIRST_FRAME_WAIT, frames.next())
            .await
            .map_err(|_| CallError::Broken("no request came on a stream".into()))??
            .ok_or_else(|| CallError::Broken("a stream ended before its request".into()))?;
        let incoming = Incoming { send: Some(self.send), frames: Some(frames) };
        match Request::decode(&frame)? {
            Some(request) => Ok((request, incoming)),
            None => {
                // A newer end may ask for what this one has never heard of: that is its business.
                let kind = frame.kind;
                incoming.refuse(501, format!("requests of kind {kind} are not known here")).await;
                Err(CallError::Refused { code: 501, message: format!("request kind {kind}") })
            }
        }
    }
}

impl Incoming {
    /// Says no and ends the stream.
    pub async fn refuse(self, code: u16, message: impl Into<String>) {
        self.answer(Reply { code, message: message.into(), ..Reply::default() }).await;
    }

    /// Answers and ends the stream. An asker that is gone is not an error.
    pub async fn answer(self, reply: Reply) {
        if let Ok(mut duplex) = self.begin(reply).await {
            duplex.finish();
        }
    }

    /// Answers; raw bytes may follow both ways.
    pub async fn begin(mut self, reply: Reply) -> Result<Duplex, CallError> {
        let mut bytes = Vec::new();
        encode(&reply, &mut bytes);
        let (Some(mut send), Some(frames)) = (self.send.take(), self.frames.take()) else {
            return Err(CallError::Broken("the request was answered before".into()));
        };
        send.write_all(&bytes).await.map_err(|e| CallError::Broken(e.to_string()))?;
        let (first, stream) = frames.into_rest();
        Ok(Duplex { send, recv: Body { first, stream } })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(mut send) = self.send.take() {
            // Otherwise the implicit finish would look like an orderly, empty answer.
            let _already_closed_is_fine = send.reset(0u8.into());
        }
    }
}

impl Duplex {
    /// Writes all of `bytes`; waits while the other end's window is full.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), CallError> {
        self.send.write_chunk(bytes).await.map_err(|e| CallError::Broken(e.to_string()))
    }

    /// No more bytes from this end.
    pub fn finish(&mut self) {
        let _already_closed_is_fine = self.send.finish();
    }

    /// Ends the stream so that the other end sees an error, not an end.
    pub fn abort(&mut self) {
        let _already_closed_is_fine = self.send.reset(1u8.into());
    }

    /// Waits until the other end no longer wants bytes (or is gone).
    pub async fn unwanted(&mut self) {
        let _either_way_it_is_over = self.send.stopped().await;
    }

    /// The halves, for frames: what was already read of the stream is read first.
    pub fn into_frames(self) -> (FrameSender, FrameReader<Body>) {
        (FrameSender(self.send), FrameReader::new(self.recv))
    }

    /// Only the bytes that come; the sending half is finished.
    pub fn into_body(mut self) -> Body {
        self.finish();
        self.recv
    }
}

/// The sending half of a stream that carries frames after its reply.
pub struct FrameSender(SendStream);

impl FrameSender {
    /// Sends a frame; waits while the other end's window is full. Not cancel-safe: whoever gives up
    /// the call must give up the stream.
    pub async fn send<F: Frame>(&mut self, frame: &F) -> Result<(), CallError> {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes);
        let sent = self.0.write_chunk(bytes.into()).await;
        sent.map_err(|e| CallError::Broken(e.to_string()))
    }

    /// No more frames from this end.
    pub fn finish(&mut self) {
        let _already_closed_is_fine = self.0.finish();
    }

    /// Ends the stream so that the other end sees an error, not an end.
    pub fn abort(&mut self) {
        let _already_closed_is_fine = self.0.reset(1u8.into());
    }
}

impl Body {
    /// The next bytes; None at the orderly end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        if !self.first.is_empty() {
            return Ok(Some(std::mem::take(&mut self.first)));
        }
        match self.stream.read_chunk(64 << 10, true).await {
            Ok(chunk) => Ok(chunk.map(|c| c.bytes)),
            Err(e) => Err(CallError::Broken(e.to_string())),
        }
    }
}

impl AsyncRead for Body {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.first.is_empty() {
            let take = self.first.len().min(out.remaining());
            out.put_slice(&self.first[..take]);
            self.first.advance(take);
            return Poll::Ready(Ok(()));
        }
        AsyncRead::poll_read(Pin::new(&mut self.stream), cx, out)
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(cx, out)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}
