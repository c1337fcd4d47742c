//! What agent and shim say to each other over the shim's socket: frames of a kind, a length and bytes.
//!
//! Bare bytes instead of a serialisation: the shim is to be small, and what it carries is mostly what a
//! container printed.

/// What the agent asks.
pub(crate) mod ask {
    /// Payload: the signal's number, then the milliseconds after which SIGKILL follows (u64); without
    /// them nothing follows.
    pub const SIGNAL: u8 = 1;
    /// This connection gets what is printed from now on.
    pub const ATTACH: u8 = 2;
    pub const STDIN: u8 = 3;
    pub const STDIN_END: u8 = 4;
    /// Payload: width and height, u16 each.
    pub const RESIZE: u8 = 5;
    /// The log was renamed: go on in a new file.
    pub const REOPEN_LOG: u8 = 6;
}

/// What the shim says.
pub(crate) mod tell {
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    /// The log has the size at which it is to be rotated.
    pub const LOG_FULL: u8 = 3;
    /// Nothing more follows on an attached connection.
    pub const END: u8 = 4;
}

pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 10;
const HEADER: usize = 5;

/// Appends a frame.
pub(crate) fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX, "senders cut what is longer");
    out.push(kind);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
}

pub(crate) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + payload.len());
    put(&mut out, kind, payload);
    out
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Takes the first whole frame off the bytes that came in.
pub(crate) fn take(bytes: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, TooLong> {
    if bytes.len() < HEADER {
        return Ok(None);
    }
    let len = u32::from_le_bytes(bytes[1..HEADER].try_into().expect("four bytes")) as usize;
    if len > PAYLOAD_BYTES_MAX {
        return Err(TooLong);
    }
    if bytes.len() < HEADER + len {
        return Ok(None);
    }
    let kind = bytes[0];
    let payload = bytes[HEADER..HEADER + len].to_vec();
    bytes.drain(..HEADER + len);
    Ok(Some((kind, payload)))
}

pub(crate) fn signal(number: i32, kill_after: Option<std::time::Duration>) -> Vec<u8> {
    let mut payload = vec![u8::try_from(number).unwrap_or(15)];
    if let Some(after) = kill_after {
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        payload.extend_from_slice(&millis.to_le_bytes());
    }
    frame(ask::SIGNAL, &payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut bytes = frame(ask::STDIN, b"hello");
        put(&mut bytes, ask::STDIN_END, b"");
        let late = bytes.pop().unwrap();
        assert_eq!(take(&mut bytes), Ok(Some((ask::STDIN, b"hello".to_vec()))));
        assert_eq!(take(&mut bytes), Ok(None));
        bytes.push(late);
        assert_eq!(take(&mut bytes), Ok(Some((ask::STDIN_END, vec![]))));
        assert_eq!(take(&mut bytes), Ok(None));
        let mut long = vec![1, 0xff, 0xff, 0xff, 0];
        assert_eq!(take(&mut long), Err(TooLong));
    }
}
