//! SPDY/3.1, the server's end, as far as Kubernetes' clients speak it.
//! <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>
//!
//! Of its flow control there is nothing: the library that all clients use neither heeds windows nor
//! opens them, so that the connection's own back-pressure is all there is. Nothing is ever pushed, and
//! the client alone opens streams. There is no crate for it: the protocol is long dead but here.

mod connection;
mod frame;
mod headers;

pub use connection::{Connection, Gone, Stream, StreamInput, StreamOutput};
