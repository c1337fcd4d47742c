//! One HTTP/1.1 connection that does as little as can be done: a request is bytes that were made before,
//! of the answer the status and the length are read. What is left is the server's work and the kernel's.

use anyhow::{Context, bail};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

pub struct Wire {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) authority: String,
    pub(super) buffer: BytesMut,
    pub(super) request: Vec<u8>,
}

impl Wire {
    /// Reads an object; answers its size.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<usize> {
        self.request.clear();
        self.head("GET", path);
        self.request.extend_from_slice(b"\r\n");
        self.exchange(path).await
    }

    /// Creates an object; answers the size of what was made of it.
    pub async fn create(&mut self, path: &str, object: &[u8]) -> anyhow::Result<usize> {
        self.request.clear();
        self.head("POST", path);
        let more =
            format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n", object.len());
        self.request.extend_from_slice(more.as_bytes());
        self.request.extend_from_slice(object);
        self.exchange(path).await
    }

    /// Reads an answer of any length without keeping it: its first bytes, and how many there were.
    pub async fn drain(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<(Vec<u8>, usize)> {
        self.request.clear();
        self.head("GET", path);
        for (name, value) in headers {
            self.request.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        self.request.extend_from_slice(b"\r\n");
        self.stream.write_all(&self.request).await?;
        self.stream.flush().await?;
        let (mut first, mut size) = (Vec::new(), 0);
        let mut rest = Rest::Head;
        loop {
            let taken = rest.take(&self.buffer, |part| {
                let room = 16_usize.saturating_sub(first.len());
                first.extend_from_slice(&part[..part.len().min(room)]);
                size += part.len();
            })?;
            self.buffer.advance(taken);
            if rest == Rest::Nothing {
                return Ok((first, size));
            }
            self.buffer.reserve(256 << 10);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("{path}: the server closed the connection");
            }
        }
    }

    fn head(&mut self, method: &str, path: &str) {
        for part in [method, " ", path, " HTTP/1.1\r\nhost: ", &self.authority, "\r\n"] {
            self.request.extend_from_slice(part.as_bytes());
        }
        self.request.extend_from_slice(b"user-agent: bench/1\r\n");
    }

    async fn exchange(&mut self, path: &str) -> anyhow::Result<usize> {
        self.stream.write_all(&self.request).await?;
        self.stream.flush().await?;
        loop {
            if let Some(answer) = answer(&self.buffer)? {
                let body = answer.body.context("an answer that does not say how long it is")?;
                if self.buffer.len() >= answer.head + body {
                    if answer.status >= 400 {
                        let text = String::from_utf8_lossy(&self.buffer[answer.head..]);
                        bail!("{path}: {} {text}", answer.status);
                    }
                    self.buffer.advance(answer.head + body);
                    return Ok(body);
                }
            }
            self.buffer.reserve(16 << 10);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("{path}: the server closed the connection");
            }
        }
    }
}

/// What is still to come of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Head,
    Body(usize),
    /// The length of a chunk.
    Length,
    /// The rest of a chunk, and the line end behind it.
    Chunk(usize),
    /// The line end behind the last chunk.
    End(usize),
    Nothing,
}

impl Rest {
    /// Takes what can be taken of `bytes`, shows what of it is the body, and says how much it was.
    fn take(&mut self, bytes: &[u8], mut show: impl FnMut(&[u8])) -> anyhow::Result<usize> {
        let mut at = 0;
        loop {
            let left = &bytes[at..];
            match *self {
                Self::Nothing => return Ok(at),
                Self::Head => {
                    let Some(answer) = answer(left)? else { return Ok(at) };
                    if answer.status >= 400 {
                        bail!("{}", String::from_utf8_lossy(left));
                    }
                    at += answer.head;
                    *self = answer.body.map_or(Self::Length, Self::Body);
                }
                Self::Body(0) | Self::End(0) => *self = Self::Nothing,
                Self::Length => {
                    let Some(end) = left.windows(2).position(|w| w == b"\r\n") else {
                        return Ok(at);
                    };
                    let digits = std::str::from_utf8(&left[..end])?;
                    let length = usize::from_str_radix(digits, 16).context("a chunk's length")?;
                    at += end + 2;
                    *self = if length == 0 { Self::End(2) } else { Self::Chunk(length + 2) };
                }
                Self::Chunk(0) => *self = Self::Length,
                _ if left.is_empty() => return Ok(at),
                Self::Body(more) => {
                    let taken = more.min(left.len());
                    show(&left[..taken]);
                    at += taken;
                    *self = Self::Body(more - taken);
                }
                Self::End(more) => {
                    let taken = more.min(left.len());
                    at += taken;
                    *self = Self::End(more - taken);
                }
                Self::Chunk(more) => {
                    let taken = more.min(left.len());
                    show(&left[..taken.min(more.saturating_sub(2))]);
                    at += taken;
                    *self = Self::Chunk(more - taken);
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// Bytes before the body.
    head: usize,
    /// None: it comes in chunks.
    body: Option<usize>,
}

/// What an answer says of itself; None until its head is there.
fn answer(bytes: &[u8]) -> anyhow::Result<Option<Answer>> {
    const LENGTH: &[u8] = b"content-length:";
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let head = &bytes[..end];
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.trim().parse::<usize>().ok();
    let status = head.get(9..12).and_then(number).context("an answer without a status")?;
    let mut lines = head.split(|b| *b == b'\n');
    let length = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(LENGTH.len())?;
        name.eq_ignore_ascii_case(LENGTH).then(|| number(value))?
    });
    Ok(Some(Answer { status: status as u16, head: end + 4, body: length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let read = |text: &str| answer(text.as_bytes());
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-len").unwrap(), None);
        let ok = read("HTTP/1.1 201 Created\r\nX: y\r\nContent-Length: 12\r\n\r\nbody").unwrap();
        assert_eq!(ok, Some(Answer { status: 201, head: 50, body: Some(12) }));
        assert!(read("nonsense\r\n\r\n").is_err());
    }

    #[test]
    fn bodies() {
        #[track_caller]
        fn check(text: &str, body: &str) {
            let text = format!("HTTP/1.1 200 OK\r\n{text}");
            // As it comes, whole and byte by byte.
            for step in [text.len(), 1] {
                let (mut rest, mut seen, mut buffer) = (Rest::Head, Vec::new(), Vec::new());
                for part in text.as_bytes().chunks(step) {
                    buffer.extend_from_slice(part);
                    let taken = rest.take(&buffer, |b| seen.extend_from_slice(b)).unwrap();
                    buffer.drain(..taken);
                }
                assert_eq!((rest, buffer.len()), (Rest::Nothing, 0));
                assert_eq!(String::from_utf8_lossy(&seen), body);
            }
        }
        check("content-length: 5\r\n\r\nhello", "hello");
        check(
            "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1f\r\n and whoever else listens to us\r\n0\r\n\r\n",
            "hello and whoever else listens to us",
        );
    }
}
