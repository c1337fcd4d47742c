//! Exec and attach as kubectl does them: a connection for each, a WebSocket, channels in its messages.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::Request;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::Door;

const STDIN: u8 = 0;
/// Carries a Status, once the command is over.
const ERROR: u8 = 3;

pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

impl Door {
    /// Runs a command, and comes back when it has ended well.
    pub async fn exec(&self, path: &str) -> anyhow::Result<()> {
        let mut socket = self.socket(path).await?;
        while let Some(message) = socket.next().await {
            let bytes = message?.into_data();
            if let Some((&ERROR, status)) = bytes.split_first() {
                let status: Value = serde_json::from_slice(status)?;
                ensure!(status["status"] == "Success", "{path}: {status}");
                return Ok(());
            }
        }
        bail!("{path}: the connection ended without a status")
    }

    /// Types something into a container; who holds the answer stays attached.
    pub async fn attach(&self, path: &str, typed: &[u8]) -> anyhow::Result<Socket> {
        let mut socket = self.socket(path).await?;
        let bytes: Bytes = [&[STDIN], typed].concat().into();
        socket.send(Message::Binary(bytes)).await?;
        Ok(socket)
    }

    async fn socket(&self, path: &str) -> anyhow::Result<Socket> {
        let stream = self.stream(&self.http1).await?;
        let request = Request::get(format!("wss://{}{path}", self.authority()))
            .header("host", self.authority())
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", generate_key())
            .header("sec-websocket-protocol", "v5.channel.k8s.io")
            .body(())?;
        let opened = tokio_tungstenite::client_async(request, stream).await;
        Ok(opened.with_context(|| path.to_owned())?.0)
    }
}
