//! What is served beside resources: discovery, OpenAPI, version, health, metrics, token keys.

use std::sync::Arc;

use http::HeaderValue;
use rimward_api::Status;
use serde_json::json;

use crate::body::{self, Response};
use crate::config::Build;
use crate::error;
use crate::request::Call;
use crate::server::Inner;
use crate::{aggregation, discovery, health, metrics, openapi};

/// Kubernetes' version that the API is, with ours behind it.
pub const GIT_VERSION: &str = concat!("v1.36.2+rimward", env!("CARGO_PKG_VERSION"));

pub async fn serve(server: &Arc<Inner>, call: &mut Call) -> Result<Response, Status> {
    if !matches!(call.attributes.verb.as_str(), "get" | "head") {
        return Err(error::method_not_allowed());
    }
    let path = call.attributes.path.trim_end_matches('/').to_owned();
    match path.as_str() {
        "" => Ok(index(server)),
        "/version" => Ok(error::json(200, version(&server.config.build).to_string())),
        "/metrics" => Ok(error::typed(200, metrics::CONTENT_TYPE, metrics::show(server).await)),
        "/metrics/slis" => {
            Ok(error::typed(200, metrics::CONTENT_TYPE, metrics::slis(server).await))
        }
        "/openid/v1/jwks" => {
            let keys = server.tokens.key_set().to_string();
            Ok(kept_an_hour(error::typed(200, "application/jwk-set+json", keys)))
        }
        "/.well-known/openid-configuration" => {
            Ok(kept_an_hour(error::json(200, openid(server).to_string())))
        }
        path if path.starts_with("/openapi/") => openapi::serve(server, call, path).await,
        path if path == "/api"
            || path == "/apis"
            || path.starts_with("/api/")
            || path.starts_with("/apis/") =>
        {
            match server.aggregation.any_remote() {
                true => aggregation::discovery::serve(server, call, path),
                false => discovery::serve(server.registry().discovery(), call, path),
            }
        }
        path => Ok(health::serve(server, call, path).await.unwrap_or_else(error::page_not_found)),
    }
}

fn index(server: &Inner) -> Response {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
    for served in server.registry().all().iter().filter(|s| !s.kind.group.is_empty()) {
        for path in
            [format!("/apis/{}", served.kind.group), served.kind.group_version().url_prefix()]
        {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    let others =
        ["/metrics", "/metrics/slis", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/version"];
    paths.extend(others.map(str::to_owned));
    for endpoint in health::ENDPOINTS {
        paths.push(format!("/{endpoint}"));
        paths.extend(health::names(endpoint).map(|check| format!("/{endpoint}/{check}")));
    }
    paths.sort();
    error::json(200, json!({ "paths": paths }).to_string())
}

/// What `/version` says.
pub fn version(build: &Build) -> serde_json::Value {
    json!({
        "major": "1", "minor": "36",
        "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION, "gitCommit": build.commit, "gitTreeState": build.tree_state,
        "buildDate": build.date,
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    })
}

/// Relying parties need not ask for the same at every token.
fn kept_an_hour(mut response: Response) -> Response {
    let value = http::HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(http::header::CACHE_CONTROL, value);
    response
}

fn openid(server: &Inner) -> serde_json::Value {
    json!({
        "issuer": server.config.issuer,
        "jwks_uri": format!("{}/openid/v1/jwks", server.config.issuer.trim_end_matches('/')),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// Answers a document, or 304 to a client that has it.
pub fn document(
    call: &Call,
    content_type: &'static str,
    bytes: &bytes::Bytes,
    etag: &str,
) -> Response {
    let mut response = match call.header("if-none-match").contains(etag) {
        true => {
            let mut response = http::Response::new(body::empty());
            *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            response
        }
        false if bytes.len() >= body::GZIP_BYTES_MIN && crate::negotiate::gzip(&call.headers) => {
            let mut response = error::typed(200, content_type, body::gzip(bytes));
            crate::views::mark_gzip(&mut response);
            response
        }
        false => error::typed(200, content_type, bytes.clone()),
    };
    let headers = response.headers_mut();
    headers.insert(http::header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        headers.insert(http::header::ETAG, etag);
    }
    response
}

/// The hash that names a document's content.
pub fn etag(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().map(|b| format!("{b:02X}")).collect()
}
