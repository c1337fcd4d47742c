//! Reads an issuer's keys over HTTPS: bounded in time and size, redirected nowhere.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::JwkSet;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const TIMEOUT: Duration = Duration::from_secs(10);
const BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no certificate authority is trusted: {0}")]
    Roots(String),
    #[error("{0:?} is not an https URL")]
    Url(String),
    #[error("{url}: {what}")]
    Unreachable { url: String, what: String },
    #[error("{url} did not answer within 10 s")]
    Slow { url: String },
    #[error("{url}: {what}")]
    Unreadable { url: String, what: String },
}

pub struct Fetcher {
    tls: TlsConnector,
}

impl Fetcher {
    /// `ca` is what to trust, in PEM; without it, what the machine trusts.
    pub fn new(ca: Option<&str>) -> Result<Self, FetchError> {
        let mut roots = RootCertStore::empty();
        let found: Vec<CertificateDer<'static>> = match ca {
            Some(pem) => CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|e| FetchError::Roots(e.to_string()))?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let (added, _) = roots.add_parsable_certificates(found);
        if added == 0 {
            return Err(FetchError::Roots("none could be read".into()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| FetchError::Roots(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    /// The keys that an issuer's configuration points to.
    pub async fn keys(&self, discovery: &str, issuer: &str) -> Result<JwkSet, FetchError> {
        let document = self.json(discovery).await?;
        let wrong = |what: String| FetchError::Unreadable { url: discovery.to_owned(), what };
        let says = document["issuer"].as_str().unwrap_or_default();
        if says != issuer {
            return Err(wrong(format!("it is the configuration of {says:?}, not of {issuer:?}")));
        }
        let place = document["jwks_uri"].as_str().ok_or_else(|| wrong("no jwks_uri".into()))?;
        let listed = self.json(place).await?;
        let listed =
            listed["keys"].as_array().ok_or_else(|| wrong(format!("{place} lists no keys")))?;
        // An issuer may have keys of kinds that we do not know, and for encryption: they sign nothing.
        let signs = |key: &&Value| matches!(key["use"].as_str(), None | Some("sig"));
        let keys = listed.iter().filter(signs);
        Ok(JwkSet { keys: keys.filter_map(|k| serde_json::from_value(k.clone()).ok()).collect() })
    }

    async fn json(&self, url: &str) -> Result<Value, FetchError> {
        match tokio::time::timeout(TIMEOUT, self.get(url)).await {
            Err(_) => Err(FetchError::Slow { url: url.to_owned() }),
            Ok(bytes) => serde_json::from_slice(&bytes?)
                .map_err(|e| FetchError::Unreadable { url: url.to_owned(), what: e.to_string() }),
        }
    }

    async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        let failed = |e: &dyn std::fmt::Display| FetchError::Unreachable {
            url: url.to_owned(),
            what: e.to_string(),
        };
        let not_a_url = || FetchError::Url(url.to_owned());
        let parsed = url::Url::parse(url).map_err(|_| not_a_url())?;
        let host =
            parsed.host_str().filter(|_| parsed.scheme() == "https").ok_or_else(not_a_url)?;
        let port = parsed.port_or_known_default().ok_or_else(not_a_url)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare.clone()).map_err(|_| not_a_url())?;
        let stream = TcpStream::connect((bare.as_str(), port)).await.map_err(|e| failed(&e))?;
        let stream = self.tls.connect(name, stream).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|e| failed(&e))?;
        let target = &parsed[url::Position::BeforePath..url::Position::AfterQuery];
        let request = Request::get(target)
            .header(
                http::header::HOST,
                &parsed[url::Position::BeforeHost..url::Position::AfterPort],
            )
            .header(http::header::ACCEPT, "application/json")
            .body(Empty::new())
            .map_err(|e| failed(&e))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
            if !response.status().is_success() {
                return Err(failed(&response.status()));
            }
            let body = Limited::new(response.into_body(), BYTES_MAX);
            Ok(body.collect().await.map_err(|e| failed(&e))?.to_bytes())
        };
        // The connection works only while it is polled; it ends with the answer.
        tokio::select! {
            answer = exchange => answer,
            ended = connection => match ended {
                Ok(()) => Err(failed(&"the connection was closed")),
                Err(e) => Err(failed(&e)),
            },
        }
    }
}
