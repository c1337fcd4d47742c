//! What guests print, as the lines that `kubectl logs` reads.
//!
//! Guests write into a bounded buffer; one thread of the host takes it to disk. A guest that prints
//! faster than the disk waits, and nothing grows. Files are in the CRI format and open only while
//! there is something to write: ten thousand idle handlers hold no descriptor. A file that passes
//! 10 MiB becomes `<name>.1`, of which there is one.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::pipe::{Pipe, STUCK};

const BUFFER_BYTES_MAX: usize = 256 << 10;
const LINE_BYTES_MAX: usize = 16 << 10;
const FILE_BYTES_MAX: u64 = 10 << 20;

/// The thread that writes; cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer(mpsc::Sender<Arc<Log>>);

impl Writer {
    pub fn start() -> std::io::Result<Self> {
        // Not bounded by itself: a log is in it at most once.
        let (sender, receiver) = mpsc::channel::<Arc<Log>>();
        let run = move || {
            while let Ok(log) = receiver.recv() {
                log.write_out();
            }
        };
        std::thread::Builder::new().name("logs".into()).stack_size(128 << 10).spawn(run)?;
        Ok(Self(sender))
    }
}

/// One container's log.
pub(crate) struct Log {
    path: PathBuf,
    writer: Writer,
    state: Mutex<State>,
    /// Told whenever the buffer was emptied.
    room: Notify,
    /// Attached sessions: stdout and stderr of each. Few, and mostly none.
    taps: Mutex<Vec<[Arc<Pipe>; 2]>>,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// The writer knows of it.
    queued: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout = 0,
    Stderr = 1,
}

impl Log {
    /// Fails if the file cannot be written.
    pub fn open(path: &Path, writer: Writer) -> std::io::Result<Arc<Self>> {
        open_file(path)?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            writer,
            state: Mutex::default(),
            room: Notify::new(),
            taps: Mutex::default(),
        }))
    }

    /// Whatever is printed from now on goes to these too, until they are left or stuck.
    pub fn attach(&self, stdout: Arc<Pipe>, stderr: Arc<Pipe>) {
        self.taps.lock().push([stdout, stderr]);
    }

    /// Nothing more is printed.
    pub fn detach(&self) {
        for pipe in self.taps.lock().drain(..).flatten() {
            pipe.end();
        }
    }

    /// Those that still read.
    fn taps(&self, stream: Stream) -> Vec<Arc<Pipe>> {
        let mut taps = self.taps.lock();
        taps.retain(|pipes| {
            if pipes.iter().any(|pipe| pipe.is_stuck()) {
                pipes.iter().for_each(|pipe| pipe.leave());
            }
            !pipes.iter().all(|pipe| pipe.is_unread())
        });
        taps.iter().map(|pipes| pipes[stream as usize].clone()).collect()
    }

    /// Adds a line of the host's own, which is dropped when there is no room.
    pub fn note(self: &Arc<Self>, text: &str) {
        if self.room() > 0 {
            self.append(Stream::Stderr, text.lines().map(|line| (line.as_bytes(), true)));
        }
    }

    /// Resolves when all that was printed is in the file.
    pub async fn flushed(&self) {
        self.wait_until(|state| state.buffer.is_empty() && !state.queued).await;
    }

    fn room(&self) -> usize {
        BUFFER_BYTES_MAX.saturating_sub(self.state.lock().buffer.len())
    }

    async fn has_room(&self) {
        self.wait_until(|state| state.buffer.len() < BUFFER_BYTES_MAX).await;
    }

    async fn wait_until(&self, done: impl Fn(&State) -> bool) {
        loop {
            let mut told = std::pin::pin!(self.room.notified());
            told.as_mut().enable();
            if done(&self.state.lock()) {
                return;
            }
            told.await;
        }
    }

    fn append<'a>(self: &Arc<Self>, stream: Stream, lines: impl Iterator<Item = (&'a [u8], bool)>) {
        let now = jiff::Timestamp::now();
        let mut state = self.state.lock();
        for (line, whole) in lines {
            format_line(&mut state.buffer, now, stream, line, whole);
        }
        if !state.queued && !state.buffer.is_empty() {
            state.queued = self.writer.0.send(self.clone()).is_ok();
        }
    }

    /// On the writer's thread: takes one buffer to disk. A log that is full again queues behind others.
    fn write_out(self: Arc<Self>) {
        let buffer = std::mem::take(&mut self.state.lock().buffer);
        if let Err(error) = self.write_file(&buffer) {
            // The lines are lost, the guest goes on: as with a container whose disk is full.
            tracing::warn!("cannot write the log {}: {error}", self.path.display());
        }
        let mut state = self.state.lock();
        state.queued = !state.buffer.is_empty() && self.writer.0.send(self.clone()).is_ok();
        drop(state);
        self.room.notify_waiters();
    }

    fn write_file(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = open_file(&self.path)?;
        if file.metadata()?.len() + bytes.len() as u64 > FILE_BYTES_MAX {
            let mut previous = self.path.clone().into_os_string();
            previous.push(".1");
            std::fs::rename(&self.path, previous)?;
            file = open_file(&self.path)?;
        }
        file.write_all(bytes)
    }
}

fn open_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// `<RFC3339Nano> <stdout|stderr> <F|P> <text>`; P is a line that goes on in the next.
fn format_line(
    buffer: &mut Vec<u8>,
    now: jiff::Timestamp,
    stream: Stream,
    line: &[u8],
    whole: bool,
) {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let tag = if whole { 'F' } else { 'P' };
    let _ = write!(buffer, "{now:.9} {name} {tag} ");
    buffer.extend_from_slice(line);
    buffer.push(b'\n');
}

/// One instance's stdout or stderr. Lines of instances that print at once do not mix.
#[derive(Clone)]
pub(crate) struct GuestOutput(Arc<Unfinished>);

struct Unfinished {
    log: Arc<Log>,
    stream: Stream,
    /// The line so far: at most [`LINE_BYTES_MAX`].
    line: Mutex<Vec<u8>>,
}

impl GuestOutput {
    pub fn new(log: &Arc<Log>, stream: Stream) -> Self {
        Self(Arc::new(Unfinished { log: log.clone(), stream, line: Mutex::default() }))
    }

    /// What may be printed now: into the log, and to who is attached.
    fn room(&self) -> usize {
        let taps = self.0.log.taps(self.0.stream);
        let attached = taps.iter().map(|pipe| pipe.room()).min().unwrap_or(usize::MAX);
        self.0.log.room().min(attached)
    }

    async fn has_room(&self) {
        self.0.log.has_room().await;
        for tap in self.0.log.taps(self.0.stream) {
            // Looked at again when it may be stuck.
            let _it_reads_or_not = tokio::time::timeout(STUCK, tap.has_room()).await;
        }
    }

    fn print(&self, bytes: &[u8]) {
        for tap in self.0.log.taps(self.0.stream) {
            tap.put(bytes);
        }
        let mut line = self.0.line.lock();
        let mut lines = Vec::new();
        split(&mut line, bytes, |piece, whole| lines.push((piece.to_vec(), whole)));
        if !lines.is_empty() {
            self.0.log.append(
                self.0.stream,
                lines.iter().map(|(piece, whole)| (piece.as_slice(), *whole)),
            );
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let line = self.line.get_mut();
        if !line.is_empty() {
            self.log.append(self.stream, std::iter::once((line.as_slice(), true)));
        }
    }
}

/// Adds `bytes` to the unfinished `line` and emits what is finished or too long.
fn split(line: &mut Vec<u8>, mut bytes: &[u8], mut emit: impl FnMut(&[u8], bool)) {
    while !bytes.is_empty() {
        let room = LINE_BYTES_MAX - line.len();
        let end = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
        let take = end.unwrap_or(bytes.len().min(room));
        line.extend_from_slice(&bytes[..take]);
        bytes = &bytes[take + usize::from(end.is_some())..];
        if end.is_some() || (line.len() == LINE_BYTES_MAX && !bytes.is_empty()) {
            emit(line, end.is_some());
            line.clear();
        }
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(AsyncOutput { output: self.clone(), waiting: None })
    }
}

#[async_trait::async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {
        self.has_room().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.print(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.room().min(64 << 10))
    }
}

/// [`GuestOutput`] for WASI 0.3, which writes through tokio's trait.
struct AsyncOutput {
    output: GuestOutput,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl AsyncWrite for AsyncOutput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                std::task::ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            let room = self.output.room();
            if room > 0 {
                let taken = bytes.len().min(room);
                self.output.print(&bytes[..taken]);
                return Poll::Ready(Ok(taken));
            }
            let output = self.output.clone();
            self.waiting = Some(Box::pin(async move { output.has_room().await }));
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

    #[track_caller]
    fn check_split(writes: &[&[u8]], expected: &[(usize, bool)], rest: usize) {
        let (mut line, mut got) = (Vec::new(), Vec::new());
        for bytes in writes {
            split(&mut line, bytes, |piece, whole| got.push((piece.len(), whole)));
        }
        assert_eq!((got.as_slice(), line.len()), (expected, rest));
    }

    #[test]
    fn output_becomes_lines() {
        let long = vec![b'x'; LINE_BYTES_MAX];
        check_split(&[b"one\ntwo", b" more\n\n", b"rest"], &[(3, true), (8, true), (0, true)], 4);
        check_split(&[&long, b"\n"], &[(LINE_BYTES_MAX, true)], 0);
        check_split(&[&long, b"y\n"], &[(LINE_BYTES_MAX, false), (1, true)], 0);
        check_split(&[&long, &long], &[(LINE_BYTES_MAX, false)], LINE_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_log_is_bounded_and_turns_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = Log::open(&path, Writer::start().unwrap()).unwrap();
        let mut output = GuestOutput::new(&log, Stream::Stderr);
        let chunk = Bytes::from([vec![b'a'; 1023], vec![b'\n']].concat());
        for _ in 0..11 << 10 {
            output.ready().await;
            assert!(output.check_write().unwrap() > 0);
            output.write(chunk.clone()).unwrap();
        }
        output.write(Bytes::from_static(b"no newline")).unwrap();
        drop(output);
        log.flushed().await;
        let (now, before) = (
            std::fs::read_to_string(&path).unwrap(),
            std::fs::metadata(dir.path().join("0.log.1")).unwrap(),
        );
        assert!(
            before.len() <= FILE_BYTES_MAX && before.len() > FILE_BYTES_MAX / 2,
            "{}",
            before.len()
        );
        let last = now.lines().last().unwrap();
        assert!(last.ends_with("Z stderr F no newline"), "{last}");
    }
}
