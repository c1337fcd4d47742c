//! An answer's body as the messages of a WebSocket: how browsers, and some client libraries, follow logs and
//! watches. <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>, and
//! apiserver's `wsstream` package, say what is spoken.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use rimward_api::Status;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::upgrade::{self, Asked};
use super::websocket::{self, SENT_BYTES, Socket};
use crate::body::{BoxBody, Response};
use crate::request::Call;

/// A client that is silent is asked whether it is there: connections die unseen.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client has to close its end, once it has everything.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// What makes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Bytes as they come, in messages of bytes or, where a client asks for that, of base64.
    Bytes { base64: bool },
    /// Each line, without its end.
    Lines,
}

/// A log's bytes as messages, if the client asked for a WebSocket; else the answer as it is.
///
/// # Errors
/// When the connection cannot become one.
pub fn of_bytes(call: &Call, response: Response) -> Result<Response, Status> {
    answer(call, response, |protocols| {
        let chosen = upgrade::negotiate(protocols, &[BINARY, BASE64], true)?;
        Ok((chosen.to_owned(), Cut::Bytes { base64: chosen == BASE64 }))
    })
}

/// Lines of JSON, a message each, if the client asked for a WebSocket; else the answer as it is. Its one
/// sub-protocol, if it names one, is whatever it says.
///
/// # Errors
/// When the connection cannot become one.
pub fn of_lines(call: &Call, response: Response) -> Result<Response, Status> {
    answer(call, response, |protocols| {
        Ok((protocols.first().cloned().unwrap_or_default(), Cut::Lines))
    })
}

fn answer(
    call: &Call,
    response: Response,
    choose: impl FnOnce(&[String]) -> Result<(String, Cut), Box<Response>>,
) -> Result<Response, Status> {
    let (key, protocols) = match upgrade::asked(call) {
        Ok(Some(Asked::WebSocket { key, protocols })) => (key, protocols),
        // No other protocol carries these; who asks for one gets the plain answer.
        Ok(_) => return Ok(response),
        Err(refusal) => return Ok(*refusal),
    };
    let (protocol, cut) = match choose(&protocols) {
        Ok(chosen) => chosen,
        Err(refusal) => return Ok(*refusal),
    };
    let Some(upgrade) = call.upgrade.lock().take() else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let switching = upgrade::to_web_socket(&key, &protocol);
    let body = response.into_body();
    tokio::spawn(async move {
        if let Err(cause) = serve(upgrade, body, cut).await {
            tracing::debug!(%cause, "a WebSocket did not come about");
        }
    });
    Ok(switching)
}

async fn serve(upgrade: OnUpgrade, body: BoxBody, cut: Cut) -> Result<(), hyper::Error> {
    let mut socket = websocket::open(upgrade).await?;
    if let Some(code) = send(&mut socket, body, cut).await {
        let frame = CloseFrame { code, reason: "".into() };
        let _the_client_may_be_gone = socket.send(Message::Close(Some(frame))).await;
        let gone = async { while let Some(Ok(_)) = socket.next().await {} };
        let _cut_after_that = tokio::time::timeout(GOODBYE_MAX, gone).await;
    }
    Ok(())
}

/// Sends the body to its end. None when the client is gone before.
async fn send(socket: &mut Socket, mut body: BoxBody, cut: Cut) -> Option<CloseCode> {
    let mut pieces = Pieces { cut, begun: BytesMut::new() };
    if let Cut::Bytes { .. } = cut {
        // Shows that there is somebody, before there is anything to say.
        socket.send(pieces.message(b"")).await.ok()?;
    }
    let mut pings = tokio::time::interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.tick().await;
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            said = socket.next() => match said {
                // Whatever it says means nothing here; pings are answered by the socket itself.
                Some(Ok(message)) if !message.is_close() => continue,
                _ => return None,
            },
            _ = pings.tick() => {
                socket.send(Message::Ping(Bytes::new())).await.ok()?;
                continue;
            }
        };
        let bytes = match frame {
            None => return Some(CloseCode::Normal),
            Some(Err(_)) => return Some(CloseCode::Error),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        for message in pieces.take(&bytes) {
            socket.send(message).await.ok()?;
        }
    }
}

struct Pieces {
    cut: Cut,
    /// A line whose end is still to come.
    begun: BytesMut,
}

impl Pieces {
    fn take(&mut self, bytes: &[u8]) -> Vec<Message> {
        match self.cut {
            Cut::Bytes { .. } => {
                bytes.chunks(SENT_BYTES).map(|piece| self.message(piece)).collect()
            }
            Cut::Lines => {
                self.begun.extend_from_slice(bytes);
                let mut messages = Vec::new();
                while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                    let line = self.begun.split_to(end + 1);
                    messages.push(self.message(&line[..end]));
                }
                messages
            }
        }
    }

    fn message(&self, piece: &[u8]) -> Message {
        match self.cut {
            Cut::Bytes { base64: false } => Message::Binary(Bytes::copy_from_slice(piece)),
            Cut::Bytes { base64: true } => Message::Text(STANDARD.encode(piece).into()),
            Cut::Lines => Message::Text(String::from_utf8_lossy(piece).into_owned().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let check = |cut, chunks: &[&str], expected: &[&str]| {
            let mut pieces = Pieces { cut, begun: BytesMut::new() };
            let messages = chunks.iter().flat_map(|chunk| pieces.take(chunk.as_bytes()));
            let seen: Vec<_> = messages.map(|m| (m.is_text(), m.into_data())).collect();
            let text = cut != Cut::Bytes { base64: false };
            let expected: Vec<_> =
                expected.iter().map(|e| (text, Bytes::copy_from_slice(e.as_bytes()))).collect();
            assert_eq!(seen, expected);
        };
        check(Cut::Lines, &["{\"a\":1}\n{\"b", "\":2}", "\n{"], &["{\"a\":1}", "{\"b\":2}"]);
        check(Cut::Bytes { base64: false }, &["one\n", "", "two"], &["one\n", "two"]);
        check(Cut::Bytes { base64: true }, &["foo\n"], &["Zm9vCg=="]);
        let long = "x".repeat(SENT_BYTES + 1);
        check(Cut::Bytes { base64: false }, &[&long], &[&long[1..], "x"]);
    }
}
