//! Files by digest. A file is in `blobs/` only once its digest was checked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long what came of a blob is kept for the pull that goes on with it.
const PARTIAL_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

pub(crate) struct Content {
    dir: PathBuf,
    /// One transfer of a blob from a place at a time; two images that share it may be pulled at once.
    coming: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    #[error(
        "the content has digest {actual}, not {wanted}: the registry or the network altered it"
    )]
    Mismatch { wanted: String, actual: String },
    #[error("digest {0:?} is not sha256 and 64 hex digits")]
    BadDigest(String),
    #[error("the blob is larger than the {0} bytes that this node takes")]
    TooLarge(u64),
    #[error("the content has {actual} bytes or more, not {wanted} as its descriptor says")]
    Longer { wanted: u64, actual: u64 },
    #[error("the content has {actual} bytes, not {wanted} as its descriptor says")]
    Size { wanted: u64, actual: u64 },
    #[error("{path}: No space left on device: it takes {wanted} bytes, {room} are left for images")]
    NoRoom { path: PathBuf, wanted: u64, room: u64 },
    #[error("the transfer broke: {0}")]
    Transfer(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

impl Content {
    /// Makes the directories, and removes what an earlier crash left half-written.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        let staging = dir.join("staging");
        if staging.exists() {
            std::fs::remove_dir_all(&staging)?;
        }
        std::fs::create_dir_all(&staging)?;
        std::fs::create_dir_all(dir.join("blobs"))?;
        std::fs::create_dir_all(dir.join("partial"))?;
        for entry in std::fs::read_dir(dir.join("partial"))?.flatten() {
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age > PARTIAL_KEPT {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir: dir.to_owned(), coming: Mutex::default() })
    }

    /// Where transfers that broke left what they had.
    pub fn partials(dir: &Path) -> PathBuf {
        dir.join("partial")
    }

    /// The turn of one transfer of a blob from a place.
    pub fn turn(&self, place: &str, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut coming = self.coming.lock();
        // Those that nobody waits for any more.
        coming.retain(|_, turn| Arc::strong_count(turn) > 1);
        coming.entry(format!("{place} {digest}")).or_default().clone()
    }

    /// What came of a blob from a place in earlier transfers, to be gone on with. The caller has their turn.
    pub async fn partial(
        &self,
        place: &str,
        digest: &str,
        bytes: Bounds,
    ) -> Result<Partial, ContentError> {
        let path = self.path(digest)?;
        let name = digest_of(format!("{place} {digest}").as_bytes());
        let staged = Self::partials(&self.dir).join(name.trim_start_matches("sha256:"));
        let io = |source| ContentError::Io { path: staged.clone(), source };
        let mut options = tokio::fs::OpenOptions::new();
        let options = options.read(true).append(true).create(true);
        let mut file = options.open(&staged).await.map_err(io)?;
        let (mut hash, mut len) = (Sha256::new(), 0);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer).await.map_err(io)? {
                0 => break,
                read => {
                    hash.update(&buffer[..read]);
                    len += read as u64;
                }
            }
        }
        let mut partial =
            Partial { digest: digest.to_owned(), staged, path, file, hash, len, bytes };
        if len > bytes.max() {
            partial.begin_anew().await?;
        }
        Ok(partial)
    }

    /// Where the blob is or would be.
    pub fn path(&self, digest: &str) -> Result<PathBuf, ContentError> {
        let hex = digest.strip_prefix("sha256:").filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        let hex = hex.ok_or_else(|| ContentError::BadDigest(digest.to_owned()))?;
        Ok(self.dir.join("blobs").join(hex))
    }

    /// A place for a file that this node makes itself.
    pub fn stage(&self) -> PathBuf {
        self.dir.join("staging").join(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Takes a staged file; answers its digest. Blocks.
    pub fn adopt(&self, staged: &Path) -> Result<(String, PathBuf), ContentError> {
        let io = |source| ContentError::Io { path: staged.to_owned(), source };
        let (mut hash, mut file) = (Sha256::new(), std::fs::File::open(staged).map_err(io)?);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match std::io::Read::read(&mut file, &mut buffer).map_err(io)? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        file.sync_all().map_err(io)?;
        let digest = hex_digest(&hash.finalize());
        let path = self.path(&digest)?;
        std::fs::rename(staged, &path).map_err(io)?;
        Ok((digest, path))
    }
}

/// How long a blob is, or may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bounds {
    /// As what refers to it says.
    Exactly(u64),
    UpTo(u64),
}

impl Bounds {
    fn max(self) -> u64 {
        match self {
            Self::Exactly(max) | Self::UpTo(max) => max,
        }
    }

    fn exceeded_by(self, actual: u64) -> Option<ContentError> {
        match self {
            _ if actual <= self.max() => None,
            Self::Exactly(wanted) => Some(ContentError::Longer { wanted, actual }),
            Self::UpTo(max) => Some(ContentError::TooLarge(max)),
        }
    }

    /// Compares all there is.
    pub fn check(self, actual: u64) -> Result<(), ContentError> {
        match self {
            Self::Exactly(wanted) if wanted != actual => Err(ContentError::Size { wanted, actual }),
            _ => Ok(()),
        }
    }
}

/// A blob of which not all has come.
pub(crate) struct Partial {
    digest: String,
    staged: PathBuf,
    path: PathBuf,
    file: tokio::fs::File,
    hash: Sha256,
    len: u64,
    bytes: Bounds,
}

impl Partial {
    pub fn len(&self) -> u64 {
        self.len
    }

    fn io(&self, source: std::io::Error) -> ContentError {
        ContentError::Io { path: self.staged.clone(), source }
    }

    pub async fn begin_anew(&mut self) -> Result<(), ContentError> {
        (self.hash, self.len) = (Sha256::new(), 0);
        self.file.set_len(0).await.map_err(|e| self.io(e))
    }

    /// Takes what follows. After a transfer that breaks it can be called again, for the rest.
    pub async fn take<E: std::fmt::Display>(
        &mut self,
        stream: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), ContentError> {
        let mut stream = std::pin::pin!(stream);
        let outcome = loop {
            match stream.next().await {
                None => break Ok(()),
                Some(Err(error)) => break Err(ContentError::Transfer(error.to_string())),
                Some(Ok(chunk)) => {
                    if let Some(error) = self.bytes.exceeded_by(self.len + chunk.len() as u64) {
                        return Err(error);
                    }
                    self.file.write_all(&chunk).await.map_err(|e| self.io(e))?;
                    self.hash.update(&chunk);
                    self.len += chunk.len() as u64;
                }
            }
        };
        self.file.flush().await.map_err(|e| self.io(e))?;
        outcome
    }

    /// Whether what came is the blob, whatever its descriptor says.
    pub fn is_whole(&self) -> bool {
        hex_digest(&self.hash.clone().finalize()) == self.digest
    }

    /// All of it is there: it is what it should be, or it goes.
    pub async fn finish(self) -> Result<PathBuf, ContentError> {
        if let Err(error) = self.bytes.check(self.len) {
            self.discard().await;
            return Err(error);
        }
        let actual = hex_digest(&self.hash.clone().finalize());
        if actual != self.digest {
            let wanted = self.digest.clone();
            self.discard().await;
            return Err(ContentError::Mismatch { wanted, actual });
        }
        self.file.sync_all().await.map_err(|e| self.io(e))?;
        let done = tokio::fs::rename(&self.staged, &self.path).await;
        done.map_err(|source| ContentError::Io { path: self.path.clone(), source })?;
        Ok(self.path)
    }

    pub async fn discard(self) {
        let _gone_already = tokio::fs::remove_file(&self.staged).await;
    }
}

/// `sha256:<hex>` of bytes.
pub(crate) fn digest_of(content: &[u8]) -> String {
    hex_digest(&Sha256::digest(content))
}

pub(crate) fn hex_digest(hash: &[u8]) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(
        parts: &[Result<&'static str, &'static str>],
    ) -> impl Stream<Item = Result<Bytes, String>> {
        let own = |part: &Result<&'static str, &'static str>| match part {
            Ok(text) => Ok(Bytes::from_static(text.as_bytes())),
            Err(why) => Err((*why).to_owned()),
        };
        futures::stream::iter(parts.iter().map(own).collect::<Vec<_>>())
    }

    #[tokio::test]
    async fn a_broken_transfer_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let digest = digest_of(b"hello world");
        {
            let content = Content::open(dir.path()).unwrap();
            let mut partial = content.partial("r", &digest, Bounds::Exactly(11)).await.unwrap();
            let broke = partial.take(chunks(&[Ok("hel"), Ok("lo"), Err("reset")])).await;
            assert_eq!(broke.unwrap_err().to_string(), "the transfer broke: reset");
            assert_eq!(partial.len(), 5);
        }
        // By the next agent.
        let content = Content::open(dir.path()).unwrap();
        let mut partial = content.partial("r", &digest, Bounds::Exactly(11)).await.unwrap();
        assert_eq!(partial.len(), 5);
        partial.take(chunks(&[Ok(" world")])).await.unwrap();
        let path = partial.finish().await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"hello world");
        assert_eq!(std::fs::read_dir(Content::partials(dir.path())).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_not_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::open(dir.path()).unwrap();
        let digest = digest_of(b"hello world");
        let mut partial = content.partial("r", &digest, Bounds::UpTo(8)).await.unwrap();
        let outcome = partial.take(chunks(&[Ok("hello"), Ok(" world")])).await;
        assert!(matches!(outcome, Err(ContentError::TooLarge(8))), "{outcome:?}");
        partial.begin_anew().await.unwrap();
        partial.take(chunks(&[Ok("other")])).await.unwrap();
        let outcome = partial.finish().await;
        assert!(matches!(outcome, Err(ContentError::Mismatch { .. })), "{outcome:?}");
        let again = content.partial("r", &digest, Bounds::UpTo(8)).await.unwrap();
        assert_eq!(again.len(), 0);
        again.discard().await;
        // Its digest is right, and still it is not what the manifest says.
        for (wanted, expected) in [
            (10, "the content has 11 bytes or more, not 10 as its descriptor says"),
            (12, "the content has 11 bytes, not 12 as its descriptor says"),
        ] {
            let mut partial = content.partial("r", &digest, Bounds::Exactly(wanted)).await.unwrap();
            let taken = partial.take(chunks(&[Ok("hello world")])).await;
            let error = match taken {
                Err(error) => {
                    partial.discard().await;
                    error
                }
                Ok(()) => partial.finish().await.unwrap_err(),
            };
            assert_eq!(error.to_string(), expected);
        }
    }
}
