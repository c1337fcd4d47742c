//! YAML bodies, bounded: kubectl sends JSON, but server-side apply and some clients send YAML.

use serde_json::Value;

/// Parses YAML (JSON is YAML, but is parsed as JSON, which is quicker). Keys that are there twice are
/// told in `strict`; the last one holds.
pub(crate) fn parse(body: &[u8], strict: &mut Vec<String>) -> Result<Value, String> {
    if body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        let mut scanner = super::Scanner::new(body);
        let value = scanner
            .any(&mut |key| strict.push(format!("key {} already set in map", super::quote(key))));
        if let Ok(value) = value.and_then(|value| scanner.end().map(|()| value)) {
            return Ok(value);
        }
        // A flow mapping of YAML looks like broken JSON.
        strict.clear();
    }
    let read = |duplicate_keys| {
        serde_saphyr::from_slice_with_options::<Value>(body, options(duplicate_keys))
    };
    match read(serde_saphyr::DuplicateKeyPolicy::Error) {
        Ok(value) => Ok(value),
        Err(first) => match read(serde_saphyr::DuplicateKeyPolicy::LastWins) {
            Ok(value) => {
                strict.push(in_go_words(&first));
                Ok(value)
            }
            Err(wrong) => Err(format!("yaml: {wrong}")),
        },
    }
}

/// A key that is there twice, as Go's YAML tells it.
fn in_go_words(error: &serde_saphyr::Error) -> String {
    match (error.without_snippet(), error.location()) {
        (serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. }, Some(at)) => {
            format!(
                "yaml: unmarshal errors:\n  line {}: key {} already set in map",
                at.line(),
                super::quote(key)
            )
        }
        _ => error.to_string(),
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
