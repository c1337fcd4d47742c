//! Layers of Linux images: each is unpacked once, into a directory named by what it unpacks to (its
//! diffID), which all images and containers share and nobody writes to again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::content::hex_digest;
use crate::unpack::{self, UnpackError};

/// What one layer may unpack to. A few kilobytes of compressed zeros must not fill a disk.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes_max: u64,
    pub entries_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: 16 << 30, entries_max: 2_000_000 }
    }
}

pub(crate) struct Layers {
    dir: PathBuf,
    staging: PathBuf,
    limits: Limits,
    /// One unpacking of a layer at a time; two images that share it may be pulled at once.
    unpacking: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("it unpacks to {actual}, not to {wanted} as the image's config says")]
    DiffId { wanted: String, actual: String },
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("{0}")]
    Io(String),
}

impl Layers {
    /// `dir` is the image store's, whose `staging` is emptied at its start.
    pub fn open(dir: &Path, limits: Limits) -> std::io::Result<Self> {
        let (layers, staging) = (dir.join("layers"), dir.join("staging"));
        std::fs::create_dir_all(&layers)?;
        Ok(Self { dir: layers, staging, limits, unpacking: Mutex::default() })
    }

    fn path(&self, diff_id: &str) -> Result<PathBuf, String> {
        let hex = diff_id
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let hex =
            hex.ok_or_else(|| format!("diffID {diff_id:?} is not sha256 and 64 hex digits"))?;
        Ok(self.dir.join(hex.to_ascii_lowercase()))
    }

    /// The layer's directory, if it was unpacked before.
    pub fn present(&self, diff_id: &str) -> Result<Option<PathBuf>, String> {
        Ok(Some(self.path(diff_id)?).filter(|dir| dir.is_dir()))
    }

    /// Unpacks a blob whose digest was checked, and checks what came out.
    pub async fn unpack(&self, blob: &Path, diff_id: &str) -> Result<PathBuf, LayerError> {
        let dir = self.path(diff_id).map_err(LayerError::Io)?;
        let turn = self.unpacking.lock().entry(diff_id.to_owned()).or_default().clone();
        let _only_once = turn.lock().await;
        if dir.is_dir() {
            return Ok(dir);
        }
        let staged = self.staging.join(uuid::Uuid::new_v4().simple().to_string());
        let (blob, wanted, limits) = (blob.to_owned(), diff_id.to_owned(), self.limits);
        let work = move || {
            let done = unpack_to(&blob, &staged, &wanted, limits).and_then(|()| {
                std::fs::rename(&staged, &dir).map_err(|e| io(&dir, &e))?;
                Ok(dir)
            });
            if done.is_err() {
                let _the_first_error_is_the_one_to_tell = std::fs::remove_dir_all(&staged);
            }
            done
        };
        let done = tokio::task::spawn_blocking(work).await;
        self.unpacking.lock().remove(diff_id);
        done.map_err(|e| LayerError::Io(e.to_string()))?
    }
}

fn io(path: &Path, error: &std::io::Error) -> LayerError {
    LayerError::Io(format!("{}: {error}", path.display()))
}

fn unpack_to(blob: &Path, dir: &Path, wanted: &str, limits: Limits) -> Result<(), LayerError> {
    let at = |e: std::io::Error| io(dir, &e);
    std::fs::create_dir(dir).map_err(at)?;
    let limits = Limits { bytes_max: limits.bytes_max.min(room(dir).map_err(at)?), ..limits };
    std::os::unix::fs::chown(dir, Some(0), Some(0)).map_err(at)?;
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(at)?;
    let file = File::open(blob).map_err(|e| io(blob, &e))?;
    let plain = decompressed(file).map_err(|e| io(blob, &e))?;
    let inner = AtMost::new(plain, limits.bytes_max, dir);
    let mut tar = Hashing { inner, hash: Sha256::new() };
    unpack::unpack(&mut tar, dir, &limits)?;
    // The end of an archive is padding, which the diffID covers too.
    std::io::copy(&mut tar, &mut std::io::sink()).map_err(UnpackError::from)?;
    let actual = hex_digest(&tar.hash.finalize());
    if actual != wanted.to_ascii_lowercase() {
        return Err(LayerError::DiffId { wanted: wanted.to_owned(), actual });
    }
    // A layer that is there is whole, also after a power cut.
    let whole = File::open(dir).map_err(at)?;
    rustix::fs::syncfs(&whole).map_err(|e| at(e.into()))
}

/// Of the disk, what no layer takes: so one that is larger than it says fails alone.
const KEPT_FREE: u64 = 1 << 30;

/// What images may still take of the disk, in bytes. Of a small disk a twentieth is kept free.
pub(crate) fn room(dir: &Path) -> std::io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok(bytes(disk.f_bavail).saturating_sub(KEPT_FREE.min(bytes(disk.f_blocks) / 20)))
}

/// Told by its first bytes: media types lie now and then.
pub(crate) fn decompressed(file: File) -> std::io::Result<Box<dyn Read>> {
    use std::io::BufRead;
    let mut file = BufReader::with_capacity(1 << 16, file);
    let start = file.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(file)?)
    } else {
        Box::new(file)
    })
}

/// Reads no more than it may, and no more than the disk has room for, which others take from as well. An end in the
/// place of an error could be taken for the archive's own.
pub(crate) struct AtMost<'a, R> {
    inner: R,
    left: u64,
    /// Where what is read goes.
    dir: &'a Path,
    unlooked: u64,
}

impl<'a, R> AtMost<'a, R> {
    /// The disk is looked at whenever so many bytes more were read.
    const LOOK_BYTES: u64 = 4 << 20;

    pub fn new(inner: R, left: u64, dir: &'a Path) -> Self {
        Self { inner, left, dir, unlooked: 0 }
    }
}

impl<R: Read> Read for AtMost<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.inner.read(buffer)?;
        let too_much = || std::io::Error::other(unpack::TOO_MUCH);
        self.left = self.left.checked_sub(len as u64).ok_or_else(too_much)?;
        self.unlooked += len as u64;
        if self.unlooked > Self::LOOK_BYTES {
            self.unlooked = 0;
            if room(self.dir)? == 0 {
                return Err(too_much());
            }
        }
        Ok(len)
    }
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.hash.update(&buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
