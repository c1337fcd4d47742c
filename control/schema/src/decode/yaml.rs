//! YAML bodies, bounded: kubectl sends JSON, but server-side apply and some clients send YAML.

use std::collections::HashSet;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Keys that are told of as repeated.
const REPEATED_MAX: usize = 100;

/// Parses YAML (JSON is YAML, but is parsed as JSON, which is quicker). Keys that are there twice are
/// told in `strict`, one a line; the last one holds.
pub(crate) fn parse(body: &[u8], strict: &mut Vec<String>) -> Result<Value, String> {
    if body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        let mut scanner = super::Scanner::new(body);
        let value = scanner.any(&mut |key, place| {
            if strict.len() < REPEATED_MAX {
                let line = 1 + body[..place].iter().filter(|b| **b == b'\n').count();
                strict.push(repeated(line as u64, key));
            }
        });
        if let Ok(value) = value.and_then(|value| scanner.end().map(|()| value)) {
            return Ok(value);
        }
        // A flow mapping of YAML looks like broken JSON.
        strict.clear();
    }
    match read(body, serde_saphyr::DuplicateKeyPolicy::Error) {
        Ok(value) => Ok(value),
        Err(_) => {
            let value = read(body, serde_saphyr::DuplicateKeyPolicy::LastWins)
                .map_err(|wrong| format!("yaml: {wrong}"))?;
            let Repeats(lines) = read(body, serde_saphyr::DuplicateKeyPolicy::LastWins)
                .map_err(|wrong| format!("yaml: {wrong}"))?;
            strict.extend(lines.into_iter().take(REPEATED_MAX));
            Ok(value)
        }
    }
}

/// The lines of [`parse`] as Go's YAML tells them when it tells them all.
pub(crate) fn complaint(lines: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))
}

fn repeated(line: u64, key: &str) -> String {
    format!("line {line}: key {} already set in map", super::quote(key))
}

fn read<T: DeserializeOwned>(
    body: &[u8],
    duplicate_keys: serde_saphyr::DuplicateKeyPolicy,
) -> Result<T, serde_saphyr::Error> {
    serde_saphyr::from_slice_with_options(body, options(duplicate_keys))
}

/// What is repeated somewhere in a value.
struct Repeats(Vec<String>);

impl<'de> Deserialize<'de> for Repeats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Finder)
    }
}

struct Finder;

impl<'de> Visitor<'de> for Finder {
    type Value = Repeats;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Repeats, A::Error> {
        let (mut seen, mut lines) = (HashSet::new(), Vec::new());
        while let Some(key) = map.next_key::<serde_saphyr::Spanned<String>>()? {
            let Repeats(below) = map.next_value()?;
            lines.extend(below);
            if seen.contains(&key.value) {
                lines.push(repeated(key.referenced.line(), &key.value));
            }
            seen.insert(key.value);
        }
        Ok(Repeats(lines))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Repeats, A::Error> {
        let mut lines = Vec::new();
        while let Some(Repeats(below)) = items.next_element()? {
            lines.extend(below);
        }
        Ok(Repeats(lines))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Repeats, E> {
        Ok(Repeats(Vec::new()))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Repeats, E> {
        Ok(Repeats(Vec::new()))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Repeats, E> {
        Ok(Repeats(Vec::new()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Repeats, E> {
        Ok(Repeats(Vec::new()))
    }

    fn visit_str<E>(self, _: &str) -> Result<Repeats, E> {
        Ok(Repeats(Vec::new()))
    }

    fn visit_unit<E>(self) -> Result<Repeats, E> {
        Ok(Repeats(Vec::new()))
    }
}

/// Tight limits: a body holds one object, not a document store, and an alias bomb must not unfold.
fn options(duplicate_keys: serde_saphyr::DuplicateKeyPolicy) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 128,
            max_documents: 1,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        duplicate_keys: duplicate_keys,
        with_snippet: false,
    }
}
