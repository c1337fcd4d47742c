//! Getting manifests and blobs, from the cluster's registry or from any other.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth as OciAuth;
use rimward_node_pod::outside::RegistryAuth;

use crate::form::ACCEPT;
use crate::name::Name;

/// The largest manifest that is read, in bytes.
const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// How long a registry may take to say what an image is. Resolvers that are out of reach take far longer to
/// admit it, and a user watching the pod wants to know.
const MANIFEST_PATIENCE: Duration = Duration::from_secs(20);

/// The cluster's own registry, as the node reaches it: through its tunnel.
#[async_trait]
pub trait ClusterRegistry: Send + Sync + 'static {
    /// GET of a `/v2/…` path with an Accept header.
    ///
    /// # Errors
    /// A sentence when the control plane cannot be reached.
    async fn get(&self, path: &str, accept: &str) -> Result<ClusterResponse, String>;

    /// `host:port` names that mean this registry.
    fn hosts(&self) -> Vec<String>;
}

pub struct ClusterResponse {
    pub status: u16,
    pub body: BoxStream<'static, Result<Bytes, String>>,
}

/// How registries outside the cluster are spoken to.
#[derive(Clone, Debug, Default)]
pub struct RemoteConfig {
    /// PEM files of certificate authorities to trust beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// `host:port` of registries that speak plain HTTP.
    pub plain_http: Vec<String>,
}

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}: not found")]
    NotFound(String),
    #[error("{0}")]
    Failed(String),
}

pub(crate) type Blob = BoxStream<'static, Result<Bytes, String>>;

/// A place that images come from.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    /// The manifest's bytes, digest not yet checked.
    async fn manifest(&self, version: &str) -> Result<Bytes, FetchError>;
    async fn blob(&self, digest: &str, size: u64) -> Result<Blob, FetchError>;
}

/// A repository of the cluster's registry.
pub(crate) struct InCluster<'a> {
    pub registry: &'a dyn ClusterRegistry,
    pub repository: &'a str,
}

impl InCluster<'_> {
    async fn get(&self, path: String, accept: &str) -> Result<Blob, FetchError> {
        let response = self.registry.get(&path, accept).await.map_err(FetchError::Failed)?;
        match response.status {
            200 => Ok(response.body),
            404 => Err(FetchError::NotFound(format!("cluster registry {path}"))),
            code => Err(FetchError::Failed(format!("cluster registry {path}: HTTP status {code}"))),
        }
    }
}

#[async_trait]
impl Source for InCluster<'_> {
    async fn manifest(&self, version: &str) -> Result<Bytes, FetchError> {
        let path = format!("/v2/{}/manifests/{version}", self.repository);
        let mut body = self.get(path, &ACCEPT.join(", ")).await?;
        let mut content = BytesMut::new();
        while let Some(chunk) = body.next().await {
            content.extend_from_slice(&chunk.map_err(FetchError::Failed)?);
            if content.len() > MANIFEST_BYTES_MAX {
                return Err(FetchError::Failed(format!(
                    "the manifest exceeds {MANIFEST_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(content.freeze())
    }

    async fn blob(&self, digest: &str, _size: u64) -> Result<Blob, FetchError> {
        self.get(format!("/v2/{}/blobs/{digest}", self.repository), "*/*").await
    }
}

/// The client for registries outside; one per node, it caches tokens.
pub(crate) fn remote_client(config: &RemoteConfig) -> Result<oci_client::Client, String> {
    let mut extra_root_certificates = Vec::new();
    for file in &config.ca_files {
        let data =
            std::fs::read(file).map_err(|e| format!("--registry-ca {}: {e}", file.display()))?;
        extra_root_certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
    }
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(config.plain_http.clone()),
        extra_root_certificates,
        connect_timeout: Some(Duration::from_secs(15)),
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: concat!("rimward/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    oci_client::Client::try_from(config).map_err(|e| format!("registry client: {e}"))
}

/// A repository of a registry outside.
pub(crate) struct Remote<'a> {
    pub client: &'a oci_client::Client,
    pub name: &'a Name,
    pub auth: OciAuth,
}

impl<'a> Remote<'a> {
    /// With the credentials whose registry fits the name, if there are any.
    pub fn new(client: &'a oci_client::Client, name: &'a Name, auths: &[RegistryAuth]) -> Self {
        let host = name.reference.resolve_registry();
        let bare = |registry: &str| {
            let registry = registry.split_once("://").map_or(registry, |(_, rest)| rest);
            registry.split('/').next().unwrap_or_default().to_owned()
        };
        let fits = |auth: &&RegistryAuth| {
            bare(&auth.registry) == host || bare(&auth.registry) == name.reference.registry()
        };
        let auth = match auths.iter().find(fits) {
            Some(auth) => OciAuth::Basic(auth.username.clone(), auth.password.clone()),
            None => OciAuth::Anonymous,
        };
        Self { client, name, auth }
    }

    fn explain(&self, error: OciDistributionError) -> FetchError {
        let whole = self.name.reference.whole();
        match error {
            OciDistributionError::ImageManifestNotFoundError(_) => FetchError::NotFound(whole),
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => FetchError::Failed(format!(
                "{whole}: pull access denied, repository does not exist or may require authorization: {error}"
            )),
            OciDistributionError::RequestError(e) => {
                FetchError::Failed(format!("{whole}: {}", causes(&e)))
            }
            other => FetchError::Failed(format!("{whole}: {other}")),
        }
    }
}

/// An error with what caused it; reqwest's own text stops at the URL.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text += &format!(": {inner}");
        source = inner.source();
    }
    text
}

#[async_trait]
impl Source for Remote<'_> {
    async fn manifest(&self, version: &str) -> Result<Bytes, FetchError> {
        let reference = match version.starts_with("sha256:") {
            true => self.name.reference.clone_with_digest(version.to_owned()),
            false => self.name.reference.clone(),
        };
        let pull = self.client.pull_manifest_raw(&reference, &self.auth, &ACCEPT);
        match tokio::time::timeout(MANIFEST_PATIENCE, pull).await {
            Ok(pulled) => pulled.map(|(content, _)| content).map_err(|e| self.explain(e)),
            Err(_) => Err(FetchError::Failed(format!(
                "{}: the registry did not answer within {} s",
                self.name.reference.whole(),
                MANIFEST_PATIENCE.as_secs()
            ))),
        }
    }

    async fn blob(&self, digest: &str, size: u64) -> Result<Blob, FetchError> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let descriptor = OciDescriptor { digest: digest.to_owned(), size, ..Default::default() };
        let stream = self.client.pull_blob_stream(&self.name.reference, &descriptor).await;
        let stream = stream.map_err(|e| self.explain(e))?;
        Ok(stream.stream.map_err(|e| e.to_string()).boxed())
    }
}
