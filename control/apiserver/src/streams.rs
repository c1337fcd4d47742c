//! Requests that become a connection: exec, attach, port-forward; logs and watches, if a client wants that.
//!
//! A client asks by WebSocket (kubectl since 1.31) or by SPDY/3.1 (before); port-forward by WebSocket
//! carries SPDY frames inside. Whatever it speaks, it is translated here into a session on the node
//! ([`crate::nodes::Session`]) or into byte streams to ports of a pod, which go through the tunnel.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/>, KEP-4006 (WebSocket), and
//! apimachinery's `remotecommand` and `portforward` constants say what is spoken.
//!
//! Everything is bounded: messages, frames, streams of a connection, and what waits in each of them.
//! A client that does not read makes its own command wait and nobody else.
//!
//! In reading order: `upgrade` is what the client asked for, `websocket` and `spdy` are the two ways,
//! `channels` puts streams on WebSocket messages; `remote_command` is exec and attach, `port_forward`
//! the other; `messages` sends a log or a watch, which are ordinary answers else.

mod channels;
mod spdy;
mod upgrade;
mod websocket;

pub mod messages;
pub mod port_forward;
pub mod remote_command;

pub use upgrade::{is_upgrade, token};
