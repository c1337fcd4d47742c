//! One line of the CRI log format.

use jiff::Timestamp;

/// `2026-01-02T03:04:05.678901234Z stdout F text`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// As it stands.
    pub time: &'a [u8],
    /// More of the same line follows.
    pub partial: bool,
    pub text: &'a [u8],
}

/// A line without its newline; None when it is not of the format.
pub(super) fn parse(raw: &[u8]) -> Option<Line<'_>> {
    let (time, rest) = split(raw)?;
    let (stream, rest) = split(rest)?;
    let (tags, text) = split(rest).unwrap_or((rest, b""));
    if !matches!(stream, b"stdout" | b"stderr") {
        return None;
    }
    let partial = match tags.split(|b| *b == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, partial, text })
}

impl Line<'_> {
    pub fn timestamp(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.time).ok()?.parse().ok()
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|b| *b == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        #[track_caller]
        fn check(raw: &str, expected: Option<(&str, bool, &str)>) {
            let line = parse(raw.as_bytes());
            let expected = expected.map(|(t, partial, text)| Line {
                time: t.as_bytes(),
                partial,
                text: text.as_bytes(),
            });
            assert_eq!(line, expected);
        }
        check("T stdout F hello world", Some(("T", false, "hello world")));
        check("T stderr P x", Some(("T", true, "x")));
        check("T stdout F ", Some(("T", false, "")));
        check("T stdout F", Some(("T", false, "")));
        check("T stdout P:x y", Some(("T", true, "y")));
        check("T other F x", None);
        check("hello", None);
        check("", None);
    }
}
