//! What the trait does not promise but the embedded store does: history leaves the disk, nothing
//! waits for the trimmer, many watchers are cheap.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails by panicking, as the test does")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rand::RngExt;
use rimward_control_store::{Error, Expect, ListRequest, Op, Store, Txn};
use rimward_control_store_rocksdb::{Options, RocksStore};

fn disk_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let size = |path: &Path, is_dir: bool| if is_dir { disk_bytes(path) } else { file_bytes(path) };
    entries.map(|entry| size(&entry.path(), entry.file_type().unwrap().is_dir())).sum()
}

/// A file may go between being listed and being asked.
fn file_bytes(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&match path.metadata() {
        Ok(metadata) => metadata,
        Err(_) => return 0,
    }) * 512
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes];
    rand::rng().fill(&mut value[..]);
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compacted_history_leaves_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = RocksStore::open(&path, Options::default()).unwrap();
    // 60 MiB of history of ten keys, 1 MiB of state.
    for round in 0..600 {
        let key = format!("/k/{}", round % 10);
        store.commit(Txn::put(key, noise(100 << 10), Expect::Anything)).await.unwrap();
    }
    let before = disk_bytes(&path);
    assert!(before > 55 << 20, "{before} bytes of history");
    let newest = store.revision();
    store.compact(newest).await.unwrap();
    store.trimmed(newest).await.unwrap();
    let after = disk_bytes(&path);
    assert!(after < before / 3, "{before} bytes only became {after}");

    let page = store.list(ListRequest::default()).await.unwrap();
    assert_eq!(page.entries.len(), 10);
    store.close().await;
    let store = RocksStore::open(&path, Options::default()).unwrap();
    assert_eq!(store.oldest(), newest);
    let again = store.list(ListRequest { at: Some(newest), ..Default::default() }).await.unwrap();
    assert_eq!(again.entries, page.entries);
}

/// Compaction answers, and writers go on, while a lot of history is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trimming_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { rewrite_bytes_min: 1 << 20, ..Options::default() };
    let store = RocksStore::open(&directory.path().join("store"), options).unwrap();
    for round in 0..400 {
        let ops = (0..50).map(|i| Op::Put {
            key: format!("/k/{i}"),
            value: format!("{round}").into(),
            expect: Expect::Anything,
        });
        store.commit(Txn { ops: ops.collect() }).await.unwrap();
    }
    let newest = store.revision();
    store.compact(newest).await.unwrap();
    let trimmed = store.trimmed(newest);
    tokio::pin!(trimmed);
    let mut during = 0;
    loop {
        tokio::select! {
            biased;
            done = &mut trimmed => break done.unwrap(),
            done = store.commit(Txn::put("/other", "x", Expect::Anything)) => {
                done.unwrap();
                during += 1;
            }
        }
    }
    assert!(during > 0, "no transaction was committed while 20,000 versions were removed");
    assert_eq!(store.list(ListRequest::default()).await.unwrap().entries.len(), 51);
}

/// What was compacted but not yet removed when the process ended is removed after the restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trimming_goes_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = RocksStore::open(&path, Options::default()).unwrap();
    let writers: Vec<_> = (0..60)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..100 {
                    let txn = Txn::put(format!("/k/{}", writer % 7), "x", Expect::Anything);
                    store.commit(txn).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let newest = store.revision();
    store.compact(newest).await.unwrap();
    // At once, so that most is left to do.
    store.close().await;
    let store = RocksStore::open(&path, Options::default()).unwrap();
    store.trimmed(newest).await.unwrap();
    assert_eq!(store.list(ListRequest::default()).await.unwrap().entries.len(), 7);
    assert!(matches!(store.watch("", newest - 1), Err(Error::Compacted { .. })));
}

/// A list that began before a compaction sees what it saw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_compaction_do_not_meet() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { rewrite_bytes_min: 1 << 20, ..Options::default() };
    let store = RocksStore::open(&directory.path().join("store"), options).unwrap();
    const KEYS: usize = 3000;
    for chunk in 0..KEYS / 100 {
        let ops = (0..100).map(|i| put_op(chunk * 100 + i, "0"));
        store.commit(Txn { ops: ops.collect() }).await.unwrap();
    }
    let lists: Vec<_> = (0..4)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    let page = store.list(ListRequest::default()).await.unwrap();
                    assert_eq!(page.entries.len(), KEYS, "at {}", page.revision);
                    assert!(page.entries.iter().all(|entry| entry.revision <= page.revision));
                }
            })
        })
        .collect();
    let mut round = 0;
    while !lists.iter().all(|list| list.is_finished()) {
        // A key goes and its neighbour comes, or the other way round: the number stays.
        let key = format!("/k/{:05}", round * 37 % KEYS);
        let (old, new) = match store.get(&key, None).await.unwrap() {
            Some(_) => (key.clone(), format!("{key}+")),
            None => (format!("{key}+"), key),
        };
        let put = Op::Put { key: new, value: "1".into(), expect: Expect::Absent };
        let ops = vec![put, Op::Delete { key: old, expect: Expect::Anything }];
        store.commit(Txn { ops }).await.unwrap();
        round += 1;
        if round % 5 == 0 {
            store.compact(store.revision()).await.unwrap();
        }
    }
    for list in lists {
        list.await.unwrap();
    }
}

fn put_op(n: usize, value: &str) -> Op {
    let value = value.to_owned().into();
    Op::Put { key: format!("/k/{n:05}"), value, expect: Expect::Anything }
}

/// Not a test: the rates, for `cargo test --release -- --ignored --nocapture rates`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rates() {
    let directory = tempfile::tempdir().unwrap();
    let store = RocksStore::open(&directory.path().join("store"), Options::default()).unwrap();
    println!("empty, resident: {}", resident());
    let value = bytes::Bytes::from(noise(2000));
    for writers in [1, 32] {
        let total = 20_000 * writers.min(4);
        let start = Instant::now();
        let tasks: Vec<_> = (0..writers)
            .map(|writer| {
                let (store, value) = (store.clone(), value.clone());
                tokio::spawn(async move {
                    for i in 0..total / writers {
                        let key = format!("/registry/pods/ns/{writers}-{writer}-{i}");
                        let txn = Txn::put(key, value.clone(), Expect::Absent);
                        store.commit(txn).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        println!(
            "{writers} writers: {:.0} commits/s",
            total as f64 / start.elapsed().as_secs_f64()
        );
    }
    println!("{} keys, resident: {}", store.count("").await.unwrap(), resident());
    measure("get", 100_000, async |i| {
        let key = format!("/registry/pods/ns/1-0-{}", i % 20_000);
        store.get(&key, None).await.unwrap().unwrap();
    })
    .await;
    measure("list of 500", 200, async |_| {
        store.list(ListRequest { limit: 500, ..Default::default() }).await.unwrap();
    })
    .await;
    measure("list of 100,000", 3, async |_| {
        assert_eq!(store.list(ListRequest::default()).await.unwrap().entries.len(), 100_000);
    })
    .await;
    measure("count of 100,000", 20, async |_| {
        store.count("").await.unwrap();
    })
    .await;
    println!("resident: {}", resident());
    fan_out(&store).await;
    println!("resident: {}", resident());
    store.close().await;
    let start = Instant::now();
    let store = RocksStore::open(store.path(), Options::default()).unwrap();
    println!("open with {} keys: {:?}", store.count("").await.unwrap(), start.elapsed());
}

async fn measure(what: &str, times: usize, run: impl AsyncFn(usize)) {
    let start = Instant::now();
    for i in 0..times {
        run(i).await;
    }
    println!("{what}: {:?} each", start.elapsed() / times as u32);
}

async fn fan_out(store: &Arc<RocksStore>) {
    const EVENTS: u64 = 2000;
    let from = store.revision();
    let watchers: Vec<_> = (0..1000)
        .map(|_| {
            let mut watch = store.watch("/w/", from).unwrap();
            tokio::spawn(async move {
                let mut seen = 0;
                while seen < EVENTS {
                    seen += watch.next().await.unwrap().events.len() as u64;
                }
            })
        })
        .collect();
    let start = Instant::now();
    for i in 0..EVENTS {
        store.commit(Txn::put(format!("/w/{}", i % 50), "x", Expect::Anything)).await.unwrap();
    }
    println!("1,000 watchers, committed: {:.0}/s", EVENTS as f64 / start.elapsed().as_secs_f64());
    for watcher in watchers {
        watcher.await.unwrap();
    }
    let rate = 1000.0 * EVENTS as f64 / start.elapsed().as_secs_f64();
    println!("1,000 watchers, delivered: {rate:.0} events/s");
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned()
}
