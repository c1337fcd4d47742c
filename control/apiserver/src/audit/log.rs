//! The audit log: a file of JSON lines, written by a thread of its own and rotated by size.
//!
//! Requests never wait for it: what does not fit into its queue is dropped, and counted aloud.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

/// Events that may wait to be written.
const QUEUE: usize = 10_000;
/// What is written at a time.
const BATCH_BYTES: usize = 256 * 1024;

#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `-` is standard output.
    pub path: PathBuf,
    /// A file is rotated when it would grow beyond this; 0 never.
    pub bytes_max: u64,
    /// How many rotated files are kept; 0 keeps all.
    pub backups_max: usize,
    /// How long rotated files are kept; zero keeps them for good.
    pub age_max: Duration,
}

/// The near end of the log.
#[derive(Debug)]
pub struct Log {
    queue: SyncSender<String>,
    dropped: AtomicU64,
}

impl Log {
    /// Opens the file and starts the thread that writes it.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn open(config: LogConfig) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let mut writer = Writer::open(config)?;
        std::thread::Builder::new().name("audit-log".into()).spawn(move || writer.run(&lines))?;
        Ok(Self { queue, dropped: AtomicU64::new(0) })
    }

    /// Hands over a line, without its end. Never waits.
    pub fn write(&self, line: String) {
        if self.queue.try_send(line).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::error!(dropped, "the audit log cannot keep up: events are lost");
            }
        }
    }
}

struct Writer {
    config: LogConfig,
    /// None: standard output.
    file: Option<File>,
    bytes: u64,
}

impl Writer {
    fn open(config: LogConfig) -> io::Result<Self> {
        if config.path == Path::new("-") {
            return Ok(Self { config, file: None, bytes: 0 });
        }
        if let Some(parent) = config.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        let file = append_to(&config.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { config, file: Some(file), bytes })
    }

    fn run(&mut self, lines: &Receiver<String>) {
        while let Ok(first) = lines.recv() {
            let mut batch = first;
            batch.push('\n');
            while batch.len() < BATCH_BYTES
                && let Ok(next) = lines.try_recv()
            {
                batch += &next;
                batch.push('\n');
            }
            if let Err(e) = self.append(&batch) {
                tracing::error!(path = %self.config.path.display(), error = %e, "the audit log cannot be written");
            }
        }
    }

    fn append(&mut self, batch: &str) -> io::Result<()> {
        let len = batch.len() as u64;
        let full = self.config.bytes_max > 0 && self.bytes + len > self.config.bytes_max;
        if full && self.bytes > 0 && self.file.is_some() {
            self.rotate()?;
        }
        match &mut self.file {
            Some(file) => file.write_all(batch.as_bytes())?,
            None => io::stdout().lock().write_all(batch.as_bytes())?,
        }
        self.bytes += len;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let aside = rotated(&self.config.path, Timestamp::now());
        std::fs::rename(&self.config.path, aside)?;
        self.file = Some(append_to(&self.config.path)?);
        self.bytes = 0;
        self.prune()
    }

    fn prune(&self) -> io::Result<()> {
        let (stem, extension) = parts(&self.config.path);
        let parent = self.config.path.parent().filter(|p| !p.as_os_str().is_empty());
        let mut backups: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(parent.unwrap_or(Path::new(".")))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.starts_with(&format!("{stem}-")) && name.ends_with(&extension) {
                backups.push(path);
            }
        }
        // Names carry the time, so they sort by it.
        backups.sort();
        let surplus = match self.config.backups_max {
            0 => 0,
            max => backups.len().saturating_sub(max),
        };
        let old = |path: &Path| {
            let written = path.metadata().and_then(|m| m.modified()).ok();
            let age = written.and_then(|w| SystemTime::now().duration_since(w).ok());
            !self.config.age_max.is_zero() && age.is_some_and(|a| a > self.config.age_max)
        };
        for (i, path) in backups.iter().enumerate() {
            if i < surplus || old(path) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Names and perhaps bodies of what users do: for the operator's eyes.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// `audit` and `.log` of `audit.log`.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into();
    let extension: String = text(path.extension());
    let extension = if extension.is_empty() { extension } else { format!(".{extension}") };
    (text(path.file_stem()), extension)
}

fn rotated(path: &Path, now: Timestamp) -> PathBuf {
    let (stem, extension) = parts(path);
    let at = now.strftime("%Y-%m-%dT%H-%M-%S%.6f");
    path.with_file_name(format!("{stem}-{at}{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_what_it_should() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.log");
        let config = LogConfig {
            path: path.clone(),
            bytes_max: 20,
            backups_max: 2,
            age_max: Duration::ZERO,
        };
        let mut writer = Writer::open(config).expect("opens");
        for i in 0..10 {
            writer.append(&format!("line number {i}\n")).expect("writes");
        }
        let files: Vec<_> = std::fs::read_dir(dir.path()).expect("reads").collect();
        assert_eq!(files.len(), 3, "{files:?}");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "line number 9\n");
    }
}
