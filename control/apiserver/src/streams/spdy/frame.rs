//! Frames as they stand on the wire. Bytes in, frames out: no I/O. SPDY/3.1, section 2.2.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{self, Headers};

const VERSION: u16 = 3;
const HEAD_BYTES: usize = 8;
/// Bytes of a control frame, at most. A client's has a hundred.
const CONTROL_BYTES_MAX: usize = 64 << 10;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset.
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 3;

/// What is not SPDY/3.1, or more than is sensible. The connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new stream; with `fin` the client has nothing to send on it.
    Open {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    /// A part of a stream's bytes: a frame on the wire may come as several of these.
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// Headers that come later; only their end of the stream matters.
    Late {
        stream: u32,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings, windows, replies to nothing: read over.
    Other,
}

/// Takes frames out of bytes as they come.
pub struct Decoder {
    buffer: BytesMut,
    headers: headers::Reader,
    /// Of a data frame whose bytes are not all there: stream, bytes to come, its flags.
    data: Option<(u32, usize, u8)>,
}

impl Decoder {
    pub fn new() -> Self {
        Self { buffer: BytesMut::new(), headers: headers::Reader::new(), data: None }
    }

    /// Where what was received goes.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next frame; None when more bytes are needed.
    ///
    /// # Errors
    /// When it is not SPDY/3.1.
    pub fn next(&mut self) -> Result<Option<Frame>, Malformed> {
        if let Some((stream, left, flags)) = self.data.take() {
            return Ok(self.piece(stream, left, flags));
        }
        if self.buffer.len() < HEAD_BYTES {
            return Ok(None);
        }
        let mut head = &self.buffer[..HEAD_BYTES];
        let (first, second) = (head.get_u32(), head.get_u32());
        let (flags, length) = ((second >> 24) as u8, (second & 0xff_ffff) as usize);
        if first & 0x8000_0000 == 0 {
            if first == 0 {
                return Err(Malformed("data for stream 0"));
            }
            self.buffer.advance(HEAD_BYTES);
            return Ok(self.piece(first, length, flags));
        }
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(Malformed("a frame of another version than 3"));
        }
        if length > CONTROL_BYTES_MAX {
            return Err(Malformed("a control frame is too long"));
        }
        if self.buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        let payload = self.buffer.split_to(length);
        self.control(first as u16, flags, &payload).map(Some)
    }

    fn piece(&mut self, stream: u32, left: usize, flags: u8) -> Option<Frame> {
        if left > 0 && self.buffer.is_empty() {
            self.data = Some((stream, left, flags));
            return None;
        }
        let bytes = self.buffer.split_to(left.min(self.buffer.len())).freeze();
        let left = left - bytes.len();
        if left > 0 {
            self.data = Some((stream, left, flags));
        }
        Some(Frame::Data { stream, bytes, fin: left == 0 && flags & FIN != 0 })
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: &[u8]) -> Result<Frame, Malformed> {
        let fin = flags & FIN != 0;
        let number = |bytes: &mut &[u8]| {
            let (number, rest) =
                bytes.split_first_chunk().ok_or(Malformed("a control frame is too short"))?;
            *bytes = rest;
            Ok(u32::from_be_bytes(*number) & 0x7fff_ffff)
        };
        Ok(match kind {
            SYN_STREAM => {
                let stream = number(&mut payload)?;
                let _associated = number(&mut payload)?;
                let block = payload.get(2..).ok_or(Malformed("a control frame is too short"))?;
                Frame::Open { stream, headers: self.headers.read(block)?, fin }
            }
            // Their headers belong to the zlib stream, whatever they say.
            SYN_REPLY | HEADERS => {
                let stream = number(&mut payload)?;
                self.headers.read(payload)?;
                Frame::Late { stream, fin }
            }
            RST_STREAM => Frame::Reset { stream: number(&mut payload)? },
            PING => {
                let (id, _) =
                    payload.split_first_chunk().ok_or(Malformed("a control frame is too short"))?;
                Frame::Ping { id: u32::from_be_bytes(*id) }
            }
            GOAWAY => Frame::GoAway,
            SETTINGS | WINDOW_UPDATE => Frame::Other,
            _ => return Err(Malformed("a control frame of an unknown kind")),
        })
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, payload: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | payload as u32);
}

/// Accepts a stream.
pub fn reply(out: &mut BytesMut, stream: u32, block: &[u8]) {
    control(out, SYN_REPLY, 0, 4 + block.len());
    out.put_u32(stream);
    out.extend_from_slice(block);
}

/// The head of a data frame; its bytes follow.
pub fn data(out: &mut BytesMut, stream: u32, length: usize, fin: bool) {
    out.put_u32(stream);
    out.put_u32(u32::from(fin) * u32::from(FIN) << 24 | length as u32);
}

pub fn reset(out: &mut BytesMut, stream: u32, status: u32) {
    control(out, RST_STREAM, 0, 8);
    out.put_u32(stream);
    out.put_u32(status);
}

pub fn ping(out: &mut BytesMut, id: u32) {
    control(out, PING, 0, 4);
    out.put_u32(id);
}

/// No more streams are taken; `last` was the last.
pub fn go_away(out: &mut BytesMut, last: u32) {
    control(out, GOAWAY, 0, 8);
    out.put_u32(last);
    out.put_u32(0);
}

#[cfg(test)]
pub mod tests {
    use super::super::headers::tests::ClientWriter;
    use super::*;

    /// A client's SYN_STREAM.
    pub fn open(client: &mut ClientWriter, stream: u32, headers: &[(&str, &str)]) -> BytesMut {
        let block = client.pack(headers);
        let mut out = BytesMut::new();
        control(&mut out, SYN_STREAM, 0, 10 + block.len());
        out.put_u32(stream);
        out.put_u32(0);
        out.put_u16(0);
        out.extend_from_slice(&block);
        out
    }

    fn frames(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next().unwrap()).collect()
    }

    #[test]
    fn frames_come_out_however_bytes_come_in() {
        let mut wire = open(&mut ClientWriter::new(), 1, &[("streamtype", "stdin")]);
        data(&mut wire, 1, 5, false);
        wire.extend_from_slice(b"hello");
        ping(&mut wire, 7);
        data(&mut wire, 1, 0, true);
        reset(&mut wire, 1, 5);
        go_away(&mut wire, 1);
        let mut whole = Decoder::new();
        whole.buffer().extend_from_slice(&wire);
        let whole = frames(&mut whole);
        assert_eq!(whole.len(), 6);
        assert!(
            matches!(&whole[0], Frame::Open { stream: 1, headers, fin: false } if headers.get("streamtype") == "stdin")
        );
        assert_eq!(whole[3], Frame::Data { stream: 1, bytes: Bytes::new(), fin: true });

        let (mut decoder, mut seen) = (Decoder::new(), Vec::new());
        for byte in &wire {
            decoder.buffer().extend_from_slice(&[*byte]);
            seen.extend(frames(&mut decoder));
        }
        let data: Vec<u8> = seen
            .iter()
            .flat_map(|f| match f {
                Frame::Data { bytes, .. } => bytes.to_vec(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(data, b"hello");
        assert_eq!(seen.last(), Some(&Frame::GoAway));
    }

    /// A frame of 16 MiB is never held: what has come goes on.
    #[test]
    fn long_frames_are_not_collected() {
        let mut wire = BytesMut::new();
        data(&mut wire, 3, 0xff_ffff, true);
        wire.extend_from_slice(b"first");
        let mut decoder = Decoder::new();
        decoder.buffer().extend_from_slice(&wire);
        let first = Frame::Data { stream: 3, bytes: Bytes::from_static(b"first"), fin: false };
        assert_eq!(decoder.next(), Ok(Some(first)));
        assert_eq!(decoder.next(), Ok(None));
    }

    #[test]
    fn what_is_not_spdy() {
        #[track_caller]
        fn check(bytes: &[u8], why: &'static str) {
            let mut decoder = Decoder::new();
            decoder.buffer().extend_from_slice(bytes);
            assert_eq!(decoder.next(), Err(Malformed(why)));
        }
        check(&[0x80, 2, 0, 1, 0, 0, 0, 0], "a frame of another version than 3");
        check(&[0x80, 3, 0, 99, 0, 0, 0, 0], "a control frame of an unknown kind");
        check(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], "a control frame is too long");
        check(&[0x80, 3, 0, 1, 0, 0, 0, 3, 1, 1, 1], "a control frame is too short");
        check(&[0, 0, 0, 0, 0, 0, 0, 0], "data for stream 0");
    }

    proptest::proptest! {
        /// Whatever a client sends, it is read or refused, and never held in mass.
        #[test]
        fn hostile_bytes(
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
            flips in proptest::collection::vec((0_usize..200, proptest::num::u8::ANY), 0..4),
            cut in 1_usize..64,
        ) {
            let mut wire = open(&mut ClientWriter::new(), 1, &[("streamtype", "data"), ("port", "80")]);
            data(&mut wire, 1, 40, false);
            wire.extend_from_slice(&[b'x'; 40]);
            ping(&mut wire, 3);
            for (at, byte) in flips {
                let at = at % wire.len();
                wire[at] = byte;
            }
            wire.extend_from_slice(&noise);
            let mut decoder = Decoder::new();
            'all: for piece in wire.chunks(cut) {
                decoder.buffer().extend_from_slice(piece);
                loop {
                    match decoder.next() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'all,
                    }
                }
                proptest::prop_assert!(decoder.buffer().len() <= HEAD_BYTES + CONTROL_BYTES_MAX);
            }
        }
    }
}
