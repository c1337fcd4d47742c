//! Streams on the messages of a WebSocket: each message begins with the number of its channel.
//! `v5.channel.k8s.io` and what was before it; apimachinery's `remotecommand` constants.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::spdy::Gone;
use super::websocket::{SENT_BYTES, Socket};

/// Not a channel: what follows is the number of one that the client closes (v5).
const CLOSE: u8 = 255;

/// How a sub-protocol writes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    /// Channel numbers are digits, bytes are base64.
    pub base64: bool,
    /// Channels can be closed by themselves.
    pub closes: bool,
}

/// What a client's message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Bytes(u8, Bytes),
    Closed(u8),
    /// Nothing that this protocol knows.
    Nothing,
}

impl Codec {
    pub fn read(self, message: Bytes) -> Said {
        let Some((first, rest)) = message.split_first() else { return Said::Nothing };
        if self.base64 {
            return match (first.checked_sub(b'0'), STANDARD.decode(rest)) {
                (Some(channel), Ok(bytes)) => Said::Bytes(channel, bytes.into()),
                _ => Said::Nothing,
            };
        }
        match (*first, rest) {
            (CLOSE, [channel, ..]) if self.closes => Said::Closed(*channel),
            (channel, _) => Said::Bytes(channel, message.slice(1..)),
        }
    }

    pub fn write(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            STANDARD.encode_string(bytes, &mut text);
            return Message::Text(text.into());
        }
        let mut whole = BytesMut::with_capacity(1 + bytes.len());
        whole.extend_from_slice(&[channel]);
        whole.extend_from_slice(bytes);
        Message::Binary(whole.freeze())
    }
}

/// What a client sends, channel by channel.
pub struct Receiver {
    socket: SplitStream<Socket>,
    codec: Codec,
}

/// What a client is sent.
pub struct Sender {
    socket: SplitSink<Socket, Message>,
    codec: Codec,
}

pub fn split(socket: Socket, codec: Codec) -> (Sender, Receiver) {
    let (sink, stream) = socket.split();
    (Sender { socket: sink, codec }, Receiver { socket: stream, codec })
}

impl Receiver {
    /// The next message; None when the client is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Said> {
        loop {
            return Some(match self.socket.next().await?.ok()? {
                Message::Binary(bytes) => self.codec.read(bytes),
                Message::Text(text) => self.codec.read(text.into()),
                Message::Close(_) => return None,
                // Pings are answered by the socket itself.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            });
        }
    }
}

impl Sender {
    /// Sends at least one message, so that no bytes are an empty message. Waits while the client does
    /// not read.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), Gone> {
        let mut rest = bytes;
        loop {
            let (piece, more) = rest.split_at(rest.len().min(SENT_BYTES));
            let message = self.codec.write(channel, piece);
            self.socket.send(message).await.map_err(|_| Gone)?;
            rest = more;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Asks whether the client is still there.
    pub async fn ping(&mut self) -> Result<(), Gone> {
        self.socket.send(Message::Ping(Bytes::new())).await.map_err(|_| Gone)
    }

    /// Says goodbye, in good order.
    pub async fn close(&mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _the_client_may_be_gone = self.socket.send(Message::Close(Some(frame))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let v5 = Codec { base64: false, closes: true };
        let v4 = Codec { base64: false, closes: false };
        let text = Codec { base64: true, closes: false };
        let read = |codec: Codec, bytes: &'static [u8]| codec.read(Bytes::from_static(bytes));
        let bytes = |channel, bytes: &'static [u8]| Said::Bytes(channel, Bytes::from_static(bytes));
        assert_eq!(read(v5, b"\0foo\n"), bytes(0, b"foo\n"));
        assert_eq!(read(v5, &[255, 0]), Said::Closed(0));
        assert_eq!(read(v5, &[255]), bytes(255, b""));
        assert_eq!(read(v4, &[255, 0]), bytes(255, &[0]));
        assert_eq!(read(v4, b""), Said::Nothing);
        assert_eq!(read(text, b"0Zm9vCg=="), bytes(0, b"foo\n"));
        assert_eq!(read(text, b"0###"), Said::Nothing);
        assert_eq!(read(text, b"\0Zm9v"), Said::Nothing);
        assert_eq!(v5.write(1, b"\n").into_data(), b"\x01\n".as_slice());
        assert_eq!(text.write(1, b"\n").into_text().unwrap().as_str(), "1Cg==");
        assert_eq!(text.write(3, b"").into_text().unwrap().as_str(), "3");
    }
}
