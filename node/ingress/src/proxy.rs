//! One request to one backend and back.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Service;
use rimward_client::Cache;
use rimward_node_network::dial::Duplex;
use rimward_node_network::{Backends, Dial};

use crate::routes::{Port, Routes, Target};

type Body = BoxBody<Bytes, hyper::Error>;

/// How long a backend may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Headers that concern one hop only (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [&str; 7] = [
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
];

pub(crate) struct Proxy {
    pub routes: ArcSwap<Routes>,
    services: Cache<Service>,
    backends: Backends,
    client: Client<Connector, Body>,
    turn: AtomicUsize,
}

impl Proxy {
    pub fn new(services: Cache<Service>, backends: Backends, dial: Arc<dyn Dial>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(256)
            .build(Connector { dial });
        Self { routes: ArcSwap::default(), services, backends, client, turn: AtomicUsize::new(0) }
    }

    /// Answers a client's request, by proxy or with an error of our own.
    pub async fn handle(&self, request: Request<Incoming>, client: IpAddr) -> Response<Body> {
        let host = host_of(&request);
        let target = self.routes.load().find(&host, request.uri().path()).cloned();
        let Some(target) = target else {
            return text(
                StatusCode::NOT_FOUND,
                format!("no Ingress rule for host {host:?} and path {:?}\n", request.uri().path()),
            );
        };
        let backends = match self.addresses(&target) {
            Ok(backends) => backends,
            Err(why) => return text(StatusCode::SERVICE_UNAVAILABLE, why),
        };
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        self.forward(request, client, &host, &target, &backends, first).await
    }

    /// The ready backends of a target.
    fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, String> {
        let service = &target.service;
        let Some(object) = self.services.get_key(service) else {
            return Err(format!("Service {service} does not exist\n"));
        };
        let mut ports = object.spec.iter().flat_map(|s| s.ports.iter().flatten());
        let port = ports.find(|p| match &target.port {
            Port::Name(name) => p.name.as_ref() == Some(name),
            Port::Number(number) => p.port == i32::from(*number),
        });
        let Some(port) = port else {
            return Err(format!("Service {service} has no port {:?}\n", target.port));
        };
        let by_port = self.backends.of(service);
        let ready = by_port.get(port.name.as_deref().unwrap_or_default());
        match ready.filter(|backends| !backends.is_empty()) {
            Some(backends) => Ok(backends.iter().map(|b| b.address).collect()),
            None => Err(format!("Service {service} has no ready endpoints\n")),
        }
    }

    /// Tries backends in turn as long as none was reached; a request that reached one is not repeated.
    async fn forward(
        &self,
        mut request: Request<Incoming>,
        client: IpAddr,
        host: &str,
        target: &Target,
        backends: &[SocketAddr],
        first: usize,
    ) -> Response<Body> {
        let from_client = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        let upgrade = upgrade_of(request.headers());
        prepare(&mut request, client, host, upgrade.as_ref());
        let (parts, body) = request.into_parts();
        // Only a request without a body can be sent again after a failed connect.
        let repeatable = http_body::Body::is_end_stream(&body);
        let mut body = Some(body.boxed());
        let mut last_error = String::new();
        for attempt in 0..backends.len().min(3) {
            let backend = backends[(first + attempt) % backends.len()];
            let body = match body.take() {
                Some(body) => body,
                None if repeatable => empty(),
                None => break,
            };
            let mut outgoing = Request::from_parts(parts.clone(), body);
            *outgoing.uri_mut() = backend_uri(backend, &parts.uri);
            match self.client.request(outgoing).await {
                Ok(response) => return answer(response, from_client, upgrade.is_some()),
                Err(error) => {
                    last_error = chain(&error);
                    tracing::debug!(%backend, service = %target.service, error = last_error, "backend failed");
                    if !error.is_connect() {
                        break;
                    }
                }
            }
        }
        text(
            StatusCode::BAD_GATEWAY,
            format!("Service {} did not answer: {last_error}\n", target.service),
        )
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text += &format!(": {inner}");
        source = inner.source();
    }
    text
}

/// The host that the client asked for: lower case, without the port.
fn host_of(request: &Request<Incoming>) -> String {
    let from_header = || request.headers().get(HOST).and_then(|h| h.to_str().ok());
    let host =
        request.uri().authority().map(|a| a.as_str()).or_else(from_header).unwrap_or_default();
    let host = match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    };
    host.to_lowercase()
}

fn upgrade_of(headers: &http::HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(CONNECTION)?.to_str().ok()?;
    let wanted = connection.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    wanted.then(|| headers.get(UPGRADE).cloned()).flatten()
}

/// What a proxy changes in a request's headers.
fn prepare(
    request: &mut Request<Incoming>,
    client: IpAddr,
    host: &str,
    upgrade: Option<&HeaderValue>,
) {
    *request.version_mut() = Version::HTTP_11;
    let original_host =
        request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
    let headers = request.headers_mut();
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade.clone());
    }
    if let Some(host) = original_host {
        headers.insert(HOST, host);
    }
    let before = headers.get("x-forwarded-for").and_then(|v| v.to_str().ok());
    let chain = before.map_or(client.to_string(), |before| format!("{before}, {client}"));
    let ours = [
        ("x-forwarded-for", chain),
        ("x-forwarded-host", host.to_owned()),
        ("x-forwarded-proto", "http".into()),
        ("x-real-ip", client.to_string()),
    ];
    for (name, value) in ours {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

fn backend_uri(backend: SocketAddr, original: &Uri) -> Uri {
    let path = original.path_and_query().cloned();
    let path = path.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    let built = Uri::builder().scheme("http").authority(backend.to_string()).path_and_query(path);
    built.build().expect("an address and a path that was a path make a URI")
}

/// The backend's response; a switch of protocols joins the two connections.
fn answer(
    mut response: Response<Incoming>,
    from_client: Option<hyper::upgrade::OnUpgrade>,
    upgrade_wanted: bool,
) -> Response<Body> {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if let (true, true, Some(from_client)) = (switching, upgrade_wanted, from_client) {
        let from_backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (client, backend) = match futures::try_join!(from_client, from_backend) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "an upgrade did not come about"),
            };
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            let _either_side_may_hang_up =
                tokio::io::copy_bidirectional(&mut client, &mut backend).await;
        });
    } else {
        for name in HOP_BY_HOP {
            response.headers_mut().remove(name);
        }
        response.headers_mut().remove(CONNECTION);
    }
    response.map(|body| body.boxed())
}

fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed()
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}

/// Opens connections for the pool.
#[derive(Clone)]
pub(crate) struct Connector {
    dial: Arc<dyn Dial>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = BackendStream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<BackendStream, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dial = self.dial.clone();
        Box::pin(async move {
            let address = uri.authority().and_then(|a| a.as_str().parse::<SocketAddr>().ok());
            let address =
                address.ok_or_else(|| std::io::Error::other(format!("{uri} is not a backend")))?;
            let connected = tokio::time::timeout(CONNECT_PATIENCE, dial.dial(address)).await;
            let stream =
                connected.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
            Ok(BackendStream(TokioIo::new(stream)))
        })
    }
}

pub(crate) struct BackendStream(TokioIo<Box<dyn Duplex>>);

impl Connection for BackendStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for BackendStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for BackendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
