//! SIGKILL in the middle of concurrent writes.

use std::time::Duration;

use rand::RngExt;

use crate::verify::verify;
use crate::writer::{Writer, Written};

const ROUNDS: usize = 100;

/// All rounds on one directory, so that each one also starts from what the kills before it left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_a_hundred_times() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut acknowledged: Vec<Written> = Vec::new();
    let mut total = 0;
    let mut last = 0;
    for round in 0..ROUNDS {
        let writer = Writer::start(&path, &[]);
        let mut new = Vec::new();
        if round % 10 == 9 {
            // While it starts, perhaps while it repairs what the round before left.
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..60))).await;
        } else {
            // After any number of answers, at no particular point of the next.
            for _ in 0..rand::rng().random_range(1..200) {
                new.extend(writer.next());
            }
            let delay = Duration::from_micros(rand::rng().random_range(0..3000));
            tokio::time::sleep(delay).await;
        }
        new.extend(writer.kill());
        total += new.len();
        acknowledged.extend(new);
        let (newest, oldest) = match verify(&path, &acknowledged).await {
            Ok(found) => found,
            Err(wrong) => panic!("after kill {}: {wrong}", round + 1),
        };
        assert!(newest >= last, "revisions went back from {last} to {newest}");
        last = newest;
        acknowledged.retain(|written| written.revision > oldest);
    }
    assert!(total > ROUNDS * 20, "only {total} transactions were acknowledged");
}
