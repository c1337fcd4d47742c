//! The GET of a manifest, of which no more is read than a manifest may be: oci-client reads whatever a registry
//! sends, into memory.
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests>

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::ACCEPT;
use oci_client::RegistryOperation;
use oci_client::errors::OciEnvelope;
use oci_client::secrets::RegistryAuth as OciAuth;

use super::{Remote, causes};
use crate::fetch::{FetchError, MANIFEST_BYTES_MAX};
use crate::form;

/// Of what a registry says when it refuses.
const REFUSAL_BYTES_MAX: usize = 16 << 10;

pub(super) async fn get(remote: &Remote<'_>, version: &str) -> Result<Bytes, FetchError> {
    let reference = &remote.name.reference;
    let whole = reference.whole();
    let failed = |e: reqwest::Error| FetchError::Failed(format!("{whole}: {}", causes(&e)));
    let host = reference.resolve_registry();
    let scheme = if remote.clients.plain { "http" } else { "https" };
    let url = format!("{scheme}://{host}/v2/{}/manifests/{version}", reference.repository());
    let mut request = remote.clients.http.get(&url).header(ACCEPT, form::ACCEPT.join(", "));
    let token = remote.clients.oci.auth(reference, &remote.auth, RegistryOperation::Pull).await;
    match (token.map_err(|e| remote.explain(e))?, &remote.auth) {
        (Some(token), _) => request = request.bearer_auth(token),
        (None, OciAuth::Basic(user, password)) => {
            request = request.basic_auth(user, Some(password));
        }
        (None, _) => {}
    }
    let mut response = request.send().await.map_err(failed)?;
    let status = response.status();
    let max = if status == StatusCode::OK { MANIFEST_BYTES_MAX } else { REFUSAL_BYTES_MAX };
    let mut content = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if content.len() + chunk.len() > max {
            if status == StatusCode::OK {
                return Err(FetchError::Failed(format!(
                    "{whole}: the manifest exceeds {max} bytes"
                )));
            }
            break;
        }
        content.extend_from_slice(&chunk);
    }
    if status == StatusCode::OK {
        return Ok(content.freeze());
    }
    Err(refused(&whole, &url, status, &content))
}

fn refused(whole: &str, url: &str, status: StatusCode, said: &[u8]) -> FetchError {
    // In the registry's own words, where it has some.
    let said = match serde_json::from_slice::<OciEnvelope>(said) {
        Ok(envelope) => envelope.to_string(),
        Err(_) => String::from_utf8_lossy(said).trim().to_owned(),
    };
    let answer = format!("{url} answers {status}: {said}");
    match status {
        StatusCode::NOT_FOUND => FetchError::NotFound(whole.to_owned()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FetchError::Denied(format!(
            "{whole}: pull access denied, repository does not exist or may require authorization: {answer}"
        )),
        _ => FetchError::Failed(format!("{whole}: {answer}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals() {
        #[track_caller]
        fn check(status: u16, said: &str, expected: &str) {
            let status = StatusCode::from_u16(status).unwrap();
            let error = refused("r/a:v1", "http://r/x", status, said.as_bytes());
            assert_eq!(error.to_string(), expected);
        }
        check(500, "boom\n", "r/a:v1: http://r/x answers 500 Internal Server Error: boom");
        check(404, "", "r/a:v1: not found");
        check(
            401,
            "",
            "r/a:v1: pull access denied, repository does not exist or may require authorization: \
             http://r/x answers 401 Unauthorized: ",
        );
    }
}
