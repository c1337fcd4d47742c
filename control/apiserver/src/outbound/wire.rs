//! Opens connections: to an endpoint of a Service or to a host, then TLS.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::destination::{Destination, Target};
use super::endpoint::Reach;
use super::error::NotConnected;
use super::trust;
use crate::nodes::Duplex;

/// How long opening a connection may take, TLS included.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Protocols {
    /// HTTP/2 if the other end offers it.
    Any,
    /// Where the connection is to become something else.
    Http1,
}

/// Opens the connections of one destination.
#[derive(Clone)]
pub(super) struct Connector {
    target: Arc<Target>,
    tls: TlsConnector,
    reach: Arc<Reach>,
}

impl Connector {
    pub fn new(
        destination: &Destination,
        mut tls: rustls::ClientConfig,
        protocols: Protocols,
        reach: Arc<Reach>,
    ) -> Self {
        tls.alpn_protocols = match protocols {
            Protocols::Any => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Protocols::Http1 => vec![b"http/1.1".to_vec()],
        };
        let tls = TlsConnector::from(Arc::new(tls));
        Self { target: Arc::new(destination.target.clone()), tls, reach }
    }

    async fn open(self, uri: Uri) -> Result<Wire, NotConnected> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let stream: Box<dyn Duplex> = match &*self.target {
            Target::Service(service) => self.reach.connect(service).await.map_err(NotConnected)?,
            Target::Url(_) => tcp(&host, uri.port_u16().unwrap_or(443)).await?,
        };
        let name = ServerName::try_from(host).map_err(|e| NotConnected(e.to_string()))?;
        let stream = self.tls.connect(name, stream).await;
        let stream = stream.map_err(|e| NotConnected(trust::handshake_text(&e)))?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Wire { io: TokioIo::new(stream), h2 })
    }
}

pub(super) async fn tcp(host: &str, port: u16) -> Result<Box<dyn Duplex>, NotConnected> {
    match TcpStream::connect((host, port)).await {
        Ok(stream) => {
            let _small_requests_go_out_at_once = stream.set_nodelay(true);
            Ok(Box::new(stream))
        }
        Err(e) => Err(NotConnected(dial_text(host, port, &e))),
    }
}

fn dial_text(host: &str, port: u16, error: &std::io::Error) -> String {
    let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let why = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ if error.raw_os_error().is_none() => {
            return format!("dial tcp: lookup {host}: no such host");
        }
        _ => format!("connect: {error}"),
    };
    format!("dial tcp {shown}:{port}: {why}")
}

impl tower_service::Service<Uri> for Connector {
    type Response = Wire;
    type Error = NotConnected;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, NotConnected>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotConnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let open = self.clone().open(uri);
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_MAX, open).await {
                Ok(opened) => opened,
                Err(_) => Err(NotConnected("net/http: TLS handshake timeout".into())),
            }
        })
    }
}

/// An open connection.
pub(super) struct Wire {
    io: TokioIo<TlsStream<Box<dyn Duplex>>>,
    h2: bool,
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        match self.h2 {
            true => Connected::new().negotiated_h2(),
            false => Connected::new(),
        }
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, out)
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
