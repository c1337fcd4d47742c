//! The machine's devices, which a privileged container has all.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub(crate) struct Device {
    path: PathBuf,
    block: bool,
    number: u64,
    mode: u32,
    uid: u32,
    gid: u32,
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
            found.push(Device {
                path: entry.path(),
                block: kind.is_block_device(),
                number: meta.rdev(),
                mode: meta.mode() & 0o777,
                uid: meta.uid(),
                gid: meta.gid(),
            });
        }
    }
}

impl Device {
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
