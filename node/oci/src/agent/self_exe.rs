//! This program's own file, as shims execute it.
//!
//! A process that enters a container is, until its execve, a process of that container whose
//! `/proc/PID/exe` is this program. A container's root that opens that for writing would write to the
//! node's own binary, and have it run by root (CVE-2019-5736). So shims execute the file through a mount
//! that is in no namespace and that is read-only: what is opened through it cannot be written.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(super) struct SelfExe {
    path: PathBuf,
    /// Kept open: the path leads through it.
    _file: Option<OwnedFd>,
}

impl SelfExe {
    /// A kernel that is too old for such mounts (before 5.12) gets the file as it is.
    pub fn of(exe: &Path) -> Self {
        match sealed(exe) {
            Ok(file) => Self {
                path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
                _file: Some(file),
            },
            Err(error) => {
                // TODO-security: a copy in sealed memory would do there.
                tracing::warn!(%error, "containers' shims execute {} unsealed", exe.display());
                Self { path: exe.to_owned(), _file: None }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn sealed(exe: &Path) -> std::io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, exe, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let empty = CString::default();
    // SAFETY: the structure and the empty string live for the call, and the size is the structure's.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // The mount is of the file itself; a plain descriptor of it keeps the mount.
    let path = CString::new(
        Path::new("/proc/self/fd").join(tree.as_raw_fd().to_string()).as_os_str().as_bytes(),
    )?;
    // SAFETY: a path that lives for the call.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
