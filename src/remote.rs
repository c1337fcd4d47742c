//! HTTPS to an API server, as the current user of a kubeconfig.

use std::sync::Arc;

use anyhow::{Context, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, BodyStream, Full};
use hyper_util::rt::TokioIo;
use rimward_client::{Body, Transport, TransportError};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;

use crate::kubeconfig::Kubeconfig;

/// A body that is sent as it comes.
pub type BoxBody = http_body_util::combinators::UnsyncBoxBody<Bytes, anyhow::Error>;

/// A connection per request: commands make a handful.
pub struct Remote {
    tls: tokio_rustls::TlsConnector,
    host: String,
    port: u16,
    authorization: Option<String>,
}

impl Remote {
    pub fn new(kubeconfig: &Kubeconfig) -> anyhow::Result<Self> {
        let uri: http::Uri = kubeconfig.server.parse().context("the cluster's server")?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&kubeconfig.ca) {
            roots.add(certificate.context("certificate-authority")?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let tls = match &kubeconfig.client {
            Some((certificate, key)) => {
                let chain: Result<Vec<_>, _> =
                    CertificateDer::pem_slice_iter(certificate).collect();
                builder.with_client_auth_cert(
                    chain.context("client-certificate")?,
                    PrivateKeyDer::from_pem_slice(key).context("client-key")?,
                )?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Self {
            tls: Arc::new(tls).into(),
            host: uri
                .host()
                .context("the cluster's server has no host")?
                .trim_matches(['[', ']'])
                .to_owned(),
            port: uri.port_u16().unwrap_or(443),
            authorization: kubeconfig.token.as_ref().map(|token| format!("Bearer {token}")),
        })
    }

    async fn request(
        &self,
        mut request: http::Request<BoxBody>,
    ) -> anyhow::Result<http::Response<hyper::body::Incoming>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = self.tls.connect(name, stream).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let headers = request.headers_mut();
        headers.insert(http::header::HOST, format!("{}:{}", self.host, self.port).parse()?);
        if let Some(authorization) = &self.authorization {
            headers.insert(http::header::AUTHORIZATION, authorization.parse()?);
        }
        Ok(sender.send_request(request).await?)
    }

    /// Sends a request and reads the whole answer; a status of 400 or more is an error with its body.
    pub async fn call(
        &self,
        request: http::Request<BoxBody>,
    ) -> anyhow::Result<http::Response<Bytes>> {
        let about =
            format!("{} https://{}:{}{}", request.method(), self.host, self.port, request.uri());
        let response = self.request(request).await.with_context(|| about.clone())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.with_context(|| about.clone())?.to_bytes();
        if parts.status.as_u16() >= 400 {
            bail!("{about}: {} {}", parts.status, String::from_utf8_lossy(&body));
        }
        Ok(http::Response::from_parts(parts, body))
    }
}

#[async_trait]
impl Transport for Remote {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Body>, TransportError> {
        let whole = |body| Full::new(body).map_err(|never| match never {}).boxed_unsync();
        let response =
            self.request(request.map(whole)).await.map_err(|e| TransportError(format!("{e:#}")))?;
        Ok(response.map(|body| -> Body {
            let frames =
                TryStreamExt::map_err(BodyStream::new(body), |e| TransportError(e.to_string()));
            Box::pin(frames.try_filter_map(|frame| std::future::ready(Ok(frame.into_data().ok()))))
        }))
    }
}
