//! The tunnel: the one QUIC connection over which a node and the control plane talk.
//!
//! The node dials out ([`dial`]), the control plane accepts ([`accept`]); both speak the frames of
//! [`wire`]. Mutual TLS, one UDP port, three protocols told apart by ALPN: [`ALPN_JOIN`] (a bootstrap
//! token becomes a client certificate), [`ALPN_CONTROL`] (desired state, status and requests),
//! [`ALPN_NET`] (pod packets as datagrams, on a connection of their own: datagrams would starve the
//! streams of the first).
//!
//! It refuses to know what the objects inside frames mean, to keep state across connections, and to
//! decide when to try again beyond saying whether an error is permanent: those are the hub's and the
//! agent's.
//!
//! Idle cost: the node alone sends keep-alives, one small packet each way a connection every
//! [`quic::KEEP_ALIVE`]; with both connections open that is under 20 bytes a second.

pub mod wire;

pub mod accept;
pub mod backoff;
pub mod call;
pub mod close;
pub mod control;
pub mod dial;
pub mod identity;
pub mod packets;
pub mod quic;
pub mod signer;
pub mod token;

pub use close::CloseCode;
pub use quinn;
pub use token::BootstrapToken;

/// Desired state, status and requests.
pub const ALPN_CONTROL: &[u8] = b"rimward/1";
/// Pod packets.
pub const ALPN_NET: &[u8] = b"rimward-net/1";
/// A bootstrap token for a certificate.
pub const ALPN_JOIN: &[u8] = b"rimward-join/1";

/// The protocol revision inside the ALPN's major version; the two ends settle on the highest that
/// both speak. Grows when a node needs to know that a control plane understands something new.
pub const PROTOCOL: u16 = 1;
/// The oldest revision that this build still serves.
pub const PROTOCOL_MIN: u16 = 1;

/// The name on the control plane's tunnel certificate. Nodes check this name, whatever address they
/// dialled: behind NAT the address says nothing.
pub const SERVER_NAME: &str = "rimward-control";

/// The highest protocol revision in both ranges, or what to tell the node.
pub fn agree(peer_min: u16, peer_max: u16) -> Result<u16, String> {
    let highest = PROTOCOL.min(peer_max);
    if highest >= PROTOCOL_MIN.max(peer_min) {
        return Ok(highest);
    }
    let advice = if peer_min > PROTOCOL { "upgrade the control plane" } else { "upgrade the node" };
    Err(format!(
        "the node speaks tunnel protocol {peer_min} to {peer_max}, this control plane {PROTOCOL_MIN} to {PROTOCOL}; {advice}"
    ))
}

#[cfg(test)]
mod tests;
