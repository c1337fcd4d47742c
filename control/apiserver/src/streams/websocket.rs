//! WebSockets (RFC 6455) on a connection whose handshake was answered, and one as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Of one message, as the library that Kubernetes serves with has it.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// What waits to be written before a writer has to wait.
const WRITE_BYTES_MAX: usize = 256 << 10;
/// Bytes of one message that we send.
pub const SENT_BYTES: usize = 32 << 10;

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The connection as a WebSocket, once it is free.
pub async fn open(upgrade: OnUpgrade) -> Result<Socket, hyper::Error> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BYTES_MAX);
    let io = TokioIo::new(upgrade.await?);
    Ok(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await)
}

/// The bytes of all messages, one after the other: how port-forward's SPDY frames come.
pub struct Tunnel {
    socket: Socket,
    rest: Bytes,
}

impl Tunnel {
    pub fn new(socket: Socket) -> Self {
        Self { socket, rest: Bytes::new() }
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Text(text))) => self.rest = text.into(),
                // Pings are answered by the socket itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(e)) => return Poll::Ready(Err(broken(e))),
            }
        }
        let take = self.rest.len().min(out.remaining());
        out.put_slice(&self.rest[..take]);
        self.rest.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let take = bytes.len().min(SENT_BYTES);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..take]));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(take))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    /// Sends the closing message; the client's ends the reading side.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}
