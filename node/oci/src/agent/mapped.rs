//! Directories as the users of a pod's own namespace see them: what belongs to the machine's user 0 belongs to
//! theirs, through mounts that map ids. <https://docs.kernel.org/filesystems/idmappings.html>

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::Mount;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

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
    let known = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let one = |(number, mount): (usize, &Mount)| {
        let place = dir.file(VOLUMES).join(number.to_string());
        let from = &mount.host_path;
        let done = make_place(from, &place).and_then(|()| match overlay_of(from, &known) {
            Some(overlay) => image(dir, &place, &overlay, users),
            None => attach(from, &place, users, true),
        });
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

/// An overlay that is only read, as an image volume is one.
#[derive(Debug, PartialEq, Eq)]
struct Overlay {
    /// Lowest first.
    layers: Vec<PathBuf>,
    /// Which part of it a path is.
    sub: PathBuf,
}

/// The read-only overlay that a path lies in, by what the kernel says of mounts (`/proc/self/mountinfo`).
fn overlay_of(path: &Path, mounts: &str) -> Option<Overlay> {
    let holds = |line: &&str| {
        let point = line.split(' ').nth(4).map(unescaped);
        point.is_some_and(|point| path.starts_with(point))
    };
    let depth =
        |line: &&str| line.split(' ').nth(4).map_or(0, |point| unescaped(point).as_os_str().len());
    // Of several at one place the last covers the others.
    let line = mounts.lines().filter(holds).max_by_key(depth)?;
    let (place, fs) = line.split_once(" - ")?;
    let place: Vec<&str> = place.split(' ').collect();
    let [kind, _, options] = fs.split(' ').collect::<Vec<_>>()[..] else { return None };
    let options: Vec<&str> = options.split(',').collect();
    if kind != "overlay" || options.iter().any(|option| option.starts_with("upperdir=")) {
        return None;
    }
    // Highest first, one by one or (mount(2)) together.
    let one_by_one = options.iter().filter_map(|option| option.strip_prefix("lowerdir+="));
    let together = options.iter().filter_map(|option| option.strip_prefix("lowerdir="));
    let mut layers: Vec<&str> = one_by_one.chain(together.flat_map(|all| all.split(':'))).collect();
    layers.reverse();
    let root = unescaped(place[3]);
    let below = path.strip_prefix(unescaped(place[4])).ok()?;
    let sub = root.strip_prefix("/").ok()?.join(below);
    Some(Overlay { layers: layers.into_iter().map(unescaped).collect(), sub })
}

/// Blanks and such are told in octal.
fn unescaped(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, more @ ..] = rest {
        let octal = more.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[3..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// An overlay cannot be mapped, but its layers can: it is mounted anew, of these.
fn image(dir: &RunDir, place: &Path, image: &Overlay, users: &OwnedFd) -> io::Result<()> {
    let mapped = layers(dir, &image.layers, users);
    let tree = mapped.and_then(|mapped| overlay(&mapped));
    forget_layers(dir)?;
    let tree = tree?;
    let at = match image.sub.as_os_str().is_empty() {
        true => tree,
        false => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let sub = rustix::fs::openat2(&tree, &image.sub, flags, Mode::empty(), resolve)?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            rustix::mount::open_tree(&sub, "", flags)?
        }
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(at.as_fd(), "", rustix::fs::CWD, place, flags).map_err(Into::into)
}

/// A read-only mount of layers, nowhere yet.
fn overlay(layers: &[PathBuf]) -> io::Result<OwnedFd> {
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers.iter().rev() {
        rustix::mount::fsconfig_set_string(overlay.as_fd(), "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_set_flag(overlay.as_fd(), "ro")?;
    rustix::mount::fsconfig_create(overlay.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(overlay.as_fd(), flags, attributes).map_err(Into::into)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_of_images() {
        let mounts = "\
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
41 21 0:40 / /p/_volumes/v ro - overlay overlay ro,lowerdir+=/d/top\\040layer,lowerdir+=/d/low,lowerdir+=/p/v.empty
42 21 0:40 /etc/conf /p/_subpaths/c/0 ro - overlay overlay ro,lowerdir+=/d/low,lowerdir+=/p/v.empty
43 21 0:41 / /p/root rw - overlay overlay rw,lowerdir+=/d/low,upperdir=/u,workdir=/w
";
        let check = |path: &str, expected: Option<(&[&str], &str)>| {
            let expected = expected.map(|(layers, sub)| Overlay {
                layers: layers.iter().map(PathBuf::from).collect(),
                sub: sub.into(),
            });
            assert_eq!(overlay_of(Path::new(path), mounts), expected, "{path}");
        };
        let layers = ["/p/v.empty", "/d/low", "/d/top layer"];
        check("/p/_volumes/v", Some((&layers, "")));
        check("/p/_volumes/v/a/b", Some((&layers, "a/b")));
        check("/p/_subpaths/c/0", Some((&layers[..2], "etc/conf")));
        check("/p/root", None);
        check("/p/_volumes/other", None);
    }
}
