//! Reads the files of one run, from where the request begins, on into what is appended.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::LogError;
use super::line;
use super::watch::Subscription;

/// Read at once; a longer line is passed on in parts.
const BLOCK: usize = 64 << 10;
/// Blocks that wait for a slow reader.
const QUEUE: usize = 4;

#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub timestamps: bool,
    pub since: Option<Timestamp>,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
}

pub(super) fn stream(
    path: PathBuf,
    wanted: Wanted,
    changes: Option<Subscription>,
    is_over: Box<dyn Fn() -> bool + Send>,
) -> BoxStream<'static, Result<Bytes, LogError>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        if let Err(error) = pump(&path, wanted, changes, is_over, &sender).await {
            let shown = path.display();
            let _reader_may_be_gone = sender
                .send(Err(LogError::Io(format!("cannot read the log {shown}: {error}"))))
                .await;
        }
    });
    stream::unfold(receiver, |mut r| async move { r.recv().await.map(|item| (item, r)) }).boxed()
}

type Sender = mpsc::Sender<Result<Bytes, LogError>>;

async fn pump(
    path: &Path,
    wanted: Wanted,
    mut changes: Option<Subscription>,
    is_over: Box<dyn Fn() -> bool + Send>,
    sender: &Sender,
) -> io::Result<()> {
    let mut formatter = Formatter::new(&wanted);
    let (begin, tail) = (path.to_owned(), wanted.tail_lines);
    let mut files = blocking(move || Files::open(&begin, tail)).await?;
    loop {
        // Looked at first: what was written before the end is then read for certain.
        let over = changes.is_none() || is_over();
        loop {
            let (back, block) = blocking(move || {
                let block = files.read();
                block.map(|block| (files, block))
            })
            .await?;
            files = back;
            let Some(block) = block else { break };
            let out = formatter.take(&block);
            if !out.is_empty() {
                let send = sender.send(Ok(out));
                tokio::pin!(send);
                // Files that come and go while the reader takes its time are held for it.
                let sent = loop {
                    tokio::select! {
                        biased;
                        sent = &mut send => break sent,
                        true = changed(changes.as_mut()) => {
                            files = blocking(move || files.look().map(|()| files)).await?;
                        }
                    }
                };
                if sent.is_err() {
                    return Ok(());
                }
            }
            if formatter.is_full() {
                return Ok(());
            }
        }
        let Some(changes) = changes.as_mut().filter(|_| !over) else { return Ok(()) };
        tokio::select! {
            more = changes.changed() => if !more { return Ok(()) },
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Never, where nothing is followed or there will be no more changes.
async fn changed(changes: Option<&mut Subscription>) -> bool {
    if let Some(changes) = changes
        && changes.changed().await
    {
        return true;
    }
    std::future::pending().await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Files that are held for a reader which is behind. Those that the node removed meanwhile take room on its disk
/// as long.
const HELD_MAX: usize = 32;

/// The files of a run from a starting point on.
struct Files {
    path: PathBuf,
    /// In order; the last is the newest that is known.
    held: VecDeque<File>,
    /// What is to be read next of what is in no file.
    note: Option<Vec<u8>>,
}

impl Files {
    fn open(path: &Path, tail_lines: Option<u64>) -> io::Result<Self> {
        let mut files = rotated(path)?;
        files.extend(existing(path)?);
        if let Some(lines) = tail_lines {
            files = keep_last(files, lines)?;
        }
        Ok(Self { path: path.to_owned(), held: files.into(), note: None })
    }

    /// The next bytes; None at the end of what there is now.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            // What has a successor is written to no more: looked at before it is read to its end.
            self.look()?;
            if let Some(note) = self.note.take() {
                return Ok(Some(note));
            }
            let has_successor = self.held.len() > 1;
            let Some(file) = self.held.front_mut() else { return Ok(None) };
            if let Some(block) = read_block(file)? {
                return Ok(Some(block));
            }
            if has_successor {
                self.held.pop_front();
                continue;
            }
            if file.metadata()?.len() >= file.stream_position()? {
                return Ok(None);
            }
            // Cut off in place: begin again.
            file.seek(SeekFrom::Start(0))?;
        }
    }

    /// Takes hold of the files that were begun since the newest that is held. The node removes old ones, however
    /// far this reader is.
    fn look(&mut self) -> io::Result<()> {
        let newest = self.held.back().map(identity).transpose()?;
        let Some(current) = existing(&self.path)? else { return Ok(()) };
        if Some(identity(&current)?) == newest {
            return Ok(());
        }
        let mut files = rotated(&self.path)?;
        let identities: Vec<_> = files.iter().map(identity).collect::<io::Result<_>>()?;
        // If it is not among them it was removed, as was only what is older still.
        let known = identities.iter().position(|id| Some(*id) == newest);
        self.held.extend(files.drain(known.map_or(0, |at| at + 1)..));
        self.held.push_back(current);
        let mut lost = 0;
        while self.held.len() > HELD_MAX {
            let Some(mut file) = self.held.pop_front() else { break };
            lost += file.metadata()?.len().saturating_sub(file.stream_position()?);
        }
        if lost > 0 {
            // After a line's end: what was read of the last line may lack it.
            let text = format!(
                "\n{:.9} stderr F rimward: {lost} bytes of log are missing here: they were read too slowly\n",
                Timestamp::now()
            );
            self.note = Some(text.into_bytes());
        }
        Ok(())
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|m| (m.dev(), m.ino()))
}

fn read_block(mut file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut block = vec![0; BLOCK];
    let n = file.read(&mut block)?;
    block.truncate(n);
    Ok((n > 0).then_some(block))
}

fn existing(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `<attempt>.log.*`, oldest first. Compressed ones are for people.
fn rotated(path: &Path) -> io::Result<Vec<File>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut list = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && !name.ends_with(".gz") && !name.ends_with(".tmp") {
            let modified = entry.metadata()?.modified()?;
            // Within a tick of the clock by what is in the name, a time too.
            list.push((modified, name, entry.path()));
        }
    }
    list.sort();
    list.into_iter().filter_map(|(_, _, path)| existing(&path).transpose()).collect()
}

/// The newest files that hold the last `lines` lines, the first of them positioned there.
fn keep_last(mut files: Vec<File>, lines: u64) -> io::Result<Vec<File>> {
    let mut kept = Vec::new();
    let mut missing = lines;
    while let Some(file) = files.pop() {
        let (position, found) = last_lines(&file, missing)?;
        (&file).seek(SeekFrom::Start(position))?;
        missing -= found.min(missing);
        kept.push(file);
        if missing == 0 {
            break;
        }
    }
    kept.reverse();
    Ok(kept)
}

/// Where the last `lines` lines begin, and how many there are.
fn last_lines(file: &File, lines: u64) -> io::Result<(u64, u64)> {
    let length = file.metadata()?.len();
    if lines == 0 || length == 0 {
        return Ok((length, 0));
    }
    let mut found = 0;
    let mut end = length;
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let begin = end.saturating_sub(BLOCK as u64);
        let block = &mut block[..(end - begin) as usize];
        file.read_exact_at(block, begin)?;
        for (at, byte) in block.iter().enumerate().rev() {
            let position = begin + at as u64;
            // The newline at the very end ends the last line; each other one begins a line.
            if *byte == b'\n' && position + 1 < length {
                found += 1;
                if found == lines {
                    return Ok((position + 1, found));
                }
            }
        }
        end = begin;
    }
    Ok((0, found + 1))
}

/// Turns the files' bytes into what the request asks for.
struct Formatter {
    timestamps: bool,
    since: Option<Timestamp>,
    left: u64,
    /// A line whose end was not read yet.
    begun: Vec<u8>,
    /// The last part that was passed on ended its line.
    at_line_start: bool,
}

impl Formatter {
    fn new(wanted: &Wanted) -> Self {
        Self {
            timestamps: wanted.timestamps,
            since: wanted.since,
            left: wanted.limit_bytes.unwrap_or(u64::MAX),
            begun: Vec::new(),
            at_line_start: true,
        }
    }

    fn is_full(&self) -> bool {
        self.left == 0
    }

    fn take(&mut self, block: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(block.len());
        let mut rest = block;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            if self.begun.is_empty() {
                self.line(&rest[..end], &mut out);
            } else {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(&rest[..end]);
                self.line(&whole, &mut out);
            }
            rest = &rest[end + 1..];
        }
        // A runtime cuts lines at 16 KiB; what is longer is not of the format and is passed over.
        if self.begun.len() + rest.len() <= 4 * BLOCK {
            self.begun.extend_from_slice(rest);
        }
        let keep = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        out.truncate(keep);
        self.left -= keep as u64;
        out.into()
    }

    fn line(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let Some(line) = line::parse(raw) else { return };
        if let (Some(since), Some(time)) = (self.since, line.timestamp())
            && time < since
        {
            return;
        }
        if self.timestamps && self.at_line_start {
            out.extend_from_slice(line.time);
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.at_line_start = !line.partial;
    }
}

/// The last lines of a run's text, at most so many lines and bytes.
pub(super) fn last_text(path: &Path, lines: u64, bytes: usize) -> String {
    let read = || -> io::Result<String> {
        let mut files = Files::open(path, Some(lines))?;
        let mut formatter = Formatter::new(&Wanted::default());
        let mut text = Vec::new();
        while let Some(block) = files.read()? {
            text.extend_from_slice(&formatter.take(&block));
            let excess = text.len().saturating_sub(bytes);
            text.drain(..excess);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}
