//! Directories as the users of a pod's own namespace see them: what belongs to the machine's user 0 belongs to
//! theirs, through mounts that map ids. <https://docs.kernel.org/filesystems/idmappings.html>

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::Mount;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::layout::RunDir;

/// Where a run's volumes are mounted for its users: each under its number.
const VOLUMES: &str = "volumes";
/// The same of its image's layers, while the root file system is being mounted.
const LAYERS: &str = "layers";

/// Mounts the volumes for users of the namespace; answers them as they are to be bound.
///
/// # Errors
/// Names the volume whose file system the kernel does not map.
pub(super) fn volumes(
    dir: &RunDir,
    mounts: &[Mount],
    users: &OwnedFd,
) -> Result<Vec<Mount>, String> {
    let one = |(number, mount): (usize, &Mount)| {
        let place = dir.file(VOLUMES).join(number.to_string());
        let from = &mount.host_path;
        if mount.read_only && is_overlay(from) {
            // An image: overlays cannot be mapped, but it is there to be read.
            return Ok(mount.clone());
        }
        let done = make_place(from, &place).and_then(|()| attach(from, &place, users, true));
        done.map_err(|e| {
            format!(
                "failed to map the ids of volume {}: {e} (its file system does not support it on this kernel?)",
                from.display()
            )
        })?;
        Ok(Mount { host_path: place, ..mount.clone() })
    };
    mounts.iter().enumerate().map(one).collect()
}

/// The layers, lowest first, as places to mount from. [`forget_layers`] undoes it.
pub(super) fn layers(
    dir: &RunDir,
    layers: &[PathBuf],
    users: &OwnedFd,
) -> io::Result<Vec<PathBuf>> {
    let one = |(number, layer): (usize, &PathBuf)| {
        let place = dir.file(LAYERS).join(number.to_string());
        std::fs::create_dir_all(&place)?;
        attach(layer, &place, users, false)?;
        Ok(place)
    };
    layers.iter().enumerate().map(one).collect()
}

pub(super) fn forget_layers(dir: &RunDir) -> io::Result<()> {
    unmount_all(&dir.file(LAYERS))
}

/// Undoes all of it; safe without.
///
/// # Errors
/// When something stays mounted: then nothing below the run's directory may be removed.
pub(super) fn unmount(dir: &RunDir) -> io::Result<()> {
    unmount_all(&dir.file(LAYERS))?;
    unmount_all(&dir.file(VOLUMES))
}

fn is_overlay(dir: &Path) -> bool {
    // OVERLAYFS_SUPER_MAGIC
    rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type as u64 == 0x794c_7630)
}

fn make_place(from: &Path, place: &Path) -> io::Result<()> {
    let parent = place.parent().expect("it was joined to one");
    std::fs::create_dir_all(parent)?;
    if std::fs::metadata(from)?.is_dir() {
        return std::fs::create_dir(place);
    }
    std::fs::File::create(place).map(drop)
}

/// With what is mounted below it, if that can be mapped too.
fn attach(from: &Path, place: &Path, users: &OwnedFd, below: bool) -> io::Result<()> {
    let clone = || {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if below {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        rustix::mount::open_tree(rustix::fs::CWD, from, flags)
    };
    let mut tree = clone()?;
    if !below || map(tree.as_fd(), users, true).is_err() {
        // Half of it may have been mapped.
        tree = clone()?;
        map(tree.as_fd(), users, false)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", rustix::fs::CWD, place, flags).map_err(Into::into)
}

fn map(tree: BorrowedFd<'_>, users: &OwnedFd, below: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    let flags = libc::AT_EMPTY_PATH | if below { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path and the attributes outlive the call, which is told the latter's size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Of places in a directory. What lies in them is the pod's or the machine's, so nothing is removed but empty
/// places.
fn unmount_all(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let place = entry?.path();
        while rustix::mount::unmount(&place, UnmountFlags::DETACH).is_ok() {}
        let text = CString::new(place.as_os_str().as_bytes())?;
        // SAFETY: the path outlives the calls. Either takes a place away only if nothing is mounted there.
        if unsafe { libc::rmdir(text.as_ptr()) != 0 && libc::unlink(text.as_ptr()) != 0 } {
            let error = io::Error::last_os_error();
            return Err(io::Error::new(error.kind(), format!("{}: {error}", place.display())));
        }
    }
    std::fs::remove_dir(dir)
}
