//! The part of a container's making that libcontainer or runc does: its namespaces, mounts and cgroups, and the
//! start of programs in them. Neither is there any more once a program runs, which is this process's child then.

use std::os::fd::OwnedFd;

use super::libcontainer::Libcontainer;
use super::runc::Runc;
use crate::layout::{RunDir, Settings};
use crate::low_level::LowLevel;

/// What a program is connected with.
pub(super) enum Streams {
    Three([OwnedFd; 3]),
    /// A terminal, whose master end goes to the socket of this name in the container's directory.
    Terminal(String),
}

pub(super) trait Maker {
    /// Makes the container that the directory's `config.json` says, and executes its program. Answers its first
    /// process, which `made` is told of before the program is executed.
    ///
    /// # Errors
    /// In words for a pod's status. What was made until then is left, in the container's cgroup.
    fn create(
        &self,
        streams: Streams,
        made: &dyn Fn(i32) -> Result<(), String>,
    ) -> Result<i32, String>;

    /// Executes a command in the container. `process` is the file in the directory that says it, in the words
    /// of the OCI runtime specification. Answers the command's process.
    ///
    /// # Errors
    /// As [`Maker::create`]'s.
    fn exec(&self, process: &str, streams: Streams) -> Result<i32, String>;
}

/// What made the container, or is to.
pub(super) fn of<'a>(dir: &'a RunDir, settings: &'a Settings) -> Box<dyn Maker + 'a> {
    match &settings.low_level {
        LowLevel::Libcontainer => Box::new(Libcontainer { dir, settings }),
        LowLevel::Runc(runc) => Box::new(Runc { program: runc.program(), dir }),
    }
}
