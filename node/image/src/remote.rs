//! Registries outside the cluster: TLS, credentials, and which certificates are trusted for which host.
//!
//! Certificates are laid out as every container tool knows it: `DIR/HOST[:PORT]/*.crt` are authorities to
//! trust for that registry alone. They are read again when they change, so that a new one needs no restart.
//!
//! A client keeps tokens, so there is one for each host and each credential: what one pod's secret opens
//! stays closed to a pod without it.

mod manifest;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use oci_client::Client;
use oci_client::client::{
    BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol,
};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth as OciAuth;
use parking_lot::Mutex;
use rimward_node_pod::outside::RegistryAuth;
use sha2::{Digest, Sha256};

use crate::fetch::{Blob, FetchError, MANIFEST_PATIENCE, Source};
use crate::name::Name;

/// Clients that are kept; when there are more, all are made anew.
const CLIENTS_MAX: usize = 64;

/// How registries outside the cluster are spoken to.
#[derive(Clone, Debug, Default)]
pub struct RemoteConfig {
    /// PEM files of certificate authorities to trust for all registries, beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Where `HOST[:PORT]/*.crt` are: authorities to trust for one registry. Need not exist.
    pub certs_dir: Option<PathBuf>,
    /// `host:port` of registries that speak plain HTTP.
    pub plain_http: Vec<String>,
}

/// Clients for registries outside.
pub(crate) struct Remotes {
    config: RemoteConfig,
    clients: Mutex<HashMap<ClientId, Clients>>,
}

/// For one host and credential.
#[derive(Clone)]
struct Clients {
    /// Keeps tokens, and gets blobs.
    oci: Client,
    /// Gets manifests.
    http: reqwest::Client,
    plain: bool,
}

/// What a client depends on: the host, a hash of the credential, and the certificates as they are now.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientId {
    host: String,
    credential: [u8; 32],
    certificates: Vec<(PathBuf, Option<SystemTime>)>,
}

impl Remotes {
    /// # Errors
    /// Names the certificate file at fault.
    pub fn new(config: RemoteConfig) -> Result<Self, String> {
        // Wrong options are told now, not at the first pull. Without any there is nothing to be wrong, and a
        // client costs a node that never pulls from outside a megabyte: it reads all of the system's authorities.
        if !config.ca_files.is_empty() {
            make(&config, &config.ca_files, "")?;
        }
        Ok(Self { config, clients: Mutex::default() })
    }

    /// The repositories to try in turn, one for each credential that fits; without any, anonymously.
    pub fn of<'a>(
        &self,
        name: &'a Name,
        auths: &[RegistryAuth],
    ) -> Result<Vec<Remote<'a>>, String> {
        let (host, shown) = (name.reference.resolve_registry(), name.reference.registry());
        let fits = |auth: &&RegistryAuth| {
            host_matches(&auth.registry, host) || host_matches(&auth.registry, shown)
        };
        let mut credentials: Vec<OciAuth> = auths
            .iter()
            .filter(fits)
            .map(|auth| OciAuth::Basic(auth.username.clone(), auth.password.clone()))
            .collect();
        if credentials.is_empty() {
            credentials.push(OciAuth::Anonymous);
        }
        let remote = |auth: OciAuth| -> Result<Remote<'a>, String> {
            Ok(Remote { clients: self.clients(host, &auth)?, name, auth })
        };
        credentials.into_iter().map(remote).collect()
    }

    fn clients(&self, host: &str, auth: &OciAuth) -> Result<Clients, String> {
        let files = self.certificates(host)?;
        let modified = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).ok();
        let id = ClientId {
            host: host.to_owned(),
            credential: match auth {
                OciAuth::Basic(user, password) => {
                    Sha256::digest(format!("{user}:{password}")).into()
                }
                _ => [0; 32],
            },
            certificates: files.iter().map(|f| (f.clone(), modified(f))).collect(),
        };
        if let Some(known) = self.clients.lock().get(&id) {
            return Ok(known.clone());
        }
        let made = make(&self.config, &files, host)?;
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(id, made.clone());
        Ok(made)
    }

    /// Those for all registries, and this one's own.
    fn certificates(&self, host: &str) -> Result<Vec<PathBuf>, String> {
        let mut files = self.config.ca_files.clone();
        let Some(dir) = self.config.certs_dir.as_ref().map(|dir| dir.join(host)) else {
            return Ok(files);
        };
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(files),
            Err(e) => return Err(format!("{}: {e}", dir.display())),
        };
        let mut own: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "crt"))
            .collect();
        own.sort();
        files.extend(own);
        Ok(files)
    }
}

fn make(config: &RemoteConfig, certificates: &[PathBuf], host: &str) -> Result<Clients, String> {
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
    const READ_TIMEOUT: Duration = Duration::from_secs(60);
    const USER_AGENT: &str = concat!("rimward/", env!("CARGO_PKG_VERSION"));
    let failed = |e: &dyn std::error::Error| format!("registry client: {}", causes(e));
    let certificates: Vec<Certificate> =
        certificates.iter().map(|file| certificate(file)).collect::<Result<_, _>>()?;
    let pem = |one: &Certificate| reqwest::Certificate::from_pem(&one.data);
    let trusted: Vec<_> =
        certificates.iter().map(pem).collect::<Result<_, _>>().map_err(|e| failed(&e))?;
    let http = reqwest::Client::builder()
        .tls_certs_merge(trusted)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(USER_AGENT)
        .build()
        .map_err(|e| failed(&e))?;
    let plain = config.plain_http.iter().any(|plain| plain == host);
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(config.plain_http.clone()),
        extra_root_certificates: certificates,
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: USER_AGENT,
        ..ClientConfig::default()
    };
    let oci = Client::try_from(config).map_err(|e| failed(&e))?;
    Ok(Clients { oci, http, plain })
}

fn certificate(file: &Path) -> Result<Certificate, String> {
    let data =
        std::fs::read(file).map_err(|e| format!("registry certificate {}: {e}", file.display()))?;
    if !data.windows(27).any(|w| w == b"-----BEGIN CERTIFICATE-----") {
        return Err(format!("registry certificate {} is not a PEM file", file.display()));
    }
    Ok(Certificate { encoding: CertificateEncoding::Pem, data })
}

/// Whether a credential's registry is this host. A `*` stands for a whole or part of one label, as in the
/// kubelet: `*.example.com`.
/// <https://kubernetes.io/docs/concepts/containers/images/#config-json>
fn host_matches(registry: &str, host: &str) -> bool {
    let (pattern, port) = split_port(registry);
    let (name, host_port) = split_port(host);
    let (patterns, labels) = (pattern.split('.'), name.split('.'));
    port == host_port
        && patterns.clone().count() == labels.clone().count()
        && patterns.zip(labels).all(|(pattern, label)| glob(pattern, label))
}

fn split_port(host: &str) -> (&str, &str) {
    host.rsplit_once(':').unwrap_or((host, ""))
}

/// Goes back to the last star only, so it takes at most the product of both lengths.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((after, at)) = star else { return false };
                star = Some((after, at + 1));
                (p, t) = (after, at + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// A repository of a registry outside.
pub(crate) struct Remote<'a> {
    clients: Clients,
    name: &'a Name,
    auth: OciAuth,
}

impl Remote<'_> {
    fn explain(&self, error: OciDistributionError) -> FetchError {
        let whole = self.name.reference.whole();
        match error {
            OciDistributionError::ImageManifestNotFoundError(_) => FetchError::NotFound(whole),
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => FetchError::Denied(format!(
                "{whole}: pull access denied, repository does not exist or may require authorization: {error}"
            )),
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|e| {
                    matches!(e.code, OciErrorCode::Denied | OciErrorCode::Unauthorized)
                }) =>
            {
                FetchError::Denied(format!("{whole}: pull access denied: {envelope}"))
            }
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
        let got = tokio::time::timeout(MANIFEST_PATIENCE, manifest::get(self, version)).await;
        got.unwrap_or_else(|_| {
            Err(FetchError::Failed(format!(
                "{}: the registry did not answer within {} s",
                self.name.reference.whole(),
                MANIFEST_PATIENCE.as_secs()
            )))
        })
    }

    async fn blob(&self, digest: &str, size: u64, from: u64) -> Result<(u64, Blob), FetchError> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let descriptor = OciDescriptor { digest: digest.to_owned(), size, ..Default::default() };
        let (client, reference) = (&self.clients.oci, &self.name.reference);
        let (from, stream) = match from {
            0 => (0, client.pull_blob_stream(reference, &descriptor).await),
            _ => {
                let rest = client.pull_blob_stream_partial(reference, &descriptor, from, None);
                match rest.await {
                    Ok(BlobResponse::Partial(stream)) => (from, Ok(stream)),
                    Ok(BlobResponse::Full(stream)) => (0, Ok(stream)),
                    Err(error) => (from, Err(error)),
                }
            }
        };
        let stream = stream.map_err(|e| self.explain(e))?;
        Ok((from, stream.stream.map_err(|e| causes(&e)).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_fit_hosts() {
        #[track_caller]
        fn check(registry: &str, host: &str, expected: bool) {
            assert_eq!(host_matches(registry, host), expected, "{registry} for {host}");
        }
        check("r.example", "r.example", true);
        check("r.example", "s.example", false);
        check("*.example", "r.example", true);
        check("*.example", "a.r.example", false);
        check("r-*.example", "r-eu.example", true);
        check("*-eu*.example", "r-us-eu-1.example", true);
        check("*-us.example", "r-eu.example", false);
        check("r.example:5000", "r.example:5000", true);
        check("r.example", "r.example:5000", false);
        check("*", "r.example", false);
    }

    #[test]
    fn a_client_for_each_credential_and_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let config = RemoteConfig { certs_dir: Some(dir.path().into()), ..RemoteConfig::default() };
        let remotes = Remotes::new(config).unwrap();
        let name = Name::parse("r.example:5000/a:v1", &[]).unwrap();
        let auth = |user: &str| RegistryAuth {
            registry: "r.example:5000".into(),
            username: user.into(),
            password: "p".into(),
        };
        let clients = |expected: usize| assert_eq!(remotes.clients.lock().len(), expected);
        assert_eq!(remotes.of(&name, &[]).unwrap().len(), 1);
        assert_eq!(remotes.of(&name, &[auth("a"), auth("b")]).unwrap().len(), 2);
        clients(3);
        remotes.of(&name, &[auth("a")]).unwrap();
        clients(3);
        let own = dir.path().join("r.example:5000");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("ca.crt"), "not a certificate").unwrap();
        let error = remotes.of(&name, &[]).err().unwrap();
        assert!(error.contains("r.example:5000/ca.crt"), "{error}");
        let other = Name::parse("s.example/a:v1", &[]).unwrap();
        assert!(remotes.of(&other, &[]).is_ok(), "another host's certificates do not matter");
    }
}
