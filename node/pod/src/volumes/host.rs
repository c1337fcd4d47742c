//! Volumes that are directories of the node: emptyDir, hostPath, local ones.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::mount::UnmountFlags;

use super::atomic::make_dir;

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

/// An empty directory that every user may write to; in memory where we may mount. One that is there stays as the
/// containers left it.
pub(super) fn empty_dir(dir: &Path, medium: Medium, group: Option<u32>) -> io::Result<()> {
    if !dir.is_dir() {
        // It appears when it is whole.
        let fresh = dir.with_extension("making");
        make_dir(&fresh, 0o777)?;
        if let Some(group) = group
            && std::os::unix::fs::chown(&fresh, None, Some(group)).is_ok()
        {
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o2777))?;
        }
        fs::rename(&fresh, dir)?;
    }
    if is_mount(dir) {
        return Ok(());
    }
    let owner = group.map_or_else(|| "mode=0777".into(), |g| format!("mode=2777,gid={g}"));
    match medium {
        Medium::Disk => {}
        Medium::Memory(size) => {
            let size = size.map_or_else(String::new, |n| format!(",size={n}"));
            // An ordinary user gets a directory on disk: the pod runs, only slower.
            if let Err(error) = mount_in_memory(dir, &format!("{owner}{size}")) {
                tracing::debug!(dir = %dir.display(), %error, "emptyDir of medium Memory is kept on disk");
            }
        }
        // Nothing else will do: a program maps its files.
        Medium::HugePages(size) => {
            mount(dir, "hugetlbfs", &format!("{owner},pagesize={size}"))?;
        }
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
pub(crate) fn is_mount(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    // A mount of the same file system has the same device; only the kernel knows. Kernels before 5.8 do not tell.
    statx(CWD, path, flags, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Undoes a mount if there is one; safe without.
///
/// # Errors
/// When it still may be there: what lies in it is not ours to remove.
pub(super) fn unmount(path: &Path) -> io::Result<()> {
    while is_mount(path) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(path, flags).map_err(|e| {
            let e = io::Error::from(e);
            io::Error::new(e.kind(), format!("cannot unmount {}: {e}", path.display()))
        })?;
    }
    Ok(())
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
        // What a container did to it stays.
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o700)).unwrap();
        empty_dir(&volume, Medium::Disk, None).unwrap();
        assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o777, 0o700);
    }
}
