//! Runs one command in a container that runs, as a child of the agent: the two end together.
//!
//! Standard input is a socket to the agent. Over it come the command's standard streams, if it has no terminal;
//! else its terminal's master end goes back over it, and nothing is copied here. What made the container enters its
//! namespaces and cgroups; user, capabilities, system calls are those of the container.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::close_standard_streams;
use super::create::{listen, receive_terminal, set_oom_score};
use super::low_level::{self, Streams};
use crate::descriptors;
use crate::layout::{RunDir, Settings};

/// What the agent sends first: the command gets a terminal. It is sent back with the terminal once the command
/// runs.
pub(crate) const ON_TERMINAL: &[u8] = b"t";
/// Or: the command gets these three streams, which come with it. It is sent back once the command runs: what comes
/// over the streams from then on is the command's, before it is of what starts it.
pub(crate) const ON_PIPES: &[u8] = b"p";

/// What the agent is told last.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    Failed { message: String },
    Exited { code: i32, signal: Option<i32> },
}

/// `name` tells this call from others of the container: the agent has written the process to a file of that name.
pub(super) fn run(dir: &RunDir, name: &str) -> ExitCode {
    // In a session of its own no terminal's signal that ends the agent reaches it.
    let _it_leads_a_session_already = rustix::process::setsid();
    let report = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(report) => UnixStream::from(report),
        Err(error) => {
            eprintln!("oci-shim exec: {error}");
            return ExitCode::FAILURE;
        }
    };
    let answer = match begin(dir, name, &report) {
        Ok(pid) => wait(pid, &report),
        Err(message) => Report::Failed { message },
    };
    let text = serde_json::to_vec(&answer).expect("it is plain data");
    // An agent that is gone does not mind.
    let _ = (&report).write_all(&text);
    ExitCode::SUCCESS
}

fn begin(dir: &RunDir, name: &str, report: &UnixStream) -> Result<i32, String> {
    let text = |e: std::io::Error| e.to_string();
    close_standard_streams().map_err(text)?;
    let mut how = [0; 1];
    let (_, streams) = descriptors::receive(report, &mut how).map_err(text)?;
    let streams: Option<[OwnedFd; 3]> = match how.as_slice() == ON_TERMINAL {
        true => None,
        false => Some(streams.try_into().map_err(|_| "its streams did not come")?),
    };
    let settings: Settings = dir.read("shim.json").map_err(text)?;
    super::leave_groups().map_err(text)?;
    // The command may be the child of a process that ends before it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| format!("subreaper: {e}"))?;
    let _easier_to_kill = set_oom_score("self", settings.oom_score_adj);
    let (process, console_name) = (format!("{name}.json"), format!("{name}.console"));
    let (streams, console) = match streams {
        Some(three) => (Streams::Three(three), None),
        None => {
            let console = listen(dir, &console_name).map_err(text)?;
            (Streams::Terminal(console_name.clone()), Some(console))
        }
    };
    let made = low_level::of(dir, &settings).exec(&process, streams);
    for file in [&process, &console_name] {
        let _ = std::fs::remove_file(dir.file(file));
    }
    let pid = made?;
    let told = match console {
        None => descriptors::send(report, ON_PIPES, &[]),
        Some(console) => receive_terminal(&console)
            .and_then(|terminal| descriptors::send(report, ON_TERMINAL, &[terminal.as_fd()])),
    };
    told.map(|()| pid).map_err(|error| {
        kill(pid);
        error.to_string()
    })
}

fn kill(pid: i32) {
    // SAFETY: kill has no memory effects; the child was not waited for, so the number is its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Until the command has ended. When the agent is gone, which the report's socket tells, it is made to; and when
/// this process is to end, with the agent's service say: the command is perhaps not its own child, which would end
/// with it.
fn wait(pid: i32, report: &UnixStream) -> Report {
    let failed = |what: &str, error: nix::errno::Errno| Report::Failed {
        message: format!("{what} the command: {error}"),
    };
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(Signal::SIGTERM);
    let signals = mask
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC));
    let signals = match signals {
        Ok(signals) => signals,
        Err(error) => return failed("watching", error),
    };
    let mut agent = true;
    loop {
        match waitpid(nix::unistd::Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Report::Exited { code, signal: None },
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                let signal = signal as i32;
                return Report::Exited { code: 128 + signal, signal: Some(signal) };
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return failed("waiting for", error),
        }
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        if agent {
            fds.push(PollFd::new(report, PollFlags::empty()));
        }
        let _interrupted_is_a_turn_too = rustix::event::poll(&mut fds, None);
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            agent = false;
            kill(pid);
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo == libc::SIGTERM as u32 {
                kill(pid);
            }
        }
    }
}
