//! The wire itself: numbers, lengths, and the fields of a message as they come.

/// The bytes are not what they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

pub fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("a string is not UTF-8"))
}

pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a message as they come.
pub struct Parts<'a>(pub &'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.0 = b"";
        }
        Some(part)
    }
}

impl<'a> Parts<'a> {
    fn part(&mut self) -> Result<(u32, Wire<'a>), Malformed> {
        let tag = self.varint()?;
        let number =
            u32::try_from(tag >> 3).map_err(|_| Malformed("a field number is too large"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?)
                    .map_err(|_| Malformed("a length is too large"))?;
                let (bytes, rest) =
                    self.0.split_at_checked(len).ok_or(Malformed("it is cut short"))?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            _ => return Err(Malformed("a wire type is unknown")),
        };
        Ok((number, wire))
    }

    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed("it is cut short"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too long"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(*bytes)
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// How many bytes a number takes.
pub fn varint_len(n: u64) -> usize {
    (64 - (n | 1).leading_zeros() as usize).div_ceil(7)
}

pub fn put_int(out: &mut Vec<u8>, number: u32, n: i64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, n as u64);
}

pub fn put_double(out: &mut Vec<u8>, number: u32, n: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&n.to_le_bytes());
}

/// Tag and length of a field whose content follows.
pub fn put_head(out: &mut Vec<u8>, number: u32, len: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, len as u64);
}

pub fn put_bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    put_head(out, number, content.len());
    out.extend_from_slice(content);
}

/// A field whose content is written in place; it moves up when its length takes more than one byte.
pub fn put_nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    put_varint(out, u64::from(number) << 3 | 2);
    let at = out.len();
    out.push(0);
    write(out);
    let len = out.len() - at - 1;
    let more = varint_len(len as u64) - 1;
    if more > 0 {
        out.resize(out.len() + more, 0);
        out.copy_within(at + 1..at + 1 + len, at + 1 + more);
    }
    let mut rest = len as u64;
    for (i, byte) in out[at..=at + more].iter_mut().enumerate() {
        *byte = (rest as u8 & 0x7f) | if i < more { 0x80 } else { 0 };
        rest >>= 7;
    }
}
