//! Log files as runtimes leave them, and what a request makes of them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;

use super::read::{Wanted, stream};
use super::{LogError, LogWatch};

fn line(second: u32, text: &str) -> String {
    format!("2027-01-15T08:00:{second:02}.000000000Z stdout F {text}\n")
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Two rotated files and the current one: lines 1 to 6, with a partial one.
fn directory() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let old = dir.path().join("0.log.20270115-080002");
    fs::write(&old, line(1, "1") + &line(2, "2")).unwrap();
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    fs::File::options().write(true).open(&old).unwrap().set_modified(time).unwrap();
    fs::write(dir.path().join("0.log.20270115-080004"), line(3, "3") + &line(4, "4")).unwrap();
    fs::write(dir.path().join("0.log.20270115-080001.gz"), "compressed").unwrap();
    fs::write(dir.path().join("1.log"), line(9, "another run")).unwrap();
    let partial =
        "2027-01-15T08:00:05.000000000Z stderr P 5a\n2027-01-15T08:00:05.000000000Z stderr F 5b\n";
    fs::write(&path, partial.to_owned() + "damaged\n" + &line(6, "6")).unwrap();
    (dir, path)
}

async fn text(mut stream: BoxStream<'static, Result<Bytes, LogError>>) -> String {
    let mut text = String::new();
    while let Some(block) = stream.next().await {
        text += std::str::from_utf8(&block.unwrap()).unwrap();
    }
    text
}

#[tokio::test]
async fn requests() {
    async fn check(wanted: Wanted, expected: &str) {
        let (_dir, path) = directory();
        let shown = format!("{wanted:?}");
        assert_eq!(text(stream(path, wanted, None, Box::new(|| true))).await, expected, "{shown}");
    }
    let all = Wanted::default();
    check(all.clone(), "1\n2\n3\n4\n5a5b\n6\n").await;
    check(Wanted { tail_lines: Some(0), ..all.clone() }, "").await;
    check(Wanted { tail_lines: Some(1), ..all.clone() }, "6\n").await;
    check(Wanted { tail_lines: Some(5), ..all.clone() }, "4\n5a5b\n6\n").await;
    check(Wanted { tail_lines: Some(100), ..all.clone() }, "1\n2\n3\n4\n5a5b\n6\n").await;
    check(Wanted { limit_bytes: Some(5), ..all.clone() }, "1\n2\n3").await;
    let since = "2027-01-15T08:00:04Z".parse().ok();
    check(Wanted { since, ..all.clone() }, "4\n5a5b\n6\n").await;
    let stamped = "2027-01-15T08:00:05.000000000Z 5a5b\n2027-01-15T08:00:06.000000000Z 6\n";
    let since = "2027-01-15T08:00:05Z".parse().ok();
    check(Wanted { since, timestamps: true, ..all.clone() }, stamped).await;
    let nothing = stream("/nonexistent/0.log".into(), all, None, Box::new(|| true));
    assert_eq!(text(nothing).await, "");
}

#[tokio::test]
async fn long_lines_and_many() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let long = "x".repeat(100_000);
    let many: String = (0..20_000).map(|n| line(1, &n.to_string())).collect();
    fs::write(&path, line(0, &long) + &many).unwrap();
    let whole = text(stream(path.clone(), Wanted::default(), None, Box::new(|| true))).await;
    assert_eq!(whole.lines().next().unwrap().len(), 100_000);
    assert_eq!(whole.lines().count(), 20_001);
    let last = Wanted { tail_lines: Some(10_000), ..Wanted::default() };
    let tail = text(stream(path.clone(), last, None, Box::new(|| true))).await;
    assert_eq!((tail.lines().next(), tail.lines().count()), (Some("10000"), 10_000));
    assert_eq!(super::read::last_text(&path, 2, 2048), "19998\n19999\n");
}

#[tokio::test]
async fn follows_through_rotation_until_the_end() {
    let shutdown = CancellationToken::new();
    let watch = LogWatch::start(shutdown.clone());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c").join("0.log");
    let changes = watch.subscribe(path.parent().unwrap()).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let is_over = {
        let over = over.clone();
        Box::new(move || over.load(Ordering::SeqCst))
    };
    let mut follower = stream(path.clone(), Wanted::default(), Some(changes), is_over);
    let mut seen = String::new();
    let mut expect = async |expected: &str| {
        while !seen.ends_with(expected) {
            let block =
                tokio::time::timeout(std::time::Duration::from_secs(10), follower.next()).await;
            let block = block.unwrap_or_else(|_| panic!("nothing more after {seen:?}"));
            seen += std::str::from_utf8(&block.unwrap().unwrap()).unwrap();
        }
    };
    // The file comes into being after the follower.
    append(&path, &line(1, "one"));
    expect("one\n").await;
    append(&path, "2027-01-15T08:00:02.000000000Z stdout F tw");
    append(&path, "o\n");
    expect("two\n").await;
    fs::rename(&path, dir.path().join("c/0.log.1")).unwrap();
    append(&dir.path().join("c/0.log.1"), &line(3, "three"));
    append(&path, &line(4, "four"));
    expect("four\n").await;
    append(&path, &line(5, "five"));
    over.store(true, Ordering::SeqCst);
    watch.poke(path.parent().unwrap());
    expect("five\n").await;
    assert_eq!(seen, "one\ntwo\nthree\nfour\nfive\n");
    assert!(follower.next().await.is_none(), "the run is over");
    shutdown.cancel();
}

/// A reader that takes its time gets what was rotated meanwhile, and removed since.
#[tokio::test]
async fn holds_what_is_removed_before_it_is_read() {
    let shutdown = CancellationToken::new();
    let watch = LogWatch::start(shutdown.clone());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let changes = watch.subscribe(dir.path()).unwrap();
    // More than waits for a reader that does not read.
    let rest = "x".repeat(1000);
    let lines = |from: usize, to: usize| -> String {
        (from..to).map(|n| line(1, &format!("{n} {rest}"))).collect()
    };
    append(&path, &lines(0, 2000));
    let mut follower = stream(path.clone(), Wanted::default(), Some(changes), Box::new(|| false));
    let is_held = |name: &str| {
        let path = dir.path().join(name);
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file == path)
    };
    for (aside, from) in [("0.log.1", 2000), ("0.log.2", 2010), ("0.log.3", 2020)] {
        fs::rename(&path, dir.path().join(aside)).unwrap();
        append(&path, &lines(from, from + 10));
        let start = std::time::Instant::now();
        while !is_held("0.log") {
            assert!(start.elapsed().as_secs() < 10, "the file after {aside} is not held");
            tokio::task::yield_now().await;
        }
    }
    for aside in ["0.log.1", "0.log.2", "0.log.3"] {
        fs::remove_file(dir.path().join(aside)).unwrap();
    }
    let mut seen = String::new();
    while seen.lines().count() < 2030 {
        let next = tokio::time::timeout(std::time::Duration::from_secs(10), follower.next()).await;
        let block = next.unwrap_or_else(|_| panic!("only {} lines", seen.lines().count()));
        seen += std::str::from_utf8(&block.unwrap().unwrap()).unwrap();
    }
    for (number, line) in seen.lines().enumerate() {
        assert_eq!(line.split(' ').next(), Some(number.to_string().as_str()));
    }
    shutdown.cancel();
}
