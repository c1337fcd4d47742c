//! A connection: one task that reads, one that writes, and handles of the streams between.
//!
//! Each stream holds a few pieces that came for it. When one is full the connection is not read on:
//! the client's library knows no other way to be told to wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::frame::{self, Decoder, Frame, Malformed, PROTOCOL_ERROR, REFUSED_STREAM};
use super::headers::{self, Headers};
use crate::nodes::Duplex;

/// Streams that a client may have open: two for each connection that is forwarded.
const STREAMS_MAX: usize = 1024;
/// Streams that were opened and not yet looked at.
const OPENED: usize = 16;
/// Pieces that wait in a stream, of [`READ_BYTES`] at most each.
const PIECES: usize = 4;
const READ_BYTES: usize = 16 << 10;
/// Bytes of a data frame that we send. Short ones let streams take turns.
const DATA_BYTES: usize = 16 << 10;
/// Frames that wait to be written.
const FRAMES: usize = 16;
/// How long the last frames may take, and the client to close after them.
const FLUSH_MAX: Duration = Duration::from_secs(10);
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// The connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// The server's end of a connection. Dropping it cuts the connection.
pub struct Connection {
    opened: mpsc::Receiver<Stream>,
    out: mpsc::Sender<Out>,
    gone: CancellationToken,
    pings: u32,
    reader: AbortOnDropHandle<()>,
    writer: AbortOnDropHandle<()>,
}

/// A stream that the client opened and that waits for [`Stream::accept`] or [`Stream::refuse`].
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub input: StreamInput,
    pub output: StreamOutput,
}

/// What comes on a stream.
pub struct StreamInput {
    pieces: mpsc::Receiver<Bytes>,
    _place: Arc<OwnedSemaphorePermit>,
}

/// What goes on a stream.
pub struct StreamOutput {
    id: u32,
    out: mpsc::Sender<Out>,
    finished: bool,
    _place: Arc<OwnedSemaphorePermit>,
}

enum Out {
    Reply(u32),
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset(u32, u32),
    Ping(u32),
    /// The last: no more frames are written.
    Close,
}

impl Connection {
    pub fn new(io: Box<dyn Duplex>) -> Self {
        let (read, write) = tokio::io::split(io);
        let (out, frames) = mpsc::channel(FRAMES);
        let (opening, opened) = mpsc::channel(OPENED);
        let gone = CancellationToken::new();
        let reader = Reader {
            streams: HashMap::new(),
            newest: 0,
            places: Arc::new(Semaphore::new(STREAMS_MAX)),
            opening,
            out: out.clone(),
        };
        let ended = gone.clone();
        let reader = tokio::spawn(async move {
            if let Err(cause) = reader.run(read).await {
                tracing::debug!(%cause, "a SPDY connection was given up");
            }
            ended.cancel();
        });
        let ended = gone.clone();
        let writer = tokio::spawn(async move {
            if write_all(write, frames).await.is_err() {
                ended.cancel();
            }
        });
        Self {
            opened,
            out,
            gone,
            pings: 0,
            reader: AbortOnDropHandle::new(reader),
            writer: AbortOnDropHandle::new(writer),
        }
    }

    /// The next stream that the client opens; None when the connection is over. Cancel-safe.
    pub async fn next(&mut self) -> Option<Stream> {
        self.opened.recv().await
    }

    /// Cancelled when the client is gone.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Asks whether the client is still there: what is written to one that is not breaks the
    /// connection.
    pub async fn ping(&mut self) {
        self.pings = self.pings.wrapping_add(2);
        let _a_broken_one_is_told_by_gone = self.out.send(Out::Ping(self.pings)).await;
    }

    /// Writes what is to be written, says goodbye, and waits for the client's, for a while.
    pub async fn close(self) {
        let Self { opened, out, reader, writer, .. } = self;
        drop(opened);
        let _a_broken_one_is_closed = out.send(Out::Close).await;
        drop(out);
        let _cut_after_that = tokio::time::timeout(FLUSH_MAX, writer).await;
        let _cut_after_that = tokio::time::timeout(CLOSE_MAX, reader).await;
    }
}

impl Stream {
    /// # Errors
    /// When the connection is over.
    pub async fn accept(self) -> Result<(StreamInput, StreamOutput), Gone> {
        self.output.out.send(Out::Reply(self.id)).await.map_err(|_| Gone)?;
        Ok((self.input, self.output))
    }

    pub async fn refuse(mut self) {
        self.output.finished = true;
        let _a_broken_one_is_closed =
            self.output.out.send(Out::Reset(self.id, REFUSED_STREAM)).await;
    }
}

impl StreamInput {
    /// The next bytes; None at the stream's end, and the connection's. Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.pieces.recv().await
    }
}

impl StreamOutput {
    /// Waits while the client does not read. Cancel-safe but for what is not yet queued.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(DATA_BYTES));
            let frame = Out::Data { stream: self.id, bytes: piece, fin: false };
            self.out.send(frame).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// No more bytes on this stream.
    pub async fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            let frame = Out::Data { stream: self.id, bytes: Bytes::new(), fin: true };
            let _a_broken_one_is_closed = self.out.send(frame).await;
        }
    }
}

struct Reader {
    /// Those that the client may still send on.
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    newest: u32,
    places: Arc<Semaphore>,
    opening: mpsc::Sender<Stream>,
    out: mpsc::Sender<Out>,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Reader {
    async fn run(mut self, mut read: ReadHalf<Box<dyn Duplex>>) -> Result<(), Broken> {
        let mut decoder = Decoder::new();
        loop {
            while let Some(frame) = decoder.next()? {
                self.take(frame).await;
            }
            let buffer: &mut BytesMut = decoder.buffer();
            buffer.reserve(READ_BYTES);
            if (&mut read).take(READ_BYTES as u64).read_buf(buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Open { stream, headers, fin } => self.open(stream, headers, fin).await,
            Frame::Data { stream, bytes, fin } => {
                if let Some(pieces) = self.streams.get(&stream)
                    && !bytes.is_empty()
                {
                    let _nobody_reads_it_any_more = pieces.send(bytes).await;
                }
                if fin {
                    self.streams.remove(&stream);
                }
            }
            Frame::Late { stream, fin } => {
                if fin {
                    self.streams.remove(&stream);
                }
            }
            Frame::Reset { stream } => drop(self.streams.remove(&stream)),
            // Ours come back with even numbers.
            Frame::Ping { id } if id % 2 == 1 => self.say(Out::Ping(id)).await,
            Frame::Ping { .. } | Frame::GoAway | Frame::Other => {}
        }
    }

    async fn open(&mut self, id: u32, headers: Headers, fin: bool) {
        if id % 2 == 0 || id <= self.newest {
            return self.say(Out::Reset(id, PROTOCOL_ERROR)).await;
        }
        self.newest = id;
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return self.say(Out::Reset(id, REFUSED_STREAM)).await;
        };
        let place = Arc::new(place);
        let (sender, pieces) = mpsc::channel(PIECES);
        let input = StreamInput { pieces, _place: place.clone() };
        let output = StreamOutput { id, out: self.out.clone(), finished: false, _place: place };
        if !fin {
            self.streams.insert(id, sender);
        }
        // Those whose owner takes no more are dropped with it.
        let _closing = self.opening.send(Stream { id, headers, input, output }).await;
        self.streams.retain(|_, pieces| !pieces.is_closed());
    }

    async fn say(&self, frame: Out) {
        let _a_broken_one_ends_by_itself = self.out.send(frame).await;
    }
}

async fn write_all(
    mut write: WriteHalf<Box<dyn Duplex>>,
    mut frames: mpsc::Receiver<Out>,
) -> std::io::Result<()> {
    let mut headers = headers::Writer::new();
    let mut buffer = BytesMut::new();
    let mut newest = 0;
    loop {
        let Some(out) = frames.recv().await else { return Ok(()) };
        let mut next = Some(out);
        let mut over = false;
        // What waits together goes out together.
        while let Some(out) = next {
            match out {
                Out::Reply(stream) => {
                    newest = newest.max(stream);
                    frame::reply(&mut buffer, stream, &headers.empty());
                }
                Out::Data { stream, bytes, fin } => {
                    frame::data(&mut buffer, stream, bytes.len(), fin);
                    buffer.extend_from_slice(&bytes);
                }
                Out::Reset(stream, status) => frame::reset(&mut buffer, stream, status),
                Out::Ping(id) => frame::ping(&mut buffer, id),
                Out::Close => {
                    frame::go_away(&mut buffer, newest);
                    over = true;
                    break;
                }
            }
            next = if buffer.len() < 4 * DATA_BYTES { frames.try_recv().ok() } else { None };
        }
        write.write_all(&buffer).await?;
        write.flush().await?;
        buffer.clear();
        if over {
            return write.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::open;
    use super::super::headers::tests::ClientWriter;
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    struct Client {
        io: DuplexStream,
        headers: ClientWriter,
        decoder: Decoder,
    }

    impl Client {
        async fn send(&mut self, wire: &[u8]) {
            self.io.write_all(wire).await.unwrap();
        }

        async fn open(&mut self, stream: u32, kind: &str) {
            let wire = open(&mut self.headers, stream, &[("streamtype", kind)]);
            self.send(&wire).await;
        }

        async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
            let mut wire = BytesMut::new();
            frame::data(&mut wire, stream, bytes.len(), fin);
            wire.extend_from_slice(bytes);
            self.send(&wire).await;
        }

        async fn next(&mut self) -> Option<Frame> {
            loop {
                if let Some(frame) = self.decoder.next().unwrap() {
                    return Some(frame);
                }
                if self.io.read_buf(self.decoder.buffer()).await.unwrap() == 0 {
                    return None;
                }
            }
        }
    }

    fn pair() -> (Client, Connection) {
        let (near, far) = duplex(1 << 10);
        let client = Client { io: near, headers: ClientWriter::new(), decoder: Decoder::new() };
        (client, Connection::new(Box::new(far)))
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_end_by_halves() {
        let (mut client, mut server) = pair();
        client.open(1, "data").await;
        let stream = server.next().await.unwrap();
        assert_eq!((stream.id, stream.headers.get("streamtype")), (1, "data"));
        let (mut input, mut output) = stream.accept().await.unwrap();
        assert_eq!(client.next().await, Some(Frame::Late { stream: 1, fin: false }));
        client.data(1, b"ping", true).await;
        assert_eq!(input.next().await.unwrap(), "ping");
        assert!(input.next().await.is_none());
        output.send(Bytes::from_static(b"pong")).await.unwrap();
        output.finish().await;
        output.finish().await;
        let pong = Frame::Data { stream: 1, bytes: Bytes::from_static(b"pong"), fin: false };
        assert_eq!(client.next().await, Some(pong));
        assert!(matches!(client.next().await, Some(Frame::Data { fin: true, .. })));
        let closing = tokio::spawn(server.close());
        assert_eq!(client.next().await, Some(Frame::GoAway));
        assert_eq!(client.next().await, None);
        drop(client);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn pings_are_answered_and_bad_streams_reset() {
        let (mut client, mut server) = pair();
        let mut wire = BytesMut::new();
        frame::ping(&mut wire, 5);
        client.send(&wire).await;
        assert_eq!(client.next().await, Some(Frame::Ping { id: 5 }));
        client.open(2, "data").await;
        assert_eq!(client.next().await, Some(Frame::Reset { stream: 2 }));
        client.open(3, "data").await;
        server.next().await.unwrap().refuse().await;
        assert_eq!(client.next().await, Some(Frame::Reset { stream: 3 }));
        client.open(1, "data").await;
        assert_eq!(client.next().await, Some(Frame::Reset { stream: 1 }));
    }

    #[tokio::test]
    async fn too_many_streams_are_refused_and_come_free_again() {
        let (mut client, mut server) = pair();
        let mut kept = Vec::new();
        for n in 0..STREAMS_MAX as u32 {
            client.open(2 * n + 1, "data").await;
            kept.push(server.next().await.unwrap());
        }
        let next = 2 * STREAMS_MAX as u32 + 1;
        client.open(next, "data").await;
        assert_eq!(client.next().await, Some(Frame::Reset { stream: next }));
        drop(kept.pop());
        client.open(next + 2, "data").await;
        assert_eq!(server.next().await.unwrap().id, next + 2);
    }

    /// A stream whose owner does not read holds a few pieces, then the connection waits.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_not_read_holds_little() {
        let (mut client, mut server) = pair();
        client.open(1, "data").await;
        let (input, _output) = server.next().await.unwrap().accept().await.unwrap();
        let flood = vec![0; 1 << 20];
        let flooding = client.data(1, &flood, false);
        assert!(tokio::time::timeout(Duration::from_secs(60), flooding).await.is_err());
        assert!(input.pieces.len() <= PIECES);
    }

    #[tokio::test]
    async fn what_is_not_spdy_ends_the_connection() {
        let (mut client, mut server) = pair();
        let gone = server.gone();
        client.send(&[0x80, 9, 0, 1, 0, 0, 0, 0]).await;
        assert!(server.next().await.is_none());
        gone.cancelled().await;
    }
}
