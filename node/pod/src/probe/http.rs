//! An HTTP GET as the kubelet does it for probes and hooks: one connection, redirects within the
//! host, certificates not verified.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{ACCEPT, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::http::request::Parts;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{Target, dial_text};

const REDIRECTS: usize = 10;
/// A probe reads this much of an answer, then leaves.
const BODY_BYTES: usize = 10 << 10;

pub(crate) struct Get {
    tls: bool,
    shown: String,
    address: SocketAddr,
    parts: Parts,
}

impl Get {
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.shown, self.parts.uri)
    }
}

/// Err says what in the manifest cannot be used.
pub(crate) fn prepare(action: &HTTPGetAction, target: &Target<'_>) -> Result<Get, String> {
    let (shown, address) = target.address(action.host.as_deref(), &action.port)?;
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request = Request::get(path.as_str());
    if let Some(headers) = request.headers_mut() {
        headers.insert(USER_AGENT, HeaderValue::from_static("kube-probe/1.36"));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if let Ok(host) = HeaderValue::from_str(&shown) {
            headers.insert(HOST, host);
        }
        for header in action.http_headers.iter().flatten() {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let value = HeaderValue::from_str(&header.value);
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(format!("invalid HTTP header {:?}", header.name));
            };
            headers.insert(name, value);
        }
    }
    let (parts, ()) =
        request.body(()).map_err(|e| format!("invalid path {path:?}: {e}"))?.into_parts();
    let tls = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    Ok(Get { tls, shown, address, parts })
}

pub(crate) struct Answer {
    pub status: u16,
    /// The beginning of it.
    pub body: String,
    location: Option<String>,
}

/// The answer in the end.
pub(crate) async fn get(mut get: Get) -> Result<Answer, String> {
    for _ in 0..=REDIRECTS {
        let answer = once(&get).await?;
        let redirects = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let Some(next) = answer.location.as_deref().filter(|_| redirects) else {
            return Ok(answer);
        };
        // A redirect elsewhere counts as an answer; following it would probe somebody else.
        let Some(path) = same_host(next, &get.shown) else { return Ok(answer) };
        get.parts.uri = path;
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

fn same_host(location: &str, shown: &str) -> Option<Uri> {
    let uri: Uri = location.parse().ok()?;
    let same = uri.authority().is_none_or(|a| a.as_str() == shown);
    same.then(|| uri.path_and_query().and_then(|p| p.as_str().parse().ok()))?
}

async fn once(get: &Get) -> Result<Answer, String> {
    let stream = TcpStream::connect(get.address).await.map_err(|e| dial_text(&get.shown, &e))?;
    if !get.tls {
        return exchange(stream, get).await;
    }
    let connector = tokio_rustls::TlsConnector::from(tls_config());
    let name = ServerName::IpAddress(get.address.ip().into());
    let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    exchange(stream, get).await
}

async fn exchange<S>(stream: S, get: &Get) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let request = Request::from_parts(get.parts.clone(), Empty::<Bytes>::new());
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let location =
            response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        let mut body = Limited::new(response.into_body(), BODY_BYTES);
        let mut text = Vec::new();
        // What is longer than we read ends here, and so does what breaks off.
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
        let body = String::from_utf8_lossy(&text).into_owned();
        Ok(Answer { status, body, location })
    };
    // The connection is driven here and ends with the exchange: no task stays behind.
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        closed = &mut connection => match exchange.await {
            Ok(answer) => Ok(answer),
            Err(why) => Err(closed.err().map_or(why, |e| e.to_string())),
        },
    }
}

fn tls_config() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            Arc::new(Unverified(provider.signature_verification_algorithms.supported_schemes()));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Arc::new(config)
    };
    CONFIG.get_or_init(make).clone()
}

/// Kubernetes probes by HTTPS without verifying: a pod's certificate is for its clients' name.
#[derive(Debug)]
struct Unverified(Vec<SignatureScheme>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
