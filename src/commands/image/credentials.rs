//! What `rimward image pull` is to show a registry: docker's `config.json`, as it is sent to the node.

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use serde_json::{Value, json};

/// Nothing where none are given.
pub fn read(image: &str, auth_file: Option<&Path>, from_stdin: bool) -> anyhow::Result<Vec<u8>> {
    if let Some(file) = auth_file {
        let content =
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        return of_file(&content).with_context(|| format!("{}", file.display()));
    }
    if !from_stdin {
        return Ok(Vec::new());
    }
    let text = std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?;
    of_pair(image, text.trim_end_matches(['\r', '\n']))
}

/// No more of a file than is the registry's: helpers and headers are the user's own.
fn of_file(content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let config: Value = serde_json::from_slice(content).context("it is not JSON")?;
    let auths = config.get("auths").filter(|auths| auths.is_object());
    let auths = auths.context("it has no \"auths\"; credential helpers are not asked")?;
    Ok(json!({ "auths": auths }).to_string().into_bytes())
}

fn of_pair(image: &str, pair: &str) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(pair.contains(':'), "standard input is not USER:PASSWORD");
    let first = image.split('/').next().unwrap_or_default();
    let has_host = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let host = if has_host { first } else { "docker.io" };
    let auth = base64::engine::general_purpose::STANDARD.encode(pair);
    Ok(json!({ "auths": { host: { "auth": auth } } }).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_laid_out_as_dockers() {
        let text = |bytes: anyhow::Result<Vec<u8>>| String::from_utf8(bytes.unwrap()).unwrap();
        for (image, host) in [
            ("r.example:5000/a:v1", "r.example:5000"),
            ("localhost/a", "localhost"),
            ("team/a", "docker.io"),
            ("a:v1", "docker.io"),
        ] {
            let expected = format!(r#"{{"auths":{{"{host}":{{"auth":"dTpw"}}}}}}"#);
            assert_eq!(text(of_pair(image, "u:p")), expected);
        }
        assert!(of_pair("a", "nothing").is_err());
        let file = br#"{"auths":{"r":{"auth":"x"}},"HttpHeaders":{"X":"y"}}"#;
        assert_eq!(text(of_file(file)), r#"{"auths":{"r":{"auth":"x"}}}"#);
        assert!(of_file(br#"{"credsStore":"desktop"}"#).is_err());
    }
}
