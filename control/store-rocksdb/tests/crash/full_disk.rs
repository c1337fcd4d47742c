//! The disk fills up.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rimward_control_store::{CommitError, Error, Expect, Store, Txn};
use rimward_control_store_rocksdb::{Options, RocksStore};

use crate::verify::verify;
use crate::writer::Writer;

/// With a reserve, what adds is refused and everything else goes on; what is freed is usable again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reserve_keeps_the_store_usable() {
    let Some(disk) = SmallDisk::new("64m") else { return };
    let options = Options {
        disk_reserve_bytes: 24 << 20,
        rewrite_bytes_min: 1 << 20,
        write_buffer_bytes: 2 << 20,
        log_file_bytes: 2 << 20,
        ..Options::default()
    };
    let store = RocksStore::open(&disk.store(), options).unwrap();
    let put = |n: usize| {
        // Not compressible.
        let mut value = vec![0; 200_000];
        rand::RngExt::fill(&mut rand::rng(), &mut value[..]);
        store.commit(Txn::put(format!("/k/{n:04}"), value, Expect::Anything))
    };
    let mut stored = 0;
    let refused = loop {
        match put(stored).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 1000, "200 MB went onto 64 MiB");
    };
    let CommitError::Store(Error::Backend(text)) = &refused else { panic!("{refused:?}") };
    assert!(text.contains(disk.store().to_str().unwrap()) && text.contains("full"), "{text}");
    assert_eq!(store.count("/k/").await.unwrap(), stored);
    assert!(store.get("/k/0000", None).await.unwrap().is_some());
    for n in 0..stored {
        store.commit(Txn::delete(format!("/k/{n:04}"), Expect::Anything)).await.unwrap();
    }
    let newest = store.revision();
    store.compact(newest).await.unwrap();
    store.trimmed(newest).await.unwrap();
    put(0).await.expect("there is room again");
    store.close().await;
}

/// Without, the process ends and says why; what it acknowledged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_acknowledged() {
    let Some(disk) = SmallDisk::new("24m") else { return };
    let keep_all = ("RIMWARD_CRASH_HISTORY", u64::MAX.to_string());
    let writer = Writer::start(&disk.store(), &[keep_all]);
    let (acknowledged, exit, words) = writer.end();
    assert_eq!(exit.signal(), Some(nix::libc::SIGABRT), "{exit:?}: {words}");
    assert!(words.contains(disk.store().to_str().unwrap()), "{words}");
    assert!(words.contains("No space left"), "{words}");
    assert!(acknowledged.len() > 50, "it wrote only {}", acknowledged.len());

    // Starting again without room says so; with room, all is there.
    if let Err(error) = RocksStore::open(&disk.store(), Options::default()) {
        let text = error.to_string();
        assert!(text.contains(disk.store().to_str().unwrap()) && text.contains("full"), "{text}");
    }
    disk.grow("128m");
    if let Err(wrong) = verify(&disk.store(), &acknowledged).await {
        panic!("{wrong}");
    }
}

struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn new(size: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("NOT TESTED: filling a disk needs root, to mount a small one");
            return None;
        }
        let disk = Self { directory: tempfile::tempdir().unwrap() };
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], disk.directory.path());
        Some(disk)
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn grow(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], self.directory.path());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _leaves_a_mount_otherwise =
            Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

fn mount(arguments: &[&str], at: &Path) {
    let status = Command::new("mount").args(arguments).arg(at).status().unwrap();
    assert!(status.success(), "mount {arguments:?} {}", at.display());
}
