//! Exec and attach: a client's streams joined to a session on the node.
//!
//! The protocols differ in little: `v5.channel.k8s.io` (WebSocket) closes stdin, from `v4` on the
//! error stream carries a Status with the exit code, from `v3` on there are terminal sizes (SPDY).
//! <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#operations>

mod ending;
mod options;
mod sizes;
mod spdy;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use rimward_api::Status;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::channels::Codec;
use super::spdy::Gone;
use super::upgrade::{self, Asked};
use crate::body::Response;
use crate::nodes::{Input, NodeError, Nodes, Output, PodOnNode, Session, SessionOptions};
use crate::request::Call;
use crate::rest::on_node::node_status;
use ending::Ending;

pub use options::{Kind, options};

/// How often a silent client is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client may take to go after it was told the end.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

const V5: &str = "v5.channel.k8s.io";
/// WebSocket protocols before v5: name, base64, and whether the error stream carries a Status.
const SOCKETS: [(&str, bool, bool); 4] = [
    ("v4.channel.k8s.io", false, true),
    ("v4.base64.channel.k8s.io", true, true),
    ("channel.k8s.io", false, false),
    ("base64.channel.k8s.io", true, false),
];
/// SPDY protocols, the newest first.
const SPDY: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// How the client is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    Socket {
        codec: Codec,
        status: bool,
    },
    Spdy {
        /// Sizes of the terminal come on a stream of their own.
        resizes: bool,
        status: bool,
    },
}

/// Connects a client with a container. Answers before the connection has become what it will be.
///
/// # Errors
/// When the request is not one for a connection, or the node refuses.
pub async fn connect(
    nodes: Arc<dyn Nodes>,
    stop: CancellationToken,
    call: &Call,
    kind: Kind,
    pod: PodOnNode,
    options: SessionOptions,
) -> Result<Response, Status> {
    let asked = match upgrade::asked(call) {
        Ok(Some(asked)) => asked,
        Ok(None) => return Err(Status::bad_request("Upgrade request required")),
        Err(response) => return Ok(*response),
    };
    let (response, speech) = match answer(&asked) {
        Ok(answered) => answered,
        Err(response) => return Ok(*response),
    };
    let session = nodes.session(&pod, options.clone()).await;
    // A v5 client is told on its error channel whatever goes wrong, others before the connection.
    let v5 = matches!(speech, Speech::Socket { codec: Codec { closes: true, .. }, .. });
    let session = match session {
        Err(e) if !v5 => return Err(node_status(e)),
        session => session,
    };
    let Some(upgrade) = call.upgrade.lock().take() else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    tokio::spawn(async move {
        if let Err(cause) = serve(upgrade, speech, kind, &options, session, stop).await {
            tracing::debug!(pod = pod.name, %cause, "a session did not come about");
        }
    });
    Ok(response)
}

/// The answer to the client, and how it is spoken to from then on.
fn answer(asked: &Asked) -> Result<(Response, Speech), Box<Response>> {
    match asked {
        Asked::WebSocket { key, protocols } if protocols.iter().any(|p| p == V5) => {
            let codec = Codec { base64: false, closes: true };
            Ok((upgrade::to_web_socket(key, V5), Speech::Socket { codec, status: true }))
        }
        Asked::WebSocket { key, protocols } => {
            let ours = SOCKETS.map(|(name, ..)| name);
            let chosen = upgrade::negotiate(protocols, &ours, true)?;
            let found = SOCKETS.iter().find(|(name, ..)| *name == chosen);
            let (base64, status) =
                found.map_or((false, false), |(_, base64, status)| (*base64, *status));
            let codec = Codec { base64, closes: false };
            Ok((upgrade::to_web_socket(key, chosen), Speech::Socket { codec, status }))
        }
        Asked::Spdy { protocols } => {
            let chosen = upgrade::negotiate(protocols, &SPDY, true)?;
            let resizes = matches!(chosen, "v4.channel.k8s.io" | "v3.channel.k8s.io");
            let speech = Speech::Spdy { resizes, status: chosen == "v4.channel.k8s.io" };
            Ok((upgrade::to_spdy(chosen), speech))
        }
    }
}

/// A client: what comes from it, and where things for it go. The stream ends when it is gone.
struct Client {
    input: BoxStream<'static, Input>,
    output: ClientOutput,
}

enum ClientOutput {
    Socket(websocket::Output),
    Spdy(spdy::Output),
}

impl ClientOutput {
    async fn piece(&mut self, piece: Output) -> Result<(), Gone> {
        match self {
            Self::Socket(socket) => socket.piece(piece).await,
            Self::Spdy(spdy) => spdy.piece(piece).await,
        }
    }

    async fn ping(&mut self) -> Result<(), Gone> {
        match self {
            Self::Socket(socket) => socket.ping().await,
            Self::Spdy(spdy) => spdy.ping().await,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum NotServed {
    #[error("the connection was not given up: {0}")]
    Upgrade(#[from] hyper::Error),
    #[error("the client did not open its streams in time")]
    Streams,
}

async fn serve(
    upgrade: OnUpgrade,
    speech: Speech,
    kind: Kind,
    options: &SessionOptions,
    session: Result<Session, NodeError>,
    stop: CancellationToken,
) -> Result<(), NotServed> {
    let mut client = match speech {
        Speech::Socket { codec, status } => {
            websocket::client(upgrade, codec, status, options).await?
        }
        Speech::Spdy { resizes, status } => spdy::client(upgrade, resizes, status, options).await?,
    };
    let ending = match session {
        Err(cause) => Some(Ending::Failed(cause.to_string())),
        Ok(session) => join(session, &mut client, stop).await,
    };
    let Some(ending) = ending else { return Ok(()) };
    let Client { mut input, output } = client;
    match output {
        ClientOutput::Socket(mut socket) => {
            socket.end(&ending, kind).await;
            let gone = async { while input.next().await.is_some() {} };
            let _cut_after_that = tokio::time::timeout(GOODBYE_MAX, gone).await;
        }
        ClientOutput::Spdy(spdy) => spdy.end(&ending, kind).await,
    }
    Ok(())
}

/// Hands everything on until the session ends; None when the client went first, which ends the
/// session.
async fn join(session: Session, client: &mut Client, stop: CancellationToken) -> Option<Ending> {
    let Session { input: mut sink, output: mut pieces } = session;
    let Client { input, output } = client;
    let feed = async {
        while let Some(said) = input.next().await {
            if sink.send(said).await.is_err() {
                // Its output tells how it ended.
                std::future::pending::<()>().await;
            }
        }
    };
    let print = async {
        let mut pings = tokio::time::interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings.tick().await;
        loop {
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                _ = pings.tick() => {
                    output.ping().await.ok()?;
                    continue;
                }
            };
            match piece {
                Some(Ok(Output::Exit(code))) => return Some(Ending::Exit(code)),
                Some(Ok(Output::Failed(why))) => return Some(Ending::Failed(why)),
                Some(Ok(piece)) => output.piece(piece).await.ok()?,
                Some(Err(cause)) => return Some(Ending::Failed(cause.to_string())),
                None => return Some(Ending::Failed("the session broke off".into())),
            }
        }
    };
    tokio::select! {
        ending = print => ending,
        () = feed => None,
        () = stop.cancelled() => Some(Ending::Failed("the API server is shutting down".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spoken() {
        fn speech(protocols: &[&str], spdy: bool) -> Option<Speech> {
            let protocols = protocols.iter().map(|p| (*p).to_owned()).collect();
            let asked = match spdy {
                true => Asked::Spdy { protocols },
                false => Asked::WebSocket { key: "k".into(), protocols },
            };
            answer(&asked).ok().map(|(_, speech)| speech)
        }
        let socket = |base64, closes, status| {
            Some(Speech::Socket { codec: Codec { base64, closes }, status })
        };
        assert_eq!(speech(&["v4.channel.k8s.io", V5], false), socket(false, true, true));
        assert_eq!(speech(&["v4.base64.channel.k8s.io"], false), socket(true, false, true));
        assert_eq!(speech(&["channel.k8s.io"], false), socket(false, false, false));
        assert_eq!(speech(&[], false), socket(false, false, false));
        assert_eq!(speech(&["v9.channel.k8s.io"], false), None);
        let spdy = |resizes, status| Some(Speech::Spdy { resizes, status });
        assert_eq!(speech(&SPDY, true), spdy(true, true));
        assert_eq!(speech(&["v3.channel.k8s.io"], true), spdy(true, false));
        assert_eq!(speech(&["v2.channel.k8s.io"], true), spdy(false, false));
        assert_eq!(speech(&[], true), spdy(false, false));
        assert_eq!(speech(&["portforward.k8s.io"], true), None);
    }
}
