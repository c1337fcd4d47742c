//! A session (exec, attach) between two processes: [`Streams`] on the side of the runtime, pieces in
//! order on the side of whoever carries them.
//!
//! [`plug`] makes both. Between them lie pipes of [`PIPE_BYTES`] each, so that a program that prints
//! faster than its reader reads waits, and a reader that types faster than the program reads waits.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use crate::runtime::{Streams, TerminalSize};

/// What waits in one direction of one stream, in bytes, at most.
pub const PIPE_BYTES: usize = 64 << 10;
/// Bytes of one piece, at most.
pub const PIECE_BYTES: usize = 32 << 10;
/// Sizes that wait for a runtime to look at them. Only the newest matters, and they come by hand.
const SIZES: usize = 64;

/// Which streams a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    /// Left out with a terminal: there it comes with stdout.
    pub stderr: bool,
    pub tty: bool,
}

/// What of a session goes in.
pub struct Inputs {
    stdin: Option<DuplexStream>,
    resize: Option<mpsc::Sender<TerminalSize>>,
}

/// What of a session comes out.
pub struct Outputs {
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The two sides of a session.
pub fn plug(wanted: Wanted) -> (Streams, Inputs, Outputs) {
    let pipe = |wanted: bool| match wanted {
        false => (None, None),
        true => {
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            (Some(near), Some(far))
        }
    };
    let (stdin, into) = pipe(wanted.stdin);
    let (stdout, out) = pipe(wanted.stdout);
    let (stderr, err) = pipe(wanted.stderr && !wanted.tty);
    let (resize, sizes) = mpsc::channel(SIZES);
    let streams = Streams {
        stdin: stdin.map(|s| Box::new(s) as _),
        stdout: stdout.map(|s| Box::new(s) as _),
        stderr: stderr.map(|s| Box::new(s) as _),
        resize: wanted.tty.then_some(sizes),
    };
    let inputs = Inputs { stdin: into, resize: wanted.tty.then_some(resize) };
    (streams, inputs, Outputs { stdout: out, stderr: err })
}

impl Inputs {
    /// Waits while the program does not read. What a program that has closed its stdin is sent is
    /// dropped, as is what comes after [`Inputs::end`].
    pub async fn stdin(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(bytes).await.is_err()
        {
            self.stdin = None;
        }
    }

    /// No more of stdin.
    pub fn end(&mut self) {
        self.stdin = None;
    }

    pub fn resize(&self, size: TerminalSize) {
        if let Some(resize) = &self.resize {
            let _a_program_that_does_not_look_has_enough_sizes = resize.try_send(size);
        }
    }
}

impl Outputs {
    /// The next bytes of either stream; none at all are the end of that one. None when both have
    /// ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<(Stream, Bytes)> {
        let Self { stdout, stderr } = self;
        let (stream, bytes) = tokio::select! {
            bytes = read(stdout), if stdout.is_some() => (Stream::Stdout, bytes),
            bytes = read(stderr), if stderr.is_some() => (Stream::Stderr, bytes),
            else => return None,
        };
        Some((stream, bytes))
    }
}

async fn read(pipe: &mut Option<DuplexStream>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(4 << 10);
    if let Some(open) = pipe {
        let mut limited = open.take(PIECE_BYTES as u64);
        // A pipe within this process cannot fail, it can only end.
        let _at_the_end_there_are_none = limited.read_buf(&mut bytes).await;
    }
    if bytes.is_empty() {
        *pipe = None;
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_ends_and_sizes_go_through() {
        let wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
        let (streams, mut inputs, mut outputs) = plug(wanted);
        let program = tokio::spawn(async move {
            let (mut stdin, mut stdout) = (streams.stdin.unwrap(), streams.stdout.unwrap());
            let mut all = Vec::new();
            stdin.read_to_end(&mut all).await.unwrap();
            stdout.write_all(&all).await.unwrap();
            drop((stdout, streams.stderr));
        });
        inputs.stdin(b"typed").await;
        inputs.end();
        inputs.stdin(b"too late").await;
        let mut seen = Vec::new();
        while let Some(piece) = outputs.next().await {
            seen.push(piece);
        }
        program.await.unwrap();
        assert!(seen.contains(&(Stream::Stdout, Bytes::from_static(b"typed"))), "{seen:?}");
        let ends = seen.iter().filter(|(_, bytes)| bytes.is_empty()).count();
        assert_eq!((seen.len(), ends), (3, 2));
    }

    #[tokio::test]
    async fn a_terminal_has_sizes_and_no_stderr() {
        let wanted = Wanted { stdin: false, stdout: true, stderr: true, tty: true };
        let (streams, inputs, _outputs) = plug(wanted);
        assert!(streams.stdin.is_none() && streams.stderr.is_none());
        inputs.resize(TerminalSize { width: 80, height: 24 });
        let size = streams.resize.unwrap().recv().await;
        assert_eq!(size, Some(TerminalSize { width: 80, height: 24 }));
    }

    /// A reader that does not read stops the program after a pipe's worth.
    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_holds_the_program_back() {
        let (streams, _inputs, mut outputs) = plug(Wanted { stdout: true, ..Wanted::default() });
        let mut stdout = streams.stdout.unwrap();
        let flood = vec![b'x'; PIPE_BYTES + 1];
        let mut writing = std::pin::pin!(stdout.write_all(&flood));
        let wait = std::time::Duration::from_secs(60);
        assert!(tokio::time::timeout(wait, writing.as_mut()).await.is_err());
        let (_, bytes) = outputs.next().await.unwrap();
        assert!(!bytes.is_empty() && bytes.len() <= PIECE_BYTES);
        writing.await.unwrap();
    }
}
