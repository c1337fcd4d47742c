//! Volumes that are directories of the node: emptyDir, hostPath; and the part of a volume that a
//! subPath names.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::mount::UnmountFlags;

use super::atomic::make_dir;

/// Holds what subPaths of files lead to; no container or volume can be called this.
pub(super) const LINKS: &str = "_subpaths";

/// What an emptyDir is made of.
/// <https://kubernetes.io/docs/concepts/storage/volumes/#emptydir>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    Disk,
    /// With what it may take in bytes, if that is bounded.
    Memory(Option<u64>),
    /// Of this many bytes each.
    HugePages(u64),
}

/// An empty directory that every user may write to; in memory where we may mount.
pub(super) fn empty_dir(dir: &Path, medium: Medium, group: Option<i64>) -> io::Result<()> {
    make_dir(dir, 0o777)?;
    if !is_mount(dir) {
        match medium {
            Medium::Disk => {}
            Medium::Memory(size) => {
                let size = size.map_or_else(String::new, |n| format!(",size={n}"));
                // An ordinary user gets a directory on disk: the pod runs, only slower.
                if let Err(error) = mount_in_memory(dir, &format!("mode=0777{size}")) {
                    tracing::debug!(dir = %dir.display(), %error, "emptyDir of medium Memory is kept on disk");
                }
            }
            // Nothing else will do: a program maps its files.
            Medium::HugePages(size) => {
                mount(dir, "hugetlbfs", &format!("mode=0777,pagesize={size}"))?;
            }
        }
    }
    if let Some(group) = group.and_then(|g| u32::try_from(g).ok())
        && std::os::unix::fs::chown(dir, None, Some(group)).is_ok()
    {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o2777))?;
    }
    Ok(())
}

/// A tmpfs that is never written to swap, where the kernel knows how (Linux 6.4) and lets us (not in a user
/// namespace).
pub(crate) fn mount_in_memory(dir: &Path, options: &str) -> io::Result<()> {
    mount(dir, "tmpfs", &format!("{options},noswap")).or_else(|_| mount(dir, "tmpfs", options))
}

fn mount(dir: &Path, kind: &str, options: &str) -> io::Result<()> {
    use rustix::mount::MountFlags;
    let options = std::ffi::CString::new(options).expect("options have no NUL");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(kind, dir, kind, flags, options.as_c_str()).map_err(Into::into)
}

/// Whether something is mounted here: not where a link leads.
pub(crate) fn is_mount(dir: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|m| m.dev()).ok();
    dir.parent().is_some_and(|parent| device(dir) != device(parent))
}

/// Undoes a mount if there is one; safe without.
///
/// # Errors
/// When it still may be there: what lies in it is not ours to remove.
pub(super) fn unmount(dir: &Path) -> io::Result<()> {
    if !is_mount(dir) {
        return Ok(());
    }
    let done = rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    done.map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("cannot unmount {}: {e}", dir.display()))
    })
}

/// Checks a hostPath against its type, and makes it where the type says so. Err is Kubernetes' text.
pub(super) fn check(path: &Path, kind: &str) -> Result<(), String> {
    let found = fs::metadata(path).ok();
    let is = |test: &dyn Fn(&fs::Metadata) -> bool| found.as_ref().is_some_and(test);
    let shown = path.display();
    let failed = |what: &str| Err(format!("hostPath type check failed: {shown} is not {what}"));
    match kind {
        // As container runtimes have it: what is not there is made, a directory.
        "" if found.is_none() => {
            fs::create_dir_all(path).map_err(|e| format!("cannot create directory {shown}: {e}"))
        }
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => {
            fs::create_dir_all(path).map_err(|e| format!("cannot create directory {shown}: {e}"))
        }
        "FileOrCreate" if found.is_none() => {
            fs::File::create(path).map(drop).map_err(|e| format!("cannot create file {shown}: {e}"))
        }
        "Directory" | "DirectoryOrCreate" if is(&|m| m.is_dir()) => Ok(()),
        "Directory" | "DirectoryOrCreate" => failed("a directory"),
        "File" | "FileOrCreate" if is(&|m| m.is_file()) => Ok(()),
        "File" | "FileOrCreate" => failed("a file"),
        "Socket" if is(&|m| m.file_type().is_socket()) => Ok(()),
        "Socket" => failed("a socket file"),
        "CharDevice" if is(&|m| m.file_type().is_char_device()) => Ok(()),
        "CharDevice" => failed("a character device"),
        "BlockDevice" if is(&|m| m.file_type().is_block_device()) => Ok(()),
        "BlockDevice" => failed("a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

/// Makes `link` lead to where a volume lies.
pub(super) fn link(link: &Path, to: &Path) -> io::Result<()> {
    match fs::read_link(link) {
        Ok(there) if there == to => return Ok(()),
        Ok(_) => fs::remove_file(link)?,
        Err(_) => {}
    }
    std::os::unix::fs::symlink(to, link)
}

/// A local volume: it must be there, unless it is this node's own to make. Err is the kubelet's text.
pub(super) fn local(path: &Path, ours: bool) -> Result<(), String> {
    let shown = path.display();
    match ours {
        true => make_dir(path, 0o777).map_err(|e| format!("cannot create directory {shown}: {e}")),
        false if path.exists() => Ok(()),
        false => Err(format!("path {shown:?} does not exist")),
    }
}

/// fsGroup: everything in a volume belongs to the group, which may do what its owner may, and so will what
/// is made there later. With `OnRootMismatch` only when the volume's root is not so yet.
/// <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods>
pub(super) fn give_to_group(root: &Path, group: u32, policy: &str) -> io::Result<()> {
    let of_root = fs::metadata(root)?;
    if policy == "OnRootMismatch" && of_root.gid() == group && of_root.mode() & 0o2770 == 0o2770 {
        return Ok(());
    }
    give(root, group)
}

fn give(path: &Path, group: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    // What a link leads to may lie anywhere.
    std::os::unix::fs::lchown(path, None, Some(group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let bits = if meta.is_dir() { 0o2770 } else { 0o660 };
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777 | bits))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), group)?;
        }
    }
    Ok(())
}

/// The part of a volume that a subPath names. A file that may be replaced (`frozen`) is linked to a
/// place of its own under `links`, so that the container keeps what it saw at its start, as with a
/// bind mount. What leads out of the volume is refused.
pub(crate) fn sub_path(volume: &Path, sub: &str, links: Option<&Path>) -> Result<PathBuf, String> {
    let relative = Path::new(sub);
    // In the kubelet's words.
    if relative.is_absolute() {
        return Err(format!("error SubPath `{sub}` must not be an absolute path"));
    }
    if relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("unable to provision SubPath `{sub}`: must not contain '..'"));
    }
    let io = |e: io::Error| format!("cannot prepare subPath {sub:?}: {e}");
    let base = volume.canonicalize().map_err(io)?;
    let mode = fs::metadata(&base).map_err(io)?.mode() & 0o7777;
    let wanted = base.join(relative);
    if fs::symlink_metadata(&wanted).is_err() {
        create_inside(&base, relative, mode).map_err(io)?;
    }
    let real = wanted.canonicalize().map_err(io)?;
    if !real.starts_with(&base) {
        return Err(format!("subPath {sub:?} leads out of its volume"));
    }
    match links {
        None => Ok(real),
        Some(links) => {
            let _earlier_run = fs::remove_dir_all(links);
            link_tree(&real, links).map_err(io)?;
            Ok(links.to_owned())
        }
    }
}

/// Makes directories part by part, so that no symlink inside the volume leads the creation outside. They get
/// the mode of the volume, as the kubelet has it.
fn create_inside(base: &Path, relative: &Path, mode: u32) -> io::Result<()> {
    let mut at = base.to_owned();
    for part in relative.components() {
        at = at.join(part);
        if fs::symlink_metadata(&at).is_err() {
            make_dir(&at, mode)?;
        }
        if !at.canonicalize()?.starts_with(base) {
            return Err(io::Error::other("it leads out of its volume"));
        }
    }
    Ok(())
}

fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        crate::record::make_dir(parent)?;
    }
    if from.is_file() {
        let _earlier_run = fs::remove_file(to);
        return fs::hard_link(from, to);
    }
    make_dir(to, 0o755)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        link_tree(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Where the linked subPath of a container's mount lies: beside the volume's folder, on the same
/// file system.
pub(crate) fn links_for(volume_dir: &Path, container: &str, mount: usize) -> PathBuf {
    let base = volume_dir.parent().and_then(Path::parent).unwrap_or(volume_dir);
    base.join(LINKS).join(container).join(mount.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "").unwrap();
        let check = |name: &str, kind: &str, good: bool| {
            assert_eq!(check(&path(name), kind).is_ok(), good, "{name} {kind}");
        };
        check("none", "Directory", false);
        check("none", "File", false);
        check("anything", "", true);
        check("anything", "Directory", true);
        check("made", "DirectoryOrCreate", true);
        check("made", "Directory", true);
        check("made", "FileOrCreate", false);
        check("file", "File", true);
        check("file", "Socket", false);
        check("file", "Nonsense", false);
    }

    #[test]
    fn sub_paths() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("_volumes/v");
        fs::create_dir_all(&volume).unwrap();
        fs::write(dir.path().join("outside"), "").unwrap();
        std::os::unix::fs::symlink(dir.path(), volume.join("escape")).unwrap();
        assert!(sub_path(&volume, "a/b", None).unwrap().is_dir());
        for bad in ["../outside", "/etc", "escape/outside", "escape", "escape/new"] {
            assert!(sub_path(&volume, bad, None).is_err(), "{bad}");
        }
        assert!(!dir.path().join("new").exists());
        // A file of an atomically updated volume stays as it was.
        fs::write(volume.join("key"), "old").unwrap();
        let links = links_for(&volume, "c", 0);
        let frozen = sub_path(&volume, "key", Some(&links)).unwrap();
        fs::remove_file(volume.join("key")).unwrap();
        assert_eq!(fs::read_to_string(frozen).unwrap(), "old");
    }

    #[test]
    fn empty_dirs() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        let medium = Medium::Memory(Some(1 << 20));
        empty_dir(&volume, medium, None).unwrap();
        fs::write(volume.join("x"), "x").unwrap();
        empty_dir(&volume, medium, None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("x")).unwrap(), "x", "repeating keeps it");
        assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o777, 0o777);
        unmount(&volume).unwrap();
        assert!(!is_mount(&volume));
    }
}
