//! The Store: versioned keys under one revision sequence, as etcd promises them.
//!
//! It knows bytes, not objects: what a record means is the API server's. It refuses to interpret
//! values, to answer from state that is not durable, and to hold memory for a slow watcher.
//!
//! The promises, which [`conformance`] tests on every backend:
//!
//! - one transaction is one revision; revisions are consecutive and never reused, also across restarts;
//! - compare-and-set sees every earlier transaction, acknowledged or in the same batch;
//! - an answer means durable; events become visible after durability, in revision order, a whole
//!   transaction at a time;
//! - [`Store::list`] at a revision is exact and stable while that revision is retained;
//! - [`Store::watch`] from any retained revision misses nothing; what was compacted says so.

pub mod conformance;
pub mod feed;
mod memory;
mod txn;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use memory::MemoryStore;

/// A position in the one revision sequence. 0 is "before everything".
pub type Revision = u64;

/// The most operations in a transaction (etcd's default limit).
pub const TXN_OPS_MAX: usize = 128;
/// The most bytes of keys and values in a transaction (etcd's default limit), 1.5 MiB.
pub const TXN_BYTES_MAX: usize = 1_572_864;

/// A key's current (or historic) value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The revision of the transaction that wrote this value.
    pub revision: Revision,
    /// The revision that created the key, since it was last absent.
    pub created: Revision,
}

/// What a key must be for an operation to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    /// Present, last written at this revision.
    At(Revision),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Bytes,
        expect: Expect,
    },
    Delete {
        key: String,
        expect: Expect,
    },
    /// Only a condition. (Deleting a key that is absent changes nothing either: a transaction that
    /// changes nothing takes no revision.)
    Check {
        key: String,
        expect: Expect,
    },
}

/// Applied whole or not at all, at one revision. A key may occur once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub ops: Vec<Op>,
}

/// A page request over the keys that start with `prefix`, in key order.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    pub prefix: String,
    /// Only keys greater than this one (the last key of the page before).
    pub after: Option<String>,
    /// At most this many entries; 0 is no limit.
    pub limit: usize,
    /// The revision to read at; None is the newest durable one.
    pub at: Option<Revision>,
}

#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// How many entries of the prefix follow this page.
    pub remaining: usize,
    /// The revision that was read.
    pub revision: Revision,
}

/// One key's change.
#[derive(Clone, Debug)]
pub struct Event {
    pub key: Arc<str>,
    pub revision: Revision,
    /// None when the key was deleted.
    pub entry: Option<Entry>,
    /// What was there before, unless the key was absent (or the value was compacted).
    pub previous: Option<Entry>,
}

/// Events of one or more whole transactions.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub events: Vec<Arc<Event>>,
    /// Everything up to and including this revision was delivered by this batch or an earlier one,
    /// also when `events` is empty: what a bookmark says.
    pub revision: Revision,
}

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The condition of operation `op` did not hold; `current` is what is there.
    #[error("operation {op} of the transaction conflicts with the stored state")]
    Conflict { op: usize, current: Option<Entry> },
    #[error("the transaction is too large: {what}")]
    TooLarge { what: String },
    /// The transaction makes no sense, whatever is stored: a key occurs twice.
    #[error("the transaction is invalid: {what}")]
    Invalid { what: String },
    #[error(transparent)]
    Store(#[from] Error),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision was compacted away; `oldest` is the oldest still retained.
    #[error("revision {asked} was compacted, the oldest retained is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    /// The revision has not happened yet.
    #[error("revision {asked} is in the future, the newest is {newest}")]
    Future { asked: Revision, newest: Revision },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
    /// The data directory cannot be used; the text says which path, what is wrong, what to do.
    #[error("{0}")]
    Unusable(String),
    #[error("the store failed: {0}")]
    Backend(String),
}

/// A store backend. Cheap to share behind an `Arc`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest durable revision.
    fn revision(&self) -> Revision;

    /// The oldest revision that can still be listed at, and watched after.
    fn oldest(&self) -> Revision;

    /// One key, now or at a revision.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, Error>;

    async fn list(&self, request: ListRequest) -> Result<Page, Error>;

    /// Number of keys with a prefix now. Constant memory.
    async fn count(&self, prefix: &str) -> Result<usize, Error>;

    /// Applies a transaction; answers with its revision once it is durable. A transaction of only
    /// checks takes no revision and answers with the newest.
    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError>;

    /// Changes of keys that start with `prefix`, in transactions later than `after`. A revision
    /// that has not happened yet is [`Error::Future`]. A watch that waits in `next` does not age: it
    /// survives any compaction. One that is not asked while its events are compacted away answers
    /// [`Error::Compacted`].
    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, Error>;

    /// Forgets history before `revision`; the state at it stays readable. Answers once that is
    /// durable; the space is freed in the background. Repeating a compaction, or asking for an older
    /// one, does nothing.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// The bytes that it takes where it is kept; None of one that is nowhere but in memory, or that
    /// cannot tell.
    async fn size(&self) -> Option<u64> {
        None
    }
}

/// A position in the event log that moves forward.
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next batch. Cancel-safe. Batches without events come when the revision moved
    /// on without touching the prefix, at most one per wake-up, and only if `progress` is wanted.
    async fn next(&mut self) -> Result<Batch, Error>;

    /// Whether empty batches that only move the revision are wanted (bookmarks). Off at first.
    fn progress(&mut self, wanted: bool);
}
