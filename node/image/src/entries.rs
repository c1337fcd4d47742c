//! Going through a stranger's tar archive. Names and attributes that are too long for a header come before their
//! entry as long as the archive likes, and are read into memory: so they are metered.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use tar::Entry;

/// What may come before one entry, in bytes. A path, a link's target and attributes of a megabyte each, as most
/// readers take them.
const HEAD_BYTES_MAX: u64 = 4 << 20;

const BLOCK_BYTES: u64 = 512;

/// Counts what is read for an entry's head.
pub(crate) struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
    /// Of all; None of one that is not read from end to end.
    read: Option<u64>,
}

impl<R> Metered<R> {
    /// How much of the archive's last block is missing. Some writers (umoci) leave it out, and no reader in Go, as
    /// every other runtime is, misses it.
    fn fill(&mut self, buffer: &mut [u8]) -> usize {
        let Some(read) = &mut self.read else { return 0 };
        let missing = (BLOCK_BYTES - *read % BLOCK_BYTES) % BLOCK_BYTES;
        let len = buffer.len().min(missing as usize);
        buffer[..len].fill(0);
        *read += len as u64;
        len
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        if len == 0 {
            return Ok(self.fill(buffer));
        }
        self.read = self.read.map(|read| read + len as u64);
        let left = self.left.get().checked_sub(len as u64);
        self.left.set(left.ok_or_else(|| {
            io::Error::other(format!(
                "the name and attributes of an entry have more than {HEAD_BYTES_MAX} bytes"
            ))
        })?);
        Ok(len)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// Visits all entries, one after the other.
///
/// # Errors
/// Those of the visitor, and of an archive that cannot be read.
pub(crate) fn each<R: Read, E: From<io::Error>>(
    tar: R,
    mut visit: impl FnMut(&mut Entry<'_, Metered<R>>) -> Result<(), E>,
) -> Result<(), E> {
    let left = Rc::new(Cell::new(u64::MAX));
    let mut archive = tar::Archive::new(Metered { inner: tar, left: left.clone(), read: Some(0) });
    let mut entries = archive.entries()?;
    loop {
        left.set(HEAD_BYTES_MAX);
        let next = entries.next();
        left.set(u64::MAX);
        let Some(entry) = next else { return Ok(()) };
        let mut entry = entry?;
        visit(&mut entry)?;
        // What the visitor left is no part of the next head. The holes of a sparse file would take for ever.
        if !entry.header().entry_type().is_gnu_sparse() {
            io::copy(&mut entry, &mut io::sink())?;
        }
    }
}

/// The same of a file, whose contents are skipped.
///
/// # Errors
/// As of [`each`].
pub(crate) fn each_head<R: Read + Seek, E: From<io::Error>>(
    tar: R,
    mut visit: impl FnMut(&mut Entry<'_, Metered<R>>) -> Result<(), E>,
) -> Result<(), E> {
    let left = Rc::new(Cell::new(HEAD_BYTES_MAX));
    let mut archive = tar::Archive::new(Metered { inner: tar, left: left.clone(), read: None });
    for entry in archive.entries_with_seek()? {
        visit(&mut entry?)?;
        left.set(HEAD_BYTES_MAX);
    }
    Ok(())
}
