//! Runs one command in a container that runs, as a child of the agent: the two end together.
//!
//! Standard input is a socket to the agent. Over it come the command's standard streams, if it has no terminal;
//! else its terminal's master end goes back over it, and nothing is copied here. libcontainer enters the
//! container's namespaces and cgroups; user, capabilities, system calls are those of the container.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::create::{listen, receive_terminal};
use super::program::{OneOf, Program};
use super::{chain, close_standard_streams, pipe};
use crate::descriptors;
use crate::layout::{CONTAINER_ID, RunDir, Settings, Started};

/// What the agent sends first: the command gets a terminal.
pub(crate) const ON_TERMINAL: &[u8] = b"t";
/// Or: the command gets these three streams, which come with it.
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
    let (status, status_end) = pipe().map_err(text)?;
    let process = format!("{name}.json");
    let users = settings.users.as_ref().map(std::fs::File::open).transpose().map_err(text)?;
    let one_of = match &users {
        Some(users) => Some(one_of(dir, &process, users.as_raw_fd())?),
        None => None,
    };
    let program = Program::new(&settings.confinement, status_end.as_raw_fd(), true)?;
    let program = program.become_one_of(one_of);
    let mut builder = ContainerBuilder::new(CONTAINER_ID.into(), SyscallType::default())
        .with_root_path(dir.file("lc"))
        .map_err(|e| chain(&e))?
        .with_executor(program);
    let console_name = format!("{name}.console");
    let tty = streams.is_none();
    let console = match streams {
        None => {
            let console = listen(dir, &console_name).map_err(text)?;
            builder = builder.with_console_socket(Some(dir.file(&console_name)));
            Some(console)
        }
        Some([stdin, stdout, stderr]) => {
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
            None
        }
    };
    let process = dir.file(&process);
    let built = builder
        .as_tenant()
        .with_process(Some(&process))
        .with_sub_cgroup(below(dir))
        .with_detach(tty)
        .build();
    drop(status_end);
    let _ = std::fs::remove_file(&process);
    let pid = match built {
        Ok(pid) => pid.as_raw(),
        Err(error) => {
            let mut said = String::new();
            let mut status = std::fs::File::from(status);
            let _ = std::io::Read::read_to_string(&mut status, &mut said);
            return Err(if said.is_empty() { chain(&error) } else { said });
        }
    };
    if let Some(console) = console {
        let terminal = receive_terminal(&console).map_err(text)?;
        let _ = std::fs::remove_file(dir.file(&console_name));
        descriptors::send(report, ON_TERMINAL, &[terminal.as_fd()]).map_err(text)?;
    }
    let mut said = String::new();
    let _ = std::io::Read::read_to_string(&mut std::fs::File::from(status), &mut said);
    if said.is_empty() { Ok(pid) } else { Err(said) }
}

/// Where in the container's cgroup its first process is, if not in itself: a container that hands controllers on
/// in cgroups of its own (a service manager, a container engine) can have no process in there any more (v2).
fn below(dir: &RunDir) -> Option<String> {
    let started: Started = dir.read("started.json").ok()?;
    let config: serde_json::Value = dir.read("config.json").ok()?;
    let own = config.pointer("/linux/cgroupsPath")?.as_str()?;
    let places = std::fs::read_to_string(format!("/proc/{}/cgroup", started.pid)).ok()?;
    let place = places.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = place.strip_prefix(own)?.strip_prefix('/')?;
    (!below.is_empty()).then(|| below.to_owned())
}

/// Whom the command is to run as in the namespace of the pod's own users.
fn one_of(dir: &RunDir, process: &str, users: RawFd) -> Result<OneOf, String> {
    #[derive(Deserialize)]
    struct Process {
        user: User,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct User {
        uid: u32,
        gid: u32,
        additional_gids: Vec<u32>,
    }
    let Process { user } = dir.read(process).map_err(|e| format!("{process}: {e}"))?;
    Ok(OneOf { users, uid: user.uid, gid: user.gid, groups: user.additional_gids })
}

/// Until the command has ended. When the agent is gone, which the report's socket tells, it is made to.
fn wait(pid: i32, report: &UnixStream) -> Report {
    let failed = |what: &str, error: nix::errno::Errno| Report::Failed {
        message: format!("{what} the command: {error}"),
    };
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
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
            // SAFETY: kill has no memory effects; the child was not waited for, so the number is its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        while let Ok(Some(_)) = signals.read_signal() {}
    }
}
