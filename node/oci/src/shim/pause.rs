//! The first process of a pod whose containers share their processes (`shareProcessNamespace`): it keeps
//! the namespace alive and reaps what containers leave behind, as the first process of any must.
//!
//! Containers see it, and may be allowed to look into it. So there is nothing to see: no file system but an
//! empty one, no user that owns anything, no descriptor.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::pipe;

/// Whom no file of an image should belong to; the same as in other runtimes.
const NOBODY: u32 = 65535;
const READY: &[u8] = b"ready";

/// Makes it, says its number, and ends: it belongs to nobody then. `users` is the namespace of the pod's own
/// users; empty if they are the machine's.
pub(super) fn run(users: &Path) -> ExitCode {
    match begin(users) {
        Ok(pid) => {
            println!("{pid}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn begin(users: &Path) -> io::Result<Pid> {
    if !users.as_os_str().is_empty() {
        let users = std::fs::File::open(users)?;
        move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))?;
        super::users::become_root()?;
    }
    // SAFETY: the namespace is that of children to come; nothing of this process changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
    let (said, end) = pipe()?;
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            drop(said);
            become_first(end)
        }
        ForkResult::Parent { child } => {
            drop(end);
            let mut text = Vec::new();
            std::fs::File::from(said).read_to_end(&mut text)?;
            match text == READY {
                true => Ok(child),
                false => Err(io::Error::other(String::from_utf8_lossy(&text).into_owned())),
            }
        }
    }
}

fn become_first(end: OwnedFd) -> ! {
    let mut end = std::fs::File::from(end);
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let made = children.thread_block().map_err(io::Error::from).and_then(|()| confine());
    if let Err(error) = made {
        let _nobody_listens_then = end.write_all(error.to_string().as_bytes());
        std::process::exit(1);
    }
    let _nobody_listens_then = end.write_all(READY);
    drop(end);
    loop {
        let _interrupted_is_a_turn_too = children.wait();
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}

fn confine() -> io::Result<()> {
    rustix::process::setsid()?;
    super::close_standard_streams()?;
    // SAFETY: one thread, and none of its descriptors matters.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", all)?;
    // A place that every machine has; the mount is seen here only.
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("empty", "/proc", "tmpfs", flags, c"size=4k,nr_inodes=1,mode=555")?;
    rustix::process::chdir("/proc")?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    rustix::thread::set_name(c"pause")?;
    rustix::thread::set_no_new_privs(true)?;
    nix::unistd::setgroups(&[])?;
    nix::unistd::setgid(NOBODY.into())?;
    // With it go all capabilities.
    nix::unistd::setuid(NOBODY.into()).map_err(Into::into)
}
