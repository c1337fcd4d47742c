//! The control plane's own image registry: the OCI distribution API (`/v2/`) over a directory.
//!
//! CI pushes to it with the tools it has; an air-gapped site needs no other. It refuses to know who
//! asks (the API server authenticates and authorizes `/v2/…` like any non-resource URL before it
//! calls [`Registry::handle`]) and to proxy other registries.
//!
//! Layout, all of it content-addressed or a tiny link, so that a crash leaves no half object:
//!
//! ```text
//! blobs/sha256/<hex>                     content, shared by all repositories
//! repositories/<name>/_blobs/<hex>       this repository may serve the blob
//! repositories/<name>/_manifests/<hex>   media type of a manifest pushed here
//! repositories/<name>/_tags/<tag>        digest
//! uploads/<uuid>                         sessions under way; emptied at start
//! ```
//!
//! Source of every rule: the OCI distribution specification 1.1
//! (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md>).

mod error;
mod manifests;
mod path;
mod routes;
mod storage;
mod uploads;

use std::path::PathBuf;
use std::sync::Arc;

pub use error::Error;
pub use routes::{ResponseBody, empty_body};

/// Where the registry keeps its content, and its limits.
#[derive(Clone, Debug)]
pub struct Config {
    pub dir: PathBuf,
    /// The largest blob that is taken, in bytes.
    pub blob_bytes_max: u64,
    /// The most uploads under way at once.
    pub uploads_max: usize,
}

impl Config {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, blob_bytes_max: 16 << 30, uploads_max: 256 }
    }
}

/// What a request needs a right for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Whether the registry is there, and what it speaks.
    Base,
    /// The names of all repositories.
    Catalog,
    /// One repository; `mount_from` is another one that a blob is to be taken from.
    Repository { name: String, mount_from: Option<String> },
}

impl Scope {
    /// What a `/v2/…` request is about, by the rules that [`Registry::handle`] itself reads paths by: who
    /// guards the registry must not read them in another way. None when it is refused in any case.
    pub fn of(uri: &http::Uri) -> Option<Self> {
        let target = path::Target::parse(uri.path()).ok().flatten()?;
        Some(match target.repository() {
            Some(name) => {
                let mount_from = routes::query_of(uri.query()).remove("from");
                Self::Repository { name: name.to_owned(), mount_from }
            }
            None if target == path::Target::Catalog => Self::Catalog,
            None => Self::Base,
        })
    }
}

/// The largest manifest that is taken, as the specification recommends.
pub(crate) const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// A handle; clones share the same content.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    storage: storage::Storage,
    uploads: uploads::Uploads,
}

impl Registry {
    /// Opens (or makes) the directory and forgets uploads that a crash left behind.
    ///
    /// # Errors
    /// When the directory cannot be made or written; the text names it.
    pub fn open(config: Config) -> Result<Self, Error> {
        let storage = storage::Storage::open(&config.dir)?;
        let uploads = uploads::Uploads::new(config.dir.join("uploads"), &config);
        Ok(Self { inner: Arc::new(Inner { storage, uploads }) })
    }
}
