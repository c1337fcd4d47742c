//! The child: eight writers on one store, who print what was acknowledged.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;
use rand::RngExt;
use rimward_control_store::{CommitError, Expect, Op, Revision, Store, Txn};
use rimward_control_store_rocksdb::{Options, RocksStore};
use sha2::{Digest, Sha256};

const WRITERS: usize = 8;
const KEYS: usize = 60;

/// An acknowledged transaction, or one that is found: which keys it wrote (`+key`) and deleted
/// (`-key`), each written value's hash behind it (`+key#hash`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub revision: Revision,
    pub id: String,
    pub changes: BTreeSet<String>,
}

/// A value says which transaction wrote it, and what else that transaction did.
pub fn value(id: &str, changes: &str, payload: &[u8]) -> Bytes {
    let mut value = format!("{id};{changes};").into_bytes();
    value.extend(payload);
    let hash = hash(&value);
    value.extend(hash.as_bytes());
    value.into()
}

/// The transaction id, its changes and the value's own hash; None when the value is not whole.
pub fn parse_value(value: &[u8]) -> Option<(String, Vec<String>, String)> {
    let (content, sum) = value.split_last_chunk::<16>()?;
    let sum = std::str::from_utf8(sum).ok()?.to_owned();
    if sum != hash(content) {
        return None;
    }
    let mut parts = content.splitn(3, |byte| *byte == b';');
    let mut text = || String::from_utf8(parts.next()?.to_vec()).ok();
    let (id, changes) = (text()?, text()?);
    Some((id, changes.split(',').map(str::to_owned).collect(), sum))
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A running child.
pub struct Writer {
    child: Child,
    lines: Receiver<String>,
}

impl Writer {
    pub fn start(directory: &Path, settings: &[(&str, String)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env("RIMWARD_CRASH_DIRECTORY", directory)
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for the next acknowledged transaction; None when the child is gone.
    pub fn next(&self) -> Option<Written> {
        loop {
            if let Some(written) = parse_line(&self.lines.recv().ok()?) {
                return Some(written);
            }
        }
    }

    /// What was acknowledged and not yet taken.
    pub fn so_far(&self) -> Vec<Written> {
        self.lines.try_iter().filter_map(|line| parse_line(&line)).collect()
    }

    /// Ends it by SIGKILL; answers what else it said.
    pub fn kill(mut self) -> Vec<Written> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().filter_map(|line| parse_line(&line)).collect()
    }

    /// Waits until it ends by itself; answers what else it said, its exit and its last words.
    pub fn end(mut self) -> (Vec<Written>, std::process::ExitStatus, String) {
        let said = self.lines.iter().filter_map(|line| parse_line(&line)).collect();
        let words = std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap();
        (said, self.child.wait().unwrap(), words)
    }
}

fn parse_line(line: &str) -> Option<Written> {
    let mut words = line.strip_prefix("ack ")?.split(' ');
    let revision = words.next()?.parse().ok()?;
    let id = words.next()?.to_owned();
    let changes = words.next()?.split(',').map(str::to_owned).collect();
    // The line's end: a line that the kill cut short is no acknowledgement.
    (words.next()? == ".").then_some(Written { revision, id, changes })
}

/// Not a test: what [`Writer`] runs.
#[test]
#[ignore = "the child process of the crash tests"]
fn child() {
    let Some(directory) = std::env::var_os("RIMWARD_CRASH_DIRECTORY") else { return };
    let setting = |name: &str| std::env::var(name).ok();
    let options = Options {
        sync: setting("RIMWARD_CRASH_SYNC").is_none_or(|sync| sync == "true"),
        disk_reserve_bytes: setting("RIMWARD_CRASH_RESERVE").map_or(0, |n| n.parse().unwrap()),
        rewrite_bytes_min: 1 << 20,
        // Small, so that flushes, new logs and rewrites happen within a round.
        write_buffer_bytes: 1 << 20,
        log_file_bytes: 512 << 10,
        ..Options::default()
    };
    let history = setting("RIMWARD_CRASH_HISTORY").map_or(250, |n| n.parse().unwrap());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        let store = RocksStore::open(Path::new(&directory), options).unwrap();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(store.clone(), writer, history)))
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

async fn write(store: Arc<RocksStore>, writer: usize, history: Revision) {
    for round in 0_u64.. {
        let id = format!("{}.{writer}.{round}", std::process::id());
        let (txn, changes) = transaction(&store, &id).await;
        match store.commit(txn).await {
            Ok(revision) => say(revision, &id, &changes),
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => {
                eprintln!("refused: {error}");
                std::process::exit(3);
            }
        }
        if writer == 0 && round % 50 == 49 {
            let revision = store.revision().saturating_sub(history);
            store.compact(revision).await.unwrap();
        }
    }
}

/// One to five keys, some deleted, some under a condition.
async fn transaction(store: &RocksStore, id: &str) -> (Txn, Vec<(String, Bytes)>) {
    let mut keys = BTreeSet::new();
    for _ in 0..rand::rng().random_range(1..=5) {
        keys.insert(format!("/k/{:02}", rand::rng().random_range(0..KEYS)));
    }
    let mut plan = Vec::new();
    for key in keys {
        let current = store.get(&key, None).await.unwrap().map(|entry| entry.revision);
        // The first is always written, so that the transaction leaves its list of changes.
        let delete = current.is_some() && !plan.is_empty() && rand::rng().random_range(0..4) == 0;
        plan.push((key, delete, current));
    }
    let list: Vec<String> = plan
        .iter()
        .map(|(key, delete, _)| format!("{}{key}", if *delete { '-' } else { '+' }))
        .collect();
    let list = list.join(",");
    let mut ops = Vec::new();
    let mut changes = Vec::new();
    for (key, delete, current) in plan {
        let expect = match current {
            Some(revision) if delete || rand::rng().random_range(0..2) == 0 => Expect::At(revision),
            _ => Expect::Anything,
        };
        if delete {
            ops.push(Op::Delete { key: key.clone(), expect });
            changes.push((format!("-{key}"), Bytes::new()));
        } else {
            let size = if rand::rng().random_range(0..20) == 0 { 40_000 } else { 1_000 };
            let mut payload = vec![0; rand::rng().random_range(0..size)];
            rand::rng().fill(&mut payload[..]);
            let value = value(id, &list, &payload);
            ops.push(Op::Put { key: key.clone(), value: value.clone(), expect });
            changes.push((format!("+{key}"), value));
        }
    }
    (Txn { ops }, changes)
}

/// Tells the parent, in one write.
fn say(revision: Revision, id: &str, changes: &[(String, Bytes)]) {
    let changes: Vec<String> = changes
        .iter()
        .map(|(change, value)| match value.last_chunk::<16>() {
            Some(sum) => format!("{change}#{}", String::from_utf8_lossy(sum)),
            None => change.clone(),
        })
        .collect();
    let line = format!("ack {revision} {id} {} .\n", changes.join(","));
    if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
        std::process::exit(0);
    }
}
