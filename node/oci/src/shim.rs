//! The process beside a container. One thread, no executor: each of its four works is one page.
//!
//! It has no one to log to: what it has to say is an answer to the agent, or the end of its standard
//! error, which is a file in the container's directory.

mod create;
pub(crate) mod exec;
mod guest_log;
mod libcontainer;
mod low_level;
pub(crate) mod pages;
mod pause;
mod private;
mod program;
mod runc;
mod seccomp;
mod tend;
pub(crate) mod users;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::layout::RunDir;

/// `oci-shim create DIR`, `oci-shim exec DIR NAME`, `oci-shim users DIR WANTED`,
/// `oci-shim pause [USERS]`
pub(crate) fn main(mut args: impl Iterator<Item = String>) -> ExitCode {
    let work = args.next().unwrap_or_default();
    let dir = RunDir(PathBuf::from(args.next().unwrap_or_default()));
    let rest = args.next().unwrap_or_default();
    match work.as_str() {
        "create" => create::run(dir),
        "exec" => exec::run(&dir, &rest),
        "users" => users::run(&dir, &rest),
        "pause" => pause::run(&dir.0),
        other => {
            eprintln!("oci-shim: no such work: {other:?}");
            ExitCode::FAILURE
        }
    }
}

/// The answer to `create`, a line on standard output.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Created {
    Started { pid: i32, at: jiff::Timestamp },
    Failed { message: String },
}

/// What this process is started with may be a shell's: a container has the groups that it was given alone.
fn leave_groups() -> std::io::Result<()> {
    nix::unistd::setgroups(&[]).map_err(Into::into)
}

/// An error with all that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// A pipe that no other program inherits.
fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(Into::into)
}

fn close_standard_streams() -> std::io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
