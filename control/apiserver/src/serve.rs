//! The network end: TLS, HTTP/1.1 and HTTP/2, client certificates.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rimward_api::UserInfo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit;
use crate::authn::{self, Peer, certificate};
use crate::body::{BoxBody, Response};
use crate::error;
use crate::lingering::lingering;
use crate::pipeline;
use crate::server::{ApiServer, Inner};

const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 16_384;
/// How long connections may take to finish what they do at shutdown.
const DRAIN_MAX: Duration = Duration::from_secs(5);
const STREAMS_MAX: u32 = 1000;
/// Of a request's line and headers, as Go's server has it; more is answered 431.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// Serves paths beside the API (the image registry's `/v2/`), after authentication.
#[async_trait]
pub trait Extra: Send + Sync + 'static {
    /// Answers, or None for a path that is not its own. Whoever came without credentials is
    /// `system:anonymous`: answer them 401 with a challenge where they need to be somebody.
    async fn handle(
        &self,
        user: &UserInfo,
        request: Request<BoxBody>,
    ) -> Option<http::Response<BoxBody>>;
}

impl ApiServer {
    /// Accepts connections until `shutdown`, then lets them finish.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        extra: Option<Arc<dyn Extra>>,
        shutdown: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors, most likely: some will be given back.
                    tracing::warn!(error = %e, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!(max = CONNECTIONS_MAX, "too many connections, one was closed");
                continue;
            };
            let connection = connection(
                self.inner.clone(),
                acceptor.clone(),
                stream,
                extra.clone(),
                shutdown.clone(),
            );
            connections.spawn(async move {
                connection.await;
                drop(place);
            });
        }
        connections.close();
        if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
            tracing::info!(left = connections.len(), "connections were cut at shutdown");
        }
    }
}

async fn connection(
    server: Arc<Inner>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    extra: Option<Arc<dyn Extra>>,
    shutdown: CancellationToken,
) {
    let _small_answers_go_out_at_once = stream.set_nodelay(true);
    let source = stream.peer_addr().ok().map(|a| audit::Source(a.ip().to_canonical()));
    let stream = match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return tracing::debug!(error = %e, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let presented = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = presented.and_then(|c| certificate::user(c.as_ref()));
    let peer = Arc::new(Peer::Connection(user));
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(source) = source {
            request.extensions_mut().insert(source);
        }
        let (server, peer, extra) = (server.clone(), peer.clone(), extra.clone());
        async move { Ok::<Response, Infallible>(route(&server, request, &peer, extra.as_deref()).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a connection ended with an error");
    }
}

async fn route(
    server: &Arc<Inner>,
    request: Request<Incoming>,
    peer: &Peer,
    extra: Option<&dyn Extra>,
) -> Response {
    let request = lingering(request);
    let path = request.uri().path();
    let (Some(extra), false) = (extra, is_ours(path)) else {
        return pipeline::handle(server, request, peer).await;
    };
    let registry = path.starts_with("/v2/") || path == "/v2";
    match authn::authenticate(server, peer, request.headers(), path, registry).await {
        Ok(user) => extra.handle(&user, request).await.unwrap_or_else(error::page_not_found),
        Err(status) => {
            let mut response = error::respond(&status);
            if registry && status.code == 401 {
                let challenge = HeaderValue::from_static("Basic realm=\"rimward\"");
                response.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
            }
            response
        }
    }
}

/// Paths of the API itself, which nobody beside it may answer.
fn is_ours(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(
        first,
        "" | "api"
            | "apis"
            | "openapi"
            | "version"
            | "livez"
            | "readyz"
            | "healthz"
            | "metrics"
            | "openid"
            | ".well-known"
    )
}
