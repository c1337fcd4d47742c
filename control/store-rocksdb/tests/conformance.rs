//! The suite that every backend runs, on RocksDB.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails by panicking, as the test does")]

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rimward_control_store::Store;
use rimward_control_store::conformance::Backend;
use rimward_control_store_rocksdb::{Options, RocksStore};

/// One per check.
struct Rocks {
    directory: tempfile::TempDir,
}

impl Rocks {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }
}

#[async_trait]
impl Backend for Rocks {
    async fn fresh(&self) -> Arc<dyn Store> {
        RocksStore::open(&self.path(), Options::default()).unwrap()
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Option<Arc<dyn Store>> {
        // Opening fails as long as anyone holds the old one.
        drop(store);
        Some(RocksStore::open(&self.path(), Options::default()).unwrap())
    }
}

rimward_control_store::conformance!(Rocks::new());
