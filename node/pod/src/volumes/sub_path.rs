//! The part of a volume that a subPath names.
//! <https://kubernetes.io/docs/concepts/storage/volumes/#using-subpath>
//!
//! Another container of the pod may change the volume at any moment, also while this looks: so the part is found
//! beneath the volume's own directory by the kernel, is held by a descriptor from then on, and what the
//! container is given is a place of the pod's own to which that very directory or file was mounted or linked.
//! To look first and mount by name later was CVE-2017-1002101 and CVE-2021-25741 in the kubelet.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::atomic::make_dir;
use super::host;

/// Holds what subPaths lead to; no container or volume can be called this.
pub(super) const PLACES: &str = "_subpaths";
/// The kernel asks to try again when a directory is renamed while it resolves; a hostile container renames for ever.
const ATTEMPTS: usize = 100;

/// Why a container has no such part. Its message tells nothing of the machine's files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("error SubPath `{0}` must not be an absolute path")]
    Absolute(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    BackSteps(String),
    #[error("failed to create subPath directory for volumeMount {0:?} of container {1:?}")]
    NotMade(String, String),
    #[error("failed to prepare subPath for volumeMount {0:?} of container {1:?}")]
    NotPrepared(String, String),
}

/// Which mount of which container it is for.
#[derive(Clone, Copy)]
pub(crate) struct For<'a> {
    pub volume_mount: &'a str,
    pub container: &'a str,
    /// Among the container's mounts.
    pub index: usize,
}

/// The part of a volume that containers write to: a directory that is not there is made. The answer is what the
/// container mounts.
pub(crate) fn part(
    pod_dir: &Path,
    volume: &Path,
    sub: &str,
    of: For<'_>,
) -> Result<PathBuf, Refused> {
    let relative = relative(sub)?;
    let failed = |step: &str, cause: &dyn std::fmt::Display| {
        tracing::warn!(volume = %volume.display(), sub, step, %cause, "a subPath was refused");
    };
    let not_prepared = |cause: io::Error| {
        failed("prepare", &cause);
        Refused::NotPrepared(of.volume_mount.into(), of.container.into())
    };
    let base = open_root(volume).map_err(not_prepared)?;
    let found = match beneath(&base, relative) {
        Err(Errno::NOENT) => made(&base, relative).map_err(|cause| {
            failed("create", &cause);
            Refused::NotMade(of.volume_mount.into(), of.container.into())
        })?,
        other => other.map_err(|cause| not_prepared(cause.into()))?,
    };
    let place = place(pod_dir, of);
    hold(&found, &place).map_err(not_prepared)
}

/// The part of a volume that is replaced as a whole when its source changes: the container keeps what it saw at its
/// start, as with a mount.
pub(crate) fn frozen(volume: &Path, sub: &str, of: For<'_>) -> Result<PathBuf, Refused> {
    let relative = relative(sub)?;
    // Beside the volume's folder: on the same file system.
    let place = place(volume.parent().and_then(Path::parent).unwrap_or(volume), of);
    let linked = || -> io::Result<PathBuf> {
        let base = volume.canonicalize()?;
        let wanted = base.join(relative);
        if fs::symlink_metadata(&wanted).is_err() {
            // A name that the source does not have: a directory, as in any volume.
            drop(made(&open_root(&base)?, relative)?);
        }
        let real = wanted.canonicalize()?;
        if !real.starts_with(&base) {
            return Err(io::Error::other("it leads out of its volume"));
        }
        clear(&place)?;
        link_tree(&real, &place)?;
        Ok(place.clone())
    };
    linked().map_err(|cause| {
        tracing::warn!(volume = %volume.display(), sub, %cause, "a subPath was refused");
        Refused::NotPrepared(of.volume_mount.into(), of.container.into())
    })
}

/// Lets go of all that was held or linked below a directory of a pod.
pub(super) fn release(dir: &Path) -> io::Result<()> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let places = dir.join(PLACES);
    for container in entries(&places) {
        for place in entries(&container.path()) {
            clear(&place.path())?;
        }
    }
    super::remove_tree(&places)
}

fn relative(sub: &str) -> Result<&Path, Refused> {
    let path = Path::new(sub);
    if path.is_absolute() {
        return Err(Refused::Absolute(sub.into()));
    }
    match path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        true => Ok(path),
        false => Err(Refused::BackSteps(sub.into())),
    }
}

fn place(dir: &Path, of: For<'_>) -> PathBuf {
    dir.join(PLACES).join(of.container).join(of.index.to_string())
}

fn open_root(volume: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(volume, flags, Mode::empty()).map_err(Into::into)
}

/// What a path leads to, if that is in the directory. Links within it are followed.
fn beneath(base: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut last = Errno::AGAIN;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(&base, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => last = Errno::AGAIN,
            other => return other,
        }
    }
    Err(last)
}

/// Makes the directories that are missing, with the mode of the volume, as the kubelet has it.
fn made(base: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let mode = rustix::fs::fstat(base)?.st_mode & 0o2777;
    let parts: Vec<_> = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let mut at = beneath(base, Path::new("."))?;
    let mut missing = false;
    for (count, part) in parts.iter().enumerate() {
        if !missing {
            let so_far: PathBuf = parts[..=count].iter().collect();
            match beneath(base, &so_far) {
                Ok(found) => {
                    at = found;
                    continue;
                }
                Err(Errno::NOENT) => missing = true,
                Err(cause) => return Err(cause.into()),
            }
        }
        let name = part.as_os_str();
        rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o700))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&at, name, flags, Mode::empty())?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
        at = made;
    }
    Ok(at)
}

/// Puts what a descriptor holds where nobody else can change it: a file by a link of its own where that can be, all
/// else by a mount. An ordinary user can do neither with a directory, and has no users to keep apart.
fn hold(found: &OwnedFd, place: &Path) -> io::Result<PathBuf> {
    clear(place)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode);
    if let Some(parent) = place.parent() {
        crate::record::make_dir(parent)?;
    }
    if kind == FileType::RegularFile {
        if rustix::fs::linkat(found, "", CWD, place, AtFlags::EMPTY_PATH).is_ok() {
            return Ok(place.to_owned());
        }
        fs::File::create(place)?;
    } else if kind == FileType::Directory {
        make_dir(place, 0o755)?;
    } else {
        fs::File::create(place)?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mounted = rustix::mount::open_tree(found, "", flags).and_then(|tree| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", CWD, place, flags)
    });
    match mounted {
        Ok(()) => Ok(place.to_owned()),
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => {
            clear(place)?;
            fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(found)))
        }
        Err(cause) => Err(cause.into()),
    }
}

/// Removes what lies at a place, never what is mounted there.
fn clear(place: &Path) -> io::Result<()> {
    host::unmount(place)?;
    match fs::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(place),
        Ok(_) => fs::remove_file(place),
    }
}

fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        crate::record::make_dir(parent)?;
    }
    if from.is_file() {
        return fs::hard_link(from, to);
    }
    make_dir(to, 0o755)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        link_tree(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const OF: For<'static> = For { volume_mount: "v", container: "c", index: 0 };

    struct Pod(tempfile::TempDir);

    impl Pod {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("pod/_volumes/v")).unwrap();
            Self(dir)
        }

        fn dir(&self) -> PathBuf {
            self.0.path().join("pod")
        }

        fn volume(&self) -> PathBuf {
            self.dir().join("_volumes/v")
        }

        fn part(&self, sub: &str) -> Result<PathBuf, String> {
            part(&self.dir(), &self.volume(), sub, OF).map_err(|refused| refused.to_string())
        }
    }

    #[test]
    fn directories_are_made_with_the_volumes_mode() {
        let pod = Pod::new();
        fs::set_permissions(pod.volume(), fs::Permissions::from_mode(0o2777)).unwrap();
        let part = pod.part("a/./b").unwrap();
        assert_eq!(fs::metadata(&part).unwrap().mode() & 0o7777, 0o2777);
        fs::write(part.join("x"), "x").unwrap();
        assert_eq!(fs::read_to_string(pod.volume().join("a/b/x")).unwrap(), "x");
        fs::create_dir(pod.volume().join("real")).unwrap();
        symlink("../real", pod.volume().join("a/link")).unwrap();
        fs::write(pod.part("a/link/new").unwrap().join("y"), "y").unwrap();
        assert_eq!(fs::read_to_string(pod.volume().join("real/new/y")).unwrap(), "y");
        release(&pod.dir()).unwrap();
        assert!(!pod.dir().join(PLACES).exists());
        assert_eq!(fs::read_to_string(pod.volume().join("a/b/x")).unwrap(), "x", "the data stays");
    }

    #[test]
    fn a_file_is_the_same_file() {
        let pod = Pod::new();
        fs::write(pod.volume().join("f"), "old").unwrap();
        let part = pod.part("f").unwrap();
        fs::write(&part, "new").unwrap();
        assert_eq!(fs::read_to_string(pod.volume().join("f")).unwrap(), "new");
        // Another file in its place is another file.
        fs::write(pod.volume().join("g"), "other").unwrap();
        fs::rename(pod.volume().join("g"), pod.volume().join("f")).unwrap();
        assert_eq!(fs::read_to_string(&part).unwrap(), "new");
        assert_eq!(fs::read_to_string(pod.part("f").unwrap()).unwrap(), "other");
        release(&pod.dir()).unwrap();
    }

    #[test]
    fn what_leads_out_is_refused() {
        let pod = Pod::new();
        let link = |to: &str, name: &str| symlink(to, pod.volume().join(name)).unwrap();
        let outside = pod.0.path().to_str().unwrap().to_owned();
        for (to, name) in [(outside.as_str(), "abs"), ("../../..", "up"), ("/none/at/all", "none")]
        {
            link(to, name);
        }
        let prepare = "failed to prepare subPath for volumeMount \"v\" of container \"c\"";
        let create = "failed to create subPath directory for volumeMount \"v\" of container \"c\"";
        assert_eq!(pod.part("abs"), Err(prepare.into()));
        assert_eq!(pod.part("up"), Err(prepare.into()));
        assert_eq!(pod.part("up/new"), Err(prepare.into()));
        assert_eq!(pod.part("none"), Err(prepare.into()));
        link("dangling", "inside");
        assert_eq!(pod.part("inside"), Err(create.into()));
        assert!(pod.part("../x").unwrap_err().contains("must not contain '..'"));
        assert!(pod.part("/etc").unwrap_err().contains("must not be an absolute path"));
        assert!(!pod.0.path().join("new").exists());
    }

    #[test]
    fn of_a_replaced_volume_the_container_keeps_what_it_saw() {
        let pod = Pod::new();
        fs::write(pod.volume().join("key"), "old").unwrap();
        let kept = frozen(&pod.volume(), "key", OF).unwrap();
        fs::remove_file(pod.volume().join("key")).unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "old");
        assert!(frozen(&pod.volume(), "no/such", OF).unwrap().is_dir());
        symlink("/etc", pod.volume().join("out")).unwrap();
        assert!(frozen(&pod.volume(), "out", OF).is_err());
        release(&pod.dir()).unwrap();
        assert!(!kept.exists());
    }
}
