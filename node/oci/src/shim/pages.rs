//! Pages that every shim has alike, shared.
//!
//! When a program starts, the loader writes addresses into its tables: some megabytes in a large one, which
//! each process then has for itself, though in all shims they say the same, loaded at the same place. So the
//! first shim writes them to a file, and each maps that file over its own: the same bytes, once in memory.
//! Rejected: a link without relocations, which would cost the whole program its random addresses, and a
//! parent of all shims to fork from, whose death would give each of them its own pages again.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mm::{MapFlags, ProtFlags};

/// For the program that this thread executes next: tables say the same only at the same place. Where it is refused, nothing is shared.
pub(crate) fn fix_addresses() {
    // SAFETY: numbers in, a number out.
    unsafe {
        let now = libc::personality(ASK);
        if now >= 0 {
            libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong);
        }
    }
}

/// The kernel's own choice again.
pub(crate) fn any_addresses() {
    // SAFETY: numbers in, a number out.
    unsafe {
        let now = libc::personality(ASK);
        if now >= 0 {
            libc::personality((now & !libc::ADDR_NO_RANDOMIZE) as libc::c_ulong);
        }
    }
}

/// Changes nothing and answers what is (personality(2)).
const ASK: libc::c_ulong = 0xffff_ffff;

/// Maps what is in `dir` over this process's own, if it is the same. Without it all works, in more memory.
pub(super) fn share(dir: &Path) -> io::Result<()> {
    let Some((start, len)) = relocated() else { return Ok(()) };
    // SAFETY: the loader made this range of the program read-only before main, and nobody unmaps it.
    let own = unsafe { std::slice::from_raw_parts(start as *const u8, len) };
    let program = std::fs::metadata("/proc/self/exe")?;
    let name = format!("{:x}-{:x}-{start:x}-{len:x}", program.ino(), program.mtime_nsec());
    let path = dir.join(name);
    if !path.exists() {
        write(dir, &path, own)?;
    }
    let file = File::open(&path)?;
    if file.metadata()?.len() != len as u64 {
        return Err(io::Error::other(format!("{} is not of this program", path.display())));
    }
    // SAFETY: a new mapping where the kernel likes, of a file that nobody writes to once it has its name.
    let shared = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, &file, 0)?
    };
    // SAFETY: the mapping is as long as the file, which is as long as the range.
    let same = unsafe { std::slice::from_raw_parts(shared as *const u8, len) } == own;
    // SAFETY: made above, and nothing refers to it any more.
    unsafe { rustix::mm::munmap(shared, len)? };
    if !same {
        return Err(io::Error::other("its tables are not those of other shims"));
    }
    // SAFETY: what takes the range's place holds the same bytes, is read-only as it was, and this process has
    // one thread: nothing can tell the difference.
    unsafe {
        rustix::mm::mmap(
            start as *mut c_void,
            len,
            ProtFlags::READ,
            MapFlags::PRIVATE | MapFlags::FIXED,
            &file,
            0,
        )?;
    }
    Ok(())
}

fn write(dir: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    // Of a program that was replaced. Who has them mapped keeps them.
    for old in std::fs::read_dir(dir)?.flatten() {
        let _another_shim_was_first = std::fs::remove_file(old.path());
    }
    let new = dir.join(format!("new-{}", std::process::id()));
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    // Pages that wait to be written would count as this shim's own.
    file.sync_data()?;
    std::fs::rename(new, path)
}

/// The whole pages of this program that the loader wrote to and then made read-only (PT_GNU_RELRO).
fn relocated() -> Option<(usize, usize)> {
    unsafe extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        found: *mut c_void,
    ) -> libc::c_int {
        // SAFETY: the loader calls with its own description of a loaded object, and our pointer.
        let (info, found) = unsafe { (&*info, &mut *found.cast::<Option<(usize, usize)>>()) };
        // SAFETY: the object's program headers, as many as it says.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        if let Some(relro) = headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO) {
            let start = info.dlpi_addr as usize + relro.p_vaddr as usize;
            *found = Some((start, start + relro.p_memsz as usize));
        }
        // The first is the program itself.
        1
    }
    let mut found: Option<(usize, usize)> = None;
    // SAFETY: the callback fits, and `found` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    let page = rustix::param::page_size();
    let (start, end) = found?;
    let (start, end) = (start / page * page, end / page * page);
    (end > start).then(|| (start, end - start))
}
