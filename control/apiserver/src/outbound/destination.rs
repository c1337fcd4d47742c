//! Whom to call, as configuration objects write it.

use base64::Engine as _;
use http::Uri;
use serde_json::Value;

use super::error::CallError;
use super::trust::Trust;

/// Somebody to call, and what makes it the right one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    pub target: Target,
    pub trust: Trust,
    /// Whether this server presents its own client certificate.
    pub identified: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Service(Service),
    /// `https://host[:port]/path`
    Url(String),
}

/// `ServiceReference`
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub port: u16,
    /// Empty, or begins with a slash.
    pub path: String,
}

impl Service {
    /// The name that its certificate must be for.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.name, self.namespace)
    }
}

impl Destination {
    /// Reads a `WebhookClientConfig`: `{service | url, caBundle}`.
    ///
    /// # Errors
    /// Names what is missing or damaged; validation should have refused it before.
    pub fn of_client_config(config: &Value) -> Result<Self, CallError> {
        let text = |v: &Value, field: &str| {
            v.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let target = match (config.get("service").filter(|s| s.is_object()), text(config, "url")) {
            (Some(service), _) => Target::Service(Service {
                namespace: text(service, "namespace"),
                name: text(service, "name"),
                port: port(service)?,
                path: absolute(text(service, "path")),
            }),
            (None, url) if !url.is_empty() => Target::Url(url),
            _ => {
                return Err(CallError::Config(
                    "webhook configuration must have either service or URL".into(),
                ));
            }
        };
        let bundle = text(config, "caBundle");
        Ok(Self { target, trust: Trust::of_bundle(&bundle)?, identified: false })
    }

    /// Where requests go, with that query.
    pub(super) fn uri(&self, query: Option<&str>) -> Result<Uri, CallError> {
        let base = match &self.target {
            Target::Service(s) => format!("https://{}:{}{}", s.host(), s.port, s.path),
            Target::Url(url) => url.clone(),
        };
        let joined = match query {
            Some(query) if base.contains('?') => format!("{base}&{query}"),
            Some(query) => format!("{base}?{query}"),
            None => base,
        };
        parse(&joined)
    }

    /// Where a request to another path goes; `path` begins with a slash and may have a query.
    pub fn with_path(&self, path: &str) -> Result<Uri, CallError> {
        let target = self.without_path();
        let base = target.uri(None)?;
        let authority = base.authority().map(ToString::to_string).unwrap_or_default();
        parse(&format!("https://{authority}{path}"))
    }

    /// The same for every path: what connections are kept by.
    pub(super) fn without_path(&self) -> Self {
        let target = match &self.target {
            Target::Service(s) => Target::Service(Service { path: String::new(), ..s.clone() }),
            Target::Url(url) => {
                let authority = url
                    .parse::<Uri>()
                    .ok()
                    .and_then(|u| u.authority().map(ToString::to_string))
                    .unwrap_or_default();
                Target::Url(format!("https://{authority}"))
            }
        };
        Self { target, ..self.clone() }
    }
}

fn parse(text: &str) -> Result<Uri, CallError> {
    let uri: Uri = text.parse().map_err(|e| CallError::Config(format!("parse {text:?}: {e}")))?;
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        _ => Err(CallError::Config(format!("{text:?} is not an https URL"))),
    }
}

fn port(service: &Value) -> Result<u16, CallError> {
    match service.get("port").and_then(Value::as_i64) {
        None => Ok(443),
        Some(port) => u16::try_from(port)
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(|| CallError::Config(format!("{port} is not a port"))),
    }
}

fn absolute(path: String) -> String {
    match path.as_str() {
        "" => path,
        p if p.starts_with('/') => path,
        p => format!("/{p}"),
    }
}

/// The bytes of a `caBundle` field.
pub(super) fn bundle_bytes(text: &str) -> Result<Vec<u8>, CallError> {
    let clean: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    base64::engine::general_purpose::STANDARD
        .decode(clean)
        .map_err(|e| CallError::Config(format!("caBundle: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn uris() {
        #[track_caller]
        fn check(config: Value, expected: &str) {
            let destination = Destination::of_client_config(&config).expect("reads");
            let uri = destination.uri(Some("timeout=10s")).expect("is a URI");
            assert_eq!(uri.to_string(), expected);
        }
        check(
            json!({ "service": { "namespace": "n", "name": "s" } }),
            "https://s.n.svc:443/?timeout=10s",
        );
        check(
            json!({ "service": { "namespace": "n", "name": "s", "port": 8443, "path": "/a/b" } }),
            "https://s.n.svc:8443/a/b?timeout=10s",
        );
        check(json!({ "url": "https://example.com/x" }), "https://example.com/x?timeout=10s");
        let wrong = [
            json!({}),
            json!({ "service": { "port": 99999 } }),
            json!({ "url": "https://a", "caBundle": "%" }),
        ];
        for config in wrong {
            assert!(Destination::of_client_config(&config).is_err(), "{config}");
        }
        let plain = Destination::of_client_config(&json!({ "url": "http://a" })).expect("reads");
        assert!(plain.uri(None).is_err(), "only https is called");
    }
}
