//! The data directory around RocksDB.
//!
//! ```text
//! lock          held while a process owns the directory; its process id, for the message
//! format        what wrote this: refused before RocksDB touches anything if it is newer
//! acknowledged  the newest revision that was acknowledged, as far as we know
//! db/           RocksDB
//! ```
//!
//! `acknowledged` is rewritten after each synced write, without a sync of its own. So it may be
//! behind, but is never ahead of what was promised: a database that holds less than it says has
//! lost acknowledged writes, and is refused. RocksDB alone cannot tell: a log that ends early looks
//! to it like a power cut in the middle of a write.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rimward_control_store::{Error, Revision};

/// The newest format that this version writes and reads.
pub const FORMAT: u64 = 1;
const FORMAT_TITLE: &str = "rimward store, format ";

/// An owned data directory. Dropping it lets another process in.
pub struct Directory {
    path: PathBuf,
    acknowledged: File,
    /// There is no database yet.
    pub fresh: bool,
    _lock: File,
}

impl Directory {
    /// Takes the directory, creating it if need be, and checks that it is ours to use.
    pub fn open(path: &Path) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| cannot(path, "create the directory", &error))?;
        let lock = lock(path)?;
        check_format(path)?;
        let (database, acknowledged) = (path.join("db").exists(), path.join("acknowledged"));
        if !database && acknowledged.exists() {
            return Err(damaged(path, "its database, the folder `db`, is missing"));
        }
        if !acknowledged.exists() && database {
            replace(path, "acknowledged", &watermark(0))
                .map_err(|error| cannot(&acknowledged, "write", &error))?;
        }
        // Where there is no database yet, the file comes after it: see `adopt_database`.
        let acknowledged = if database { open_watermark(path)? } else { lock_clone(path, &lock)? };
        Ok(Self { path: path.to_owned(), acknowledged, fresh: !database, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn database(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Where a database is made before it is complete.
    pub fn unfinished_database(&self) -> Result<PathBuf, Error> {
        let path = self.path.join("db.new");
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(cannot(&path, "remove what an interrupted start left in", &error))
            }
            _ => Ok(path),
        }
    }

    /// Makes the unfinished database the one.
    pub fn adopt_database(&mut self) -> Result<(), Error> {
        let adopt = || {
            fs::rename(self.path.join("db.new"), self.database())?;
            sync_directory(&self.path)?;
            replace(&self.path, "acknowledged", &watermark(0))
        };
        adopt().map_err(|error| cannot(&self.path, "create the database in", &error))?;
        self.acknowledged = open_watermark(&self.path)?;
        self.fresh = false;
        Ok(())
    }

    /// Refuses a database that ends at `found` although more was acknowledged.
    pub fn check_acknowledged(&self, found: Revision) -> Result<(), Error> {
        let path = self.path.join("acknowledged");
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
        read.map_err(|error| cannot(&path, "read", &error))?;
        match parse_watermark(&bytes) {
            Some(acknowledged) if acknowledged > found => Err(damaged(
                &self.path,
                &format!(
                    "writes were acknowledged up to revision {acknowledged}, but only those up to \
                     {found} can be read (to go on without the others, remove {})",
                    path.display()
                ),
            )),
            Some(_) => Ok(()),
            None => {
                // It only ever says that something is missing, so without it less is checked.
                tracing::warn!(path = %path.display(), "unreadable, not used to check the store");
                Ok(())
            }
        }
    }

    /// Notes that everything up to `revision` is promised.
    pub fn acknowledge(&self, revision: Revision) -> io::Result<()> {
        self.acknowledged.write_all_at(&watermark(revision), 0)
    }

    /// Makes the last note durable.
    pub fn seal(&self) -> io::Result<()> {
        self.acknowledged.sync_data()
    }
}

/// The bytes that the file system keeps for a directory's files, those of its directories included.
pub fn allocated(path: &Path) -> io::Result<u64> {
    /// Of a block as `stat` counts them, whatever the file system's are (POSIX).
    const BLOCK: u64 = 512;
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(of) if of.is_dir() => sum += allocated(&entry.path())?,
            Ok(of) => sum += of.blocks() * BLOCK,
            // RocksDB removes files while we look.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(sum)
}

fn lock(path: &Path) -> Result<File, Error> {
    let name = path.join("lock");
    let mut file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&name)
        .map_err(|error| cannot(&name, "open", &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let owner = match file.read_to_string(&mut owner) {
                Ok(_) if !owner.trim().is_empty() => format!("process {}", owner.trim()),
                _ => "another process".into(),
            };
            return Err(Error::Unusable(format!(
                "the store in {} is in use by {owner}: stop it first, or choose another data \
                 directory",
                path.display()
            )));
        }
        Err(fs::TryLockError::Error(error)) => return Err(cannot(&name, "lock", &error)),
    }
    // The process id only serves the message above.
    let _without_it_the_lock_still_holds = file
        .set_len(0)
        .and_then(|()| file.write_all_at(std::process::id().to_string().as_bytes(), 0))
        .and_then(|()| file.flush());
    Ok(file)
}

/// A stand-in until the database is there.
fn lock_clone(path: &Path, lock: &File) -> Result<File, Error> {
    lock.try_clone().map_err(|error| cannot(path, "use", &error))
}

fn check_format(path: &Path) -> Result<(), Error> {
    let name = path.join("format");
    let text = match fs::read(&name) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return claim(path),
        Err(error) => return Err(cannot(&name, "read", &error)),
    };
    let number =
        text.strip_prefix(FORMAT_TITLE).and_then(|rest| rest.trim_end().parse::<u64>().ok());
    match number {
        Some(FORMAT) => Ok(()),
        Some(other) => Err(Error::Unusable(format!(
            "the store in {} has format {other}, which another version of Rimward wrote; this one \
             reads format {FORMAT}: install the version that wrote it, or restore a backup into \
             another directory",
            path.display()
        ))),
        None => Err(damaged(path, &format!("the file `format` says {:?}", text.trim_end()))),
    }
}

/// Makes an empty directory ours.
fn claim(path: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(path).map_err(|error| cannot(path, "list", &error))?;
    for entry in entries {
        let name = entry.map_err(|error| cannot(path, "list", &error))?.file_name();
        if !["lock", "format.new", "lost+found"].iter().any(|ours| name == *ours) {
            return Err(Error::Unusable(format!(
                "{} is not a Rimward store (it has no file `format`) and is not empty (it has \
                 {:?}): choose an empty directory, or restore a backup into one",
                path.display(),
                name
            )));
        }
    }
    let text = format!("{FORMAT_TITLE}{FORMAT}\n");
    replace(path, "format", text.as_bytes()).map_err(|error| cannot(path, "write to", &error))
}

fn open_watermark(path: &Path) -> Result<File, Error> {
    let name = path.join("acknowledged");
    File::options().write(true).open(&name).map_err(|error| cannot(&name, "open", &error))
}

/// A revision and its checksum: less than a sector, so it is never torn.
fn watermark(revision: Revision) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&revision.to_be_bytes());
    bytes[8..].copy_from_slice(&crc32fast::hash(&revision.to_be_bytes()).to_be_bytes());
    bytes
}

fn parse_watermark(bytes: &[u8]) -> Option<Revision> {
    let (number, checksum) = bytes.split_first_chunk::<8>()?;
    let sound = checksum == crc32fast::hash(number).to_be_bytes();
    sound.then_some(u64::from_be_bytes(*number))
}

/// Writes a small file so that it is there whole or not at all.
fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = directory.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(name))?;
    sync_directory(directory)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub fn damaged(path: &Path, what: &str) -> Error {
    let path = path.display();
    Error::Unusable(format!("the store in {path} is damaged: {what}. Restore it from a backup"))
}

fn cannot(path: &Path, what: &str, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull => "free some space on its file system",
        io::ErrorKind::PermissionDenied => "its owner must be the user that runs Rimward",
        io::ErrorKind::ReadOnlyFilesystem => "its file system must be writable",
        _ => "check the path and the disk",
    };
    Error::Unusable(format!("cannot {what} {}: {error}; {remedy}", path.display()))
}
