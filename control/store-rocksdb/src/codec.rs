//! The bytes of each record. Every value begins with a version and a flags byte; a version or a
//! flag that we do not know is an error, never a guess, so that later versions can encrypt or
//! compress bodies and say so in the flags.
//!
//! ```text
//! bodies  escaped key, 0 1, !revision  ->  1, flags, created, body
//! log     revision, index              ->  1, flags, previous revision, its bytes, key
//! keys    key                          ->  1, flags, revision, created
//! ```
//!
//! Numbers are big-endian, so that they sort. The inverted revision puts a key's newest version
//! first: the version at a revision is the first one found from there.

use rimward_control_store::Revision;

const VERSION: u8 = 1;
const DELETED: u8 = 1;
/// In `keys`: the key was deleted and created again, and the older life may still be retained.
const EARLIER: u8 = 2;

/// A record that cannot be read; the text says why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("a record is cut short")]
    Short,
    #[error("a record has version {0}, which a newer Rimward wrote")]
    Version(u8),
    #[error("a record has flags {0:#x}, which a newer Rimward wrote")]
    Flags(u8),
    #[error("a key is not text")]
    Key,
}

/// Where the versions of `key` begin in `bodies`.
pub fn body_prefix(key: &str) -> Vec<u8> {
    let mut out = escaped(key);
    out.extend([0, 1]);
    out
}

/// The place of the newest version of `key` that is not newer than `revision`, in `bodies`.
pub fn body_key(key: &str, revision: Revision) -> Vec<u8> {
    let mut out = body_prefix(key);
    out.extend((!revision).to_be_bytes());
    out
}

/// Where `bodies` of keys that start with `prefix` end.
pub fn bodies_end(prefix: &str) -> Option<Vec<u8>> {
    let mut end = escaped(prefix);
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// A zero byte becomes 0 255, so that the terminator 0 1 sorts before any longer key.
fn escaped(key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 10);
    for &byte in key.as_bytes() {
        out.push(byte);
        if byte == 0 {
            out.push(u8::MAX);
        }
    }
    out
}

/// The revision in a key of `bodies` whose prefix was compared already.
pub fn body_revision(key: &[u8]) -> Result<Revision, Unreadable> {
    let tail = key.last_chunk::<8>().ok_or(Unreadable::Short)?;
    Ok(!u64::from_be_bytes(*tail))
}

#[derive(Debug, PartialEq, Eq)]
pub struct Body<'a> {
    pub created: Revision,
    /// None: the key was deleted here.
    pub value: Option<&'a [u8]>,
}

impl<'a> Body<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let value = self.value.unwrap_or_default();
        let mut out = Vec::with_capacity(10 + value.len());
        out.extend([VERSION, if self.value.is_none() { DELETED } else { 0 }]);
        out.extend(self.created.to_be_bytes());
        out.extend(value);
        out
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let (flags, rest) = header(bytes, DELETED)?;
        let (created, value) = number(rest)?;
        Ok(Self { created, value: (flags & DELETED == 0).then_some(value) })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a> {
    pub key: &'a str,
    pub deleted: bool,
    /// The revision that this change replaced; 0: the key was absent.
    pub previous: Revision,
    /// The size of what was replaced.
    pub previous_bytes: u64,
}

impl<'a> Change<'a> {
    pub fn place(revision: Revision, index: u16) -> [u8; 10] {
        let mut out = [0; 10];
        out[..8].copy_from_slice(&revision.to_be_bytes());
        out[8..].copy_from_slice(&index.to_be_bytes());
        out
    }

    pub fn revision(place: &[u8]) -> Result<Revision, Unreadable> {
        number(place).map(|(revision, _)| revision)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(18 + self.key.len());
        out.extend([VERSION, if self.deleted { DELETED } else { 0 }]);
        out.extend(self.previous.to_be_bytes());
        out.extend(self.previous_bytes.to_be_bytes());
        out.extend(self.key.as_bytes());
        out
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let (flags, rest) = header(bytes, DELETED)?;
        let (previous, rest) = number(rest)?;
        let (previous_bytes, key) = number(rest)?;
        let key = text(key)?;
        Ok(Self { key, deleted: flags & DELETED != 0, previous, previous_bytes })
    }
}

/// What is known of a key as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The revision that last wrote or deleted it.
    pub revision: Revision,
    pub created: Revision,
    pub deleted: bool,
    /// It had an earlier life, of which history may still be retained.
    pub earlier: bool,
}

impl Known {
    pub fn encode(&self) -> [u8; 18] {
        let mut out = [0; 18];
        let deleted = if self.deleted { DELETED } else { 0 };
        let earlier = if self.earlier { EARLIER } else { 0 };
        out[0] = VERSION;
        out[1] = deleted | earlier;
        out[2..10].copy_from_slice(&self.revision.to_be_bytes());
        out[10..].copy_from_slice(&self.created.to_be_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (flags, rest) = header(bytes, DELETED | EARLIER)?;
        let (revision, rest) = number(rest)?;
        let (created, _) = number(rest)?;
        let (deleted, earlier) = (flags & DELETED != 0, flags & EARLIER != 0);
        Ok(Self { revision, created, deleted, earlier })
    }
}

pub fn text(bytes: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(bytes).map_err(|_| Unreadable::Key)
}

pub fn number(bytes: &[u8]) -> Result<(u64, &[u8]), Unreadable> {
    let (number, rest) = bytes.split_first_chunk::<8>().ok_or(Unreadable::Short)?;
    Ok((u64::from_be_bytes(*number), rest))
}

fn header(bytes: &[u8], known_flags: u8) -> Result<(u8, &[u8]), Unreadable> {
    let ([version, flags], rest) = bytes.split_first_chunk().ok_or(Unreadable::Short)?;
    if *version != VERSION {
        return Err(Unreadable::Version(*version));
    }
    if flags & !known_flags != 0 {
        return Err(Unreadable::Flags(*flags));
    }
    Ok((*flags, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_sort_by_key_then_newest_first() {
        let keys =
            ["", "\0", "\0\0", "a", "a\0", "a\0b", "a\u{1}", "a/", "ab", "b", "é", "\u{10ffff}"];
        let mut places = Vec::new();
        for key in keys {
            for revision in [u64::MAX, 300, 256, 255, 1, 0] {
                places.push(body_key(key, revision));
                assert_eq!(body_revision(&body_key(key, revision)), Ok(revision));
                assert!(body_key(key, revision).starts_with(&body_prefix(key)));
            }
        }
        assert!(places.is_sorted(), "{places:?}");
        for prefix in keys {
            for key in keys {
                let place = body_key(key, 7);
                let inside =
                    bodies_end(prefix).is_none_or(|end| place < end) && place >= escaped(prefix);
                assert_eq!(inside, key.starts_with(prefix), "{key:?} under {prefix:?}");
            }
        }
    }

    #[test]
    fn records_survive_and_strangers_are_refused() {
        let body = Body { created: 5, value: Some(b"x") };
        assert_eq!(Body::decode(&body.encode()), Ok(body));
        let gone = Body { created: 5, value: None };
        assert_eq!(Body::decode(&gone.encode()), Ok(gone));
        let change = Change { key: "/a", deleted: true, previous: 3, previous_bytes: 9 };
        let bytes = change.encode();
        assert_eq!(Change::decode(&bytes), Ok(change));
        let known = Known { revision: 9, created: 5, deleted: false, earlier: true };
        assert_eq!(Known::decode(&known.encode()), Ok(known));

        assert_eq!(Body::decode(&[1]), Err(Unreadable::Short));
        assert_eq!(Body::decode(&[1, 0, 0]), Err(Unreadable::Short));
        assert_eq!(Body::decode(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Unreadable::Version(2)));
        assert_eq!(Body::decode(&[1, 4, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Unreadable::Flags(4)));
        assert_eq!(text(&[0xff]), Err(Unreadable::Key));
    }
}
