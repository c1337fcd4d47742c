//! The embedded store: one directory, one process, RocksDB underneath.
//!
//! It refuses to acknowledge what is not on disk, to open a directory that it does not wholly
//! understand, and to go on after a write failed: then the process ends, because what the disk
//! holds is no longer known, and a restart finds out.
//!
//! How it is made:
//!
//! - [`directory`]: what lies in the data directory besides RocksDB's files, who owns it, which
//!   format it has, how far it was acknowledged;
//! - [`engine`]: RocksDB as we set it up: four column families, one of them the bodies by (key,
//!   revision), one the log by (revision, index), one the keys as they are now;
//! - [`codec`]: the bytes of each record;
//! - [`index`]: the keys as they are now in memory, without bodies: conditions, counts and the
//!   places of bodies are answered from it;
//! - [`commit`]: the one thread that writes. Transactions that wait while the disk syncs are the
//!   next group;
//! - [`values`]: the values that were written or read last;
//! - [`read`]: gets, lists and the log, at any retained revision;
//! - [`trim`]: the thread that removes compacted history.
//!
//! Only the committer writes, and each write is synced before the next begins. So after a power cut
//! at most the last write of the log is torn; anything else that is missing is damage, and is told
//! from it by the `acknowledged` file (see [`directory`]).
//!
//! Rejected: RocksDB's own transactions and snapshots for compare-and-set (the committer is alone,
//! an index look-up is enough); history in the index, as etcd keeps it (memory would grow with the
//! write rate); an own log-structured file format (a decade of crash bugs to find again).

mod codec;
mod commit;
mod directory;
mod engine;
mod index;
mod pins;
mod read;
mod trim;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use rimward_control_store::feed::{Feed, RingLimits};
use rimward_control_store::{
    CommitError, Entry, Error, ListRequest, Page, Revision, Store, Txn, Watch,
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use directory::Directory;
use engine::Engine;
use index::Index;
use pins::Pins;
use values::Values;

/// What an operator may want to change.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the cache of uncompressed blocks. What is not in it is read through the page cache.
    pub block_cache_bytes: usize,
    /// Bytes of the values that were written or read last, kept beside the blocks.
    pub value_cache_bytes: usize,
    /// Bytes that recent writes may hold in memory, all together.
    pub write_buffer_bytes: usize,
    /// The size of the files that the write-ahead log is written over, made at each start; 0 makes
    /// none.
    pub log_file_bytes: usize,
    /// The ring of recent events that watchers near the head share.
    pub ring: RingLimits,
    /// While less than this is free on the file system, transactions that add something are refused
    /// with an error; reads, deletes and compaction go on.
    pub disk_reserve_bytes: u64,
    /// How many bytes of history must be gone before files are rewritten to free them.
    pub rewrite_bytes_min: u64,
    /// False: an answer no longer means durable. It exists for the test that shows that the
    /// power-cut test notices.
    #[doc(hidden)]
    pub sync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            block_cache_bytes: 12 << 20,
            value_cache_bytes: 64 << 20,
            write_buffer_bytes: 8 << 20,
            log_file_bytes: 5 << 20,
            ring: RingLimits::default(),
            disk_reserve_bytes: 32 << 20,
            rewrite_bytes_min: 16 << 20,
            sync: true,
        }
    }
}

/// A store in a directory, and the threads that serve it.
pub struct RocksStore {
    shared: Arc<Shared>,
    /// None once closed.
    threads: Mutex<Option<Threads>>,
    trimmed: watch::Receiver<Revision>,
}

struct Threads {
    committer: JoinHandle<()>,
    trimmer: JoinHandle<()>,
}

/// What the store's threads and its watchers share.
struct Shared {
    path: PathBuf,
    options: Options,
    /// None once closed. Readers hold the lock only while they read, so that closing waits for
    /// them and the directory is free when it returns.
    engine: RwLock<Option<Engine>>,
    index: RwLock<Index>,
    values: Values,
    pins: Pins,
    feed: Arc<Feed>,
    /// None once closed: the committer ends when the last clone is gone.
    requests: Mutex<Option<mpsc::Sender<commit::Request>>>,
    /// Bounds the bytes of transactions in the queue, in KiB.
    room: Arc<Semaphore>,
}

impl RocksStore {
    /// Opens or creates the store in `path`, and takes the directory for this process alone. Blocks
    /// while RocksDB replays its log (a fraction of a second).
    pub fn open(path: &Path, options: Options) -> Result<Arc<Self>, Error> {
        let mut directory = Directory::open(path)?;
        let engine = Engine::open(&mut directory, &options)?;
        let found = engine.load()?;
        directory.check_acknowledged(found.revision)?;
        let (requests, queue) = mpsc::channel(commit::QUEUE);
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            engine: RwLock::new(Some(engine)),
            index: RwLock::new(found.index),
            values: Values::new(options.value_cache_bytes),
            pins: Pins::new(found.compacted),
            feed: Feed::new(found.revision, options.ring),
            requests: Mutex::new(Some(requests)),
            room: Arc::new(Semaphore::new(commit::QUEUE_KIB)),
            options,
        });
        let (trimmer, trimmed) = trim::Trimmer::new(shared.clone(), found.trimmed);
        let committer = commit::Committer::new(shared.clone(), directory, found.revision, queue);
        let threads = Threads {
            committer: spawn("store-commit", move || committer.run())?,
            trimmer: spawn("store-trim", move || trimmer.run())?,
        };
        Ok(Arc::new(Self { shared, threads: Mutex::new(Some(threads)), trimmed }))
    }

    /// Finishes what was accepted, frees the directory. Later calls, and all watchers, answer
    /// [`Error::Closed`].
    pub async fn close(self: &Arc<Self>) {
        let store = self.clone();
        let ended = tokio::task::spawn_blocking(move || store.shut_down()).await;
        ended.expect("shutting down does not panic");
    }

    /// Waits until the history before `revision`, which must have been compacted, is removed and
    /// its space freed as far as it will be.
    pub async fn trimmed(&self, revision: Revision) -> Result<(), Error> {
        let mut trimmed = self.trimmed.clone();
        let reached = trimmed.wait_for(|upto| *upto >= revision).await;
        reached.map(|_| ()).map_err(|_| Error::Closed)
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    fn shut_down(&self) {
        let mut threads = self.threads.lock();
        let Some(Threads { committer, trimmer }) = threads.take() else { return };
        drop(self.shared.requests.lock().take());
        self.shared.pins.close();
        join(committer);
        // Not before the last write: RocksDB is told to stop.
        if let Some(engine) = &*self.shared.engine.read() {
            engine.stop_rewriting();
        }
        join(trimmer);
        self.shared.feed.close();
        drop(self.shared.engine.write().take());
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the store ended by a panic");
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|error| Error::Backend(format!("cannot start the thread {name}: {error}")))
}

#[async_trait]
impl Store for RocksStore {
    fn revision(&self) -> Revision {
        self.shared.feed.head()
    }

    fn oldest(&self) -> Revision {
        self.shared.pins.oldest()
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, Error> {
        // Most gets end here: the block is in the cache.
        if let Some(found) = self.shared.get_cached(key, at)? {
            return Ok(found);
        }
        let key = key.to_owned();
        self.shared.blocking(move |shared| shared.get(&key, at)).await
    }

    async fn list(&self, request: ListRequest) -> Result<Page, Error> {
        self.shared.blocking(move |shared| shared.list(&request)).await
    }

    async fn count(&self, prefix: &str) -> Result<usize, Error> {
        self.shared.count(prefix)
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        txn.check()?;
        let (reply, answer) = oneshot::channel();
        let kib = u32::try_from(txn.size() / 1024 + 1).expect("the size was checked");
        let room = self.shared.room.clone().acquire_many_owned(kib).await;
        let room = room.map_err(|_| Error::Closed)?;
        self.shared.ask(commit::Request::Commit { txn, reply, room }).await?;
        answer.await.map_err(|_| Error::Closed)?
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Error> {
        let oldest = self.oldest();
        if after < oldest {
            return Err(Error::Compacted { asked: after, oldest });
        }
        self.shared.feed.watch(prefix, after, Arc::new(read::Log(self.shared.clone())))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.shared.ask(commit::Request::Compact { revision, reply }).await?;
        answer.await.map_err(|_| Error::Closed)?
    }

    async fn size(&self) -> Option<u64> {
        let path = self.shared.path.clone();
        tokio::task::spawn_blocking(move || directory::allocated(&path).ok()).await.ok()?
    }
}

impl Shared {
    async fn ask(&self, request: commit::Request) -> Result<(), Error> {
        let requests = self.requests.lock().clone().ok_or(Error::Closed)?;
        requests.send(request).await.map_err(|_| Error::Closed)
    }

    /// Runs a read that may wait for the disk where it holds up nobody.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.clone();
        match tokio::task::spawn_blocking(move || read(&shared)).await {
            Ok(answer) => answer,
            Err(error) => {
                Err(Error::Backend(format!("{}: a read failed: {error}", self.path.display())))
            }
        }
    }

    /// Uses RocksDB, unless the store is closed.
    fn with_engine<T>(&self, f: impl FnOnce(&Engine) -> Result<T, Error>) -> Result<T, Error> {
        f(self.engine.read().as_ref().ok_or(Error::Closed)?)
    }
}
