//! The agent's connection to one shim, whose end is the container's; and connections of attached clients.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rimward_node_pod::runtime::{Streams, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, watch};

use super::log_files::LogFiles;
use crate::layout::RunDir;
use crate::protocol::{self, PAYLOAD_BYTES_MAX, ask, tell};

#[derive(Clone)]
pub(super) struct Link {
    writer: Arc<Mutex<OwnedWriteHalf>>,
    pid: Option<i32>,
    /// Its sender is dropped when all that follows from the end is done.
    gone: watch::Receiver<()>,
}

impl Link {
    /// `lost` runs once, when the shim is gone.
    pub async fn connect(
        dir: &RunDir,
        log: LogFiles,
        lost: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Self> {
        let stream = open(dir).await?;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (mut reader, writer) = stream.into_split();
        let writer = Arc::new(Mutex::new(writer));
        let (done, gone) = watch::channel(());
        let answers = writer.clone();
        tokio::spawn(async move {
            let mut inbox = Vec::new();
            while let Ok(Some((kind, _))) = frame(&mut reader, &mut inbox).await {
                if kind == tell::LOG_FULL && log.rotate() {
                    let reopen = protocol::frame(ask::REOPEN_LOG, &[]);
                    let _gone_already = answers.lock().await.write_all(&reopen).await;
                }
            }
            lost.await;
            drop(done);
        });
        Ok(Self { writer, pid, gone })
    }

    /// The shim's process, as the kernel names it.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// A shim that is gone is none to ask.
    pub async fn send(&self, frame: Vec<u8>) {
        let _gone_already = self.writer.lock().await.write_all(&frame).await;
    }

    /// Resolves when the shim is gone and the run's exit was told.
    pub async fn gone(&self) {
        let mut gone = self.gone.clone();
        let _closed = gone.changed().await;
    }
}

/// The socket's path may be too long for an address: it is named through its directory's descriptor.
async fn open(dir: &RunDir) -> io::Result<UnixStream> {
    let open = std::fs::File::open(&dir.0)?;
    UnixStream::connect(format!("/proc/self/fd/{}/shim.sock", open.as_raw_fd())).await
}

async fn frame(
    reader: &mut OwnedReadHalf,
    inbox: &mut Vec<u8>,
) -> io::Result<Option<(u8, Vec<u8>)>> {
    loop {
        if let Some(frame) = protocol::take(inbox).map_err(|_| io::ErrorKind::InvalidData)? {
            return Ok(Some(frame));
        }
        if reader.read_buf(inbox).await? == 0 {
            return Ok(None);
        }
    }
}

/// Connects a client with the container's own streams, until the container has ended or nobody reads.
pub(super) async fn attach(dir: &RunDir, stdin: bool, streams: Streams) -> io::Result<()> {
    let (mut reader, mut writer) = open(dir).await?.into_split();
    writer.write_all(&protocol::frame(ask::ATTACH, &[])).await?;
    let Streams { stdin: input, mut stdout, mut stderr, mut resize } = streams;
    let typing = async move {
        let mut input = input.filter(|_| stdin);
        let mut buffer = vec![0; 16 << 10];
        loop {
            let frame = tokio::select! {
                read = read_some(&mut input, &mut buffer) => match read {
                    Ok(0) | Err(_) => {
                        input = None;
                        protocol::frame(ask::STDIN_END, &[])
                    }
                    Ok(len) => protocol::frame(ask::STDIN, &buffer[..len]),
                },
                Some(size) = next_size(&mut resize) => resized(size),
            };
            if writer.write_all(&frame).await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    let printing = async move {
        let mut inbox = Vec::with_capacity(PAYLOAD_BYTES_MAX);
        while let Ok(Some((kind, text))) = frame(&mut reader, &mut inbox).await {
            let output = match kind {
                tell::STDOUT => &mut stdout,
                tell::STDERR => &mut stderr,
                tell::END => break,
                _ => continue,
            };
            if let Some(writer) = output
                && writer.write_all(&text).await.is_err()
            {
                *output = None;
            }
            if stdout.is_none() && stderr.is_none() {
                return;
            }
        }
        for writer in [stdout, stderr].iter_mut().flatten() {
            let _reader_may_be_gone = writer.shutdown().await;
        }
    };
    tokio::select! {
        () = printing => {}
        () = typing => {}
    }
    Ok(())
}

/// Never, when nobody types.
pub(super) async fn read_some(
    input: &mut Option<rimward_node_pod::runtime::Input>,
    buffer: &mut [u8],
) -> io::Result<usize> {
    match input {
        Some(input) => input.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// Never, when no terminal is watched.
pub(super) async fn next_size(
    resize: &mut Option<tokio::sync::mpsc::Receiver<TerminalSize>>,
) -> Option<TerminalSize> {
    let next = match resize {
        Some(sizes) => sizes.recv().await,
        None => std::future::pending().await,
    };
    if next.is_none() {
        *resize = None;
    }
    next
}

fn resized(size: TerminalSize) -> Vec<u8> {
    let payload = [size.width.to_le_bytes(), size.height.to_le_bytes()].concat();
    protocol::frame(ask::RESIZE, &payload)
}
