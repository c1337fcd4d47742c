//! Files by digest. A file is in `blobs/` only once its digest was checked.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

pub(crate) struct Content {
    dir: PathBuf,
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
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where the blob is or would be.
    pub fn path(&self, digest: &str) -> Result<PathBuf, ContentError> {
        let hex = digest.strip_prefix("sha256:").filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        let hex = hex.ok_or_else(|| ContentError::BadDigest(digest.to_owned()))?;
        Ok(self.dir.join("blobs").join(hex))
    }

    /// Stores a stream under its digest, unless it is there already.
    pub async fn store<E: std::fmt::Display>(
        &self,
        digest: &str,
        bytes_max: u64,
        stream: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<PathBuf, ContentError> {
        let path = self.path(digest)?;
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            return Ok(path);
        }
        let staged = self.dir.join("staging").join(uuid::Uuid::new_v4().simple().to_string());
        let written = write_verified(&staged, digest, bytes_max, stream).await;
        match written {
            Ok(()) => {
                tokio::fs::rename(&staged, &path)
                    .await
                    .map_err(|source| ContentError::Io { path: path.clone(), source })?;
                Ok(path)
            }
            Err(error) => {
                let _the_first_error_is_the_one_to_tell = tokio::fs::remove_file(&staged).await;
                Err(error)
            }
        }
    }

    /// Stores bytes that this node made itself; answers their digest.
    pub async fn store_own(&self, content: &[u8]) -> Result<(String, PathBuf), ContentError> {
        let digest = digest_of(content);
        let once = futures::stream::iter([Ok::<_, String>(Bytes::copy_from_slice(content))]);
        let path = self.store(&digest, u64::MAX, once).await?;
        Ok((digest, path))
    }
}

async fn write_verified<E: std::fmt::Display>(
    staged: &Path,
    digest: &str,
    bytes_max: u64,
    stream: impl Stream<Item = Result<Bytes, E>>,
) -> Result<(), ContentError> {
    let io = |source| ContentError::Io { path: staged.to_owned(), source };
    let mut file = tokio::fs::File::create(staged).await.map_err(io)?;
    let (mut hash, mut len) = (Sha256::new(), 0u64);
    let mut stream = std::pin::pin!(stream);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| ContentError::Transfer(e.to_string()))?;
        len += chunk.len() as u64;
        if len > bytes_max {
            return Err(ContentError::TooLarge(bytes_max));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(io)?;
    }
    let actual = hex_digest(&hash.finalize());
    if actual != digest {
        return Err(ContentError::Mismatch { wanted: digest.to_owned(), actual });
    }
    file.sync_all().await.map_err(io)
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
