//! Unpacking a layer's archive so that nothing in it reaches out of its directory.
//!
//! An archive is a stranger's program of file operations, run by root. Each entry's parent is opened
//! beneath the layer's directory with `openat2`, which resolves every link as if that directory were
//! the root; the entry itself is then made by its plain name in that open directory and never through
//! a link. Checking paths beforehand was rejected: what is checked can be another thing when it is used.
//!
//! Whiteouts become what overlayfs understands.
//! <https://github.com/opencontainers/image-spec/blob/main/layer.md>,
//! <https://docs.kernel.org/filesystems/overlayfs.html>

use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use crate::entries;
use crate::layers::Limits;

pub(crate) const TOO_MUCH: &str = "it unpacks to more than this node takes";

#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("it is not an archive that can be read: {0}")]
    Archive(String),
    #[error("entry {path:?}: {why}")]
    Entry { path: PathBuf, why: String },
    #[error("it unpacks to more than this node takes ({0})")]
    TooMuch(String),
}

impl From<std::io::Error> for UnpackError {
    fn from(error: std::io::Error) -> Self {
        match error.to_string() {
            text if text.contains(TOO_MUCH) => Self::TooMuch("its bytes exceed the limit".into()),
            text => Self::Archive(text),
        }
    }
}

/// Makes in `dir`, which is empty, what the archive says.
pub(crate) fn unpack(tar: impl Read, dir: &Path, limits: &Limits) -> Result<(), UnpackError> {
    let root = rustix::fs::open(dir, DIRECTORY, Mode::empty())
        .map_err(|e| UnpackError::Archive(format!("{}: {e}", dir.display())))?;
    let mut layer = Layer { root, last: None, times: Vec::new(), sparse_left: limits.bytes_max };
    let mut count = 0;
    entries::each(tar, |entry| {
        count += 1;
        if count > limits.entries_max {
            return Err(UnpackError::TooMuch(format!("over {} entries", limits.entries_max)));
        }
        let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        layer.entry(&path, entry).map_err(|why| match why.contains(TOO_MUCH) {
            true => UnpackError::TooMuch("its bytes exceed the limit".into()),
            false => UnpackError::Entry { path, why },
        })
    })?;
    layer.finish();
    Ok(())
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

struct Layer {
    root: OwnedFd,
    /// Archives go directory by directory.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Filling a directory changes its time, so that is set at the end.
    times: Vec<(PathBuf, i64)>,
    /// What files with holes may still be long. The archive's own bytes do not bound them.
    sparse_left: u64,
}

/// The parts of a header that are wanted for every kind of file.
struct Meta {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    mtime: i64,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Layer {
    fn entry<R: Read>(&mut self, path: &Path, entry: &mut Entry<'_, R>) -> Result<(), String> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let clean = clean(path)?;
        let meta = meta(entry)?;
        let Some(name) = clean.file_name() else {
            // The layer's own directory.
            return match kind {
                EntryType::Directory => self.dress(&self.root, &meta).map_err(text),
                _ => Err("it would take the place of the root directory".into()),
            };
        };
        let parent_path = clean.parent().unwrap_or(Path::new(""));
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(parent_path, hidden);
        }
        let parent = self.parent(parent_path)?;
        let parent = parent.as_fd();
        if kind.is_dir() {
            make_dir(parent, name)?;
            let dir = open_made(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.dress(&dir, &meta).map_err(text)?;
            self.times.push((clean.clone(), meta.mtime));
            self.last = None;
            return Ok(());
        }
        make_room(parent, name)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let file = open_made(parent, name, flags)?;
                let mut file = std::fs::File::from(file);
                if kind.is_gnu_sparse() {
                    let left = self.sparse_left.checked_sub(entry.size());
                    self.sparse_left = left.ok_or(TOO_MUCH)?;
                    write_sparse(entry, &mut file).map_err(|e| e.to_string())?;
                } else {
                    std::io::copy(entry, &mut file).map_err(|e| e.to_string())?;
                }
                self.dress(&OwnedFd::from(file), &meta).map_err(text)
            }
            EntryType::Link => {
                let target = clean_link(entry)?;
                let name_of = target.file_name().ok_or("a hard link to the root directory")?;
                let dir = self.open(target.parent().unwrap_or(Path::new(""))).map_err(text)?;
                let made = rustix::fs::linkat(&dir, name_of, parent, name, AtFlags::empty());
                made.map_err(|e| format!("hard link to {}: {e}", target.display()))
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or("a link without a target")?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), parent, name).map_err(text)?;
                dress_at(parent, name, &meta).map_err(text)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let (file_type, device) = device(kind, entry)?;
                rustix::fs::mknodat(parent, name, file_type, Mode::RUSR, device).map_err(text)?;
                dress_at(parent, name, &meta).map_err(text)?;
                rustix::fs::chmodat(parent, name, meta.mode, AtFlags::empty()).map_err(text)
            }
            other => Err(format!("entries of type {other:?} are not known")),
        }
    }

    /// `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all that they have in this directory.
    fn whiteout(&mut self, parent_path: &Path, hidden: &[u8]) -> Result<(), String> {
        let parent = self.parent(parent_path)?;
        match hidden {
            b".wh..opq" => return make_opaque(&parent),
            b"" | b"." | b".." => return Err("a whiteout of nothing".into()),
            // What other union file systems left for themselves.
            _ if hidden.starts_with(b".wh.") => return Ok(()),
            _ => {}
        }
        let made = rustix::fs::mknodat(
            &*parent,
            OsStr::from_bytes(hidden),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        );
        match made {
            // This layer has such a file itself, and only what is below is hidden.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Opens a directory of the layer, links in its path resolved inside the layer.
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&self.root, path, DIRECTORY, Mode::empty(), resolve) {
                // Something was renamed meanwhile, says the kernel; elsewhere on the machine, that is.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// A directory to put an entry into, made if it is not there: not every archive names them all.
    fn parent(&mut self, path: &Path) -> Result<Rc<OwnedFd>, String> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let dir = match self.open(path) {
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_parent(path)?,
                other => other.map_err(text)?,
            };
            self.last = Some((path.to_owned(), Rc::new(dir)));
        }
        Ok(self.last.as_ref().expect("it was just set").1.clone())
    }

    fn make_parent(&self, path: &Path) -> Result<OwnedFd, String> {
        let mut at = PathBuf::new();
        let mut dir = self.open(&at).map_err(text)?;
        for part in path.components() {
            at.push(part);
            dir = match self.open(&at) {
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    make_dir(dir.as_fd(), part.as_os_str())?;
                    self.open(&at).map_err(text)?
                }
                other => other.map_err(text)?,
            };
        }
        Ok(dir)
    }

    /// Owner, attributes, mode, time: in this order, since each of the first takes something of the later.
    fn dress(&self, file: &OwnedFd, meta: &Meta) -> Result<(), Errno> {
        // A path descriptor takes no changes; through /proc it stands for the directory.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::chown(&path, Some(meta.uid), Some(meta.gid))?;
        for (name, value) in &meta.xattrs {
            rustix::fs::setxattr(&path, name.as_str(), value, XattrFlags::empty())?;
        }
        rustix::fs::chmod(&path, meta.mode)?;
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times(meta.mtime), AtFlags::empty())
    }

    fn finish(&self) {
        for (path, mtime) in self.times.iter().rev() {
            // Replaced by a later entry perhaps; and nothing depends on a time.
            if let Ok(dir) = self.open(path) {
                let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
                let _ =
                    rustix::fs::utimensat(rustix::fs::CWD, &path, &times(*mtime), AtFlags::empty());
            }
        }
    }
}

/// What is zeros all over stays a hole.
fn write_sparse(entry: &mut impl Read, file: &mut std::fs::File) -> std::io::Result<()> {
    let mut block = vec![0; 64 << 10];
    let mut len = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match entry.read(&mut block[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            return file.set_len(len);
        }
        len += filled as u64;
        match block[..filled].iter().all(|byte| *byte == 0) {
            true => drop(file.seek(SeekFrom::Start(len))?),
            false => file.write_all(&block[..filled])?,
        }
    }
}

fn text(error: Errno) -> String {
    error.to_string()
}

/// Relative, without `.`; `..` is refused.
fn clean(path: &Path) -> Result<PathBuf, String> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err("its path has '..' in it and may lead out of the layer".into());
            }
        }
    }
    Ok(clean)
}

fn clean_link<R: Read>(entry: &Entry<'_, R>) -> Result<PathBuf, String> {
    let target = entry.link_name_bytes().ok_or("a link without a target")?;
    clean(Path::new(OsStr::from_bytes(&target))).map_err(|e| format!("the target of the link: {e}"))
}

fn meta<R: Read>(entry: &mut Entry<'_, R>) -> Result<Meta, String> {
    let mut xattrs = Vec::new();
    for extension in entry.pax_extensions().map_err(|e| e.to_string())?.into_iter().flatten() {
        let extension = extension.map_err(|e| e.to_string())?;
        let key = extension.key().unwrap_or_default();
        if key.starts_with("GNU.sparse.") {
            // Its content would be taken for a map of holes, and the map for content.
            return Err("it is a sparse file in a form that is not known (pax)".into());
        }
        let name = key.strip_prefix("SCHILY.xattr.");
        // `trusted.overlay.…` would be orders to overlayfs; labels are another machine's.
        if let Some(name) = name.filter(|n| *n == "security.capability" || n.starts_with("user.")) {
            xattrs.push((name.to_owned(), extension.value_bytes().to_owned()));
        }
    }
    let header = entry.header();
    // Some writers leave out what is nobody's: a blank number is 0.
    let id = |id: std::io::Result<u64>, field: &[u8], what: &str| {
        let blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
        let id = if blank { 0 } else { id.map_err(|e| e.to_string())? };
        u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(format!("{what} {id} is none"))
    };
    let fields = header.as_old();
    Ok(Meta {
        uid: Uid::from_raw(id(header.uid(), &fields.uid, "user id")?),
        gid: Gid::from_raw(id(header.gid(), &fields.gid, "group id")?),
        mode: Mode::from_raw_mode(header.mode().map_err(|e| e.to_string())? & 0o7777),
        mtime: header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0),
        xattrs,
    })
}

fn times(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
    }
}

fn device<R: Read>(kind: EntryType, entry: &Entry<'_, R>) -> Result<(FileType, u64), String> {
    let header = entry.header();
    let number =
        |n: std::io::Result<Option<u32>>| n.map_err(|e| e.to_string()).map(|n| n.unwrap_or(0));
    let device =
        rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?);
    Ok(match kind {
        EntryType::Char => (FileType::CharacterDevice, device),
        EntryType::Block => (FileType::BlockDevice, device),
        _ => (FileType::Fifo, 0),
    })
}

fn dress_at(dir: impl AsFd, name: &OsStr, meta: &Meta) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(&dir, name, Some(meta.uid), Some(meta.gid), flags)?;
    rustix::fs::utimensat(&dir, name, &times(meta.mtime), flags)
}

fn open_made(dir: impl AsFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, String> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(text)
}

/// A directory, which may be there. In the place of a whiteout it hides what is below all the same.
fn make_dir(parent: impl AsFd, name: &OsStr) -> Result<(), String> {
    let found = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let was_whiteout = match &found {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
        Ok(stat) => {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
        }
        Err(_) => false,
    };
    make_room(&parent, name)?;
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    rustix::fs::mkdirat(&parent, name, mode).map_err(text)?;
    if was_whiteout {
        let dir = open_made(&parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        make_opaque(&dir)?;
    }
    Ok(())
}

fn make_opaque(dir: &OwnedFd) -> Result<(), String> {
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(&path, "trusted.overlay.opaque", b"y", flags)
        .map_err(|e| format!("cannot mark a directory opaque: {e}"))
}

/// A later entry replaces an earlier one of its name.
fn make_room(parent: impl AsFd, name: &OsStr) -> Result<(), String> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            // Walks by open directories and follows no link.
            let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
            std::fs::remove_dir_all(path).map_err(|e| e.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}
