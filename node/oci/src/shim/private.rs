//! Volumes through which the machine's later mounts do not come.
//!
//! libcontainer leaves each bind mount as it is, which on most machines lets such mounts through, and knows no
//! option for it. So it is done here, in the container's mounts, once they are made and before its program
//! starts.

use std::io;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;
use rustix::mount::MountPropagationFlags;
use rustix::thread::LinkNameSpaceType;

/// By a process of its own, since there is no way back from another's mounts.
pub(super) fn make(container: i32, paths: &[String]) -> io::Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let mounts = std::fs::File::open(format!("/proc/{container}/ns/mnt"))?;
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            let done = change(&mounts, paths);
            let code = done.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            // SAFETY: ends the process, without what belongs to the parent being run or flushed.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) => Err(io::Error::from_raw_os_error(code)),
            other => Err(io::Error::other(format!("it ended: {other:?}"))),
        },
    }
}

fn change(mounts: &std::fs::File, paths: &[String]) -> io::Result<()> {
    use std::os::fd::AsFd;
    rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
    for path in paths {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(path.as_str(), private)?;
    }
    Ok(())
}
