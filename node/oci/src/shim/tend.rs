//! A container's parent for as long as it runs: one loop around `poll`.
//!
//! It reads what the program prints, always, and writes it down; attached clients get a copy. A client
//! that reads slower than the program prints makes it wait, once a bound of bytes is kept for it; one that
//! is gone does not. When the program is over, its last words are written before its exit is.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::Created;
use super::create::{Running, say};
use super::guest_log::{GuestLog, Stream};
use crate::layout::{Ended, RunDir, Settings};
use crate::protocol::{self, PAYLOAD_BYTES_MAX, ask, tell};

/// Kept for one client.
const CLIENT_BYTES_MAX: usize = 256 << 10;
/// How long attached clients may take to read the last of it.
const LINGER: Duration = Duration::from_secs(10);

pub(super) fn run(dir: RunDir, running: Running) -> ExitCode {
    let (pid, at) = (running.started.pid, running.started.at);
    let mut tender = match Tender::new(running) {
        Ok(tender) => tender,
        Err(error) => {
            // The container cannot be left without a parent that waits for it.
            // SAFETY: kill has no memory effects; it was not waited for, so the number is its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            say(&Created::Failed { message: format!("cannot tend the container: {error}") });
            return ExitCode::FAILURE;
        }
    };
    say(&Created::Started { pid, at });
    let _nobody_listens_there_any_more = leave_standard_streams();
    // What reading the agent's words took is given back, and what is alike in all shims is shared.
    if let Err(error) = super::pages::share(&dir.0.join("../../oci-shim")) {
        eprintln!("memory is not shared with other shims: {error}");
    }
    // How it ended must be told whatever the disk is like then: it may be this container that fills it.
    if let Err(error) = dir.reserve("exit.json") {
        eprintln!("exit.json: {error}");
    }
    let ended = tender.tend();
    if let Err(error) = dir.write_reserved("exit.json", &ended) {
        eprintln!("exit.json: {error}");
    }
    tender.take_leave();
    let _ = std::fs::remove_file(dir.socket());
    ExitCode::SUCCESS
}

struct Tender {
    pid: i32,
    settings: Settings,
    log: GuestLog,
    signals: SignalFd,
    listener: UnixListener,
    clients: Vec<Client>,
    /// What the program prints: of a terminal there is one.
    outputs: Vec<(Stream, Option<OwnedFd>)>,
    stdin: Stdin,
    /// When SIGKILL follows.
    kill_at: Option<Instant>,
    buffer: Vec<u8>,
}

struct Client {
    socket: UnixStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    attached: bool,
    gone: bool,
}

/// The program's standard input, and what it has not taken yet.
struct Stdin {
    pipe: Option<OwnedFd>,
    waiting: Vec<u8>,
    /// Closed when all that waits is taken.
    ending: bool,
}

fn watched(fd: OwnedFd) -> std::io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// The last that it says is that the container runs. Its errors go on into their file.
fn leave_standard_streams() -> std::io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null).map_err(Into::into)
}

impl Tender {
    fn new(running: Running) -> std::io::Result<Self> {
        let Running { started, settings, listener, ends } = running;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let fd = |fd: Option<OwnedFd>| fd.map(watched).transpose();
        let listener = UnixListener::from(watched(listener.into())?);
        let (outputs, pipe) = match ends.terminal {
            Some(terminal) => {
                let terminal = watched(terminal)?;
                let copy = terminal.try_clone()?;
                (vec![(Stream::Stdout, Some(terminal))], Some(copy))
            }
            None => (
                vec![(Stream::Stdout, fd(ends.stdout)?), (Stream::Stderr, fd(ends.stderr)?)],
                fd(ends.stdin)?,
            ),
        };
        let log = GuestLog::open(settings.log_path.clone(), settings.log_bytes_max);
        let mut tender = Self {
            pid: started.pid,
            log,
            signals,
            listener,
            clients: Vec::new(),
            outputs,
            stdin: Stdin { pipe, waiting: Vec::new(), ending: false },
            kill_at: None,
            buffer: vec![0; PAYLOAD_BYTES_MAX],
            settings,
        };
        if tender.settings.tty && !tender.settings.stdin {
            // A terminal that nobody types at is only printed to.
            tender.stdin.pipe = None;
        }
        Ok(tender)
    }

    /// Until the program is over and its last words are in the log.
    fn tend(&mut self) -> Ended {
        // A program that ended before the signals were listened to was told of to nobody.
        let mut ready = Ready { signals: true, ..Ready::default() };
        loop {
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                self.kill_at = None;
                self.signal(libc::SIGKILL);
            }
            if ready.signals
                && let Some((code, signal)) = self.reap()
            {
                while self.read_outputs() {}
                self.log.finish(jiff::Timestamp::now());
                return Ended {
                    code,
                    signal,
                    out_of_memory: self.out_of_memory(),
                    at: jiff::Timestamp::now(),
                };
            }
            self.turn(&ready);
            ready = self.wait(self.kill_at);
        }
    }

    fn turn(&mut self, ready: &Ready) {
        if ready.listener {
            self.accept();
        }
        if ready.outputs {
            self.read_outputs();
        }
        if self.clients.iter().any(|client| !client.attached) && self.log.is_full() {
            for client in self.clients.iter_mut().filter(|client| !client.attached) {
                protocol::put(&mut client.outbox, tell::LOG_FULL, &[]);
            }
        }
        for index in 0..self.clients.len() {
            self.serve(index);
        }
        // It is not read while the program takes no input, so that it went is not read either.
        for index in &ready.hung {
            let client = &mut self.clients[*index];
            client.gone |= client.attached && self.stdin.waiting.len() > PAYLOAD_BYTES_MAX;
        }
        let detached = self.clients.iter().any(|client| client.gone && client.attached);
        self.clients.retain(|client| !client.gone);
        if detached && self.settings.stdin_once && !self.clients.iter().any(|c| c.attached) {
            self.stdin.ending = true;
        }
        self.stdin.pass_on(self.settings.tty);
    }

    /// Tells attached clients that nothing follows, and waits a while until they have read it.
    fn take_leave(&mut self) {
        // The agent's own connection ends now: it tells that the exit is written.
        self.clients.retain(|client| client.attached);
        for client in &mut self.clients {
            protocol::put(&mut client.outbox, tell::END, &[]);
        }
        let until = Instant::now() + LINGER;
        while !self.clients.is_empty() && Instant::now() < until {
            for client in &mut self.clients {
                client.send();
                client.gone |= client.outbox.is_empty();
            }
            self.clients.retain(|client| !client.gone);
            if !self.clients.is_empty() {
                self.wait(Some(until));
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, until: Option<Instant>) -> Ready {
        // A client that is behind holds back what is printed; a program that takes no input, its typists.
        let behind = self.clients.iter().any(|c| c.attached && c.outbox.len() > CLIENT_BYTES_MAX);
        let stdin_is_full = self.stdin.waiting.len() > PAYLOAD_BYTES_MAX;
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let outputs: Vec<BorrowedFd<'_>> = match behind {
            true => Vec::new(),
            false => {
                self.outputs.iter().filter_map(|(_, fd)| fd.as_ref().map(AsFd::as_fd)).collect()
            }
        };
        fds.extend(outputs.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        for client in &self.clients {
            let mut events = PollFlags::empty();
            if !client.attached || !stdin_is_full {
                events |= PollFlags::IN;
            }
            if !client.outbox.is_empty() {
                events |= PollFlags::OUT;
            }
            fds.push(PollFd::new(&client.socket, events));
        }
        if let Some(pipe) = self.stdin.pipe.as_ref().filter(|_| !self.stdin.waiting.is_empty()) {
            fds.push(PollFd::new(pipe, PollFlags::OUT));
        }
        let timeout = until.map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let _interrupted_is_a_turn_too = rustix::event::poll(&mut fds, timeout.as_ref());
        let is_ready = |index: usize| !fds[index].revents().is_empty();
        Ready {
            signals: is_ready(0),
            listener: is_ready(1),
            outputs: (2..2 + outputs.len()).any(is_ready),
            hung: (0..self.clients.len())
                .filter(|index| fds[2 + outputs.len() + index].revents().contains(PollFlags::HUP))
                .collect(),
        }
    }

    /// Takes whatever child has ended; answers how the program did, if it was that.
    fn reap(&mut self) -> Option<(i32, Option<i32>)> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        let mut ended = None;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == self.pid => {
                    ended = Some((code, None));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == self.pid => {
                    ended = Some((128 + signal as i32, Some(signal as i32)));
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return ended,
                Ok(_) => {}
            }
        }
    }

    /// Reads once from each output; whether there was anything.
    fn read_outputs(&mut self) -> bool {
        let mut any = false;
        for (stream, output) in &mut self.outputs {
            let Some(fd) = output else { continue };
            match rustix::io::read(fd, &mut self.buffer[..]) {
                Ok(len) if len > 0 => {
                    any = true;
                    let text = &self.buffer[..len];
                    self.log.write(*stream, text, jiff::Timestamp::now());
                    let kind = match stream {
                        Stream::Stdout => tell::STDOUT,
                        Stream::Stderr => tell::STDERR,
                    };
                    for client in self.clients.iter_mut().filter(|client| client.attached) {
                        protocol::put(&mut client.outbox, kind, text);
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // The end; of a terminal it is an error.
                _ => *output = None,
            }
        }
        any
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).is_ok() {
                let (inbox, outbox) = Default::default();
                self.clients.push(Client { socket, inbox, outbox, attached: false, gone: false });
                // Whoever was told before may be gone, and this be the next agent.
                self.log.remind();
            }
        }
    }

    fn serve(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if !client.attached || self.stdin.waiting.len() <= PAYLOAD_BYTES_MAX {
            client.receive(&mut self.buffer);
        }
        loop {
            match protocol::take(&mut self.clients[index].inbox) {
                Ok(Some((kind, payload))) => self.answer(index, kind, &payload),
                Ok(None) => break,
                Err(protocol::TooLong) => {
                    self.clients[index].gone = true;
                    break;
                }
            }
        }
        self.clients[index].send();
    }

    fn answer(&mut self, index: usize, kind: u8, payload: &[u8]) {
        match (kind, payload) {
            (ask::SIGNAL, [signal, rest @ ..]) => {
                self.signal((*signal).into());
                if let Ok(millis) = rest.try_into() {
                    let after = Duration::from_millis(u64::from_le_bytes(millis));
                    let at = Instant::now().checked_add(after);
                    // A shorter grace than before prevails.
                    self.kill_at = [self.kill_at, at].into_iter().flatten().min();
                }
            }
            (ask::ATTACH, _) => self.clients[index].attached = true,
            (ask::STDIN, text) if self.stdin.pipe.is_some() && !self.stdin.ending => {
                self.stdin.waiting.extend_from_slice(text);
            }
            // Others may be attached, or come later, unless it is to be read once.
            (ask::STDIN_END, _) => self.stdin.ending |= self.settings.stdin_once,
            (ask::RESIZE, [w0, w1, h0, h1]) => {
                let (width, height) =
                    (u16::from_le_bytes([*w0, *w1]), u16::from_le_bytes([*h0, *h1]));
                if let (true, Some((_, Some(terminal)))) = (self.settings.tty, self.outputs.first())
                {
                    let size = rustix::termios::Winsize {
                        ws_row: height,
                        ws_col: width,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    let _gone_already = rustix::termios::tcsetwinsize(terminal, size);
                }
            }
            (ask::REOPEN_LOG, _) => self.log.reopen(),
            _ => {}
        }
    }

    fn signal(&self, signal: i32) {
        // It was not waited for yet, so the number is still the program's.
        // SAFETY: kill has no memory effects.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// The kernel counts in the container's cgroup, or says it as a line of another file.
    fn out_of_memory(&self) -> bool {
        let Some(file) = &self.settings.oom_file else { return false };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse::<u64>().ok()).is_some_and(|count| count > 0)
    }
}

#[derive(Default)]
struct Ready {
    signals: bool,
    listener: bool,
    outputs: bool,
    /// Clients whose other end is closed, by index.
    hung: Vec<usize>,
}

impl Client {
    fn receive(&mut self, buffer: &mut [u8]) {
        match self.socket.read(buffer) {
            Ok(0) => self.gone = true,
            Ok(len) => self.inbox.extend_from_slice(&buffer[..len]),
            Err(error) => self.gone |= error.kind() != ErrorKind::WouldBlock,
        }
    }

    fn send(&mut self) {
        while !self.outbox.is_empty() {
            match self.socket.write(&self.outbox) {
                Ok(len) => drop(self.outbox.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.outbox.clear();
                    self.gone = true;
                }
            }
        }
        // What a burst took is given back.
        self.outbox.shrink_to(4096);
    }
}

impl Stdin {
    fn pass_on(&mut self, terminal: bool) {
        let Some(pipe) = &self.pipe else {
            self.waiting.clear();
            return;
        };
        while !self.waiting.is_empty() {
            match rustix::io::write(pipe, &self.waiting) {
                Ok(len) => drop(self.waiting.drain(..len)),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    self.pipe = None;
                    self.waiting.clear();
                    return;
                }
            }
        }
        if self.ending {
            if terminal {
                // A terminal's end of input is a character.
                let _gone_already = rustix::io::write(pipe, &[4]);
            }
            self.pipe = None;
        }
    }
}
