//! Why one end closed the connection.

use quinn::{Connection, ConnectionError, VarInt};

/// The application error code of a close; its reason is text for a person. Numbers are never
/// reused; an unknown one counts as [`CloseCode::Unavailable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// This end stops; come back later.
    Stopping = 0,
    /// Bytes that are not the protocol, or another node's objects.
    Malformed = 1,
    /// The token, name or certificate is not accepted. Trying again will not help.
    Denied = 2,
    /// No common protocol revision. Trying again will not help.
    Protocol = 3,
    /// The same node connected again.
    Replaced = 4,
    /// This end cannot serve now.
    Unavailable = 5,
}

impl CloseCode {
    const ALL: [Self; 6] = [
        Self::Stopping,
        Self::Malformed,
        Self::Denied,
        Self::Protocol,
        Self::Replaced,
        Self::Unavailable,
    ];

    fn from_number(number: u64) -> Self {
        let found = Self::ALL.into_iter().find(|code| *code as u64 == number);
        found.unwrap_or(Self::Unavailable)
    }

    /// Whether a node that is told this should give up.
    pub fn permanent(self) -> bool {
        matches!(self, Self::Denied | Self::Protocol)
    }
}

/// Closes a connection and says why. The text is cut to what fits into a packet.
pub fn close(connection: &Connection, code: CloseCode, reason: &str) {
    const REASON_BYTES_MAX: usize = 900;
    let bytes = reason.as_bytes();
    connection.close(VarInt::from_u32(code as u32), &bytes[..bytes.len().min(REASON_BYTES_MAX)]);
}

/// What the other end said when it closed the connection, if it was this protocol that closed it.
pub fn closed_by_peer(error: &ConnectionError) -> Option<(CloseCode, String)> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    let reason = String::from_utf8_lossy(&close.reason).into_owned();
    Some((CloseCode::from_number(close.error_code.into_inner()), reason))
}
