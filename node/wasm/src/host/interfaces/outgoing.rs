//! `wasi:http`'s outgoing requests: the pod's resolver, source address and trust.

use std::io::BufReader;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use crate::host::guest::Container;
use crate::host::resolver::LookupError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(600);
const BETWEEN_BYTES_TIMEOUT: Duration = Duration::from_secs(600);
/// Where Kubernetes puts the cluster's own CA: a guest that mounts it means to talk to the API.
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

type Connection = Box<dyn Future<Output = Result<(), Error>> + Send>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(crate) async fn send(
    container: Arc<Container>,
    mut request: http::Request<WasiBody>,
    options: RequestOptions,
) -> Result<(http::Response<WasiBody>, Connection), Error> {
    let tls = request.uri().scheme() == Some(&Scheme::HTTPS);
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?.clone();
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let connect_timeout = options.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
    let stream =
        tokio::time::timeout(connect_timeout, open(&container, authority.host(), port, tls));
    let stream = stream.await.map_err(|_| Error::ConnectionTimeout)??;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;

    // A request to the origin itself has but the path in its first line.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    // The connection must run for the answer to come, and again while its body is read.
    let connection = tokio::spawn(connection);
    let abort = AbortOnDrop(connection.abort_handle());
    let first_byte = options.first_byte_timeout.unwrap_or(FIRST_BYTE_TIMEOUT);
    let response = tokio::time::timeout(first_byte, sender.send_request(request));
    let response = response.await.map_err(|_| Error::ConnectionReadTimeout)??;
    let patience = options.between_bytes_timeout.unwrap_or(BETWEEN_BYTES_TIMEOUT);
    let response = response
        .map(|body| TimedBody { body, patience, timer: None, _connection: abort }.boxed_unsync());
    let finished: Connection = Box::new(async move {
        match connection.await {
            Ok(result) => result.map_err(Error::from),
            Err(_) => Ok(()),
        }
    });
    Ok((response, finished))
}

async fn open(
    container: &Container,
    host: &str,
    port: u16,
    tls: bool,
) -> Result<Box<dyn Stream>, Error> {
    let found = container.resolver.lookup(&container.dns, &container.hosts, host).await.map_err(
        |error| match error {
            LookupError::TimedOut => Error::DnsTimeout,
            other => Error::DnsError { rcode: Some(other.to_string()), info_code: None },
        },
    )?;
    let mut last = Error::DestinationNotFound;
    for ip in found {
        let stream = match connect(container, ip, port).await {
            Ok(stream) => stream,
            Err(error) => {
                last = Error::Connect(error);
                continue;
            }
        };
        if !tls {
            return Ok(Box::new(stream));
        }
        let config = container.tls.get_or_init(|| trust(container)).clone();
        let config = config.map_err(|message| Error::InternalError(Some(message)))?;
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|_| Error::HttpRequestUriInvalid)?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(tls_error)?;
        return Ok(Box::new(stream));
    }
    Err(last)
}

/// A certificate that is not trusted is told apart from a handshake that failed: a guest's owner can put
/// the first one right.
fn tls_error(error: std::io::Error) -> Error {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificateError
        }
        _ => Error::Tls(error),
    }
}

async fn connect(container: &Container, ip: IpAddr, port: u16) -> std::io::Result<TcpStream> {
    let (ip, port) = container.addresses.remote(ip, port);
    let socket = if ip.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = container.addresses.source(ip) {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(SocketAddr::new(ip, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The system's certificates, read once a host.
static SYSTEM: LazyLock<Vec<CertificateDer<'static>>> =
    LazyLock::new(|| rustls_native_certs::load_native_certs().certs);

/// The system's certificates, the node's bundle, and the cluster's CA where it is mounted.
fn trust(container: &Container) -> Result<Arc<rustls::ClientConfig>, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(SYSTEM.iter().cloned());
    let cluster_ca = container.host_path_of(CLUSTER_CA).filter(|path| path.exists());
    for path in container.ca_bundle.iter().chain(&cluster_ca) {
        roots.add_parsable_certificates(read_pem(path)?);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn read_pem(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| {
        format!("cannot read the certificates in {}: {error}", path.display())
    };
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    CertificateDer::pem_reader_iter(BufReader::new(file))
        .collect::<Result<_, _>>()
        .map_err(|error| failed(&error))
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response's body that does not wait for ever between frames.
struct TimedBody {
    body: hyper::body::Incoming,
    patience: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    _connection: AbortOnDrop,
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.patience)));
        std::task::ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
