//! The last steps of a process on its way to become a container's program: system calls are limited,
//! capabilities are dropped, and the program is executed.
//!
//! libcontainer would drop capabilities itself, but a filter of system calls is root's to install where
//! privileges may be gained later (`allowPrivilegeEscalation`): after the drop it would be too late. So
//! its spec names no capabilities, and both are done here, in the order in which they can be.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::unistd::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space};

use super::seccomp::{self, Filters};
use crate::capabilities::NAMES;
use crate::layout::Confinement;

#[derive(Clone)]
pub(super) struct Program {
    capabilities: u64,
    filters: Option<Filters>,
    /// Takes what goes wrong, in words. It is closed by the execve that goes well.
    status: RawFd,
    /// For a command run by `exec`: it ends with the process that began it.
    dies_with_parent: bool,
    /// Whom it is yet to become.
    one_of: Option<OneOf>,
}

/// A user of a pod's own namespace. libcontainer brings a container's first process there, but no command that
/// is run in it.
#[derive(Clone)]
pub(super) struct OneOf {
    /// The namespace.
    pub users: RawFd,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl OneOf {
    /// With all rights in the namespace, and none of those that this process has now.
    fn become_it(&self) -> io::Result<()> {
        // SAFETY: the descriptor is this process's, and open until the execve.
        let users = unsafe { BorrowedFd::borrow_raw(self.users) };
        move_into_link_name_space(users, Some(LinkNameSpaceType::User))?;
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        nix::unistd::setgroups(&groups)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        nix::unistd::setresgid(gid, gid, gid)?;
        rustix::thread::set_keep_capabilities(true)?;
        nix::unistd::setresuid(uid, uid, uid).map_err(Into::into)
    }
}

impl Program {
    /// # Errors
    /// When the filter that was asked for cannot be had: then nothing is to start.
    pub fn new(
        confinement: &Confinement,
        status: RawFd,
        dies_with_parent: bool,
    ) -> Result<Self, String> {
        let filters = match (&confinement.profile, confinement.seccomp) {
            (Some(profile), _) => Some(Filters::of(profile)),
            (None, true) => Some(seccomp::runtime_default(confinement.capabilities)?),
            (None, false) => None,
        };
        let capabilities = confinement.capabilities;
        Ok(Self { capabilities, filters, status, dies_with_parent, one_of: None })
    }

    pub fn become_one_of(self, one_of: Option<OneOf>) -> Self {
        Self { one_of, ..self }
    }

    fn say(&self, text: &str) {
        // SAFETY: the descriptor is this process's, and open until the execve.
        let status = unsafe { BorrowedFd::borrow_raw(self.status) };
        let _ = rustix::io::write(status, text.as_bytes());
    }

    fn confine(&self) -> Result<(), String> {
        if self.one_of.is_some() {
            // They are there, but not in effect: the user has changed.
            let mut sets = rustix::thread::capabilities(None).map_err(|e| e.to_string())?;
            sets.effective = sets.permitted;
            rustix::thread::set_capabilities(None, sets).map_err(|e| e.to_string())?;
        }
        if let Some(filters) = &self.filters {
            filters.install()?;
        }
        let failed = |e: rustix::io::Errno| format!("cannot drop capabilities: {e}");
        for number in 0..NAMES.len() {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            let has = rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false);
            if has && self.capabilities & (1 << number) == 0 {
                rustix::thread::remove_capability_from_bounding_set(capability).map_err(failed)?;
            }
        }
        let _old_kernels_have_none = rustix::thread::clear_ambient_capability_set();
        let set = CapabilitySet::from_bits_retain(self.capabilities);
        let sets =
            CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets).map_err(failed)
    }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec).map(drop).map_err(|why| {
            self.say(&format!("unable to start container process: {why}"));
            ExecutorValidationError::ArgValidationError(why)
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failed = |why: String| {
            self.say(&format!("unable to start container process: {why}"));
            ExecutorError::Other(why)
        };
        let path = find(spec).map_err(failed)?;
        let words =
            |words: Vec<&[u8]>| words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        let args = args(spec).iter().map(|arg| arg.as_bytes()).collect();
        let environment: Vec<Vec<u8>> = std::env::vars_os()
            .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
            .collect();
        let nul = |e: std::ffi::NulError| failed(format!("exec: {e}"));
        let args = words(args).map_err(nul)?;
        let environment = words(environment.iter().map(Vec::as_slice).collect()).map_err(nul)?;
        let file = CString::new(path.as_os_str().as_bytes()).map_err(nul)?;
        // Rust ignores SIGPIPE; programs count on the default.
        // SAFETY: a default action has no handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        if let Some(one_of) = &self.one_of {
            let done = one_of.become_it();
            done.map_err(|e| failed(format!("cannot become one of the pod's users: {e}")))?;
        }
        if self.dies_with_parent {
            // SAFETY: prctl of a number. Not before here: changing the user undoes it.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
        }
        self.confine().map_err(failed)?;
        let Err(error) = nix::unistd::execve(&file, &args, &environment);
        Err(failed(format!("exec {:?}: {}", path.display(), error.desc().to_lowercase())))
    }
}

fn args(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|p| p.args().as_deref()).unwrap_or_default()
}

/// The file that the first argument means, by PATH if it has no slash. In the words that people know
/// from other runtimes.
fn find(spec: &Spec) -> Result<PathBuf, String> {
    let Some(name) = args(spec).first().filter(|name| !name.is_empty()) else {
        return Err("no command specified".into());
    };
    if name.contains('/') {
        return check(Path::new(name)).map(|()| name.into()).map_err(|e| e.told(name));
    }
    let env = spec.process().as_ref().and_then(|p| p.env().as_deref()).unwrap_or_default();
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = None;
    for dir in std::env::split_paths(OsStr::new(path)) {
        let file =
            if dir.as_os_str().is_empty() { Path::new(".").join(name) } else { dir.join(name) };
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(CannotRun::Denied) => denied = Some(CannotRun::Denied),
            Err(_) => {}
        }
    }
    match denied {
        Some(denied) => Err(denied.told(name)),
        None => Err(format!("exec: {name:?}: executable file not found in $PATH")),
    }
}

enum CannotRun {
    Missing(std::io::Error),
    Directory,
    Denied,
}

impl CannotRun {
    fn told(&self, name: &str) -> String {
        match self {
            Self::Missing(error) if error.kind() == std::io::ErrorKind::NotFound => {
                format!("exec: {name:?}: stat {name}: no such file or directory")
            }
            Self::Missing(error) => format!("exec: {name:?}: stat {name}: {error}"),
            Self::Directory => format!("exec: {name:?}: is a directory"),
            Self::Denied => format!("exec: {name:?}: permission denied"),
        }
    }
}

fn check(path: &Path) -> Result<(), CannotRun> {
    if std::fs::metadata(path).map_err(CannotRun::Missing)?.is_dir() {
        return Err(CannotRun::Directory);
    }
    let may = rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, path, may, rustix::fs::AtFlags::EACCESS)
        .map_err(|_| CannotRun::Denied)
}
