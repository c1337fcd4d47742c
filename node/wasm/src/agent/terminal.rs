//! A terminal for a command in a Wasm container: the kernel's line editing between client and guest.
//!
//! A client with a terminal sends keys as they are pressed and shows what it gets. The guest knows
//! neither echo nor line ends of terminals, so a pseudo-terminal of this machine stands between. The
//! guest is no process that could get the terminal's signals: pressing Ctrl-C ends it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rimward_node_pod::runtime::{Input, Output, Streams, TerminalSize};
use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;

const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const BUFFER_BYTES: usize = 4 << 10;

/// Both ends of a pseudo-terminal.
pub(super) struct Terminal {
    client: End,
    guest: End,
}

/// Why a terminal carries no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closed {
    /// The guest holds neither stdin nor output any more, and what it printed was shown. It may still run.
    Shown,
    /// The client asked to end the guest.
    Interrupted,
}

#[derive(Clone)]
struct End(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    pub fn open() -> io::Result<Self> {
        let client =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&client)?;
        rustix::pty::unlockpt(&client)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let guest = rustix::pty::ioctl_tiocgptpeer(&client, flags)?;
        Ok(Self { client: End::new(client)?, guest: End::new(guest)? })
    }

    /// The guest's streams, and what carries the client's.
    pub fn join(
        self,
        stdin: Option<Input>,
        stdout: Option<Output>,
        resize: Option<mpsc::Receiver<TerminalSize>>,
    ) -> (Streams, impl Future<Output = Closed>) {
        let Self { client, guest } = self;
        let streams = Streams {
            stdin: stdin.is_some().then(|| Box::new(Lines(guest.clone())) as Input),
            stdout: Some(Box::new(guest)),
            ..Streams::default()
        };
        let carry = async move {
            let keys = keys(client.clone(), stdin);
            let sizes = sizes(client.clone(), resize);
            tokio::select! {
                () = show(client, stdout) => Closed::Shown,
                () = keys => Closed::Interrupted,
                () = sizes => unreachable!("it waits for ever"),
            }
        };
        (streams, carry)
    }
}

/// Shows what the terminal shows, until the guest's end is closed.
async fn show(mut client: End, mut stdout: Option<Output>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    // EIO is how the last close of the other end shows.
    while let Ok(n @ 1..) = client.read(&mut buffer).await {
        if let Some(open) = &mut stdout {
            let written = async {
                open.write_all(&buffer[..n]).await?;
                open.flush().await
            };
            if written.await.is_err() {
                stdout = None;
            }
        }
    }
    if let Some(mut open) = stdout {
        let _nobody_reads_it_any_more = open.shutdown().await;
    }
}

/// Hands in keys; ends at Ctrl-C only.
async fn keys(mut client: End, stdin: Option<Input>) {
    if let Some(mut stdin) = stdin {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
            let pressed = &buffer[..n];
            if pressed.contains(&CTRL_C) {
                return;
            }
            if client.write_all(pressed).await.is_err() {
                break;
            }
        }
        // A client that has no more to type says so as a person would: the first ends a line that was
        // begun, if there is one.
        let _the_guest_may_be_gone = client.write_all(&[CTRL_D, CTRL_D]).await;
    }
    std::future::pending().await
}

async fn sizes(client: End, resize: Option<mpsc::Receiver<TerminalSize>>) {
    if let Some(mut resize) = resize {
        while let Some(TerminalSize { width, height }) = resize.recv().await {
            let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
            let _it_keeps_the_one_it_had = rustix::termios::tcsetwinsize(client.0.get_ref(), size);
        }
    }
    std::future::pending().await
}

impl End {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned, and never taken out or replaced while it is registered.
        Ok(Self(Arc::new(unsafe { AsyncFd::register(fd) }?)))
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let free = out.initialize_unfilled();
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *free)?)) {
                Ok(Ok(n)) => {
                    out.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What the guest reads: whole lines, and the end where Ctrl-D was pressed at the beginning of one.
struct Lines(End);

impl AsyncRead for Lines {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(cx, out)) {
            Ok(()) => Poll::Ready(Ok(())),
            // The client's end is closed.
            Err(_) => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_edited_echoed_and_ended() {
        let (mut keyboard, stdin) = tokio::io::duplex(64);
        let (mut screen, stdout) = tokio::io::duplex(1024);
        let (streams, carry) =
            Terminal::open().unwrap().join(Some(Box::new(stdin)), Some(Box::new(stdout)), None);
        let guest = async {
            let (mut stdin, mut stdout) = (streams.stdin.unwrap(), streams.stdout.unwrap());
            let mut line = vec![0; 64];
            let n = stdin.read(&mut line).await.unwrap();
            assert_eq!(
                &line[..n],
                b"hello\n",
                "the wrong letter was taken back, return ends a line"
            );
            stdout.write_all(b"hi\n").await.unwrap();
            assert_eq!(stdin.read(&mut line).await.unwrap(), 0, "Ctrl-D is the end");
        };
        let client = async {
            keyboard.write_all(b"hellp\x7fo\r").await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"hi\r\n") {
                let mut bytes = [0; 64];
                let n = screen.read(&mut bytes).await.unwrap();
                seen.extend_from_slice(&bytes[..n]);
            }
            assert!(String::from_utf8_lossy(&seen).starts_with("hellp"), "keys are echoed");
            keyboard.write_all(&[CTRL_D]).await.unwrap();
            let mut rest = Vec::new();
            screen.read_to_end(&mut rest).await.unwrap();
        };
        let all = async { tokio::join!(guest, client, carry) };
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), all).await.unwrap();
        assert_eq!(ended.2, Closed::Shown);
    }

    #[tokio::test]
    async fn ctrl_c_ends_it() {
        let (mut keyboard, stdin) = tokio::io::duplex(64);
        let (_streams, carry) = Terminal::open().unwrap().join(Some(Box::new(stdin)), None, None);
        keyboard.write_all(&[CTRL_C]).await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(20), carry).await.unwrap();
    }
}
