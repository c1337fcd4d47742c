//! A directory that is damaged, newer, taken or not ours is refused with words that help, and
//! nothing false is ever read from it.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails by panicking, as the test does")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rimward_control_store::{Error, Expect, ListRequest, Op, Store, Txn};
use rimward_control_store_rocksdb::{Options, RocksStore};

const TRANSACTIONS: u64 = 200;

/// A store as a killed process leaves it: `flushed` in table files, else in the write-ahead log.
async fn left_behind(flushed: bool) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let live = directory.path().join("live");
    let write_buffer_bytes = if flushed { 256 << 10 } else { 8 << 20 };
    let store = open_with(&live, Options { write_buffer_bytes, ..Options::default() }).unwrap();
    for round in 1..=TRANSACTIONS {
        store.commit(transaction(round)).await.unwrap();
    }
    if flushed {
        // Opening again writes what is still in the log into table files.
        store.close().await;
        open(&live).unwrap().close().await;
        copy(&live, &directory.path().join("store"));
    } else {
        copy(&live, &directory.path().join("store"));
        store.close().await;
    }
    directory
}

fn transaction(round: u64) -> Txn {
    let ops = (0..3).map(|i| {
        let (key, expect) = (format!("/k/{}", (round * 3 + i) % 40), Expect::Anything);
        Op::Put { key, value: value(round), expect }
    });
    Txn { ops: ops.collect() }
}

fn value(round: u64) -> bytes::Bytes {
    format!("{round:06} ").repeat(300).into()
}

fn open_with(path: &Path, options: Options) -> Result<Arc<RocksStore>, Error> {
    // Every byte of the log is one that counts: no file is prepared for it.
    RocksStore::open(path, Options { disk_reserve_bytes: 0, log_file_bytes: 0, ..options })
}

fn open(path: &Path) -> Result<Arc<RocksStore>, Error> {
    open_with(path, Options::default())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The database's files whose names match, the largest first.
fn files(store: &Path, matches: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(store.join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| matches(path.file_name().unwrap().to_str().unwrap()))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    assert!(!found.is_empty());
    found
}

/// Inverts some bytes at a place given in thousandths of the file.
fn flip(path: &Path, thousandths: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() * thousandths / 1000;
    let mut bytes = [0; 4];
    let read = file.read_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes[..read], at).unwrap();
}

fn refused(path: &Path, words: &[&str]) {
    match open(path) {
        Ok(_) => panic!("opened, expected a refusal with {words:?}"),
        Err(Error::Unusable(text)) => {
            assert!(text.contains(path.to_str().unwrap()), "the path is missing in: {text}");
            for word in words {
                assert!(text.contains(word), "{word:?} is missing in: {text}");
            }
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Every value that can be read is the right one; answers how many reads failed, each with words.
async fn only_truth(store: &RocksStore) -> usize {
    let mut failed = 0;
    for at in store.oldest().max(1)..=store.revision() {
        for key in (0..40).map(|n| format!("/k/{n}")) {
            match store.get(&key, Some(at)).await {
                Ok(Some(entry)) => assert_eq!(entry.value, value(entry.revision), "{key} at {at}"),
                Ok(None) => assert!(at < 14, "{key} at {at} is gone"),
                Err(error) => {
                    assert!(error.to_string().contains(store.path().to_str().unwrap()), "{error}");
                    failed += 1;
                }
            }
        }
    }
    failed
}

#[tokio::test]
async fn flipped_bytes_are_noticed() {
    let flushed = left_behind(true).await;
    let logged = left_behind(false).await;
    let check = async |origin: &tempfile::TempDir, name: &dyn Fn(&str) -> bool, may_open: bool| {
        for thousandths in [0, 100, 333, 500, 700, 900, 985] {
            let copied = tempfile::tempdir().unwrap();
            let path = copied.path().join("store");
            copy(&origin.path().join("store"), &path);
            let file = files(&path, name).remove(0);
            flip(&file, thousandths);
            match open(&path) {
                Err(Error::Unusable(text)) => {
                    assert!(text.contains(path.to_str().unwrap()), "{text}");
                    assert!(text.contains("damaged"), "{text}");
                    assert!(text.contains("backup"), "{text}");
                }
                Err(other) => panic!("{other:?}"),
                Ok(store) => {
                    assert!(
                        may_open,
                        "{} flipped at {thousandths} ‰ was not noticed",
                        file.display()
                    );
                    assert_eq!(store.revision(), TRANSACTIONS);
                    only_truth(&store).await;
                    store.close().await;
                }
            }
        }
    };
    check(&flushed, &|name| name == "CURRENT", false).await;
    check(&flushed, &|name| name.starts_with("MANIFEST"), false).await;
    // A block of bodies is only read, and found damaged, when someone asks for it.
    check(&flushed, &|name| name.ends_with(".sst"), true).await;
    check(&logged, &|name| name.ends_with(".log"), false).await;
}

/// A damaged body is an error for who reads it, not for the others.
#[tokio::test]
async fn a_damaged_body_is_an_error() {
    let left = left_behind(true).await;
    let path = left.path().join("store");
    flip(&files(&path, |name| name.ends_with(".sst"))[0], 300);
    let store = open(&path).unwrap();
    let failed = only_truth(&store).await;
    assert!(failed > 0, "the damage was not met");
    assert!(failed < 40 * TRANSACTIONS as usize / 2, "{failed} reads failed");
    let whole = store.list(ListRequest { at: Some(TRANSACTIONS / 2), ..Default::default() }).await;
    if let Err(error) = whole {
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn lost_files_are_noticed() {
    let flushed = left_behind(true).await;
    let check = |lose: &dyn Fn(&Path)| {
        let copied = tempfile::tempdir().unwrap();
        let path = copied.path().join("store");
        copy(&flushed.path().join("store"), &path);
        lose(&path);
        refused(&path, &["damaged", "backup"]);
        // Asking again does not make it better.
        refused(&path, &["damaged", "backup"]);
    };
    check(&|path| fs::remove_dir_all(path.join("db")).unwrap());
    check(&|path| fs::remove_file(path.join("db/CURRENT")).unwrap());
    check(&|path| fs::write(path.join("db/CURRENT"), "MANIFEST-999999\n").unwrap());
    check(&|path| fs::remove_file(&files(path, |name| name.starts_with("MANIFEST"))[0]).unwrap());
    check(&|path| fs::remove_file(&files(path, |name| name.ends_with(".sst"))[0]).unwrap());
    check(&|path| {
        let file = &files(path, |name| name.ends_with(".sst"))[0];
        let file = fs::File::options().write(true).open(file).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    });
}

/// A log that ends early looks like a power cut; that it was acknowledged further tells.
#[tokio::test]
async fn a_log_cut_short_is_noticed() {
    let logged = left_behind(false).await;
    for thousandths in [50, 500, 950, 999] {
        let copied = tempfile::tempdir().unwrap();
        let path = copied.path().join("store");
        copy(&logged.path().join("store"), &path);
        let log = files(&path, |name| name.ends_with(".log")).remove(0);
        let file = fs::File::options().write(true).open(&log).unwrap();
        file.set_len(file.metadata().unwrap().len() * thousandths / 1000).unwrap();
        refused(&path, &["damaged", "acknowledged up to revision 200", "backup"]);
        refused(&path, &["damaged", "acknowledged up to revision 200", "backup"]);

        // The way out that the message names: what is left is whole.
        fs::remove_file(path.join("acknowledged")).unwrap();
        let store = open(&path).unwrap();
        assert!(store.revision() < TRANSACTIONS);
        assert_eq!(only_truth(&store).await, 0);
        let next = store.commit(transaction(1)).await.unwrap();
        assert_eq!(next, store.revision());
        store.close().await;
    }
}

#[tokio::test]
async fn other_formats_and_strangers_are_refused() {
    let flushed = left_behind(true).await;
    let path = flushed.path().join("store");
    fs::write(path.join("format"), "rimward store, format 2\n").unwrap();
    refused(&path, &["format 2", "install the version"]);
    fs::write(path.join("format"), "garbage").unwrap();
    refused(&path, &["damaged", "garbage"]);
    fs::remove_file(path.join("format")).unwrap();
    refused(&path, &["not a Rimward store", "empty directory"]);
    fs::write(path.join("format"), "rimward store, format 1\n").unwrap();
    open(&path).unwrap().close().await;

    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("letter.txt"), "").unwrap();
    refused(home.path(), &["not a Rimward store", "letter.txt", "empty directory"]);
    let file = home.path().join("letter.txt");
    refused(&file, &["cannot create the directory"]);
}

/// A process that was killed while it made the store leaves nothing in the way.
#[tokio::test]
async fn an_interrupted_creation_is_repeated() {
    let check = async |prepare: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        fs::create_dir(&path).unwrap();
        prepare(&path);
        let store = open(&path).unwrap();
        assert_eq!(store.revision(), 0);
        store.commit(transaction(1)).await.unwrap();
        store.close().await;
        assert_eq!(open(&path).unwrap().revision(), 1);
    };
    let format = |path: &Path| fs::write(path.join("format"), "rimward store, format 1\n").unwrap();
    check(&|_| {}).await;
    check(&|path| fs::write(path.join("lock"), "17").unwrap()).await;
    check(&|path| fs::write(path.join("format.new"), "rimw").unwrap()).await;
    check(&|path| format(path)).await;
    check(&|path| {
        format(path);
        fs::create_dir(path.join("db.new")).unwrap();
        fs::write(path.join("db.new/CURRENT"), "half").unwrap();
    })
    .await;
    let made = tempfile::tempdir().unwrap();
    open(&made.path().join("store")).unwrap().close().await;
    check(&|path| {
        copy(&made.path().join("store"), path);
        fs::remove_file(path.join("acknowledged")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn one_directory_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open(&path).unwrap();
    let owner = format!("process {}", std::process::id());
    refused(&path, &["in use by", &owner, "stop it first"]);
    store.commit(transaction(1)).await.unwrap();

    // Closing frees it, although others still hold the old handle, and a watch.
    let mut watch = store.watch("", 1).unwrap();
    store.close().await;
    assert!(matches!(watch.next().await, Err(Error::Closed)));
    let second = open(&path).unwrap();
    assert!(matches!(store.get("/k/3", None).await, Err(Error::Closed)));
    assert!(matches!(store.list(ListRequest::default()).await, Err(Error::Closed)));
    assert!(store.commit(transaction(2)).await.is_err());
    assert!(matches!(store.compact(1).await, Err(Error::Closed)));
    assert!(matches!(store.watch("", 1), Err(Error::Closed)));
    assert_eq!(second.revision(), 1);
    store.close().await;
    drop(second);
    open(&path).unwrap();
}
