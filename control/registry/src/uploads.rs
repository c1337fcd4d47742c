//! Upload sessions: a staged file, a running hash, and where the next chunk must start.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedMutexGuard;

use crate::path::Digest;
use crate::{Config, Error};

/// A session that nothing was heard of for this long is given up: clients that break off never say so.
const IDLE_MAX: Duration = Duration::from_secs(3600);
/// The same, when all places are taken.
const IDLE_MAX_FULL: Duration = Duration::from_secs(120);

pub(crate) struct Uploads {
    dir: PathBuf,
    blob_bytes_max: u64,
    uploads_max: usize,
    /// One client at a time per session: the lock is held over a chunk.
    sessions: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Session>>>>,
}

struct Session {
    name: String,
    path: PathBuf,
    file: File,
    hash: Sha256,
    len: u64,
    heard: Instant,
}

/// A staged file whose digest was checked and which is on disk.
pub(crate) struct Finished {
    pub path: PathBuf,
    pub digest: Digest,
}

impl Uploads {
    pub fn new(dir: PathBuf, config: &Config) -> Self {
        Self {
            dir,
            blob_bytes_max: config.blob_bytes_max,
            uploads_max: config.uploads_max,
            sessions: Mutex::default(),
        }
    }

    /// Starts a session for a repository; answers its id.
    pub async fn start(&self, name: &str) -> Result<String, Error> {
        self.give_up_idle(IDLE_MAX);
        if self.sessions.lock().len() >= self.uploads_max {
            self.give_up_idle(IDLE_MAX_FULL);
        }
        if self.sessions.lock().len() >= self.uploads_max {
            return Err(Error::TooManyUploads(self.uploads_max));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let path = self.dir.join(&id);
        let file = File::create(&path).await.map_err(|e| Error::io(&path, e))?;
        let session = Session {
            name: name.to_owned(),
            path,
            file,
            hash: Sha256::new(),
            len: 0,
            heard: Instant::now(),
        };
        self.sessions.lock().insert(id.clone(), Arc::new(tokio::sync::Mutex::new(session)));
        Ok(id)
    }

    fn give_up_idle(&self, idle_max: Duration) {
        self.sessions.lock().retain(|id, session| {
            // Busy is not idle.
            let Ok(open) = session.try_lock() else { return true };
            let keep = open.heard.elapsed() < idle_max;
            if !keep {
                tracing::info!(upload = id, repository = open.name, "gave up an idle upload");
                let _the_next_start_removes_it_else = std::fs::remove_file(&open.path);
            }
            keep
        });
    }

    /// The session, once it is this request's turn. A session belongs to one repository: whoever may
    /// push elsewhere does not find it.
    async fn session(&self, name: &str, id: &str) -> Result<OwnedMutexGuard<Session>, Error> {
        let unknown = || Error::UploadUnknown(id.to_owned());
        let found = self.sessions.lock().get(id).cloned().ok_or_else(unknown)?;
        let mut session = found.lock_owned().await;
        // It may have ended while this one waited.
        if session.name != name || !self.sessions.lock().contains_key(id) {
            return Err(unknown());
        }
        session.heard = Instant::now();
        Ok(session)
    }

    /// Bytes received so far.
    pub async fn len(&self, name: &str, id: &str) -> Result<u64, Error> {
        Ok(self.session(name, id).await?.len)
    }

    /// Appends a chunk, which must start where the upload stands when `start` says where it starts.
    pub async fn append<E: std::fmt::Display>(
        &self,
        name: &str,
        id: &str,
        start: Option<u64>,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<u64, Error> {
        let mut session = self.session(name, id).await?;
        if let Some(start) = start.filter(|s| *s != session.len) {
            return Err(Error::RangeInvalid { start, at: session.len });
        }
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| Error::Client(e.to_string()))?;
            if session.len + chunk.len() as u64 > self.blob_bytes_max {
                self.sessions.lock().remove(id);
                let _what_to_tell_is_the_size = tokio::fs::remove_file(&session.path).await;
                return Err(Error::TooLarge { max: self.blob_bytes_max });
            }
            let Session { file, hash, path, .. } = &mut *session;
            file.write_all(&chunk).await.map_err(|e| Error::io(path, e))?;
            hash.update(&chunk);
            session.len += chunk.len() as u64;
            session.heard = Instant::now();
        }
        let Session { file, path, .. } = &mut *session;
        file.flush().await.map_err(|e| Error::io(path, e))?;
        Ok(session.len)
    }

    /// Ends the session: syncs the file and compares its digest. The session is gone either way.
    pub async fn finish(&self, name: &str, id: &str, claimed: &Digest) -> Result<Finished, Error> {
        let mut session = self.session(name, id).await?;
        self.sessions.lock().remove(id);
        let digest = Digest::from_hash(&std::mem::take(&mut session.hash).finalize());
        if digest != *claimed {
            let _the_mismatch_is_what_matters = tokio::fs::remove_file(&session.path).await;
            let (claimed, actual) = (claimed.to_string(), digest.to_string());
            return Err(Error::DigestMismatch { claimed, actual });
        }
        session.file.sync_all().await.map_err(|e| Error::io(&session.path, e))?;
        Ok(Finished { path: session.path.clone(), digest })
    }

    pub async fn cancel(&self, name: &str, id: &str) -> Result<(), Error> {
        let session = self.session(name, id).await?;
        self.sessions.lock().remove(id);
        tokio::fs::remove_file(&session.path).await.map_err(|e| Error::io(&session.path, e))
    }
}
