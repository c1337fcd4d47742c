//! Calls out of the API server, over HTTPS: webhooks, converters of custom resources, extension API
//! servers.
//!
//! Whom to call is a [`Destination`]: a Service (resolved to one of its endpoints when a connection is
//! opened, and reached through its node when it is a pod) or a URL, and the certificates to trust.
//! Connections are kept per destination and used again; HTTP/2 where the other end offers it.
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#contacting-the-webhook>
//!
//! Everything is bounded: the time of a call by its caller, its answer by bytes, and the clients that
//! are kept by number. Redirects are never followed: whoever was configured must answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use quick_cache::sync::Cache;
use serde_json::Value;

use crate::body::{self, BoxBody};
use crate::nodes::Duplex;

mod destination;
mod endpoint;
mod error;
mod trust;
mod wire;

pub use destination::{Destination, Service, Target};
pub use endpoint::{Missing, Reach};
pub use error::CallError;
pub use trust::{Identity, Trust};

use wire::{Connector, Protocols};

/// Destinations whose connections are kept.
const CLIENTS_MAX: usize = 256;
const IDLE_CONNECTIONS_MAX: usize = 8;
const IDLE_MAX: Duration = Duration::from_secs(90);

/// The one client of all calls.
pub struct Outbound {
    reach: Arc<Reach>,
    /// What this server proves itself with where a destination asks for it.
    identity: Option<Identity>,
    clients: Cache<Key, Client<Connector, BoxBody>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    destination: Destination,
    protocols: Protocols,
}

impl Outbound {
    pub fn new(reach: Reach, identity: Option<Identity>) -> Self {
        Self { reach: Arc::new(reach), identity, clients: Cache::new(CLIENTS_MAX) }
    }

    /// How endpoints of Services are found.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// POSTs a JSON object, as webhooks are asked, and answers the JSON that came back. The
    /// destination is told how long it has, by `?timeout=…`.
    ///
    /// # Errors
    /// With Kubernetes' text when it cannot be reached in time, answers with an error, with more than
    /// `bytes_max`, or with something else than a JSON object.
    pub async fn post_json(
        &self,
        destination: &Destination,
        object: &Value,
        wait: Duration,
        bytes_max: usize,
    ) -> Result<Value, CallError> {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let uri = destination.uri(Some(&format!("timeout={seconds}s")))?;
        let call = self.exchange(destination, &uri, object, bytes_max);
        match tokio::time::timeout(wait, call).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::deadline("Post", &uri)),
        }
    }

    async fn exchange(
        &self,
        destination: &Destination,
        uri: &Uri,
        object: &Value,
        bytes_max: usize,
    ) -> Result<Value, CallError> {
        let json = HeaderValue::from_static("application/json");
        let mut request = Request::new(body::full(object.to_string()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, json.clone());
        headers.insert(header::ACCEPT, json);
        headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
        let (parts, body) = self.send(destination, request).await?.into_parts();
        let bytes = limited(body, bytes_max, "Post", uri).await?;
        if !parts.status.is_success() {
            return Err(CallError::answered(parts.status.as_u16(), &parts.headers, &bytes));
        }
        let answer: Value = serde_json::from_slice(&bytes)
            .map_err(|e| CallError::undecodable(&bytes, &e.to_string()))?;
        match answer.is_object() {
            true => Ok(answer),
            false => Err(CallError::undecodable(&bytes, "it is not an object")),
        }
    }

    /// GETs a document.
    ///
    /// # Errors
    /// As [`Outbound::post_json`].
    pub async fn get(
        &self,
        destination: &Destination,
        path: &str,
        headers: &[(&'static str, &str)],
        wait: Duration,
        bytes_max: usize,
    ) -> Result<(http::response::Parts, Bytes), CallError> {
        let uri = destination.with_path(path)?;
        let call = async {
            let mut request = Request::new(body::empty());
            *request.uri_mut() = uri.clone();
            for (name, value) in headers {
                if let Ok(value) = HeaderValue::from_str(value) {
                    request.headers_mut().append(*name, value);
                }
            }
            let (parts, body) = self.send(destination, request).await?.into_parts();
            let bytes = limited(body, bytes_max, "Get", &uri).await?;
            Ok((parts, bytes))
        };
        match tokio::time::timeout(wait, call).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::deadline("Get", &uri)),
        }
    }

    /// Sends a request whose URI is the destination's; the answer's body streams. Requests that ask
    /// for an upgrade go by HTTP/1.1. The caller bounds the time.
    ///
    /// # Errors
    /// When nothing was answered.
    pub async fn send(
        &self,
        destination: &Destination,
        request: Request<BoxBody>,
    ) -> Result<http::Response<Incoming>, CallError> {
        let protocols = match request.headers().contains_key(header::UPGRADE) {
            true => Protocols::Http1,
            false => Protocols::Any,
        };
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let client = self.client(destination, protocols)?;
        client
            .request(request)
            .await
            .map_err(|e| CallError::transport(error::method_word(&method), &uri, &e))
    }

    fn client(
        &self,
        destination: &Destination,
        protocols: Protocols,
    ) -> Result<Client<Connector, BoxBody>, CallError> {
        let key = Key { destination: destination.without_path(), protocols };
        if let Some(client) = self.clients.get(&key) {
            return Ok(client);
        }
        let identity = self.identity.as_ref().filter(|_| destination.identified);
        let tls = trust::config(&destination.trust, identity).map_err(CallError::Config)?;
        let connector = Connector::new(&key.destination, tls, protocols, self.reach.clone());
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http2_keep_alive_timeout(Duration::from_secs(15));
        let client = builder.build(connector);
        self.clients.insert(key, client.clone());
        Ok(client)
    }
}

/// TLS with whoever is there: what the proxy subresources speak to a pod that wants it. The way to
/// the pod is the tunnel's, which is authenticated; the pod is not.
///
/// # Errors
/// When there is no handshake in time.
pub async fn secured_by_anybody(
    io: Box<dyn Duplex>,
    authority: &str,
) -> Result<Box<dyn Duplex>, String> {
    let mut config = trust::config(&Trust::Anybody, None)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let name = rustls_pki_types::ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|e| format!("{authority}: {e}"))?;
    let connect = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, io);
    match tokio::time::timeout(wire::CONNECT_MAX, connect).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(e)) => Err(trust::handshake_text(&e)),
        Err(_) => Err("net/http: TLS handshake timeout".into()),
    }
}

/// Reads a whole answer, giving up before it holds more than `max`.
async fn limited(
    mut body: Incoming,
    max: usize,
    method: &'static str,
    uri: &Uri,
) -> Result<Bytes, CallError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| CallError::transport(method, uri, &e))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > max {
            return Err(CallError::TooLarge { max });
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
}
