//! A container's root file system: the image's layers below, what the container writes above.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use super::mapped;
use super::sandbox::Users;
use crate::layout::RunDir;

/// Mounts it, unless that is done. Layers are lowest first. For a pod with users of its own what the image
/// gives to user 0 is theirs, and so is what they write.
pub(super) fn mount(dir: &RunDir, layers: &[PathBuf], users: Option<&Users>) -> io::Result<()> {
    let (root, upper, work) = (dir.rootfs(), dir.file("upper"), dir.file("work"));
    for dir in [&root, &upper, &work] {
        std::fs::create_dir_all(dir)?;
    }
    if super::sandbox::is_mount(&root) {
        return Ok(());
    }
    let empty = [dir.file("empty")];
    let layers = match layers.is_empty() {
        false => layers,
        true => {
            // An image from nothing: overlayfs wants a layer, and an empty one does.
            std::fs::create_dir_all(&empty[0])?;
            &empty
        }
    };
    let Some(users) = users else { return mount_overlay(&root, layers, &upper, &work) };
    // The topmost layer's root is the container's, rights included.
    if let Some(top) = layers.last() {
        std::fs::set_permissions(&upper, std::fs::metadata(top)?.permissions())?;
    }
    users.give(&upper)?;
    let layers = mapped::layers(dir, layers, &users.namespace)?;
    mount_overlay(&root, &layers, &upper, &work)?;
    // The overlay has them for itself.
    mapped::forget_layers(dir)
}

fn mount_overlay(root: &Path, layers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<()> {
    match mount_by_parts(root, layers, upper, work) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            mount_by_text(root, layers, upper, work)
        }
        other => other,
    }
}

/// Layer by layer, which takes any number of any paths: Linux 6.5 and newer.
fn mount_by_parts(root: &Path, layers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<()> {
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &Path| {
        rustix::mount::fsconfig_set_string(overlay.as_fd(), key, value).map_err(io::Error::from)
    };
    // The topmost first.
    for layer in layers.iter().rev() {
        set("lowerdir+", layer)?;
    }
    set("upperdir", upper)?;
    set("workdir", work)?;
    rustix::mount::fsconfig_create(overlay.as_fd())?;
    let mount = rustix::mount::fsmount(
        overlay.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, root, flags).map_err(Into::into)
}

/// All in one line of at most a page.
fn mount_by_text(root: &Path, layers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<()> {
    let mut options = b"lowerdir=".to_vec();
    for (index, layer) in layers.iter().rev().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        options.extend_from_slice(layer.as_os_str().as_bytes());
    }
    for (name, path) in [("upperdir", upper), ("workdir", work)] {
        options.extend_from_slice(format!(",{name}=").as_bytes());
        options.extend_from_slice(path.as_os_str().as_bytes());
    }
    let options = CString::new(options)?;
    let mounted =
        rustix::mount::mount("overlay", root, "overlay", MountFlags::empty(), options.as_c_str());
    mounted.map_err(Into::into)
}

pub(super) fn unmount(dir: &RunDir) {
    let root = dir.rootfs();
    // Over itself, perhaps, by an agent that died between two steps.
    while super::sandbox::is_mount(&root) {
        if let Err(error) = rustix::mount::unmount(&root, UnmountFlags::DETACH) {
            return tracing::warn!(%error, "cannot unmount {}", root.display());
        }
    }
}

/// A root file system, in which paths are resolved as the container would: no link of an image leads out.
pub(super) struct Root(OwnedFd);

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), RESOLVE) {
                Err(rustix::io::Errno::AGAIN) => {}
                other => return other.map_err(Into::into),
            }
        }
    }

    /// A text file of it; empty if there is none. No device, and not more than a bound of it, is read.
    pub fn read(&self, path: &str) -> String {
        use std::io::Read;
        const BYTES_MAX: u64 = 1 << 20;
        let mut text = String::new();
        let file = self.at(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
        let file = file.ok().map(std::fs::File::from);
        if let Some(file) = file.filter(|f| f.metadata().is_ok_and(|m| m.is_file())) {
            let _what_is_no_text_is_empty = file.take(BYTES_MAX).read_to_string(&mut text);
        }
        text
    }

    /// Makes a directory that a program is to start in.
    pub fn ensure_dir(&self, path: &Path, uid: u32, gid: u32) -> io::Result<()> {
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        if self.at(path, directory).is_ok() {
            return Ok(());
        }
        let mut at = PathBuf::from("/");
        let mut dir = self.at(&at, directory)?;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            at.push(name);
            dir = match self.at(&at, directory) {
                Ok(dir) => dir,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make(&dir, name, uid, gid)?;
                    self.at(&at, directory)?
                }
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }
}

fn make(parent: &OwnedFd, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
}
