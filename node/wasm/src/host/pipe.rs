//! A bounded buffer between a guest and whoever is connected with it: one of its standard streams.
//!
//! A guest that prints faster than its reader reads waits; one whose reader is gone prints into
//! nothing. A reader that takes nothing for [`STUCK`] counts as gone where others must not wait for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

const BYTES_MAX: usize = 64 << 10;
/// How long an attached reader may hold up what it is attached to.
pub(crate) const STUCK: Duration = Duration::from_secs(30);

pub(crate) struct Pipe {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    buffer: BytesMut,
    /// No more is written.
    ended: bool,
    /// Nobody reads any more.
    unread: bool,
    /// When the reader last took something, or had nothing to take.
    taken: Instant,
}

impl Pipe {
    pub fn new() -> Arc<Self> {
        let state =
            State { buffer: BytesMut::new(), ended: false, unread: false, taken: Instant::now() };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    /// One that nobody reads.
    pub fn nowhere() -> Arc<Self> {
        let pipe = Self::new();
        pipe.leave();
        pipe
    }

    /// How much may be written now.
    pub fn room(&self) -> usize {
        let state = self.state.lock();
        match state.unread {
            true => BYTES_MAX,
            false => BYTES_MAX.saturating_sub(state.buffer.len()),
        }
    }

    /// Writes at once, beyond the room if need be.
    pub fn put(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        if state.unread || state.ended || bytes.is_empty() {
            return;
        }
        if state.buffer.is_empty() {
            state.taken = Instant::now();
        }
        state.buffer.extend_from_slice(bytes);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Writes as there is room.
    pub async fn write_all(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.has_room().await;
            let (piece, rest) = bytes.split_at(bytes.len().min(self.room()));
            self.put(piece);
            bytes = rest;
        }
    }

    pub async fn has_room(&self) {
        self.until(|state| state.unread || state.ended || state.buffer.len() < BYTES_MAX).await;
    }

    /// No more is written.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_waiters();
    }

    /// Nobody reads any more: what waits is dropped.
    pub fn leave(&self) {
        let mut state = self.state.lock();
        state.unread = true;
        state.buffer = BytesMut::new();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Full, and not read for [`STUCK`].
    pub fn is_stuck(&self) -> bool {
        self.room() == 0 && self.state.lock().taken.elapsed() > STUCK
    }

    pub fn is_unread(&self) -> bool {
        self.state.lock().unread
    }

    /// What there is, `max` bytes of it; none at all when there is nothing yet, None at the end.
    fn take(&self, max: usize) -> Option<Bytes> {
        let mut state = self.state.lock();
        state.taken = Instant::now();
        if state.buffer.is_empty() {
            return (!state.ended).then(Bytes::new);
        }
        let take = state.buffer.len().min(max);
        let bytes = state.buffer.split_to(take).freeze();
        drop(state);
        self.changed.notify_waiters();
        Some(bytes)
    }

    async fn readable(&self) {
        self.until(|state| state.ended || !state.buffer.is_empty()).await;
    }

    /// The next bytes; None at the end. Cancel-safe.
    pub async fn next(&self, max: usize) -> Option<Bytes> {
        loop {
            self.readable().await;
            match self.take(max) {
                Some(bytes) if bytes.is_empty() => {}
                taken => return taken,
            }
        }
    }

    async fn until(&self, so: impl Fn(&State) -> bool) {
        loop {
            let mut told = std::pin::pin!(self.changed.notified());
            told.as_mut().enable();
            if so(&self.state.lock()) {
                return;
            }
            told.await;
        }
    }
}

/// A guest's end of a pipe.
#[derive(Clone)]
pub(crate) struct Guest {
    pub pipe: Arc<Pipe>,
    /// The other end is a terminal.
    pub tty: bool,
}

impl IsTerminal for Guest {
    fn is_terminal(&self) -> bool {
        self.tty
    }
}

#[async_trait::async_trait]
impl Pollable for Guest {
    async fn ready(&mut self) {
        self.pipe.has_room().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for Guest {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.pipe.put(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.pipe.room())
    }
}

impl StdoutStream for Guest {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(AsyncGuest { pipe: self.pipe.clone(), waiting: None })
    }
}

impl StdinStream for Guest {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(GuestInput(self.pipe.clone()))
    }

    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(AsyncGuest { pipe: self.pipe.clone(), waiting: None })
    }
}

struct GuestInput(Arc<Pipe>);

#[async_trait::async_trait]
impl Pollable for GuestInput {
    async fn ready(&mut self) {
        self.0.readable().await;
    }
}

#[async_trait::async_trait]
impl InputStream for GuestInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match size {
            0 => Ok(Bytes::new()),
            size => self.0.take(size).ok_or(StreamError::Closed),
        }
    }
}

/// [`Guest`] for WASI 0.3, which reads and writes through tokio's traits.
struct AsyncGuest {
    pipe: Arc<Pipe>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl AsyncGuest {
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(waiting) = &mut self.waiting else { return Poll::Ready(()) };
        std::task::ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(())
    }
}

impl AsyncRead for AsyncGuest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        loop {
            std::task::ready!(self.wait(cx));
            match self.pipe.take(out.remaining()) {
                Some(bytes) if bytes.is_empty() => {
                    let pipe = self.pipe.clone();
                    self.waiting = Some(Box::pin(async move { pipe.readable().await }));
                }
                Some(bytes) => {
                    out.put_slice(&bytes);
                    return Poll::Ready(Ok(()));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for AsyncGuest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        loop {
            std::task::ready!(self.wait(cx));
            let room = self.pipe.room();
            if room > 0 {
                let taken = bytes.len().min(room);
                self.pipe.put(&bytes[..taken]);
                return Poll::Ready(Ok(taken));
            }
            let pipe = self.pipe.clone();
            self.waiting = Some(Box::pin(async move { pipe.has_room().await }));
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_is_bounded_both_ways() {
        let pipe = Pipe::new();
        let flood = vec![b'x'; 3 * BYTES_MAX];
        let (writer, reader) = (pipe.clone(), pipe.clone());
        let write = async {
            writer.write_all(&flood).await;
            writer.end();
        };
        let read = async {
            let mut all = 0;
            while let Some(bytes) = reader.next(1000).await {
                assert!(reader.state.lock().buffer.len() <= BYTES_MAX);
                all += bytes.len();
            }
            all
        };
        let ((), all) = tokio::join!(write, read);
        assert_eq!(all, flood.len());
        pipe.put(b"too late");
        assert_eq!(pipe.next(10).await, None);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_reader_that_left() {
        let pipe = Pipe::new();
        pipe.put(&vec![0; BYTES_MAX]);
        assert_eq!(pipe.room(), 0);
        assert!(!pipe.is_stuck(), "it has just been filled");
        let (waiting, ()) = tokio::join!(pipe.has_room(), async { pipe.leave() });
        let () = waiting;
        assert_eq!(pipe.room(), BYTES_MAX);
        assert!(Pipe::nowhere().is_unread());
    }

    #[tokio::test]
    async fn a_guest_reads_what_is_there_and_sees_the_end() {
        let pipe = Pipe::new();
        let guest = Guest { pipe: pipe.clone(), tty: true };
        assert!(guest.is_terminal());
        let mut input = StdinStream::p2_stream(&guest);
        assert!(input.read(5).unwrap().is_empty());
        pipe.put(b"typed");
        input.ready().await;
        assert_eq!(input.read(3).unwrap(), "typ");
        assert_eq!(input.read(3).unwrap(), "ed");
        pipe.end();
        input.ready().await;
        assert!(matches!(input.read(3), Err(StreamError::Closed)));
    }
}
