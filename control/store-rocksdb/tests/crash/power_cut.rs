//! The power goes: only what reached the disk is left.
//!
//! The store lies on an ext4 file system in an image file, mounted through a loop device. What is
//! in that image is what the "disk" got; what the kernel holds in memory for the file system is not.
//! To copy the image at one instant, as a power cut would leave it, the file system *around* the
//! image is frozen meanwhile: that one is a loop mount too, so nothing else notices. Writes of the
//! inner file system wait in the loop device until the copy is made; nothing of it is flushed for
//! the copy's sake. (A plain copy of a changing image would show blocks of different moments, which
//! no disk ever does.)

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::RngExt;

use crate::verify::verify;
use crate::writer::{Writer, Written};

const CUTS: usize = 20;
const CUTS_PER_WRITER: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_twenty_times() {
    let Some(disk) = Disk::new() else { return };
    let mut acknowledged: Vec<Written> = Vec::new();
    let mut total = 0;
    for _ in 0..CUTS / CUTS_PER_WRITER {
        let writer = Writer::start(&disk.store(), &[]);
        for cut in 1..=CUTS_PER_WRITER {
            acknowledged.extend(run_a_while(&writer).await);
            // What is acknowledged before the copy begins must be in it.
            let required = acknowledged.len();
            let image = disk.cut();
            let (_, oldest) = match disk.verify(&image, &acknowledged[..required]).await {
                Ok(found) => found,
                Err(wrong) => panic!("after cut {cut}: {wrong}"),
            };
            total += acknowledged.iter().filter(|written| written.revision <= oldest).count();
            acknowledged.retain(|written| written.revision > oldest);
        }
        acknowledged.extend(writer.kill());
    }
    total += acknowledged.len();
    assert!(total > CUTS * 20, "only {total} transactions were acknowledged");
}

/// The test above would notice: a store that answers before the sync loses what it acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_sync_is_noticed() {
    let Some(disk) = Disk::new() else { return };
    let writer = Writer::start(&disk.store(), &[("RIMWARD_CRASH_SYNC", "false".into())]);
    let mut acknowledged = Vec::new();
    for _ in 0..5 {
        acknowledged.extend(run_a_while(&writer).await);
        let image = disk.cut();
        if disk.verify(&image, &acknowledged).await.is_err() {
            writer.kill();
            return;
        }
    }
    panic!("five cuts lost nothing although nothing was synced");
}

/// Lets it write for a random while; answers what was acknowledged.
async fn run_a_while(writer: &Writer) -> Vec<Written> {
    let mut written: Vec<Written> = writer.next().into_iter().collect();
    tokio::time::sleep(Duration::from_millis(rand::rng().random_range(20..300))).await;
    written.extend(writer.so_far());
    written
}

/// An image inside a file system inside an image.
struct Disk {
    directory: tempfile::TempDir,
    mounts: Vec<Mount>,
}

impl Disk {
    /// None, loudly, where that cannot be made.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("NOT TESTED: cutting the power needs root, for loop mounts");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        make_file_system(&path.join("outer.img"), "320M");
        let outer = Mount::new(&path.join("outer.img"), &path.join("outer"));
        make_file_system(&path.join("outer/inner.img"), "192M");
        let inner = Mount::new(&path.join("outer/inner.img"), &path.join("inner"));
        Some(Self { directory, mounts: vec![inner, outer] })
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("inner/store")
    }

    /// The inner image as it is at this instant.
    fn cut(&self) -> PathBuf {
        let copy = self.directory.path().join("cut.img");
        let frozen = Frozen::new(self.directory.path().join("outer"));
        let image = self.directory.path().join("outer/inner.img");
        run("cp", &["--sparse=always", text(&image), text(&copy)]);
        drop(frozen);
        copy
    }

    async fn verify(&self, image: &Path, acknowledged: &[Written]) -> Result<(u64, u64), String> {
        let mount = Mount::new(image, &self.directory.path().join("cut"));
        let found = verify(&mount.at.join("store"), acknowledged).await;
        drop(mount);
        std::fs::remove_file(image).unwrap();
        found
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The inner one first.
        self.mounts.drain(..).for_each(drop);
    }
}

struct Mount {
    at: PathBuf,
}

impl Mount {
    fn new(image: &Path, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &["-o", "loop,noatime", text(image), text(at)]);
        Self { at: at.to_owned() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily if need be: a failed test must not leave a mount behind.
        let done = |arguments: &[&str]| {
            Command::new("umount").args(arguments).status().is_ok_and(|status| status.success())
        };
        let _either_way = done(&[text(&self.at)]) || done(&["-l", text(&self.at)]);
    }
}

/// A file system that takes no writes until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: PathBuf) -> Self {
        run("fsfreeze", &["-f", text(&at)]);
        Self(at)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run("fsfreeze", &["-u", text(&self.0)]);
    }
}

fn make_file_system(image: &Path, size: &str) {
    run("truncate", &["-s", size, text(image)]);
    run("mkfs.ext4", &["-q", "-F", text(image)]);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}
