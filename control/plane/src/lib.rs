//! Assembles the control plane: keys, store, API server, scheduler, controllers, registry, hub, in the
//! order in which they need each other. Sockets are bound before anything starts.
//!
//! It decides nothing else: every part is configured here and lives in its own crate.

mod authority;
mod door;
mod kubeconfig;
pub mod pki;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use rimward_api::UserInfo;
use rimward_client::{Client, Informers, Queues};
use rimward_control_apiserver::ApiServer;
pub use rimward_control_apiserver::Build;
pub use rimward_control_apiserver::audit::LogConfig;
use rimward_control_apiserver::audit::{self, Auditor};
use rimward_control_apiserver::config::{Config as ApiConfig, FrontProxy};
pub use rimward_control_apiserver::oidc;
use rimward_control_apiserver::outbound::Identity;
use rimward_control_hub::{Hub, NetworkConfig};
use rimward_control_registry::Registry;
use rimward_control_store_rocksdb::RocksStore;
use rimward_tunnel::signer::Signer;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::door::Door;
use crate::pki::Pki;

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    /// Where the API listens (TCP); port 0 picks a free one.
    pub api: SocketAddr,
    /// Where nodes dial (UDP); port 0 picks a free one.
    pub tunnel: SocketAddr,
    /// The address that clients outside use, for the certificate and the kubeconfig; found by itself
    /// when not given.
    pub advertise: Option<IpAddr>,
    /// How long a node may be silent before it is NotReady.
    pub node_grace: std::time::Duration,
    /// What is told of requests; None tells nothing.
    pub audit: Option<AuditConfig>,
    /// Who is let in beside those whom the cluster knows itself.
    pub authentication: oidc::Authentication,
    /// Where this binary comes from.
    pub build: Build,
}

/// The audit log.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// The file of the policy.
    pub policy: PathBuf,
    pub log: LogConfig,
}

/// Why the control plane did not start. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot listen on {what} {address}: {source}; is another control plane running? Choose another with --{option}"
    )]
    Listen { what: &'static str, address: SocketAddr, option: &'static str, source: std::io::Error },
    #[error(
        "{path}: {source}; the data directory must be writable, choose another with --data-dir"
    )]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Pki(#[from] pki::Error),
    #[error(transparent)]
    Store(#[from] rimward_control_store::Error),
    #[error(transparent)]
    Api(#[from] rimward_control_apiserver::StartError),
    #[error(transparent)]
    Registry(#[from] rimward_control_registry::Error),
    #[error("{path}: {what}; see --audit-policy-file and --audit-log-path")]
    Audit { path: PathBuf, what: String },
    #[error("{0}")]
    Part(String),
}

/// A running control plane.
pub struct Plane {
    pub api: ApiServer,
    pub hub: Hub,
    /// Where the API really listens.
    pub api_addr: SocketAddr,
    /// Where nodes really dial.
    pub tunnel_addr: SocketAddr,
    pub kubeconfig: PathBuf,
    store: Arc<RocksStore>,
    tasks: TaskTracker,
}

impl Plane {
    /// Starts everything; when it answers, the API serves. Runs until `shutdown`.
    ///
    /// # Errors
    /// Names the path, the port or the part that is in the way.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Self, Error> {
        let (api_listener, tunnel_socket) = bind(&config).await?;
        let api_addr = local(api_listener.local_addr())?;
        let tunnel_addr = local(tunnel_socket.local_addr())?;
        let dir = config.data_dir.join("control");
        std::fs::create_dir_all(&dir)
            .map_err(|source| Error::DataDir { path: dir.clone(), source })?;

        let pki = Pki::open(&dir.join("pki"))?;
        let reach = config.advertise.unwrap_or_else(|| outward_address(api_addr.ip()));
        let server = pki.server(&server_names(), &server_addresses(api_addr.ip(), reach))?;
        let kubeconfig = write_kubeconfig(&config, &pki, api_addr, reach)?;

        let store = RocksStore::open(&dir.join("store"), Default::default())?;
        let advertise = SocketAddr::new(endpoint_address(reach), api_addr.port());
        let mut api_config =
            ApiConfig::new(store.clone(), pki.token_key_pem.clone(), pki.ca_pem.clone(), advertise);
        api_config.authentication.clone_from(&config.authentication);
        api_config.build.clone_from(&config.build);
        api_config.audit = config.audit.as_ref().map(auditor).transpose()?;
        api_config.front_proxy = Some(front_proxy(&pki)?);
        let api = ApiServer::start(api_config).await?;

        let tasks = TaskTracker::new();
        let informers = Informers::new(
            Client::new(api.client(
                UserInfo::authenticated("system:kube-controller-manager", &[]),
                "rimward-informers",
            )),
            shutdown.clone(),
        );
        let registry = Registry::open(rimward_control_registry::Config::new(dir.join("registry")))?;
        let door = Arc::new(Door { registry, api: api.clone() });
        let signer = Signer::from_pem(&pki.ca_pem, &pki.ca_key_pem).map_err(part)?;
        let hub = Hub::start(
            rimward_control_hub::Config {
                signer: Arc::new(signer),
                socket: tunnel_socket,
                client: Client::new(api.client(
                    UserInfo::service_account("kube-system", "rimward-hub"),
                    "rimward-hub",
                )),
                informers: informers.clone(),
                network: NetworkConfig::default(),
                registry: door.clone(),
                api_addr: SocketAddr::new(to_self(api_addr.ip()), api_addr.port()),
                version: env!("CARGO_PKG_VERSION").into(),
            },
            shutdown.clone(),
        )
        .map_err(part)?;
        api.set_nodes(Arc::new(hub.clone()));

        start_deciders(&api, &informers, &pki, &config, &tasks, &shutdown)?;
        let tls = tls_config(&pki, &server)?;
        let serving = api.clone();
        let stop = shutdown.clone();
        tasks.spawn(async move { serving.serve(api_listener, tls, Some(door), stop).await });
        tracing::info!(api = %api_addr, tunnel = %tunnel_addr, kubeconfig = %kubeconfig.display(), "control plane is ready");
        Ok(Self { api, hub, api_addr, tunnel_addr, kubeconfig, store, tasks })
    }

    /// Waits, after the shutdown, until everything has ended and the store is closed.
    pub async fn stopped(self) {
        self.hub.stopped().await;
        self.api.stop();
        self.tasks.close();
        self.tasks.wait().await;
        self.store.close().await;
    }
}

fn front_proxy(pki: &Pki) -> Result<FrontProxy, Error> {
    let made = pki.front_proxy()?;
    Ok(FrontProxy {
        ca_pem: made.ca_pem,
        identity: Identity { cert_pem: made.identity.cert_pem, key_pem: made.identity.key_pem },
        name: pki::FRONT_PROXY.into(),
    })
}

/// The scheduler and the controllers, each under an identity of its own.
fn start_deciders(
    api: &ApiServer,
    informers: &Informers,
    pki: &Pki,
    config: &Config,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let scheduler = rimward_control_scheduler::Scheduler::start(
        api.client(UserInfo::authenticated("system:kube-scheduler", &[]), "rimward-scheduler"),
        informers,
        rimward_control_scheduler::Config::default(),
        shutdown.clone(),
    );
    let scheduling = tasks.spawn(scheduler.join());
    api.add_component("scheduler", scheduling.abort_handle());
    let (acting, queues) = (api.clone(), Queues::default());
    let told = queues.clone();
    api.add_metrics(move |out| told.encode(out));
    let controllers = rimward_control_controllers::start(
        move |name| acting.client(UserInfo::service_account("kube-system", name), name),
        informers.clone(),
        rimward_control_controllers::Config {
            root_ca_pem: pki.ca_pem.clone(),
            node_monitor_grace: config.node_grace,
            authority: Some(Arc::new(authority::Authority::new(pki.issuer()?))),
            token_signer: Some(Arc::new(authority::TokenSigner::new(api.clone()))),
            queues,
            ..Default::default()
        },
        shutdown.clone(),
    );
    let controlling = tasks.spawn(controllers.join());
    api.add_component("controller-manager", controlling.abort_handle());
    Ok(())
}

/// Reads the policy and opens the log: a control plane that cannot tell what it should does not start.
fn auditor(config: &AuditConfig) -> Result<Auditor, Error> {
    let wrong = |path: &std::path::Path, what: &dyn std::fmt::Display| Error::Audit {
        path: path.to_owned(),
        what: what.to_string(),
    };
    let text = std::fs::read_to_string(&config.policy).map_err(|e| wrong(&config.policy, &e))?;
    let policy = audit::Policy::parse(&text).map_err(|e| wrong(&config.policy, &e))?;
    let log = audit::Log::open(config.log.clone()).map_err(|e| wrong(&config.log.path, &e))?;
    Ok(Auditor { policy: Arc::new(policy), sink: Arc::new(log) })
}

async fn bind(config: &Config) -> Result<(TcpListener, UdpSocket), Error> {
    let api = TcpListener::bind(config.api).await.map_err(|source| Error::Listen {
        what: "the API's TCP port",
        address: config.api,
        option: "api-port",
        source,
    })?;
    let tunnel = UdpSocket::bind(config.tunnel).map_err(|source| Error::Listen {
        what: "the tunnel's UDP port",
        address: config.tunnel,
        option: "tunnel-port",
        source,
    })?;
    Ok((api, tunnel))
}

fn local(address: std::io::Result<SocketAddr>) -> Result<SocketAddr, Error> {
    address.map_err(part)
}

fn part(error: impl std::fmt::Display) -> Error {
    Error::Part(error.to_string())
}

/// Where this process reaches its own listener.
fn to_self(bound: IpAddr) -> IpAddr {
    if bound.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { bound }
}

/// The address by which other machines reach this one: the one the default route leaves from. No packet
/// is sent. Without a route, loopback.
fn outward_address(bound: IpAddr) -> IpAddr {
    if !bound.is_unspecified() {
        return bound;
    }
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // TEST-NET-1 (RFC 5737): nobody is there, connecting a UDP socket only picks a route.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The endpoint of the `kubernetes` Service. Kubernetes refuses loopback there; nodes reach the API through
/// their tunnels whatever it says, so a machine without a network of its own shows an address reserved for
/// documentation (RFC 5737).
fn endpoint_address(reach: IpAddr) -> IpAddr {
    match reach.is_loopback() {
        false => reach,
        true => Some(outward_address(Ipv4Addr::UNSPECIFIED.into()))
            .filter(|ip| !ip.is_loopback())
            .unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
    }
}

fn server_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ]
    .map(str::to_owned)
    .to_vec();
    if let Ok(hostname) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        let hostname = hostname.trim().to_lowercase();
        if rimward_api::names::dns1123_subdomain(&hostname).is_empty() {
            names.push(hostname);
        }
    }
    names
}

fn server_addresses(bound: IpAddr, reach: IpAddr) -> Vec<IpAddr> {
    let mut addresses = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::new(10, 43, 0, 1)),
        // The same Service as user mode reaches it.
        IpAddr::V4(Ipv4Addr::new(127, 43, 0, 1)),
        reach,
    ];
    if !bound.is_unspecified() {
        addresses.push(bound);
    }
    addresses.sort();
    addresses.dedup();
    addresses
}

fn write_kubeconfig(
    config: &Config,
    pki: &Pki,
    api: SocketAddr,
    reach: IpAddr,
) -> Result<PathBuf, Error> {
    // On the same machine loopback always works; an address that was asked for is asked for to be used.
    let host = if config.advertise.is_some() { reach } else { to_self(api.ip()) };
    let text = kubeconfig::kubeconfig(
        &SocketAddr::new(host, api.port()).to_string(),
        &pki.ca_pem,
        &pki.admin()?,
    );
    let path = config.data_dir.join("kubeconfig");
    pki::write(&path, &text, 0o600)?;
    Ok(path)
}

fn tls_config(pki: &Pki, server: &pki::Identity) -> Result<Arc<rustls::ServerConfig>, Error> {
    let ca = CertificateDer::from_pem_slice(pki.ca_pem.as_bytes()).map_err(part)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).map_err(part)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // A token is as good as a certificate, so a client may come without one.
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .map_err(part)?;
    let chain = vec![CertificateDer::from_pem_slice(server.cert_pem.as_bytes()).map_err(part)?, ca];
    let key = PrivateKeyDer::from_pem_slice(server.key_pem.as_bytes()).map_err(part)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(part)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(part)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}
