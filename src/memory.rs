//! Memory that only the start of this process needed.
//!
//! Reading options, opening stores and shaking hands touches much of a large program once. Those pages of
//! its file stay mapped, and count as resident, until the machine is short of memory. On a small device
//! that is a third of what an idle node would seem to take; so they are let go of once all is up. What is
//! needed again comes back page by page from the file, or from the kernel's cache of it. So is what the start
//! allocated and freed: the allocator keeps it for a next time that does not come.

use std::ffi::c_void;
use std::time::Duration;

// A control plane allocates and frees much on many threads at once, RocksDB's among them. A slim node does
// not: there libc's allocator is the smaller.
#[cfg(feature = "control")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Lets a thread give the kernel back what has been free for a second. Not for the processes that this
/// program starts of itself: they begin with one thread.
pub fn give_back_what_is_free() {
    #[cfg(feature = "control")]
    {
        const FREE_FOR_MILLIS: isize = 1000;
        // Without it freed memory is given back a little later, by the threads that free.
        let _it_is_only_later = tikv_jemalloc_ctl::background_thread::write(true);
        for name in [&b"arenas.dirty_decay_ms\0"[..], b"arenas.muzzy_decay_ms\0"] {
            // SAFETY: the option exists and is an `isize`, as jemalloc's manual says under its name.
            let _as_it_was = unsafe { tikv_jemalloc_ctl::raw::write(name, FREE_FOR_MILLIS) };
        }
    }
}

/// From "everything runs" until what runs has settled.
const SETTLED: Duration = Duration::from_secs(5);

/// How often what was freed since is given back: a burst of pods must not be paid for until the next start.
const TRIM_EVERY: Duration = Duration::from_secs(60);

/// Lets go of start-up's pages, in a while, and from then on of what is free within the heap. Must be called
/// within a tokio runtime.
pub fn release_when_settled() {
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        match tokio::task::spawn_blocking(release).await {
            Ok(Ok(bytes)) => tracing::debug!("let go of {} KiB of start-up's pages", bytes >> 10),
            Ok(Err(error)) => tracing::debug!(%error, "cannot read what is mapped"),
            Err(error) => tracing::warn!(%error, "letting go of pages failed"),
        }
        loop {
            tokio::time::sleep(TRIM_EVERY).await;
            if let Err(error) = tokio::task::spawn_blocking(trim).await {
                tracing::warn!(%error, "giving memory back failed");
            }
        }
    });
}

/// Unmaps the resident pages of this program's own file. Answers how many bytes were resident.
fn release() -> std::io::Result<u64> {
    let exe = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut released = 0;
    for mapping in clean(&maps, &exe.to_string_lossy()) {
        // SAFETY: the mapping is of a file, is not writable and has no page of its own (see `clean`): what
        // is dropped is read again from the file as it was.
        let done = unsafe {
            rustix::mm::madvise(
                mapping.start as *mut c_void,
                mapping.len,
                rustix::mm::Advice::LinuxDontNeed,
            )
        };
        if done.is_ok() {
            released += mapping.resident;
        }
    }
    trim();
    Ok(released)
}

/// Gives the kernel back what is free within libc's heap. jemalloc does so by itself.
fn trim() {
    #[cfg(all(target_env = "gnu", not(feature = "control")))]
    // SAFETY: it may be called at any time, from any thread; what is in use is not touched.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    len: usize,
    resident: u64,
}

/// Mappings of `file` that hold nothing but what the file holds: not writable, and without a page that was
/// changed (relocations are written before their mapping is made read-only).
fn clean(smaps: &str, file: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    let mut candidate: Option<Mapping> = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let kib = |words: &mut dyn Iterator<Item = &str>| {
            words.next().and_then(|word| word.parse::<u64>().ok())
        };
        match first {
            "Rss:" => {
                if let Some(mapping) = &mut candidate {
                    mapping.resident = kib(&mut words).unwrap_or(0) << 10;
                }
            }
            // After Rss, in the kernel's order.
            "Anonymous:" => {
                let own_pages = kib(&mut words);
                found.extend(candidate.take().filter(|_| own_pages == Some(0)));
            }
            _ if first.ends_with(':') => {}
            range => {
                let rights = words.next().unwrap_or_default();
                let of_file = words.nth(3) == Some(file);
                candidate = span(range).filter(|_| of_file && !rights.contains('w'));
            }
        }
    }
    found
}

fn span(range: &str) -> Option<Mapping> {
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some(Mapping { start, len: end.checked_sub(start)?, resident: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_the_file_has_it_is_let_go() {
        let mapping = |range: &str, rights: &str, file: &str, anonymous: u64| {
            format!(
                "{range} {rights} 00000000 fe:00 12 {file}\nSize: 8 kB\nRss: 8 kB\nAnonymous: {anonymous} kB\nVmFlags: rd\n"
            )
        };
        let text = mapping("1000-3000", "r--p", "/bin/it", 0)
            + &mapping("3000-5000", "r-xp", "/bin/it", 0)
            + &mapping("5000-7000", "r--p", "/bin/it", 4)
            + &mapping("7000-9000", "rw-p", "/bin/it", 0)
            + &mapping("a000-c000", "r-xp", "/lib/other", 0)
            + "d000-e000 rw-p 00000000 00:00 0 \nRss: 4 kB\nAnonymous: 0 kB\n";
        let at = |start| Mapping { start, len: 0x2000, resident: 8 << 10 };
        assert_eq!(clean(&text, "/bin/it"), [at(0x1000), at(0x3000)]);
    }

    #[test]
    fn the_program_runs_on_without_its_pages() {
        assert!(release().unwrap() > 0);
        // Text, constants and relocated tables are all still what they were.
        let text = format!("{:?} {}", span("10-20"), serde_json::json!({"a": [1, 2]}));
        assert!(text.contains("len: 16") && text.contains("[1,2]"), "{text}");
    }
}
