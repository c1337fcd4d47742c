//! What the API server is told at start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rimward_control_store::Store;

use crate::audit::Auditor;
use crate::authn::oidc::Authentication;
use crate::outbound::Identity;

#[derive(Clone)]
pub struct Config {
    pub store: Arc<dyn Store>,
    /// `10.43.0.0/16`; its first address is the `kubernetes` Service.
    pub service_cidr: String,
    pub node_port_range: std::ops::RangeInclusive<u16>,
    /// `cluster.local`
    pub cluster_domain: String,
    /// `iss` of ServiceAccount tokens: a URL.
    pub issuer: String,
    /// PEM of the P-256 private key (PKCS #8) that signs ServiceAccount tokens (ES256).
    pub token_key: String,
    /// PEM of the cluster's CA, as `kube-root-ca.crt` publishes it.
    pub ca_pem: String,
    /// How this server proves itself to extension API servers; without it they see no client
    /// certificate.
    pub front_proxy: Option<FrontProxy>,
    /// Audiences of tokens that this server accepts; the first is the default of a TokenRequest.
    pub api_audiences: Vec<String>,
    /// Where clients inside the cluster reach this server: the endpoint of the `kubernetes` Service.
    pub advertise: SocketAddr,
    /// How long Events are kept.
    pub event_ttl: Duration,
    /// How much history watches and continued lists can go back: what is older is compacted, as
    /// kube-apiserver does every five minutes.
    pub history: Duration,
    /// Requests in flight beyond which others wait: together the seats that priority levels share.
    pub reads_max: usize,
    pub writes_max: usize,
    /// Issuers beside this server whose tokens are accepted, and who may come without any.
    pub authentication: Authentication,
    /// Decides what is told of requests, and to whom.
    pub audit: Option<Auditor>,
    /// What `/version` tells of how this binary was made.
    pub build: Build,
}

/// Where a binary comes from.
#[derive(Clone, Debug)]
pub struct Build {
    /// The commit, in hexadecimal; empty when it is not known.
    pub commit: String,
    /// `clean`, `dirty` (there were changes that the commit has not), or `archive` (there was no
    /// repository).
    pub tree_state: String,
    /// RFC 3339, in UTC.
    pub date: String,
}

impl Build {
    /// `epoch` is when it was made, in seconds of the Unix epoch.
    pub fn of(commit: &str, tree_state: &str, epoch: &str) -> Self {
        let made = epoch.parse().ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
        Self {
            commit: commit.to_owned(),
            tree_state: tree_state.to_owned(),
            date: made.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string(),
        }
    }
}

impl Default for Build {
    /// As Kubernetes shows what nobody told it.
    fn default() -> Self {
        let date = "1970-01-01T00:00:00Z".into();
        Self { commit: String::new(), tree_state: String::new(), date }
    }
}

/// The request-header CA, and the client certificate that it signed for this server.
#[derive(Clone)]
pub struct FrontProxy {
    pub ca_pem: String,
    pub identity: Identity,
    /// The common name of the certificate.
    pub name: String,
}

impl Config {
    /// The defaults of a cluster, around what has none.
    pub fn new(
        store: Arc<dyn Store>,
        token_key: String,
        ca_pem: String,
        advertise: SocketAddr,
    ) -> Self {
        let issuer = "https://kubernetes.default.svc.cluster.local".to_owned();
        Self {
            store,
            service_cidr: "10.43.0.0/16".into(),
            node_port_range: 30000..=32767,
            cluster_domain: "cluster.local".into(),
            api_audiences: vec![issuer.clone()],
            issuer,
            token_key,
            ca_pem,
            front_proxy: None,
            advertise,
            event_ttl: Duration::from_secs(3600),
            history: Duration::from_secs(300),
            reads_max: 400,
            writes_max: 200,
            authentication: Authentication::default(),
            audit: None,
            build: Build::default(),
        }
    }
}
