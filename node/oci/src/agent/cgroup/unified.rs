//! What cgroup v2 wants: controllers handed down level by level, and no process where they are handed on.
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#organizing-processes-and-threads>

use std::io;
use std::path::Path;

/// Where processes go that are in the way.
const INIT: &str = "init";

/// Without these a container would have what it was not to have.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
const WELCOME: [&str; 3] = ["cpuset", "io", "hugetlb"];

/// In a container the root of the hierarchy is a cgroup as others are: while processes are in it (this one, and
/// whatever started it) it hands down no controllers. They move to a cgroup below it, as kind and k3s have it.
pub(super) fn make_room(root: &Path) -> io::Result<()> {
    // The machine's own root has no type, and may have processes.
    if !root.join("cgroup.type").exists() || super::procs(root).is_empty() {
        return Ok(());
    }
    let place = root.join(INIT);
    std::fs::create_dir_all(&place)?;
    // What is forked meanwhile is seen in the next round.
    for _ in 0..64 {
        let there = super::procs(root);
        if there.is_empty() {
            return Ok(());
        }
        for pid in there {
            match std::fs::write(place.join("cgroup.procs"), pid.to_string()) {
                // ESRCH: it has ended.
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
    }
    Err(io::Error::other(format!("processes come to {} faster than they move", root.display())))
}

/// Makes the cgroups of a path, each with the controllers that the one above has.
pub(super) fn delegate(root: &Path, path: &Path) -> io::Result<()> {
    let mut at = root.to_owned();
    for part in path.components() {
        hand_down(&at)?;
        at.push(part);
        match std::fs::create_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn hand_down(dir: &Path) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let has = std::fs::read_to_string(&file)?;
    let lacks = |name: &&&str| !has.split_whitespace().any(|had| had == **name);
    for name in NEEDED.iter().filter(lacks) {
        std::fs::write(&file, format!("+{name}")).map_err(|e| refused(dir, name, &e))?;
    }
    for name in WELCOME.iter().filter(lacks) {
        // One that the machine has not limits nothing.
        let _ = std::fs::write(&file, format!("+{name}"));
    }
    Ok(())
}

fn refused(dir: &Path, controller: &str, error: &io::Error) -> io::Error {
    let there = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let why = match error.raw_os_error() {
        Some(libc::ENOENT) => format!(
            "the cgroup was not given it (it has: {}); delegate it, as systemd does with Delegate=yes",
            there.trim()
        ),
        Some(libc::EBUSY) => "processes are in it; they must be in a cgroup below".to_owned(),
        _ => error.to_string(),
    };
    let message = format!("the controller {controller} cannot be used in {}: {why}", dir.display());
    io::Error::new(error.kind(), message)
}
