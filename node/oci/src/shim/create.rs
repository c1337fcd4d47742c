//! Makes the container, starts its program, and turns into the process that tends it.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};

use super::program::Program;
use super::{Created, chain, keep_over_exec, pipe};
use crate::layout::{CONTAINER_ID, RunDir, Settings, Started};

/// The descriptors that the tending process has from this one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handed {
    pub started: Started,
    pub listener: RawFd,
    pub stdin: Option<RawFd>,
    pub stdout: Option<RawFd>,
    pub stderr: Option<RawFd>,
    /// The master end, instead of the three.
    pub terminal: Option<RawFd>,
}

pub(super) fn run(dir: &RunDir) -> ExitCode {
    let answer = match create(dir) {
        Ok(handed) => match tend(dir, &handed) {
            Ok(never) => match never {},
            Err(error) => {
                // The container cannot be left without a parent that waits for it.
                if let Some(pid) = rustix::process::Pid::from_raw(handed.started.pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
                Created::Failed { message: format!("cannot tend the container: {error}") }
            }
        },
        Err(message) => Created::Failed { message },
    };
    say(&answer);
    ExitCode::FAILURE
}

pub(super) fn say(answer: &Created) {
    let mut line = serde_json::to_vec(answer).expect("it is plain data");
    line.push(b'\n');
    // An agent that is gone will find what there is in the directory.
    let _ = std::io::stdout().write_all(&line);
}

fn create(dir: &RunDir) -> Result<Handed, String> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| format!("{what}: {e}")
    };
    let settings: Settings = dir.read("shim.json").map_err(io("shim.json"))?;
    super::leave_groups().map_err(io("setgroups"))?;
    for procs in &settings.own_cgroups {
        // Accounted for apart from the agent, and not ended with it. Nothing else depends on it.
        let _ = std::fs::write(procs, std::process::id().to_string());
    }
    let listener = listen(dir, "shim.sock").map_err(io("shim.sock"))?;
    let (status, status_end) = pipe().map_err(io("pipe"))?;
    let program = Program::new(&settings.confinement, status_end.as_raw_fd(), false)?;
    let builder = ContainerBuilder::new(CONTAINER_ID.into(), SyscallType::default())
        .with_root_path(dir.file("lc"))
        .map_err(|e| chain(&e))?
        .with_executor(program);

    let (builder, mut ours, console) = match settings.tty {
        true => {
            let console = listen(dir, "console.sock").map_err(io("console.sock"))?;
            (
                builder.with_console_socket(Some(dir.file("console.sock"))),
                Ours::default(),
                Some(console),
            )
        }
        false => {
            let (theirs, ours) = stdio(&settings).map_err(io("pipe"))?;
            let [stdin, stdout, stderr] = theirs;
            let builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
            (builder, ours, None)
        }
    };
    let built = builder.as_init(&dir.0).with_systemd(false).with_detach(true).build();
    drop(status_end);
    // What the program's own start-up said is nearer to the cause than what libcontainer made of it.
    let said = |otherwise: String| {
        let mut text = String::new();
        let _ = File::from(status).read_to_string(&mut text);
        if text.is_empty() { otherwise } else { text }
    };
    let mut container = match built {
        Ok(container) => container,
        Err(error) => return Err(said(chain(&error))),
    };
    let pid = container.pid().ok_or("libcontainer does not know the container's process")?.as_raw();
    if let Some(console) = console {
        ours.terminal = Some(receive_terminal(&console).map_err(io("the terminal"))?);
        let _ = std::fs::remove_file(dir.file("console.sock"));
    }
    super::private::make(pid, &settings.private_mounts).map_err(io("mount propagation"))?;
    // Only now: libcontainer would give it to this process too.
    set_oom_score(pid, settings.oom_score_adj);
    container.start().map_err(|e| chain(&e))?;
    // Ends when the program runs: then the last writer's descriptor was closed by its execve.
    let failure = said(String::new());
    if !failure.is_empty() {
        return Err(failure);
    }
    let started = Started { pid, at: jiff::Timestamp::now() };
    dir.write("started.json", &started).map_err(io("started.json"))?;
    let fd = |fd: Option<OwnedFd>| fd.map(IntoRawFd::into_raw_fd);
    Ok(Handed {
        started,
        listener: listener.into_raw_fd(),
        stdin: fd(ours.stdin),
        stdout: fd(ours.stdout),
        stderr: fd(ours.stderr),
        terminal: fd(ours.terminal),
    })
}

/// A socket in the container's directory. The directory's path may be too long for an address, so the
/// name is bound from within.
pub(super) fn listen(dir: &RunDir, name: &str) -> std::io::Result<UnixListener> {
    let _earlier = std::fs::remove_file(dir.file(name));
    let before = std::env::current_dir()?;
    std::env::set_current_dir(&dir.0)?;
    let listener = UnixListener::bind(name);
    std::env::set_current_dir(before)?;
    listener
}

/// The ends that this process keeps.
#[derive(Default)]
struct Ours {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

fn stdio(settings: &Settings) -> std::io::Result<([OwnedFd; 3], Ours)> {
    let (stdin, our_stdin) = match settings.stdin {
        true => {
            let (theirs, ours) = pipe()?;
            (theirs, Some(ours))
        }
        false => (OwnedFd::from(File::open("/dev/null")?), None),
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    for end in [&our_stdout, &our_stderr] {
        // Room for bursts, so that a program that prints much need not wait for a shim that gets no
        // turn. Memory is taken only as it fills.
        let _smaller_will_do = rustix::pipe::fcntl_setpipe_size(end, 1 << 20);
    }
    let ours = Ours {
        stdin: our_stdin,
        stdout: Some(our_stdout),
        stderr: Some(our_stderr),
        terminal: None,
    };
    Ok(([stdin, stdout, stderr], ours))
}

/// libcontainer sends the terminal's master end over a socket of ours.
pub(super) fn receive_terminal(console: &UnixListener) -> std::io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let (stream, _) = console.accept()?;
    let mut name = [0; 64];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &stream,
        &mut [std::io::IoSliceMut::new(&mut name)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.flatten().next().ok_or_else(|| std::io::Error::other("no terminal was sent"))
}

/// A lower score than one's own takes a capability that a nested root may lack; the container is then
/// merely easier to kill.
fn set_oom_score(pid: i32, score: i32) {
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        eprintln!("oom_score_adj {score} of the container cannot be set: {error}");
    }
}

/// Executes this program anew, with the open ends: all memory that making the container took is gone.
fn tend(dir: &RunDir, handed: &Handed) -> std::io::Result<std::convert::Infallible> {
    let kept = [Some(handed.listener), handed.stdin, handed.stdout, handed.stderr, handed.terminal];
    for fd in kept.into_iter().flatten() {
        // SAFETY: the descriptors were just taken out of their owners, so they are open and ours.
        keep_over_exec(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }, true)?;
    }
    let text = |text: &str| CString::new(text).map_err(std::io::Error::other);
    let args = [
        text("rimward")?,
        text("oci-shim")?,
        text("tend")?,
        text(&dir.0.to_string_lossy())?,
        text(&serde_json::to_string(handed).expect("it is plain data"))?,
    ];
    super::pages::fix_addresses();
    let none: [CString; 0] = [];
    nix::unistd::execve(c"/proc/self/exe", &args, &none).map_err(Into::into)
}
