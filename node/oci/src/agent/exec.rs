//! Commands in containers that run: one process of this binary each, a child of the agent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use rimward_node_pod::runtime::{ExecRequest, Exit, Output, RunId, StartError, Streams};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::{Inner, link, refused};
use crate::descriptors;
use crate::layout::RunDir;
use crate::shim::exec::{self, Report};

static CALLS: AtomicU64 = AtomicU64::new(0);

pub(super) async fn exec(
    this: &Arc<Inner>,
    id: &RunId,
    request: ExecRequest,
    streams: Streams,
) -> Result<Exit, StartError> {
    let dir = {
        let runs = this.runs.lock();
        let run = runs.get(id).filter(|run| run.exit.is_none() && run.link.is_some());
        let run = run.ok_or_else(|| refused("NotFound", format!("container {id} does not run")))?;
        run.dir.clone()
    };
    let ahead = this.clone();
    let _goes_on_beside_what_follows =
        tokio::task::spawn_blocking(move || ahead.cgroups.wait_ahead());
    let started_at = jiff::Timestamp::now();
    let failed = |e: io::Error| refused("ExecFailed", format!("cannot run a command in {id}: {e}"));
    let name = format!("exec-{}-{}", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
    let config = dir.read("config.json").map_err(failed)?;
    let process = crate::spec::exec_process(config, &request)
        .ok_or_else(|| failed(io::Error::other("its config.json is damaged")))?;
    dir.write(&format!("{name}.json"), &process).map_err(failed)?;
    let session = Session::begin(this, &dir, name, request.tty).map_err(failed)?;
    match session.run(streams).await.map_err(failed)? {
        Report::Failed { message } => {
            Err(refused("ExecFailed", format!("failed to exec in container: {message}")))
        }
        Report::Exited { code, signal } => Ok(Exit {
            code,
            signal,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: String::new(),
            started_at,
            finished_at: jiff::Timestamp::now(),
        }),
    }
}

struct Session {
    /// Not killed when dropped: it ends the command, and itself, when nobody listens to its report any more.
    _child: Child,
    report: AsyncFd<OwnedFd>,
    /// None with a terminal.
    pipes: Option<Pipes>,
}

/// Our ends of the command's standard streams.
struct Pipes {
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Pipes {
    /// And the command's ends, in their order.
    fn new() -> io::Result<(Self, [OwnedFd; 3])> {
        let ((stdin, their_stdin), (their_stdout, stdout), (their_stderr, stderr)) =
            (pipe::pipe()?, pipe::pipe()?, pipe::pipe()?);
        let theirs = [
            their_stdin.into_blocking_fd()?,
            their_stdout.into_blocking_fd()?,
            their_stderr.into_blocking_fd()?,
        ];
        Ok((Self { stdin, stdout, stderr }, theirs))
    }
}

impl Session {
    /// What the process needs is sent to its standard input: nothing is to be done between fork and exec then,
    /// so no copy of the agent need execute it.
    fn begin(this: &Inner, dir: &RunDir, name: String, tty: bool) -> io::Result<Self> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let pipes = match tty {
            true => {
                descriptors::send(&ours, exec::ON_TERMINAL, &[])?;
                None
            }
            false => {
                let (pipes, theirs) = Pipes::new()?;
                descriptors::send(&ours, exec::ON_PIPES, &theirs.each_ref().map(OwnedFd::as_fd))?;
                Some(pipes)
            }
        };
        rustix::io::ioctl_fionbio(&ours, true)?;
        let mut command = Command::new(this.exe.path());
        command.args(["oci-shim", "exec"]).arg(&dir.0).arg(name);
        command.env_clear().current_dir("/");
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        Ok(Self { _child: child, report: watched(ours)?, pipes })
    }

    async fn run(mut self, streams: Streams) -> io::Result<Report> {
        match self.pipes.take() {
            Some(pipes) => self.run_on_pipes(pipes, streams).await,
            None => self.run_on_terminal(streams).await,
        }
    }

    async fn run_on_pipes(&self, ours: Pipes, streams: Streams) -> io::Result<Report> {
        let Streams { stdin, stdout, stderr, .. } = streams;
        // What is printed before the command runs is said by the report better.
        if let Received::Bytes(early) = receive(&self.report).await? {
            return report(&self.report, early).await;
        }
        let mut to = ours.stdin;
        let typing = async move {
            if let Some(mut from) = stdin {
                let _either_side_may_be_gone = tokio::io::copy(&mut from, &mut to).await;
            }
            drop(to);
            std::future::pending::<()>().await;
        };
        let all = async {
            let (report, (), ()) = tokio::join!(
                report(&self.report, Vec::new()),
                pour(ours.stdout, stdout),
                pour(ours.stderr, stderr)
            );
            report
        };
        tokio::select! {
            report = all => report,
            () = typing => unreachable!("it never ends by itself"),
        }
    }

    async fn run_on_terminal(&self, streams: Streams) -> io::Result<Report> {
        let Streams { mut stdin, stdout, mut resize, .. } = streams;
        let terminal = match receive(&self.report).await? {
            Received::Terminal(fd) => fd,
            Received::Begun => return Err(io::Error::other("no terminal was sent")),
            // It failed before there was one.
            Received::Bytes(early) => return report(&self.report, early).await,
        };
        rustix::io::ioctl_fionbio(&terminal, true)?;
        let terminal = Terminal(Arc::new(watched(terminal)?));
        let (typist, reader) = (terminal.clone(), terminal);
        let typing = async move {
            let mut buffer = vec![0; 4096];
            loop {
                tokio::select! {
                    read = link::read_some(&mut stdin, &mut buffer) => match read {
                        Ok(0) | Err(_) => stdin = None,
                        Ok(len) => if typist.write_all(&buffer[..len]).await.is_err() {
                            stdin = None;
                        },
                    },
                    Some(size) = link::next_size(&mut resize) => typist.resize(size.width, size.height),
                }
            }
        };
        let all = async {
            let (report, ()) = tokio::join!(report(&self.report, Vec::new()), pour(reader, stdout));
            report
        };
        tokio::select! {
            report = all => report,
            never = typing => never,
        }
    }
}

fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its descriptor open and the same for as long as it lives, and AsyncFd owns it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// To the end of the source, also when nobody wants it: a program that prints is not to wait for ever.
async fn pour(mut from: impl AsyncRead + Unpin, to: Option<Output>) {
    let Some(mut to) = to else {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        return;
    };
    if tokio::io::copy(&mut from, &mut to).await.is_err() {
        drop(to);
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    } else {
        let _reader_may_be_gone = to.shutdown().await;
    }
}

async fn report(socket: &AsyncFd<OwnedFd>, mut text: Vec<u8>) -> io::Result<Report> {
    let mut buffer = [0; 4096];
    loop {
        let read = |socket: &OwnedFd| rustix::io::read(socket, &mut buffer).map_err(Into::into);
        match socket.async_io(Interest::READABLE, read).await? {
            0 => break,
            len => text.extend_from_slice(&buffer[..len]),
        }
    }
    if text.is_empty() {
        return Err(io::Error::other("its process ended without an answer"));
    }
    serde_json::from_slice(&text).map_err(Into::into)
}

/// The first that comes.
enum Received {
    Terminal(OwnedFd),
    /// Without a terminal.
    Begun,
    /// Of a report.
    Bytes(Vec<u8>),
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Received> {
    let receive = |socket: &OwnedFd| -> io::Result<Received> {
        // What follows it is the report's.
        let mut bytes = [0; 1];
        let (len, fds) = descriptors::receive(socket, &mut bytes)?;
        Ok(match (fds.into_iter().next(), &bytes[..len]) {
            (Some(fd), _) => Received::Terminal(fd),
            (None, exec::ON_PIPES) => Received::Begun,
            (None, bytes) => Received::Bytes(bytes.to_vec()),
        })
    };
    socket.async_io(Interest::READABLE, receive).await
}

/// The master end, read and written by different hands.
#[derive(Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| rustix::io::write(fd, bytes).map_err(Into::into);
            let len = self.0.async_io(Interest::WRITABLE, write).await?;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    fn resize(&self, width: u16, height: u16) {
        let size =
            rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        let _gone_already = rustix::termios::tcsetwinsize(self.0.get_ref().as_fd(), size);
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let read = ready.try_io(|fd| {
                rustix::io::read(fd.get_ref(), buffer.initialize_unfilled()).map_err(Into::into)
            });
            match read {
                Ok(Ok(len)) => {
                    buffer.advance(len);
                    return Poll::Ready(Ok(()));
                }
                // How a terminal says that nobody is at its other end any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}
