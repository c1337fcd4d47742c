//! The machine's devices, which a privileged container has all, and disks that a container was given.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::DiskDevice;
use serde_json::{Value, json};

pub(crate) struct Device {
    path: PathBuf,
    block: bool,
    number: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    read_only: bool,
}

/// What a container has of its own, or shares as a mount.
const NOT_DEVICES: [&str; 8] =
    ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", "console", "ptmx"];

pub(crate) fn of_machine() -> Vec<Device> {
    let mut found = Vec::new();
    walk(Path::new("/dev"), &mut found);
    found
}

fn walk(dir: &Path, found: &mut Vec<Device>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if NOT_DEVICES.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        // Not followed: links of /dev lead to what is found anyway.
        let Ok(meta) = entry.metadata() else { continue };
        let kind = meta.file_type();
        if kind.is_dir() {
            walk(&entry.path(), found);
        } else if kind.is_char_device() || kind.is_block_device() {
            found.push(Device::new(&entry.path(), &meta));
        }
    }
}

/// A disk as the container has it.
///
/// # Errors
/// When there is none at its path.
pub(crate) fn disk(disk: &DiskDevice) -> std::io::Result<Device> {
    let meta = std::fs::metadata(&disk.host_path)?;
    if !meta.file_type().is_block_device() {
        let text = format!("{} is not a block device", disk.host_path.display());
        return Err(std::io::Error::other(text));
    }
    let path = PathBuf::from(&disk.container_path);
    Ok(Device { path, read_only: disk.read_only, ..Device::new(&disk.host_path, &meta) })
}

impl Device {
    fn new(path: &Path, meta: &std::fs::Metadata) -> Self {
        Self {
            path: path.to_owned(),
            block: meta.file_type().is_block_device(),
            number: meta.rdev(),
            mode: meta.mode() & 0o777,
            uid: meta.uid(),
            gid: meta.gid(),
            read_only: false,
        }
    }

    /// Major and minor, as the kernel counts them.
    pub fn numbers(&self) -> (i32, i32) {
        (rustix::fs::major(self.number) as i32, rustix::fs::minor(self.number) as i32)
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    #[cfg(test)]
    pub fn test(major: u32, minor: u32, read_only: bool) -> Self {
        let (path, number) = (PathBuf::from("/dev/x"), rustix::fs::makedev(major, minor));
        Self { path, block: true, number, mode: 0o600, uid: 0, gid: 0, read_only }
    }

    /// What lets a container that has not all devices use this one.
    pub fn rule(&self) -> Value {
        json!({
            "allow": true,
            "type": if self.block { "b" } else { "c" },
            "major": rustix::fs::major(self.number),
            "minor": rustix::fs::minor(self.number),
            "access": if self.read_only { "rm" } else { "rwm" },
        })
    }

    pub fn to_json(&self) -> Value {
        json!({
            "path": self.path,
            "type": if self.block { "b" } else { "c" },
            "major": rustix::fs::major(self.number),
            "minor": rustix::fs::minor(self.number),
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        })
    }
}
