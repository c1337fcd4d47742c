//! Which system calls a process that handles guests may make: those on this page, and no other.
//!
//! A guest cannot make system calls. This is for the day when one breaks out of its sandbox, or out of the
//! compiler: it then finds a process that can start no program, trace no other, open no kind of socket but
//! those of the internet, map no page that is both written and run, and reach no rarely used corner of the
//! kernel. What is not here fails with EPERM rather than ending the process, so that a library's new
//! version which tries something else first falls back, and so that one guest's luck does not end all
//! others; `clone3`, whose flags a filter cannot see, says ENOSYS, after which libc uses `clone`.
//!
//! How the list was made: by reading what tokio, cap-std and wasmtime call, also on errors, and by running
//! every guest of the tests behind it.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// What a process needs beyond what all need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// `wasm-host`: sockets, clocks, the pods' files.
    Host,
    /// `wasm-compile`: memory, threads, and two files that are open.
    Compile,
}

/// `PAGEMAP_SCAN` of Linux 6.7: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// Limits this process, threads that exist included, for good.
pub(crate) fn confine(work: Work) -> Result<(), String> {
    let failed = |error: seccompiler::Error| format!("cannot limit system calls: {error}");
    for filter in filters(work)? {
        seccompiler::apply_filter_all_threads(&filter).map_err(failed)?;
    }
    Ok(())
}

/// In the order in which they are to be installed: nothing can be installed behind the list. A call must
/// pass both.
fn filters(work: Work) -> Result<Vec<BpfProgram>, String> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        // TODO-security: 32-bit ARM, which seccompiler does not know.
        tracing::warn!("system calls are not limited on {}", std::env::consts::ARCH);
        return Ok(Vec::new());
    };
    let failed = |error: seccompiler::BackendError| format!("the list of system calls: {error}");
    let refuse = |number| SeccompAction::Errno(number as u32);
    let program = |rules, otherwise, action| -> Result<BpfProgram, String> {
        SeccompFilter::new(rules, otherwise, action, arch)
            .and_then(BpfProgram::try_from)
            .map_err(failed)
    };
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok(vec![
        program(unknown, SeccompAction::Allow, refuse(libc::ENOSYS))?,
        program(allowed(work).map_err(failed)?, refuse(libc::EPERM), SeccompAction::Allow)?,
    ])
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn allowed(work: Work) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = EVERYWHERE.iter().map(|call| (*call, Vec::new())).collect();
    rules.extend(OF_THIS_ARCHITECTURE.iter().map(|call| (*call, Vec::new())));
    if work == Work::Host {
        rules.extend(FILES.iter().chain(NETWORK).map(|call| (*call, Vec::new())));
        let internet = [libc::AF_INET, libc::AF_INET6];
        rules.insert(libc::SYS_socket, any_of(0, Width::Dword, &internet.map(|f| f as u64))?);
        // tokio's signal driver has a pair, whether signals are used or not.
        rules.insert(libc::SYS_socketpair, any_of(0, Width::Dword, &[libc::AF_UNIX as u64])?);
    }
    // Machine code is mapped from its file; no page is writable and executable.
    let (writable, executable) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    let never_both = [0, writable, executable]
        .map(|prot| only(2, Width::Dword, Op::MaskedEq(writable | executable), prot))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_mmap, never_both.clone());
    rules.insert(libc::SYS_mprotect, never_both);
    // The other filter's to answer.
    rules.insert(libc::SYS_clone3, Vec::new());
    // Threads, not processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only(0, Width::Qword, Op::MaskedEq(thread), thread)?]);
    // abort() and panics signal this process; others are none of its business.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, any_of(0, Width::Dword, &[own])?);
    let controls = [
        libc::FIONBIO,
        libc::FIONREAD,
        libc::FIOCLEX,
        libc::FIONCLEX,
        libc::TCGETS,
        libc::TIOCGWINSZ,
    ];
    let mut controls = controls.to_vec();
    controls.push(PAGEMAP_SCAN);
    rules.insert(libc::SYS_ioctl, any_of(1, Width::Dword, &controls)?);
    let names = [libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64];
    rules.insert(libc::SYS_prctl, any_of(0, Width::Dword, &names)?);
    // Limits are read, not set.
    rules.insert(libc::SYS_prlimit64, any_of(2, Width::Qword, &[0])?);
    Ok(rules)
}

fn only(
    argument: u8,
    width: Width,
    compare: Op,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, width, compare, value)?])
}

fn any_of(
    argument: u8,
    width: Width,
    values: &[u64],
) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.iter().map(|value| only(argument, width.clone(), Op::Eq, *value)).collect()
}

/// Memory, threads, time, the end; reading and writing of what is open.
const EVERYWHERE: &[i64] = &[
    // Memory. memfd_create: images of memories that no file has in the right form.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and signals.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    // Who and where we are.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // What is open; files that libraries read (/proc/self, /sys).
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What guests do to the files of their mounts, and the log.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_openat2,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_truncate,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Sockets once they are made, and waiting for them.
const NETWORK: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// Older forms of the above, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OF_THIS_ARCHITECTURE: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_wait,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
];

#[cfg(target_arch = "aarch64")]
const OF_THIS_ARCHITECTURE: &[i64] = &[];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OF_THIS_ARCHITECTURE: &[i64] = &[];

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Runs `tries` behind the filters, on a thread of its own: a filter never comes off.
    fn behind(work: Work, tries: impl FnOnce() + Send + 'static) {
        let confined = move || {
            for filter in filters(work).unwrap() {
                seccompiler::apply_filter(&filter).unwrap();
            }
            tries();
        };
        std::thread::spawn(confined).join().unwrap();
    }

    #[track_caller]
    fn check_refused(what: &str, result: i64, errno: i32) {
        let error = io::Error::last_os_error();
        assert_eq!((result, error.raw_os_error()), (-1, Some(errno)), "{what}: {error}");
    }

    /// A raw system call with four arguments; a fifth that is no file, a sixth that is no offset.
    fn call(number: i64, arguments: [u64; 4]) -> i64 {
        let [a, b, c, d] = arguments;
        // SAFETY: what is called with these arguments is refused before it looks at them, or harmless.
        unsafe { libc::syscall(number, a, b, c, d, -1i64, 0u64) }
    }

    #[test]
    fn what_a_host_never_does_is_refused() {
        behind(Work::Host, || {
            for (what, number) in [
                ("execve", libc::SYS_execve),
                ("execveat", libc::SYS_execveat),
                ("ptrace", libc::SYS_ptrace),
                ("process_vm_readv", libc::SYS_process_vm_readv),
                ("unshare", libc::SYS_unshare),
                ("setns", libc::SYS_setns),
                ("mount", libc::SYS_mount),
                ("bpf", libc::SYS_bpf),
                ("io_uring_setup", libc::SYS_io_uring_setup),
                ("userfaultfd", libc::SYS_userfaultfd),
                ("keyctl", libc::SYS_keyctl),
                ("setuid", libc::SYS_setuid),
                ("pidfd_open", libc::SYS_pidfd_open),
            ] {
                check_refused(what, call(number, [0; 4]), libc::EPERM);
            }
            check_refused("clone3", call(libc::SYS_clone3, [0; 4]), libc::ENOSYS);
            check_refused(
                "fork",
                call(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0]),
                libc::EPERM,
            );
            check_refused("kill", call(libc::SYS_kill, [1, 0, 0, 0]), libc::EPERM);
            check_refused("tgkill", call(libc::SYS_tgkill, [1, 1, 0, 0]), libc::EPERM);
            for family in [libc::AF_NETLINK, libc::AF_UNIX, libc::AF_PACKET, libc::AF_VSOCK] {
                let made = call(libc::SYS_socket, [family as u64, libc::SOCK_RAW as u64, 0, 0]);
                check_refused("socket", made, libc::EPERM);
            }
            let both = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
            check_refused("mmap", call(libc::SYS_mmap, [0, 4096, both, 0x22]), libc::EPERM);
            let limit = [0, libc::RLIMIT_NOFILE.into(), 1, 0];
            check_refused("prlimit64", call(libc::SYS_prlimit64, limit), libc::EPERM);
        });
    }

    #[test]
    fn what_a_host_does_works() {
        behind(Work::Host, || {
            let dir = tempfile::tempdir().unwrap();
            let (one, other) = (dir.path().join("one"), dir.path().join("other"));
            std::fs::write(&one, "text").unwrap();
            std::fs::rename(&one, &other).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            assert_eq!(std::fs::read_to_string(&other).unwrap(), "text");
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let at = listener.local_addr().unwrap();
                let (client, server) =
                    tokio::join!(tokio::net::TcpStream::connect(at), listener.accept());
                client.unwrap().set_nodelay(true).unwrap();
                drop(server.unwrap());
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            });
            let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
            assert_ne!(call(libc::SYS_mmap, [0, 4096, executable, 0x22]), -1);
        });
    }

    #[test]
    fn a_compiler_has_no_sockets_and_starts_threads() {
        behind(Work::Compile, || {
            let made = call(libc::SYS_socket, [libc::AF_INET as u64, 1, 0, 0]);
            check_refused("socket", made, libc::EPERM);
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        });
    }
}
