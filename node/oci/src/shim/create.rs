//! Makes the container, by a child that ends with it, and starts its program.
//!
//! What makes it takes memory that nobody needs once the container is made. The child has it; the container's
//! first process, which it leaves behind, comes to this process, which then tends it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;

use super::low_level::{self, Streams};
use super::{Created, pages, pipe, tend};
use crate::descriptors;
use crate::layout::{RunDir, Settings, Started};

/// The socket that gets the terminal.
const CONSOLE: &str = "console.sock";

/// A container that runs, and what belongs to this process of it.
pub(super) struct Running {
    pub started: Started,
    pub settings: Settings,
    pub listener: UnixListener,
    pub ends: Ends,
}

/// The ends of the program's streams that this process keeps.
#[derive(Default)]
pub(super) struct Ends {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// The master end, instead of the three.
    pub terminal: Option<OwnedFd>,
}

pub(super) fn run(dir: RunDir) -> ExitCode {
    match create(&dir) {
        Ok(running) => tend::run(dir, running),
        Err(message) => {
            say(&Created::Failed { message });
            ExitCode::FAILURE
        }
    }
}

pub(super) fn say(answer: &Created) {
    let mut line = serde_json::to_vec(answer).expect("it is plain data");
    line.push(b'\n');
    // An agent that is gone will find what there is in the directory.
    let _ = std::io::stdout().write_all(&line);
}

fn io(what: &str) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{what}: {e}")
}

fn create(dir: &RunDir) -> Result<Running, String> {
    // In a session of its own no terminal's or group's signal that ends the agent reaches it.
    let _it_leads_a_session_already = rustix::process::setsid();
    let settings: Settings = dir.read("shim.json").map_err(io("shim.json"))?;
    super::leave_groups().map_err(io("setgroups"))?;
    for procs in &settings.own_cgroups {
        // Accounted for apart from the agent, and not ended with it. Nothing else depends on it.
        let _ = std::fs::write(procs, std::process::id().to_string());
    }
    // The container's first process comes here when the child ends that made it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| io("subreaper")(e.into()))?;
    let listener = listen(dir, "shim.sock").map_err(io("shim.sock"))?;
    let console = match settings.tty {
        true => Some(listen(dir, CONSOLE).map_err(io(CONSOLE))?),
        false => None,
    };
    let (theirs, mut ends) = match settings.tty {
        true => (None, Ends::default()),
        false => stdio(&settings).map(|(theirs, ends)| (Some(theirs), ends)).map_err(io("pipe"))?,
    };
    let (answer, answer_end) = pipe().map_err(io("pipe"))?;
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.map_err(|e| io("fork")(e.into()))? {
        ForkResult::Child => {
            drop((listener, ends, answer));
            // What the container's program gets its addresses by.
            pages::any_addresses();
            let built = build(dir, &settings, theirs);
            let text = serde_json::to_string(&built).expect("it is plain data") + "\n";
            let written = File::from(answer_end).write_all(text.as_bytes());
            // SAFETY: ends the process, without what belongs to the parent being run or flushed.
            unsafe { libc::_exit(i32::from(written.is_err())) }
        }
        ForkResult::Parent { child } => {
            drop((theirs, answer_end));
            // To its end only: a container that was not started may still have the other end open.
            let mut text = String::new();
            BufReader::new(File::from(answer)).read_line(&mut text).map_err(io("the answer"))?;
            let ended = waitpid(child, None);
            let built: Result<Started, String> = serde_json::from_str(&text)
                .map_err(|_| format!("the process that makes it said nothing: {ended:?}"))?;
            let started = built?;
            if let Some(console) = console {
                ends.terminal = Some(receive_terminal(&console).map_err(io("the terminal"))?);
                let _ = std::fs::remove_file(dir.file(CONSOLE));
            }
            Ok(Running { started, settings, listener, ends })
        }
    }
}

/// The child's part. Its memory, and all that was opened in it, goes with it.
fn build(
    dir: &RunDir,
    settings: &Settings,
    theirs: Option<[OwnedFd; 3]>,
) -> Result<Started, String> {
    let streams = theirs.map_or(Streams::Terminal(CONSOLE.into()), Streams::Three);
    let made = |pid| {
        super::private::make(pid, &settings.private_mounts).map_err(io("mount propagation"))?;
        // Only now: libcontainer would give it to this process too.
        let score = settings.oom_score_adj;
        if let Err(error) = set_oom_score(&pid.to_string(), score) {
            eprintln!("oom_score_adj {score} of the container cannot be set: {error}");
        }
        Ok(())
    };
    let pid = low_level::of(dir, settings).create(streams, &made)?;
    let started = Started { pid, at: jiff::Timestamp::now() };
    dir.write("started.json", &started).map_err(io("started.json"))?;
    Ok(started)
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

fn stdio(settings: &Settings) -> std::io::Result<([OwnedFd; 3], Ends)> {
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
    let ours = Ends {
        stdin: our_stdin,
        stdout: Some(our_stdout),
        stderr: Some(our_stderr),
        terminal: None,
    };
    Ok(([stdin, stdout, stderr], ours))
}

/// What starts a program sends the terminal's master end over a socket of ours.
pub(super) fn receive_terminal(console: &UnixListener) -> std::io::Result<OwnedFd> {
    let (stream, _) = console.accept()?;
    let (_name, fds) = descriptors::receive(&stream, &mut [0; 64])?;
    fds.into_iter().next().ok_or_else(|| std::io::Error::other("no terminal was sent"))
}

/// Of a process by its number, or of this one (`self`). A lower score than one's own takes a capability that a
/// nested root may lack; the container is then merely easier to kill.
pub(super) fn set_oom_score(process: &str, score: i32) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{process}/oom_score_adj"), score.to_string())
}
