//! The command line. `rimward help COMMAND` prints the texts below.

#[cfg(feature = "control")]
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Runs WebAssembly and containers at the edge, behind the Kubernetes API.
#[derive(Parser)]
#[command(version, disable_help_subcommand = false)]
pub struct Cli {
    /// What to log: `info`, `debug`, or per part as `info,rimward_node_pod=debug`.
    #[arg(long, global = true, env = "RIMWARD_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// A whole cluster in one process: control plane and one node.
    #[cfg(all(feature = "control", feature = "node"))]
    Up(Box<Up>),
    /// The control plane: API server, store, scheduler, controllers, node hub, image registry.
    #[cfg(feature = "control")]
    Control(Control),
    /// A node: joins a control plane and runs pods.
    #[cfg(feature = "node")]
    Node(Node),
    /// Tokens by which nodes join.
    #[cfg(feature = "control")]
    Token(Token),
    /// Images of nodes and of the cluster's own registry.
    Image(Image),
    /// Prints the version.
    Version,
}

/// Where things are kept.
#[derive(Args)]
pub struct DataDir {
    /// Where everything is kept; made if it is not there. [default: /var/lib/rimward as root, else
    /// ~/.local/share/rimward]
    #[arg(long, env = "RIMWARD_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

impl DataDir {
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        let dir = match (&self.data_dir, is_root(), std::env::var_os("HOME")) {
            (Some(dir), ..) => dir.clone(),
            (None, true, _) => PathBuf::from("/var/lib/rimward"),
            (None, false, Some(home)) => PathBuf::from(home).join(".local/share/rimward"),
            (None, false, None) => {
                anyhow::bail!("HOME is not set: say where data goes with --data-dir")
            }
        };
        // Paths are handed to other processes, whose working directory is another.
        std::path::absolute(&dir).map_err(|e| anyhow::anyhow!("--data-dir {}: {e}", dir.display()))
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(feature = "control")]
#[derive(Args)]
pub struct ControlPorts {
    /// Address on which the API and the tunnel listen.
    #[arg(long, default_value = "0.0.0.0")]
    pub listen: IpAddr,
    /// TCP port of the API; 0 picks a free one, which the kubeconfig names.
    #[arg(long, default_value_t = 6443)]
    pub api_port: u16,
    /// UDP port that nodes dial; 0 picks a free one.
    #[arg(long, default_value_t = 6444)]
    pub tunnel_port: u16,
    /// Address by which clients and nodes reach this machine, for the certificate and the kubeconfig.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Seconds that a node may be silent before it is NotReady; an idle node speaks every 15.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(20..))]
    pub node_grace_seconds: u64,
}

/// What is told of requests. The names are those of kube-apiserver.
#[cfg(feature = "control")]
#[derive(Args)]
pub struct AuditOptions {
    /// The audit policy (audit.k8s.io/v1 Policy, YAML): what is told of which request.
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where audit events go, as lines of JSON; `-` is standard output.
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    pub audit_log_path: Option<PathBuf>,
    /// Megabytes at which the audit log is rotated.
    #[arg(long, value_name = "MB", default_value_t = 100)]
    pub audit_log_maxsize: u64,
    /// Rotated audit logs that are kept; 0 keeps all.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub audit_log_maxbackup: usize,
    /// Days that rotated audit logs are kept; 0 keeps them for good.
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    pub audit_log_maxage: u64,
}

/// Issuers beside the cluster itself whose tokens are accepted. The names are those of kube-apiserver.
#[cfg(feature = "control")]
#[derive(Args)]
pub struct OidcOptions {
    /// Issuers as an AuthenticationConfiguration (apiserver.config.k8s.io/v1, YAML).
    #[arg(long, value_name = "FILE", conflicts_with = "oidc_issuer_url")]
    pub authentication_config: Option<PathBuf>,
    /// URL of an OpenID Connect issuer.
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    pub oidc_issuer_url: Option<String>,
    /// The audience that its tokens must be for.
    #[arg(long, value_name = "ID", requires = "oidc_issuer_url")]
    pub oidc_client_id: Option<String>,
    /// The claim that is the user's name.
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    pub oidc_username_claim: String,
    /// What user names begin with; `-` is nothing. [default: the issuer's URL and `#`, nothing for `email`]
    #[arg(long, value_name = "PREFIX")]
    pub oidc_username_prefix: Option<String>,
    /// The claim that lists the user's groups.
    #[arg(long, value_name = "CLAIM")]
    pub oidc_groups_claim: Option<String>,
    /// What groups begin with.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub oidc_groups_prefix: String,
    /// Algorithms that its tokens may be signed with.
    #[arg(long, value_name = "ALG,…", value_delimiter = ',', default_value = "RS256")]
    pub oidc_signing_algs: Vec<String>,
    /// A claim that tokens must have, as `key=value`; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    pub oidc_required_claim: Vec<String>,
    /// PEM file of the authority to trust for the issuer. [default: those of the machine]
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
}

#[cfg(feature = "node")]
#[derive(Args)]
pub struct NodeOptions {
    /// The node's name. [default: the host name]
    #[arg(long)]
    pub node_name: Option<String>,
    /// TCP port of the HTTP Ingress; 0 picks a free one. [default: 80 as root, else 8080]
    #[arg(long)]
    pub ingress_http_port: Option<u16>,
    /// Pods that this node takes at most.
    #[arg(long, default_value_t = 200)]
    pub max_pods: u32,
    /// Below what room the node takes no more pods and ends some, as the kubelet's flag: shares or
    /// quantities of `memory.available`, `pid.available`, `nodefs.available` and `nodefs.inodesFree`.
    #[arg(long, value_name = "SIGNAL<VALUE,…", default_value_t)]
    pub eviction_hard: rimward_node_agent::EvictionHard,
    /// The same, of what must last for a while before pods are ended.
    #[arg(long, value_name = "SIGNAL<VALUE,…", default_value = "")]
    pub eviction_soft: String,
    /// For how long: one for each soft threshold.
    #[arg(long, value_name = "SIGNAL=DURATION,…", default_value = "")]
    pub eviction_soft_grace_period: String,
    /// Seconds that a pod gets at most to end when a soft threshold ends it.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub eviction_max_pod_grace_period: i64,
    /// Let containers of Burstable pods have swap, as the kubelet's LimitedSwap does; others, and all without
    /// this, have none. With cgroup v2.
    #[arg(long)]
    pub limited_swap: bool,
    /// Processes and threads of one pod at most. [default: a quarter of what the machine has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub pod_max_pids: Option<u64>,
    /// What makes Linux containers: the libcontainer in this program, or the machine's runc.
    #[arg(long, value_enum, default_value_t)]
    pub container_runtime: ContainerRuntime,
    /// The runc of `--container-runtime runc` and of pods whose RuntimeClass is `runc`. [default: runc in PATH,
    /// where there is one]
    #[arg(long, value_name = "FILE")]
    pub runc_path: Option<PathBuf>,
    /// A directory of static pods: files that each say a Pod, which this node runs without being told.
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Percent of the disk from which unused images are removed; 100 never does.
    #[arg(long, value_name = "PERCENT", default_value_t = 85,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_high_threshold: u8,
    /// Percent of the disk down to which they are.
    #[arg(long, value_name = "PERCENT", default_value_t = 80,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_low_threshold: u8,
    /// Work without the privileges that are there: addresses on loopback, no kernel rules.
    #[arg(long)]
    pub user_mode: bool,
    /// Labels of the Node, as `key=value`; repeatable.
    #[arg(long = "node-label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// PEM file of a certificate authority to trust for image registries; repeatable.
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Vec<PathBuf>,
    /// PEM file of certificate authorities that Wasm guests trust for HTTPS, besides the system's.
    #[arg(long, value_name = "FILE")]
    pub guest_ca: Option<PathBuf>,
    /// Where certificate authorities to trust for one image registry alone are: DIR/HOST[:PORT]/*.crt.
    #[arg(long, value_name = "DIR", default_value = "/etc/rimward/certs.d")]
    pub registry_certs_dir: PathBuf,
    /// HOST:PORT of an image registry that speaks plain HTTP; repeatable.
    #[arg(long, value_name = "HOST:PORT")]
    pub plain_http_registry: Vec<String>,
}

#[cfg(feature = "node")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ContainerRuntime {
    #[default]
    Libcontainer,
    Runc,
}

#[cfg(all(feature = "control", feature = "node"))]
#[derive(Args)]
pub struct Up {
    #[command(flatten)]
    pub data_dir: DataDir,
    #[command(flatten)]
    pub ports: ControlPorts,
    #[command(flatten)]
    pub audit: AuditOptions,
    #[command(flatten)]
    pub oidc: OidcOptions,
    #[command(flatten)]
    pub node: NodeOptions,
}

#[cfg(feature = "control")]
#[derive(Args)]
pub struct Control {
    #[command(flatten)]
    pub data_dir: DataDir,
    #[command(flatten)]
    pub ports: ControlPorts,
    #[command(flatten)]
    pub audit: AuditOptions,
    #[command(flatten)]
    pub oidc: OidcOptions,
}

#[cfg(feature = "node")]
#[derive(Args)]
pub struct Node {
    #[command(flatten)]
    pub data_dir: DataDir,
    /// HOST:PORT of the control plane's tunnel.
    #[arg(long)]
    pub server: String,
    /// A token from `rimward token create`; needed until the node has joined.
    #[arg(long, env = "RIMWARD_TOKEN")]
    pub token: Option<String>,
    /// End the pods too when this process is told to stop; else they run on for the next one (an upgrade).
    #[arg(long)]
    pub stop_pods: bool,
    #[command(flatten)]
    pub node: NodeOptions,
}

/// Which cluster a command speaks to.
#[derive(Args)]
pub struct Cluster {
    /// The kubeconfig. [default: $KUBECONFIG, else ~/.kube/config, else the data directory's]
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
}

#[cfg(feature = "control")]
#[derive(Args)]
pub struct Token {
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[cfg(feature = "control")]
#[derive(Subcommand)]
pub enum TokenCommand {
    /// Makes a token and prints it.
    Create {
        /// Hours until it expires; 0 is never.
        #[arg(long, default_value_t = 24)]
        hours: u64,
        #[command(flatten)]
        cluster: Cluster,
    },
}

#[derive(Args)]
pub struct Image {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Pushes a Wasm file as an image that pods can name.
    Push {
        /// The component or module.
        file: PathBuf,
        /// `name:tag`, as pods will name it.
        name: String,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Lists the images of a node.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        on: OnNode,
    },
    /// Pulls an image to a node. Registries' certificates are those that the node was started with.
    Pull {
        /// As pods name it.
        name: String,
        /// Credentials, laid out as docker's `config.json`, which `docker login` and `skopeo login` write.
        #[arg(long, value_name = "FILE")]
        auth_file: Option<PathBuf>,
        /// Reads USER:PASSWORD for the image's registry from standard input.
        #[arg(long, conflicts_with = "auth_file")]
        creds_stdin: bool,
        #[command(flatten)]
        on: OnNode,
    },
    /// Removes images from a node. Those that containers use stay.
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        on: OnNode,
    },
    /// Stores the images of an oci-archive or docker-archive on a node, or in the cluster's registry.
    Import {
        /// What `docker save`, `skopeo copy … oci-archive:` or `ctr images export` wrote; compressed or not.
        file: PathBuf,
        /// What the image is called; needed if the archive does not say.
        #[arg(long)]
        name: Option<String>,
        /// Into the cluster's registry, where every node finds it.
        #[cfg(feature = "node")]
        #[arg(long, conflicts_with = "node")]
        registry: bool,
        #[command(flatten)]
        on: OnNode,
    },
}

/// Which node's images: of this machine's node, unless another is named.
#[derive(Args)]
pub struct OnNode {
    /// The node, which is asked through the API server. [default: the one that runs on this machine]
    #[arg(long)]
    pub node: Option<String>,
    #[command(flatten)]
    pub data_dir: DataDir,
    #[command(flatten)]
    pub cluster: Cluster,
}

impl Cli {
    pub fn start_log(&self) {
        let filter = tracing_subscriber::EnvFilter::try_new(&self.log).unwrap_or_else(|error| {
            eprintln!("--log {:?}: {error}; logging at info", self.log);
            tracing_subscriber::EnvFilter::new("info")
        });
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}

/// Tells why the command failed, on one line.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("rimward: {error:#}");
    ExitCode::FAILURE
}
