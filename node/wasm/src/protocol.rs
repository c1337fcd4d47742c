//! What an agent and a wasm-host say to each other over a Unix socket.
//!
//! A frame is a length (u32, big endian), a version byte and JSON. JSON because a host may be older
//! than its agent: unknown fields are ignored and new ones have defaults, for the few hundred bytes
//! a start costs. The length is bounded before anything is read.

use std::io;

use rimward_node_pod::runtime::{ContainerSpec, Exit, Known, RunId, RuntimeEvent, StartError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::artifact::Artifact;

pub(crate) const VERSION: u8 = 1;

/// A pod object is at most 1.5 MiB; its containers' specs are less.
const FRAME_BYTES_MAX: u32 = 4 << 20;

/// The reason of a [`StartError`] that tells the agent to compile the image again.
pub(crate) const ARTIFACT_DAMAGED: &str = "ArtifactDamaged";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ToHost {
    pub seq: u64,
    pub request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The first of a connection; it makes this agent the one that events go to.
    Hello,
    Start {
        spec: Box<ContainerSpec>,
        artifact: Artifact,
    },
    Stop {
        id: RunId,
        grace_ms: u64,
    },
    Remove {
        id: RunId,
    },
    Usage {
        id: RunId,
    },
    /// Runs the component once more, with these arguments behind its name. The only request of a
    /// connection: once it is answered, pieces follow.
    Exec {
        id: RunId,
        args: Vec<String>,
        wanted: Streams,
    },
    /// Connects with what runs. As `Exec`.
    Attach {
        id: RunId,
        wanted: Streams,
    },
    /// Ends everything and the host itself.
    End,
}

/// The streams of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// The guest is told that they are a terminal.
    pub tty: bool,
}

/// What a piece of a session is. No bytes at all are a stream's end.
pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
/// The last piece: [`Exit`] in JSON, or nothing for an attached session.
pub(crate) const EXIT: u8 = 3;

/// Bytes of a piece, at most.
pub(crate) const PIECE_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToAgent {
    Reply { seq: u64, reply: Reply },
    Started { id: RunId, at: jiff::Timestamp },
    Exited { id: RunId, exit: Exit },
    Notice { id: RunId, reason: String, message: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Hello { pid: u32, runs: Vec<Run> },
    Done,
    Refused { reason: String, message: String },
    Usage { cpu_nanos: u64, memory_bytes: u64 },
    NotKnown,
}

/// [`Known`] as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub id: RunId,
    pub spec_hash: String,
    pub started_at: jiff::Timestamp,
    pub exit: Option<Exit>,
}

impl From<Run> for Known {
    fn from(run: Run) -> Self {
        Known {
            id: run.id,
            spec_hash: run.spec_hash,
            started_at: Some(run.started_at),
            exit: run.exit,
        }
    }
}

impl ToAgent {
    /// None for replies.
    pub fn into_event(self) -> Option<RuntimeEvent> {
        Some(match self {
            Self::Reply { .. } => return None,
            Self::Started { id, at } => RuntimeEvent::Started { id, at },
            Self::Exited { id, exit } => RuntimeEvent::Exited { id, exit },
            Self::Notice { id, reason, message } => RuntimeEvent::Notice { id, reason, message },
        })
    }
}

impl From<StartError> for Reply {
    fn from(error: StartError) -> Self {
        Self::Refused { reason: error.reason, message: error.message }
    }
}

pub(crate) async fn write<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    frame: &T,
) -> io::Result<()> {
    let mut bytes = vec![0, 0, 0, 0, VERSION];
    serde_json::to_writer(&mut bytes, frame)?;
    let len = u32::try_from(bytes.len() - 4).ok().filter(|len| *len <= FRAME_BYTES_MAX);
    let len = len.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "a frame for the wasm host is too large")
    })?;
    bytes[..4].copy_from_slice(&len.to_be_bytes());
    to.write_all(&bytes).await
}

/// None at the end of the stream.
pub(crate) async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    match from.read_exact(&mut len).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let len = u32::from_be_bytes(len);
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    if len == 0 || len > FRAME_BYTES_MAX {
        return Err(invalid(format!(
            "a frame of {len} bytes; at most {FRAME_BYTES_MAX} are allowed"
        )));
    }
    let mut frame = vec![0; len as usize];
    from.read_exact(&mut frame).await?;
    if frame[0] != VERSION {
        return Err(invalid(format!("protocol version {}; this is version {VERSION}", frame[0])));
    }
    serde_json::from_slice(&frame[1..])
        .map(Some)
        .map_err(|error| invalid(format!("a frame that cannot be read: {error}")))
}

/// Writes a piece of a session: a length, what it is, and its bytes.
pub(crate) async fn write_piece(
    to: &mut (impl AsyncWrite + Unpin),
    kind: u8,
    bytes: &[u8],
) -> io::Result<()> {
    let mut head = [0; 5];
    head[..4].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
    head[4] = kind;
    to.write_all(&head).await?;
    to.write_all(bytes).await
}

/// None at the end of the stream.
pub(crate) async fn read_piece(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 5];
    match from.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length > PIECE_BYTES_MAX {
        let text = format!("a piece of {length} bytes; at most {PIECE_BYTES_MAX} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(Some((head[4], bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_survive_the_way_and_bad_ones_are_refused() {
        let mut wire = Vec::new();
        write_piece(&mut wire, STDOUT, b"out").await.unwrap();
        write_piece(&mut wire, STDOUT, b"").await.unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(read_piece(&mut wire).await.unwrap(), Some((STDOUT, b"out".to_vec())));
        assert_eq!(read_piece(&mut wire).await.unwrap(), Some((STDOUT, Vec::new())));
        assert_eq!(read_piece(&mut wire).await.unwrap(), None);
        let long = [0xff, 0xff, 0xff, 0xff, 1];
        let error = read_piece(&mut long.as_slice()).await.unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
    }

    #[tokio::test]
    async fn frames_survive_the_way_and_bad_ones_are_refused() {
        let mut wire = Vec::new();
        write(&mut wire, &ToHost { seq: 7, request: Request::End }).await.unwrap();
        let back: ToHost = read(&mut wire.as_slice()).await.unwrap().unwrap();
        assert_eq!(back.seq, 7);
        assert!(read::<ToHost>(&mut [].as_slice()).await.unwrap().is_none());

        for (bytes, said) in [
            (vec![0xff, 0xff, 0xff, 0xff, 1], "at most"),
            (vec![0, 0, 0, 0], "0 bytes"),
            (vec![0, 0, 0, 2, 9, b'1'], "protocol version 9"),
            (vec![0, 0, 0, 2, 1, b'{'], "cannot be read"),
        ] {
            let error = read::<ToHost>(&mut bytes.as_slice()).await.unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
