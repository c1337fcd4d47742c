//! Registries outside the cluster: TLS, credentials, and which certificates are trusted for which host.
//!
//! Certificates are laid out as every container tool knows it: `DIR/HOST[:PORT]/*.crt` are authorities to
//! trust for that registry alone. They are read again when they change, so that a new one needs no restart.
//!
//! A registry is a stranger. No more of anything it says is read than such a thing may have, and what one pod's
//! secret opens stays closed to others: tokens live as long as one pull. (`oci-client`, which reads whatever it is
//! sent into memory and keeps tokens, gives names only.)

mod auth;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, RANGE, WWW_AUTHENTICATE};
use oci_client::errors::OciEnvelope;
use parking_lot::Mutex;
use reqwest::Response;
use rimward_node_pod::outside::RegistryAuth;

use crate::fetch::{Blob, FetchError, MANIFEST_BYTES_MAX, MANIFEST_PATIENCE, Source};
use crate::name::Name;
use crate::{form, keyring};
use auth::Challenge;

/// Clients that are kept; when there are more, all are made anew.
const CLIENTS_MAX: usize = 64;

/// Of what a registry says when it refuses, and of tokens.
const ANSWER_BYTES_MAX: usize = 64 << 10;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Of silence.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

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
    clients: Mutex<HashMap<ClientId, reqwest::Client>>,
}

/// What a client depends on: the host, and the certificates as they are now.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientId {
    host: String,
    certificates: Vec<(PathBuf, Option<SystemTime>)>,
}

impl Remotes {
    /// # Errors
    /// Names the certificate file at fault.
    pub fn new(config: RemoteConfig) -> Result<Self, String> {
        // Wrong options are told now, not at the first pull. Without any there is nothing to be wrong, and a
        // client costs a node that never pulls from outside a megabyte: it reads all of the system's authorities.
        if !config.ca_files.is_empty() {
            make(&config.ca_files)?;
        }
        Ok(Self { config, clients: Mutex::default() })
    }

    /// The repositories to try in turn, one for each credential that fits; without any, anonymously.
    pub fn of<'a>(
        &self,
        name: &'a Name,
        auths: &[RegistryAuth],
    ) -> Result<Vec<Remote<'a>>, String> {
        let host = name.reference.resolve_registry();
        let plain = self.config.plain_http.iter().any(|plain| plain == host);
        let client = self.client(host)?;
        let remote = |auth: Option<RegistryAuth>| {
            let (client, state) = (client.clone(), Mutex::default());
            Remote { client, plain, name, auth, state }
        };
        let fitting = keyring::lookup(&name.repository(), auths);
        Ok(match fitting.is_empty() {
            true => vec![remote(None)],
            false => fitting.into_iter().map(|auth| remote(Some(auth.clone()))).collect(),
        })
    }

    fn client(&self, host: &str) -> Result<reqwest::Client, String> {
        let files = self.certificates(host)?;
        let modified = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).ok();
        let id = ClientId {
            host: host.to_owned(),
            certificates: files.iter().map(|f| (f.clone(), modified(f))).collect(),
        };
        if let Some(known) = self.clients.lock().get(&id) {
            return Ok(known.clone());
        }
        let made = make(&files)?;
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

fn make(certificates: &[PathBuf]) -> Result<reqwest::Client, String> {
    const USER_AGENT: &str = concat!("rimward/", env!("CARGO_PKG_VERSION"));
    let trusted =
        certificates.iter().map(|file| certificate(file)).collect::<Result<Vec<_>, _>>()?;
    reqwest::Client::builder()
        .tls_certs_merge(trusted)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(USER_AGENT)
        .build()
        .map_err(|e| format!("registry client: {}", causes(&e)))
}

fn certificate(file: &Path) -> Result<reqwest::Certificate, String> {
    let data =
        std::fs::read(file).map_err(|e| format!("registry certificate {}: {e}", file.display()))?;
    if !data.windows(27).any(|w| w == b"-----BEGIN CERTIFICATE-----") {
        return Err(format!("registry certificate {} is not a PEM file", file.display()));
    }
    reqwest::Certificate::from_pem(&data)
        .map_err(|e| format!("registry certificate {}: {}", file.display(), causes(&e)))
}

/// A repository of a registry outside, as one credential sees it.
pub(crate) struct Remote<'a> {
    client: reqwest::Client,
    plain: bool,
    name: &'a Name,
    auth: Option<RegistryAuth>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What opened the repository last: a header's value.
    authorization: Option<String>,
    /// It was asked who asks.
    challenged: bool,
}

impl Remote<'_> {
    /// The credential without which the repository does not answer; None where it opens to anybody.
    pub fn opened_by(&self) -> Option<&RegistryAuth> {
        self.auth.as_ref().filter(|_| self.state.lock().challenged)
    }

    /// GET of something of the repository, once more with what the registry asks for if it asks who is there.
    async fn get(&self, path: &str, accept: &str, from: u64) -> Result<Response, FetchError> {
        let reference = &self.name.reference;
        let host = reference.resolve_registry();
        let scheme = if self.plain { "http" } else { "https" };
        let url = format!("{scheme}://{host}/v2/{}/{path}", reference.repository());
        let response = self.send(&url, accept, from).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenge = {
            let challenges = response.headers().get_all(WWW_AUTHENTICATE).into_iter();
            challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?)).next()
        };
        let Some(challenge) = challenge else { return Ok(response) };
        drop(response);
        let authorization = auth::answer(self, &challenge).await?;
        *self.state.lock() = State { authorization: Some(authorization), challenged: true };
        self.send(&url, accept, from).await
    }

    async fn send(&self, url: &str, accept: &str, from: u64) -> Result<Response, FetchError> {
        let mut request = self.client.get(url).header(ACCEPT, accept);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let authorization = self.state.lock().authorization.clone();
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request.send().await.map_err(|e| failed(&e))
    }

    /// What a good answer holds, or how it was refused.
    async fn good(&self, response: Response) -> Result<Response, FetchError> {
        let status = response.status();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        let url = response.url().to_string();
        let said = bounded(response, ANSWER_BYTES_MAX).await.unwrap_or_default();
        Err(refused(&self.name.reference.whole(), &url, status, &said))
    }
}

fn failed(error: &reqwest::Error) -> FetchError {
    FetchError::Failed(causes(error))
}

/// No more of an answer's body than that; None of one that breaks off.
async fn bounded(mut response: Response, max: usize) -> Option<Bytes> {
    let mut content = BytesMut::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        content.extend_from_slice(&chunk[..chunk.len().min(max - content.len())]);
        if content.len() == max {
            break;
        }
    }
    Some(content.freeze())
}

fn refused(whole: &str, url: &str, status: StatusCode, said: &[u8]) -> FetchError {
    // In the registry's own words, where it has some. Of another page nothing is shown: a redirect may have led
    // to where its reader may not look.
    let said = serde_json::from_slice::<OciEnvelope>(said).map(|said| format!(": {said}"));
    let answer = format!(
        "unexpected status from GET request to {url}: {status}{}",
        said.unwrap_or_default()
    );
    match status {
        StatusCode::NOT_FOUND => FetchError::NotFound(whole.to_owned()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FetchError::Denied(denied(&answer)),
        _ => FetchError::Refused(answer),
    }
}

fn denied(why: &str) -> String {
    format!("pull access denied, repository does not exist or may require authorization: {why}")
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
    fn place(&self) -> &str {
        self.name.reference.resolve_registry()
    }

    /// Of which no more is read than a manifest may be.
    /// <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests>
    async fn manifest(&self, version: &str) -> Result<Bytes, FetchError> {
        let get = async {
            let path = format!("manifests/{version}");
            let response = self.get(&path, &form::ACCEPT.join(", "), 0).await?;
            let mut response = self.good(response).await?;
            let mut content = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(|e| failed(&e))? {
                if content.len() + chunk.len() > MANIFEST_BYTES_MAX {
                    let why = format!("the manifest exceeds {MANIFEST_BYTES_MAX} bytes");
                    return Err(FetchError::Failed(why));
                }
                content.extend_from_slice(&chunk);
            }
            Ok(content.freeze())
        };
        tokio::time::timeout(MANIFEST_PATIENCE, get).await.unwrap_or_else(|_| {
            Err(FetchError::Failed(format!(
                "the registry did not answer within {} s",
                MANIFEST_PATIENCE.as_secs()
            )))
        })
    }

    async fn blob(&self, digest: &str, from: u64) -> Result<(u64, Blob), FetchError> {
        let get = async {
            let response = self.get(&format!("blobs/{digest}"), "*/*", from).await?;
            self.good(response).await
        };
        let response = tokio::time::timeout(READ_TIMEOUT, get).await.unwrap_or_else(|_| {
            let seconds = READ_TIMEOUT.as_secs();
            Err(FetchError::Failed(format!("the registry did not answer within {seconds} s")))
        })?;
        let from = match response.status() {
            StatusCode::PARTIAL_CONTENT => begins_at(&response).unwrap_or(u64::MAX),
            _ => 0,
        };
        Ok((from, response.bytes_stream().map_err(|e| causes(&e)).boxed()))
    }
}

/// The first byte of a partial answer.
fn begins_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_for_each_host_and_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let config = RemoteConfig { certs_dir: Some(dir.path().into()), ..RemoteConfig::default() };
        let remotes = Remotes::new(config).unwrap();
        let name = Name::parse("r.example:5000/a:v1", &[]).unwrap();
        let auth = |user: &str| RegistryAuth {
            registry: "r.example:5000".into(),
            username: user.into(),
            password: "p".into(),
            ..RegistryAuth::default()
        };
        let clients = |expected: usize| assert_eq!(remotes.clients.lock().len(), expected);
        assert_eq!(remotes.of(&name, &[]).unwrap().len(), 1);
        assert_eq!(remotes.of(&name, &[auth("a"), auth("b")]).unwrap().len(), 2);
        clients(1);
        let other = Name::parse("s.example/a:v1", &[]).unwrap();
        remotes.of(&other, &[auth("a")]).unwrap();
        clients(2);
        let own = dir.path().join("r.example:5000");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("ca.crt"), "not a certificate").unwrap();
        let error = remotes.of(&name, &[]).err().unwrap();
        assert!(error.contains("r.example:5000/ca.crt"), "{error}");
        assert!(remotes.of(&other, &[]).is_ok(), "another host's certificates do not matter");
    }

    #[test]
    fn refusals() {
        #[track_caller]
        fn check(status: u16, said: &str, expected: &str) {
            let status = StatusCode::from_u16(status).unwrap();
            let error = refused("r/a:v1", "http://r/x", status, said.as_bytes());
            assert_eq!(error.to_string(), expected);
        }
        let unexpected = "unexpected status from GET request to http://r/x";
        check(500, "<html>boom", &format!("{unexpected}: 500 Internal Server Error"));
        check(404, "", "r/a:v1: not found");
        check(
            401,
            "",
            &format!(
                "pull access denied, repository does not exist or may require authorization: \
                 {unexpected}: 401 Unauthorized"
            ),
        );
        let said = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        let status = StatusCode::TOO_MANY_REQUESTS;
        let error = refused("r/a:v1", "http://r/x", status, said.as_bytes()).to_string();
        assert!(
            error.contains("429 Too Many Requests: ") && error.contains("slow down"),
            "{error}"
        );
    }
}
