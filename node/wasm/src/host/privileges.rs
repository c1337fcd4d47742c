//! What a process gives up before it touches bytes from outside.
//!
//! Order matters: limits and namespaces need root, the user change ends root, and only then may
//! privileges be frozen and system calls be limited (see `seccomp`). All of it happens before a second
//! thread exists.

use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// For `wasm-compile`: address space, CPU time, no core dump, and last in the queue for a core.
pub(crate) fn limit_compiler(memory_bytes: u64, cpu_seconds: u64) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_AS, memory_bytes, memory_bytes)?;
    setrlimit(Resource::RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // SAFETY: nice has no memory effects; that a process may not become nicer is not an error here.
    unsafe { libc::nice(10) };
    Ok(())
}

/// Every handler has a listener and every connection a socket: take what the system gives.
pub(crate) fn raise_open_files() {
    const WANTED: u64 = 1 << 20;
    // Root may go beyond the hard limit; others get the hard limit.
    if setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    // A host's memory is full of guests' secrets.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// Joins a network namespace. In it, ports below 1024 are any pod's to use: the namespace holds pods
/// only, and hosts are not root.
pub(crate) fn enter_netns(path: &Path) -> io::Result<()> {
    let file = std::fs::File::open(path)?;
    setns(&file, CloneFlags::CLONE_NEWNET)?;
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    Ok(())
}

/// Ends being root for good.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// Nothing that this process starts, set-user-id or not, may have more rights than it.
pub(crate) fn no_new_privileges() {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!("no_new_privs cannot be set: {error}");
    }
}

/// Moves this process into a cgroup of its own, in every hierarchy that lets it: so that a service
/// manager that ends the agent's cgroup leaves guests alone, and the kernel accounts for them
/// apart. Nothing depends on it, and it needs root: failures are not errors.
pub(crate) fn own_cgroup(name: &str) {
    for root in cgroup_roots() {
        let dir = root.join("rimward").join(name);
        let joined = std::fs::create_dir_all(&dir).and_then(|()| {
            std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string())
        });
        if let Err(error) = joined {
            tracing::debug!("no cgroup of its own at {}: {error}", dir.display());
        }
    }
}

/// Removes the empty cgroups of a host that is gone.
pub(crate) fn remove_cgroup(name: &str) {
    for root in cgroup_roots() {
        let _ = std::fs::remove_dir(root.join("rimward").join(name));
        let _ = std::fs::remove_dir(root.join("rimward"));
    }
}

fn cgroup_roots() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    if base.join("cgroup.procs").exists() {
        return vec![base.to_owned()];
    }
    ["unified", "memory", "cpu", "cpuacct", "cpu,cpuacct"]
        .into_iter()
        .map(|controller| base.join(controller))
        .filter(|dir| dir.join("cgroup.procs").exists())
        .collect()
}
