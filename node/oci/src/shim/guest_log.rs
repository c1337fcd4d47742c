//! The container's log file, in the CRI format: `<RFC3339Nano> <stdout|stderr> <F|P> <text>`.
//!
//! One time for all that was read at once: the program wrote it in the same breath. A line without an end
//! waits for it, up to a length; then it becomes parts.
//! <https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// Of one entry, as other runtimes cut them.
const LINE_BYTES_MAX: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

pub(super) struct GuestLog {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    bytes_max: u64,
    told_full: bool,
    /// Of each stream, what has no line end yet.
    rests: [Vec<u8>; 2],
    /// What goes into the file at once.
    out: Vec<u8>,
    /// Not written, since the last write that went well.
    lost: u64,
}

impl GuestLog {
    pub fn open(path: PathBuf, bytes_max: u64) -> Self {
        let mut log = Self {
            path,
            file: None,
            bytes: 0,
            bytes_max,
            told_full: false,
            rests: Default::default(),
            out: Vec::new(),
            lost: 0,
        };
        log.reopen();
        log
    }

    /// Goes on in the file of that name, which may be another now.
    pub fn reopen(&mut self) {
        let file = File::options().append(true).create(true).open(&self.path);
        if let Err(error) = &file {
            eprintln!("{}: {error}", self.path.display());
        }
        self.file = file.ok();
        let len = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|m| m.len());
        self.bytes = len.unwrap_or(0);
        self.told_full = false;
    }

    /// Once per file, when it has the size at which it is to be rotated.
    pub fn is_full(&mut self) -> bool {
        let full = self.bytes >= self.bytes_max && !self.told_full;
        self.told_full |= full;
        full
    }

    /// It is told once more, if it is.
    pub fn remind(&mut self) {
        self.told_full = false;
    }

    pub fn write(&mut self, stream: Stream, text: &[u8], now: jiff::Timestamp) {
        let head = head(stream, now);
        let rest = &mut self.rests[stream as usize];
        let mut text = text;
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let (line, more) = (&text[..end], &text[end + 1..]);
            text = more;
            if rest.is_empty() && line.len() <= LINE_BYTES_MAX {
                entry(&mut self.out, &head, true, line);
                continue;
            }
            rest.extend_from_slice(line);
            cut(&mut self.out, &head, rest, LINE_BYTES_MAX);
            entry(&mut self.out, &head, true, rest);
            rest.clear();
        }
        rest.extend_from_slice(text);
        cut(&mut self.out, &head, rest, LINE_BYTES_MAX);
        self.flush();
    }

    /// The program is over: what has no line end yet will get none.
    pub fn finish(&mut self, now: jiff::Timestamp) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.rests[stream as usize]);
            if !rest.is_empty() {
                entry(&mut self.out, &head(stream, now), false, &rest);
            }
        }
        self.flush();
    }

    /// A full disk stops no program. What it cost is told where it is missing, as soon as there is room.
    fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        if self.lost > 0 {
            let note =
                format!("rimward: {} bytes of log are missing here: the disk was full", self.lost);
            let mut told = Vec::new();
            entry(&mut told, &head(Stream::Stderr, jiff::Timestamp::now()), true, note.as_bytes());
            if self.file.as_mut().is_none_or(|file| file.write_all(&told).is_err()) {
                self.lost += self.out.len() as u64;
                self.out.clear();
                return;
            }
            self.bytes += told.len() as u64;
            self.lost = 0;
        }
        let len = self.out.len() as u64;
        match self.file.as_mut().map(|file| file.write_all(&self.out)) {
            Some(Ok(())) => self.bytes += len,
            _ => self.lost += len,
        }
        self.out.clear();
    }
}

fn head(stream: Stream, now: jiff::Timestamp) -> Vec<u8> {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    format!("{now:.9} {name} ").into_bytes()
}

fn entry(out: &mut Vec<u8>, head: &[u8], whole: bool, text: &[u8]) {
    out.extend_from_slice(head);
    out.extend_from_slice(if whole { b"F " } else { b"P " });
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Takes parts off the front while the rest is longer than a line may be.
fn cut(out: &mut Vec<u8>, head: &[u8], rest: &mut Vec<u8>, max: usize) {
    let mut done = 0;
    while rest.len() - done > max {
        entry(out, head, false, &rest[done..done + max]);
        done += max;
    }
    rest.drain(..done);
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-01-02T03:04:05.000000006Z";

    #[track_caller]
    fn check(writes: &[(Stream, &[u8])], expected: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = GuestLog::open(dir.path().join("0.log"), u64::MAX);
        for (stream, text) in writes {
            log.write(*stream, text, T.parse().unwrap());
        }
        log.finish(T.parse().unwrap());
        let text = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
        let lines: Vec<_> = text.lines().map(|l| l.strip_prefix(T).unwrap().trim_start()).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn output_becomes_entries() {
        use Stream::{Stderr, Stdout};
        check(
            &[(Stdout, b"one\ntwo"), (Stderr, b"odd"), (Stdout, b" more\n\n"), (Stdout, b"rest")],
            &["stdout F one", "stdout F two more", "stdout F ", "stdout P rest", "stderr P odd"],
        );
        let long = vec![b'x'; LINE_BYTES_MAX];
        let whole = "x".repeat(LINE_BYTES_MAX);
        check(&[(Stdout, &long), (Stdout, b"\n")], &[&format!("stdout F {whole}")]);
        check(&[(Stdout, &long), (Stdout, b"y\n")], &[&format!("stdout P {whole}"), "stdout F y"]);
    }

    #[test]
    fn a_full_log_goes_on_in_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = GuestLog::open(path.clone(), 50);
        log.write(Stream::Stdout, b"first\n", T.parse().unwrap());
        assert!(!log.is_full());
        log.write(Stream::Stdout, b"second\n", T.parse().unwrap());
        assert!(log.is_full() && !log.is_full(), "it is told once");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        log.write(Stream::Stdout, b"third\n", T.parse().unwrap());
        log.reopen();
        log.write(Stream::Stdout, b"fourth\n", T.parse().unwrap());
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("0.log.1").lines().count(), 3);
        assert!(read("0.log").ends_with("fourth\n"));
    }
}
