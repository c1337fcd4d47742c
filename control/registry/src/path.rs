//! What a `/v2/…` path asks for, and the rules for names, tags and digests.

use crate::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/tags/list`
    Tags { name: String },
    /// `/v2/<name>/manifests/<tag or digest>`
    Manifest { name: String, reference: Reference },
    /// `/v2/<name>/blobs/<digest>`
    Blob { name: String, digest: Digest },
    /// `/v2/<name>/blobs/uploads/`
    Uploads { name: String },
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload { name: String, id: String },
    /// `/v2/<name>/referrers/<digest>`
    Referrers { name: String, digest: Digest },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Tag(String),
    Digest(Digest),
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A verified-looking `sha256:<64 hex>`; only the hex is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    pub hex: String,
}

impl Digest {
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text.strip_prefix("sha256:") {
            Some(hex)
                if hex.len() == 64
                    && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) =>
            {
                Ok(Self { hex: hex.to_owned() })
            }
            _ => Err(Error::DigestInvalid(text.to_owned())),
        }
    }

    pub fn of(content: &[u8]) -> Self {
        use sha2::{Digest as _, Sha256};
        Self::from_hash(&Sha256::digest(content))
    }

    pub fn from_hash(hash: &[u8]) -> Self {
        use std::fmt::Write;
        let hex = hash.iter().fold(String::with_capacity(64), |mut s, b| {
            write!(s, "{b:02x}").expect("a String takes every write");
            s
        });
        Self { hex }
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.hex)
    }
}

impl Target {
    /// The repository that the path is about.
    pub fn repository(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Referrers { name, .. } => Some(name),
        }
    }

    /// None when the path is not of this API at all.
    pub fn parse(path: &str) -> Result<Option<Self>, Error> {
        let Some(rest) = path.strip_prefix("/v2") else { return Ok(None) };
        let rest = match rest {
            "" | "/" => return Ok(Some(Self::Base)),
            "/_catalog" => return Ok(Some(Self::Catalog)),
            other => other.strip_prefix('/').unwrap_or(other),
        };
        let segments: Vec<&str> = rest.split('/').collect();
        let target = match segments.as_slice() {
            [name @ .., "tags", "list"] => Self::Tags { name: repository(name)? },
            [name @ .., "blobs", "uploads", ""] | [name @ .., "blobs", "uploads"] => {
                Self::Uploads { name: repository(name)? }
            }
            [name @ .., "blobs", "uploads", id] => {
                Self::Upload { name: repository(name)?, id: (*id).to_owned() }
            }
            [name @ .., "blobs", digest] => {
                Self::Blob { name: repository(name)?, digest: Digest::parse(digest)? }
            }
            [name @ .., "manifests", reference] => {
                Self::Manifest { name: repository(name)?, reference: parse_reference(reference)? }
            }
            [name @ .., "referrers", digest] => {
                Self::Referrers { name: repository(name)?, digest: Digest::parse(digest)? }
            }
            _ => return Ok(None),
        };
        Ok(Some(target))
    }
}

pub(crate) fn parse_reference(text: &str) -> Result<Reference, Error> {
    if text.contains(':') {
        return Ok(Reference::Digest(Digest::parse(text)?));
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if good { Ok(Reference::Tag(text.to_owned())) } else { Err(Error::TagInvalid(text.to_owned())) }
}

/// Whether a text is a repository's name.
pub(crate) fn check_repository(name: &str) -> Result<(), Error> {
    repository(&name.split('/').collect::<Vec<_>>()).map(drop)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` per segment; at most 255 bytes in all. Segments never start
/// with '_' or '.', so a name cannot reach outside its directory or into the links beside it.
fn repository(segments: &[&str]) -> Result<String, Error> {
    let name = segments.join("/");
    let segment = |s: &str| {
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let separator_runs =
            || s.split(|c: char| alnum(c as u8) && c.is_ascii()).filter(|run| !run.is_empty());
        let ends = |b: Option<u8>| b.is_some_and(alnum);
        ends(s.bytes().next())
            && ends(s.bytes().last())
            && separator_runs()
                .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
    };
    if segments.is_empty() || name.len() > 255 || !segments.iter().all(|s| segment(s)) {
        return Err(Error::NameInvalid(name));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        #[track_caller]
        fn check(path: &str, expected: Option<Target>) {
            assert_eq!(Target::parse(path).expect("valid"), expected, "{path}");
        }
        let hex = "a".repeat(64);
        let digest = Digest { hex: hex.clone() };
        check("/v2/", Some(Target::Base));
        check("/v2/a/b/tags/list", Some(Target::Tags { name: "a/b".into() }));
        check("/v2/a/blobs/uploads/", Some(Target::Uploads { name: "a".into() }));
        check(
            &format!("/v2/a/blobs/sha256:{hex}"),
            Some(Target::Blob { name: "a".into(), digest: digest.clone() }),
        );
        check(
            "/v2/a/manifests/v1.0",
            Some(Target::Manifest { name: "a".into(), reference: Reference::Tag("v1.0".into()) }),
        );
        check("/v3/", None);
        check("/v2/a", None);
    }

    #[test]
    fn names_that_must_not_pass() {
        for path in [
            "/v2/../manifests/a",
            "/v2/a/../../b/manifests/a",
            "/v2/A/manifests/a",
            "/v2/_tags/manifests/a",
            "/v2/a..b/manifests/a",
            "/v2//manifests/a",
            "/v2/a/manifests/.a",
            "/v2/a/manifests/a%2f",
            "/v2/a/blobs/sha256:XYZ",
            "/v2/ä/manifests/a",
        ] {
            assert!(Target::parse(path).is_err(), "{path}");
        }
    }
}
