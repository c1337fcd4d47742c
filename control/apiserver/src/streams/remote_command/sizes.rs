//! Sizes of a client's terminal: JSON objects, one after the other, in bytes as they come.

use serde::Deserialize;

use crate::nodes::Input;

/// What may wait for the rest of an object.
const BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads sizes. What cannot be read ends it: nothing more is resized.
#[derive(Default)]
pub struct Sizes {
    waiting: Vec<u8>,
    broken: bool,
}

impl Sizes {
    /// The newest size that is complete.
    pub fn read(&mut self, bytes: &[u8]) -> Option<Input> {
        if self.broken {
            return None;
        }
        self.waiting.extend_from_slice(bytes);
        let mut objects = serde_json::Deserializer::from_slice(&self.waiting).into_iter::<Size>();
        let mut newest = None;
        loop {
            match objects.next() {
                Some(Ok(Size { width, height })) => newest = Some(Input::Resize { width, height }),
                Some(Err(e)) if e.is_eof() => break,
                Some(Err(_)) => {
                    self.broken = true;
                    break;
                }
                None => break,
            }
        }
        let read = objects.byte_offset();
        self.waiting.drain(..read);
        self.broken |= self.waiting.len() > BYTES_MAX;
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces() {
        let size = |width, height| Some(Input::Resize { width, height });
        let mut sizes = Sizes::default();
        assert_eq!(sizes.read(br#"{"Width":80,"Hei"#), None);
        assert_eq!(sizes.read(b"ght\":24}\n"), size(80, 24));
        assert_eq!(sizes.read(br#"{"Width":1,"Height":2}{"Width":3,"Height":4}"#), size(3, 4));
        assert_eq!(sizes.read(b"not a size"), None);
        assert_eq!(sizes.read(br#"{"Width":1,"Height":2}"#), None, "it is over");
        let mut flood = Sizes::default();
        assert_eq!(flood.read(b"{\"x\":\""), None);
        for _ in 0..100 {
            assert_eq!(flood.read(&[b'x'; 1000]), None);
        }
        assert!(flood.waiting.len() <= BYTES_MAX + 1000);
    }
}
