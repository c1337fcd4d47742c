//! Port-forward: byte streams between a client and ports of a pod.
//!
//! kubectl opens two SPDY streams for each connection that it forwards, one for the bytes and one for
//! an error's text, on a connection of its own or inside a WebSocket. Browsers and scripts may use
//! channels on a WebSocket instead, with one connection for each port.

mod channels;
mod pairs;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper_util::rt::TokioIo;
use rimward_api::Status;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::channels::Codec;
use super::spdy::{Connection, Gone};
use super::upgrade::{self, Asked};
use super::websocket::{self, Tunnel};
use crate::body::Response;
use crate::nodes::{Duplex, NodeError, Nodes, PodOnNode};
use crate::request::{Call, Query};
use crate::rest::on_node::node_status;

/// How often a silent client is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client may go on sending to a pod that has closed its side.
const HALF_OPEN_MAX: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 16 << 10;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
/// Channels on a WebSocket: name, and whether they are base64.
const CHANNELS: [(&str, bool); 2] =
    [("v4.channel.k8s.io", false), ("v4.base64.channel.k8s.io", true)];

/// How the client speaks.
enum Speech {
    Spdy,
    Tunnelled,
    Channels(Codec, Vec<u16>),
}

/// Connects a client with a pod's ports. Answers before the connection has become what it will be.
///
/// # Errors
/// When the request is not one for a connection, or the pod's node is not there.
pub async fn connect(
    nodes: Arc<dyn Nodes>,
    stop: CancellationToken,
    call: &Call,
    pod: PodOnNode,
) -> Result<Response, Status> {
    let asked = match upgrade::asked(call) {
        Ok(Some(asked)) => asked,
        Ok(None) => return Err(Status::bad_request("Upgrade request required")),
        Err(response) => return Ok(*response),
    };
    let (response, speech) = match answer(&asked, &call.query)? {
        Ok(answered) => answered,
        Err(response) => return Ok(*response),
    };
    if nodes.last_heard(&pod.node).is_none() {
        return Err(node_status(NodeError::NotConnected(pod.node)));
    }
    let Some(upgrade) = call.upgrade.lock().take() else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let pod = Arc::new(pod);
    tokio::spawn(async move {
        let to = Target { nodes, pod };
        let served = async {
            match speech {
                Speech::Spdy => {
                    let io = TokioIo::new(upgrade.await?);
                    pairs::serve(Connection::new(Box::new(io)), &to, stop).await;
                }
                Speech::Tunnelled => {
                    let tunnel = Tunnel::new(websocket::open(upgrade).await?);
                    pairs::serve(Connection::new(Box::new(tunnel)), &to, stop).await;
                }
                Speech::Channels(codec, ports) => {
                    let socket = websocket::open(upgrade).await?;
                    channels::serve(socket, codec, &ports, &to, stop).await;
                }
            }
            Ok::<(), hyper::Error>(())
        };
        if let Err(cause) = served.await {
            tracing::debug!(%cause, "a port-forward did not come about");
        }
    });
    Ok(response)
}

fn answer(
    asked: &Asked,
    query: &Query,
) -> Result<Result<(Response, Speech), Box<Response>>, Status> {
    let (key, protocols) = match asked {
        Asked::Spdy { protocols } => {
            let chosen = upgrade::negotiate(protocols, &[PROTOCOL], true);
            return Ok(chosen.map(|chosen| (upgrade::to_spdy(chosen), Speech::Spdy)));
        }
        Asked::WebSocket { key, protocols } => (key, protocols),
    };
    if protocols.iter().any(|p| p.starts_with("SPDY/3.1+")) {
        let chosen = upgrade::negotiate(protocols, &[TUNNELLED], false);
        let answer = chosen.map(|c| (upgrade::to_web_socket(key, c), Speech::Tunnelled));
        return Ok(answer);
    }
    let ports = ports(query)?;
    let ours = CHANNELS.map(|(name, _)| name);
    Ok(upgrade::negotiate(protocols, &ours, true).map(|chosen| {
        let base64 = CHANNELS.contains(&(chosen, true));
        let codec = Codec { base64, closes: false };
        (upgrade::to_web_socket(key, chosen), Speech::Channels(codec, ports))
    }))
}

/// Of the query: `ports=80,81` or several of them.
fn ports(query: &Query) -> Result<Vec<u16>, Status> {
    let named: Vec<&str> = query.all("ports").chain(query.all("port")).collect();
    if named.is_empty() {
        return Err(Status::bad_request("query parameter \"ports\" is required"));
    }
    let mut ports = Vec::new();
    for text in named.iter().flat_map(|list| list.split(',')) {
        match text.parse::<u16>() {
            Ok(0) => return Err(Status::bad_request(format!("port {text:?} must be > 0"))),
            Ok(port) => ports.push(port),
            Err(_) => {
                let text =
                    format!("unable to parse {text:?} as a port: it is not a number up to 65535");
                return Err(Status::bad_request(text));
            }
        }
    }
    // Two channels each, and a channel is a byte, as a digit in base64.
    match ports.len() {
        1..=64 => Ok(ports),
        n => Err(Status::bad_request(format!("{n} ports are too many, 64 are allowed"))),
    }
}

/// Whose ports.
#[derive(Clone)]
struct Target {
    nodes: Arc<dyn Nodes>,
    pod: Arc<PodOnNode>,
}

impl Target {
    /// # Errors
    /// The text for the client.
    async fn dial(&self, port: u16) -> Result<Box<dyn Duplex>, String> {
        let pod = &self.pod;
        self.nodes.forward(pod, port).await.map_err(|cause| {
            format!("error forwarding port {port} to pod {}, uid {}: {cause}", pod.name, pod.uid)
        })
    }
}

/// Where bytes come from and go to on the client's side.
trait Side: Send {
    /// None at the end.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

trait Sink: Send {
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), Gone>> + Send;
    fn finish(&mut self) -> impl Future<Output = ()> + Send;
}

/// Copies both ways until both have ended. A client that has no more to send still gets its answer.
async fn copy(far: Box<dyn Duplex>, from: &mut impl Side, to: &mut impl Sink) {
    let (mut read, mut write) = tokio::io::split(far);
    let up = async {
        while let Some(bytes) = from.next().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _the_pod_may_have_closed = write.shutdown().await;
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match (&mut read).take(READ_BYTES as u64).read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if to.send(buffer.split().freeze()).await.is_err() {
                        return;
                    }
                }
            }
        }
        to.finish().await;
    };
    let mut up = std::pin::pin!(up);
    let mut down = std::pin::pin!(down);
    tokio::select! {
        () = up.as_mut() => down.await,
        () = down.as_mut() => {
            let _cut_after_that = tokio::time::timeout(HALF_OPEN_MAX, up).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_query() {
        let read = |text: &str| ports(&Query::parse(Some(text))).map_err(|s| s.message);
        assert_eq!(read("ports=80,81&ports=82"), Ok(vec![80, 81, 82]));
        assert_eq!(read("port=80"), Ok(vec![80]));
        assert!(read("").unwrap_err().contains("is required"));
        assert!(read("ports=0").unwrap_err().contains("must be > 0"));
        assert!(read("ports=80,").unwrap_err().contains("unable to parse \"\""));
        assert!(read("ports=70000").unwrap_err().contains("70000"));
        let many = vec!["1"; 65].join(",");
        assert!(read(&format!("ports={many}")).unwrap_err().contains("65 ports are too many"));
    }
}
