//! Small file systems in memory stand for disks.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

/// A file system of a few MiB, gone when dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one, as root.
    pub fn at(path: &Path, mib: u64) -> Self {
        std::fs::create_dir_all(path).expect("a directory");
        let options = format!("size={mib}m");
        let none = None::<&str>;
        mount(none, path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("root mounts");
        Self { path: path.to_owned() }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Leaves so many of 1000 parts of it free.
    pub fn fill(&self, permille_free: u64) {
        let stat = statvfs(&self.path).expect("it is mounted");
        let size = stat.fragment_size();
        let blocks = stat.blocks_available().saturating_sub(stat.blocks() * permille_free / 1000);
        let bytes = vec![0; usize::try_from(blocks * size).expect("a small disk")];
        let _full_is_what_is_wanted = std::fs::write(self.ballast(), bytes);
    }

    /// Takes back what filled it.
    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _busy_means_detach_when_idle = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
