//! Machine code of images, made once and kept: the cache in `data_dir/aot`.
//!
//! An artifact is two files: `<key>.cwasm`, which hosts map into memory as it is, and `<key>.json`,
//! which says what it is, how long, and its checksum. The second is written last: without it there
//! is no artifact. Files are never changed in place, only renamed over or unlinked, because hosts
//! have them mapped. The key covers the image's digest, the target and the engine's configuration.
//!
//! The checksum guards against a damaged disk, not against an enemy: only the agent's user can write
//! here, and whoever is the agent's user can do worse.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rimward_node_pod::runtime::StartError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::config::Config;

/// What a component's exports make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Exports `wasi:http/incoming-handler` 0.2.
    Handler,
    /// Exports `wasi:http/handler` 0.3.
    HandlerP3,
    /// Exports `wasi:cli/run` 0.2.
    Command,
    /// Exports `wasi:cli/run` 0.3.
    CommandP3,
    /// A core module of WASI preview 1 with `_start`.
    Preview1,
}

impl Kind {
    pub fn is_handler(self) -> bool {
        matches!(self, Self::Handler | Self::HandlerP3)
    }

    pub fn is_p3(self) -> bool {
        matches!(self, Self::HandlerP3 | Self::CommandP3)
    }
}

/// An artifact as a host is told of it, and as `<key>.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Artifact {
    /// Of the cache; hosts share what is loaded by it.
    pub key: String,
    pub kind: Kind,
    /// Imports `wasi:sockets`' TCP or UDP.
    pub sockets: bool,
    pub bytes: u64,
    pub crc32: u32,
}

/// What `wasm-compile` says of what it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compiled {
    pub kind: Kind,
    pub sockets: bool,
    pub bytes: u64,
    pub crc32: u32,
}

/// The cache. Cheap to clone; calls for one image share one compilation.
#[derive(Clone)]
pub(crate) struct Cache(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    config: Config,
    compatibility: OnceLock<Result<u64, String>>,
    /// One lock an image: whoever comes second finds the first one's work.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Compilers at once: each uses all cores already.
    compilers: tokio::sync::Semaphore,
    /// Keys that the agent's runs use, which are not evicted.
    used: Mutex<HashMap<String, usize>>,
    compiled: std::sync::atomic::AtomicU64,
}

impl Cache {
    pub fn new(config: &Config) -> Self {
        Self(Arc::new(Inner {
            dir: config.data_dir.join("aot"),
            config: config.clone(),
            compatibility: OnceLock::new(),
            busy: Mutex::default(),
            compilers: tokio::sync::Semaphore::new(2),
            used: Mutex::default(),
            compiled: 0.into(),
        }))
    }

    /// How many images this process had to compile.
    pub fn compiled(&self) -> u64 {
        self.0.compiled.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub fn path(&self, key: &str) -> PathBuf {
        self.0.dir.join(format!("{key}.cwasm"))
    }

    /// The machine code of `wasm`, whose digest is `digest`: from the cache, else compiled.
    pub async fn ensure(&self, wasm: &Path, digest: &str) -> Result<Artifact, StartError> {
        let key = self.key(digest).map_err(cannot_create)?;
        if let Some(artifact) = self.cached(&key) {
            return Ok(artifact);
        }
        let lock = self.0.busy.lock().entry(key.clone()).or_default().clone();
        let artifact = {
            let _turn = lock.lock().await;
            match self.cached(&key) {
                Some(artifact) => Ok(artifact),
                None => self.compile(wasm, &key).await,
            }
        };
        drop(lock);
        self.0.busy.lock().retain(|_, lock| Arc::strong_count(lock) > 1);
        artifact.map_err(cannot_create)
    }

    /// Forgets an artifact that a host found damaged.
    pub fn discard(&self, key: &str) {
        let _ = std::fs::remove_file(self.description(key));
        let _ = std::fs::remove_file(self.path(key));
    }

    pub fn hold(&self, key: &str) {
        *self.0.used.lock().entry(key.to_owned()).or_default() += 1;
    }

    pub fn release(&self, key: &str) {
        let mut used = self.0.used.lock();
        if let Some(count) = used.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                used.remove(key);
            }
        }
    }

    fn key(&self, digest: &str) -> Result<String, String> {
        let compatibility = self.0.compatibility.get_or_init(|| {
            crate::engine::compiler()
                .map(|engine| crate::engine::compatibility(&engine))
                .map_err(|error| format!("wasmtime cannot compile for this machine: {error:#}"))
        });
        let compatibility = compatibility.as_ref().map_err(Clone::clone)?;
        let text = format!("{digest}\n{}\n{compatibility:x}", std::env::consts::ARCH);
        Ok(hex(&Sha256::digest(text))[..40].to_owned())
    }

    fn description(&self, key: &str) -> PathBuf {
        self.0.dir.join(format!("{key}.json"))
    }

    /// What the cache has, if its length is right. The checksum is the host's to check, when it
    /// reads the file anyway.
    fn cached(&self, key: &str) -> Option<Artifact> {
        let artifact: Artifact =
            serde_json::from_slice(&std::fs::read(self.description(key)).ok()?).ok()?;
        let path = self.path(key);
        let whole = std::fs::metadata(&path).is_ok_and(|file| file.len() == artifact.bytes)
            && artifact.key == key;
        if !whole {
            self.discard(key);
            return None;
        }
        // The age that eviction goes by.
        if let Ok(file) = std::fs::File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(artifact)
    }

    async fn compile(&self, wasm: &Path, key: &str) -> Result<Artifact, String> {
        let _permit = self.0.compilers.acquire().await.expect("the semaphore is never closed");
        let dir = &self.0.dir;
        let storage = |error: std::io::Error| {
            format!("cannot write machine code to {}: {error}", dir.display())
        };
        std::fs::create_dir_all(dir).map_err(storage)?;
        let file = tempfile(dir).map_err(storage)?;
        let compiled = self.run_compiler(wasm, &file.0).await?;
        self.0.compiled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);

        let artifact = Artifact {
            key: key.to_owned(),
            kind: compiled.kind,
            sockets: compiled.sockets,
            bytes: compiled.bytes,
            crc32: compiled.crc32,
        };
        let description = tempfile(dir).map_err(storage)?;
        let json = serde_json::to_vec(&artifact).expect("an artifact's description is plain data");
        std::fs::write(&description.0, json).map_err(storage)?;
        std::fs::rename(&file.0, self.path(key)).map_err(storage)?;
        std::fs::rename(&description.0, self.description(key)).map_err(storage)?;
        self.evict(key);
        Ok(artifact)
    }

    async fn run_compiler(&self, wasm: &Path, output: &Path) -> Result<Compiled, String> {
        let config = &self.0.config;
        let mut command = tokio::process::Command::new(&config.exe);
        command
            .arg("wasm-compile")
            .arg(wasm)
            .arg(output)
            .arg(config.compile_memory_bytes.to_string());
        command.arg(config.compile_timeout.as_secs().to_string());
        if rustix::process::geteuid().is_root() {
            command.arg(config.host_uid.to_string()).arg(config.host_gid.to_string());
        }
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            format!("cannot start {} wasm-compile: {error}", config.exe.display())
        })?;
        let mut stdout = child.stdout.take().expect("it is piped").take(64 << 10);
        let mut stderr = child.stderr.take().expect("it is piped").take(64 << 10);
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        // A little longer than its own limit, of CPU time.
        let patience = config.compile_timeout + Duration::from_secs(5);
        let all = async {
            let (_, _) =
                tokio::join!(stdout.read_to_end(&mut answer), stderr.read_to_end(&mut complaint));
            child.wait().await
        };
        let Ok(status) = tokio::time::timeout(patience, all).await else {
            return Err(format!(
                "compiling it takes longer than {} s",
                config.compile_timeout.as_secs()
            ));
        };
        let status = status.map_err(|error| format!("cannot wait for wasm-compile: {error}"))?;
        if !status.success() {
            let complaint = String::from_utf8_lossy(&complaint);
            return Err(match complaint.trim() {
                "" => format!(
                    "compiling it ended with {status}; it may need more than {} MiB",
                    config.compile_memory_bytes >> 20
                ),
                text => text.to_owned(),
            });
        }
        serde_json::from_slice(&answer)
            .map_err(|error| format!("wasm-compile's answer cannot be read: {error}"))
    }

    /// Removes what was used longest ago until the cache fits its limit.
    fn evict(&self, keep: &str) {
        let files =
            std::fs::read_dir(&self.0.dir).into_iter().flatten().flatten().filter_map(|entry| {
                let meta = entry.metadata().ok()?;
                let name = entry.file_name().into_string().ok()?;
                Some((name.strip_suffix(".cwasm")?.to_owned(), meta.len(), meta.modified().ok()?))
            });
        let used = self.0.used.lock();
        for key in surplus(files.collect(), self.0.config.aot_cache_bytes, |key| {
            key == keep || used.contains_key(key)
        }) {
            self.discard(&key);
        }
    }
}

/// The keys to remove, oldest first, so that the rest is within `bytes_max`.
fn surplus(
    mut files: Vec<(String, u64, SystemTime)>,
    bytes_max: u64,
    keep: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut total: u64 = files.iter().map(|file| file.1).sum();
    files.sort_by_key(|file| file.2);
    let mut remove = Vec::new();
    for (key, bytes, _) in files {
        if total <= bytes_max {
            break;
        }
        if !keep(&key) {
            total -= bytes;
            remove.push(key);
        }
    }
    remove
}

fn cannot_create(message: String) -> StartError {
    StartError { reason: "CreateContainerError".into(), message }
}

/// A new empty file that is gone again unless it was renamed.
struct TempFile(PathBuf);

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn tempfile(dir: &Path) -> std::io::Result<TempFile> {
    let path = dir.join(format!("tmp-{:016x}", rand::random::<u64>()));
    std::fs::File::create_new(&path)?;
    Ok(TempFile(path))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_what_runs_stays() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let files = || {
            vec![
                ("a".to_owned(), 40, at(3)),
                ("b".to_owned(), 40, at(1)),
                ("c".to_owned(), 40, at(2)),
            ]
        };
        assert_eq!(surplus(files(), 120, |_| false), Vec::<String>::new());
        assert_eq!(surplus(files(), 100, |_| false), ["b"]);
        assert_eq!(surplus(files(), 100, |key| key == "b"), ["c"]);
        assert_eq!(surplus(files(), 0, |key| key == "b"), ["c", "a"]);
    }
}
