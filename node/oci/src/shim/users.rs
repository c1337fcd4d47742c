//! Makes the namespaces of a pod that has users of its own: theirs, and those that belong to them. What a
//! namespace's owner may do in it (mount its file systems, set its sysctls) only they may then.
//!
//! A process of its own, since a process with threads enters no namespace of users.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use nix::unistd::{ForkResult, Gid, Pid, Uid};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::pipe;
use crate::layout::{NAMESPACES_OF_USERS, RunDir};
use crate::user_ids::IDS_OF_POD;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// The machine's id of the pod's user 0; the others follow.
    pub first: u32,
    pub hostname: String,
}

/// `dir` is the pod's: each namespace is pinned to a file of its name in it.
pub(super) fn run(dir: &RunDir, wanted: &str) -> ExitCode {
    // With the agent that asked for it: the next one makes its own, and two must not mix.
    // SAFETY: prctl of a number.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    let made = serde_json::from_str(wanted).map_err(io::Error::from).and_then(|w| make(dir, &w));
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn make(dir: &RunDir, wanted: &Wanted) -> io::Result<()> {
    let (said, says) = pipe()?;
    let (told, tells) = pipe()?;
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            drop((said, tells));
            let mut says = File::from(says);
            if let Err(error) = be_there(&mut says, told, &wanted.hostname) {
                let _nobody_listens_then = says.write_all(error.to_string().as_bytes());
            }
            // SAFETY: ends the process, without what belongs to the parent being run or flushed.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop((says, told));
            let done = pin(dir, wanted, child, File::from(said), File::from(tells));
            // The child ends with what it reads from.
            let _ended = nix::sys::wait::waitpid(child, None);
            done
        }
    }
}

const ENTERED: &[u8; 1] = b"\x01";
const MADE: &[u8; 1] = b"\x02";

/// The child's part: in its namespaces until they are pinned.
fn be_there(says: &mut File, told: OwnedFd, hostname: &str) -> io::Result<()> {
    let mut told = File::from(told);
    let mut word = [0];
    // SAFETY: this process has one thread, and no memory or descriptor of it changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }?;
    says.write_all(ENTERED)?;
    told.read_exact(&mut word)?;
    become_root()?;
    let kinds = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWNET;
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(kinds) }?;
    // 64 bytes is all that the kernel takes.
    rustix::system::sethostname(&hostname.as_bytes()[..hostname.len().min(64)])?;
    says.write_all(MADE)?;
    let _until_they_are_pinned = told.read(&mut word)?;
    Ok(())
}

fn pin(
    dir: &RunDir,
    wanted: &Wanted,
    child: Pid,
    mut said: File,
    mut tells: File,
) -> io::Result<()> {
    listen(&mut said, ENTERED)?;
    let map = format!("0 {} {IDS_OF_POD}", wanted.first);
    std::fs::write(format!("/proc/{child}/uid_map"), &map)?;
    std::fs::write(format!("/proc/{child}/gid_map"), &map)?;
    tells.write_all(b"\n")?;
    listen(&mut said, MADE)?;
    for kind in NAMESPACES_OF_USERS {
        let file = dir.file(kind);
        let _an_earlier_boot_left_none =
            rustix::mount::unmount(&file, rustix::mount::UnmountFlags::DETACH);
        File::create(&file)?;
        rustix::mount::mount_bind(format!("/proc/{child}/ns/{kind}"), &file)?;
    }
    Ok(())
}

/// The word that is expected next, or an error in words.
fn listen(said: &mut File, word: &[u8; 1]) -> io::Result<()> {
    let mut first = [0];
    if said.read(&mut first)? == 1 && first == *word {
        return Ok(());
    }
    let mut text = first.to_vec();
    said.read_to_end(&mut text)?;
    Err(io::Error::other(format!("no user namespace: {}", String::from_utf8_lossy(&text))))
}

/// The user 0 of the namespace of users that this process is in.
pub(super) fn become_root() -> io::Result<()> {
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(group, group, group)?;
    nix::unistd::setresuid(user, user, user).map_err(Into::into)
}
