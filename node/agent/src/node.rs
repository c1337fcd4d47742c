//! A whole node: the agent with everything that it assembles.
//!
//! One list, in the order in which the parts need each other: ledger and tunnel → what the cluster told
//! this node → network → images and runtimes → pods → names, Services, Ingress.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use rimward_api::Block;
use rimward_node_dns as dns;
use rimward_node_image::ImageStore;
pub use rimward_node_image::{Archive, GcPolicy, RemoteConfig};
use rimward_node_ingress as ingress;
use rimward_node_network::dial::{loopback_of, unprivileged_port};
use rimward_node_network::root::{self, RootNetwork};
use rimward_node_network::services::Protocol;
use rimward_node_network::user::{self, UserNetwork};
use rimward_node_network::{Backends, Dial, Slices};
use rimward_node_oci::OciRuntime;
pub use rimward_node_oci::{LowLevel, NoRunc, Runc, Swap};
use rimward_node_pod::outside::Network;
use rimward_node_pod::runtime::Runtime;
use rimward_node_pod::{Allocatable, Clock, Pods};
use rimward_node_wasm::{AddressMap, WasmRuntime};
use rimward_tunnel::wire::Welcome;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::doors::same_port;
use crate::machine::Capacity;
use crate::reach::{NodeDial, TunnelPackets, TunnelRegistry};
use crate::{Agent, machine};

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Config {
    pub agent: crate::Config,
    /// Addresses on loopback and proxies instead of namespaces and kernel rules.
    pub user_mode: bool,
    /// Where the HTTP Ingress listens; 0 picks a free one.
    pub ingress_http_port: u16,
    /// `host:port` names that mean the cluster's own image registry.
    pub registry_hosts: Vec<String>,
    pub remote_registries: RemoteConfig,
    /// When unused images go.
    pub image_gc: GcPolicy,
    /// PEM certificates that guests trust besides the system's.
    pub guest_ca: Option<PathBuf>,
    /// Processes and threads of one pod of Linux containers; None is what the machine's number allows.
    pub pod_pids_max: Option<u64>,
    /// What of the machine's swap Linux containers may have.
    pub swap: Swap,
    /// What makes Linux containers of pods that do not say it.
    pub low_level: LowLevel,
    /// For pods whose RuntimeClass says `runc`.
    pub runc: Option<Runc>,
    /// This program, which the Wasm runtime starts again for its hosts.
    pub exe: PathBuf,
}

/// A running node.
pub struct Node {
    pub agent: Agent,
    pub pods: Pods,
    /// Where the Ingress really listens.
    pub ingress_port: u16,
    wasm: WasmRuntime,
    /// As root only.
    oci: Option<OciRuntime>,
    net: Net,
    tasks: TaskTracker,
}

/// The network in one of its two forms.
enum Net {
    Root(Arc<RootNetwork>),
    User(Arc<UserNetwork>),
}

impl Node {
    /// Starts the node; when it answers, pods run. None when the shutdown came first.
    ///
    /// # Errors
    /// Names the path, the port or the part that is in the way.
    pub async fn start(
        config: Config,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        std::fs::create_dir_all(&config.agent.data_dir).map_err(|e| {
            anyhow::anyhow!(
                "{}: {e}; choose another directory with --data-dir",
                config.agent.data_dir.display()
            )
        })?;
        let oci = if config.user_mode { None } else { containers(&config) };
        let mut settings = config.agent.clone();
        settings.handlers = WasmRuntime::handlers();
        settings.handlers.extend(oci.iter().flat_map(Runtime::handlers));
        let agent = Agent::start(settings, shutdown.clone())?;
        let Some(welcome) = agent.welcome().await else {
            agent.ended().await.map_err(|e| anyhow::anyhow!("{e}"))?;
            return Ok(None);
        };
        let tasks = TaskTracker::new();
        let net = open_network(&config, &welcome).await?;
        let network: Arc<dyn Network> = match &net {
            Net::Root(net) => net.clone(),
            Net::User(net) => net.clone(),
        };
        let slices = Slices::new(agent.desired().endpoint_slices.clone());
        let backends = Backends::new();
        tasks.spawn(until(shutdown.clone(), backends.clone().follow(slices.clone())));
        let dial: Arc<dyn Dial> = Arc::new(NodeDial {
            agent: agent.clone(),
            network: network.clone(),
            slices: slices.clone(),
            own: block(&welcome.pod_cidr)?,
            cluster: block(&welcome.pod_network)?,
            packets: matches!(net, Net::Root(_)),
        });
        // Sockets before work: a taken port is an error now, not in an hour.
        let mut ingresses = Vec::new();
        let mut ingress_port = config.ingress_http_port;
        for ip in ingress_addresses(&config, network.host_ip()) {
            let settings = ingress::Config {
                ingresses: agent.desired().ingresses.clone(),
                services: agent.desired().services.clone(),
                backends: backends.clone(),
                dial: dial.clone(),
            };
            let server = ingress::Server::bind(SocketAddr::new(ip, ingress_port), settings).await?;
            ingress_port = server.local_addr()?.port();
            ingresses.push(server);
        }
        let dns = bind_dns(&config, &agent, &welcome, &network, slices).await?;

        let (pods, wasm) =
            start_pods(&config, &agent, &welcome, &net, network.clone(), oci.clone(), &shutdown)
                .await?;
        if agent.desired().is_synced() {
            // Nobody is refused for an index that is not built yet.
            backends.whole().await;
        }
        route_services(
            &config,
            &agent,
            &welcome,
            &net,
            backends,
            dial,
            dns.local_addr()?,
            &tasks,
            &shutdown,
        )
        .await?;
        tracing::info!("dns listening on {}", dns.local_addr()?);
        tasks.spawn(dns.run(shutdown.clone()));
        for server in ingresses {
            tracing::info!("ingress listening on {}", server.local_addr()?);
            tasks.spawn(server.run(shutdown.clone()));
        }
        Ok(Some(Self { agent, pods, ingress_port, wasm, oci, net, tasks }))
    }

    /// Waits until the node has ended: after the shutdown, or because something is wrong that only a person
    /// can put right. Containers run on for the next agent, unless [`Node::take_down`] follows.
    ///
    /// # Errors
    /// What that is.
    pub async fn ended(&self) -> anyhow::Result<()> {
        let outcome = self.agent.ended().await;
        self.tasks.close();
        if outcome.is_ok() {
            self.tasks.wait().await;
        }
        outcome.map_err(|e| anyhow::anyhow!("{e}"))
    }

    /// Ends what would outlive this process: Wasm hosts, containers, and as root the pods' namespaces and the
    /// rules.
    pub async fn take_down(self) {
        self.wasm.end_hosts().await;
        if let Some(oci) = self.oci {
            oci.end_all().await;
        }
        if let Net::Root(net) = self.net {
            net.remove().await;
        }
    }
}

/// In user mode pods and Services share the machine's port numbers on other loopback addresses: a listener on
/// every address would take their port from them all.
fn ingress_addresses(config: &Config, host_ip: IpAddr) -> Vec<IpAddr> {
    if !config.user_mode {
        return vec![Ipv4Addr::UNSPECIFIED.into()];
    }
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST), host_ip];
    addresses.dedup();
    addresses
}

async fn until(shutdown: CancellationToken, work: impl Future<Output = ()>) {
    shutdown.run_until_cancelled(work).await;
}

fn block(text: &str) -> anyhow::Result<Block> {
    text.parse().map_err(|e| anyhow::anyhow!("what the control plane says of the network: {e}"))
}

async fn open_network(config: &Config, welcome: &Welcome) -> anyhow::Result<Net> {
    let dir = config.agent.data_dir.join("network");
    let pod_block = block(&welcome.pod_cidr)?;
    let host_ip = config.agent.node_ip.unwrap_or_else(|| machine::node_ip(&config.agent.server));
    let dns_ip: Ipv4Addr = welcome.cluster_dns.parse()?;
    if config.user_mode {
        let opened = UserNetwork::open(user::Config { dir, pod_block, host_ip, dns_ip });
        return Ok(Net::User(Arc::new(opened.map_err(anyhow::Error::msg)?)));
    }
    let opened = RootNetwork::open(root::Config {
        dir,
        node_key: config.agent.data_dir.display().to_string(),
        pod_block,
        cluster_block: block(&welcome.pod_network)?,
        service_block: block(&welcome.service_network)?,
        host_ip,
        dns_ip,
    });
    Ok(Net::Root(Arc::new(opened.await.map_err(anyhow::Error::msg)?)))
}

/// In root mode the server stands on the host's end of the veth and rules lead to it; in user mode it is
/// the address that the cluster's one maps to.
async fn bind_dns(
    config: &Config,
    agent: &Agent,
    welcome: &Welcome,
    network: &Arc<dyn Network>,
    slices: Slices,
) -> anyhow::Result<dns::Server> {
    let cluster_ip: IpAddr = welcome.cluster_dns.parse()?;
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let bind = async |address: SocketAddr| {
        let settings = dns::Config {
            domain: welcome.cluster_domain.clone(),
            services: agent.desired().services.clone(),
            slices: slices.clone(),
            upstream: dns::resolv_conf_servers(&resolv_conf, &[cluster_ip, address.ip()]),
        };
        dns::Server::bind(address, settings).await
    };
    if config.user_mode {
        return Ok(bind(network.dns_server()).await?);
    }
    let record = config.agent.data_dir.join("dns-port");
    let server = same_port(
        &record,
        async |port| bind(SocketAddr::new(root::HOST_END.into(), port)).await,
        |server| Ok(server.local_addr()?.port()),
    );
    Ok(server.await?)
}

async fn start_pods(
    config: &Config,
    agent: &Agent,
    welcome: &Welcome,
    net: &Net,
    network: Arc<dyn Network>,
    oci: Option<OciRuntime>,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Pods, WasmRuntime)> {
    let mut images = rimward_node_image::Config::new(config.agent.data_dir.join("images"));
    images.linux = !config.user_mode;
    images.remote = config.remote_registries.clone();
    let registry = TunnelRegistry { agent: agent.clone(), hosts: config.registry_hosts.clone() };
    let images = ImageStore::open(images, Arc::new(registry)).map_err(anyhow::Error::msg)?;

    let mut wasm =
        rimward_node_wasm::Config::new(config.agent.data_dir.clone(), config.exe.clone());
    wasm.user_mode = config.user_mode;
    wasm.ca_bundle = config.guest_ca.clone();
    match net {
        Net::Root(net) => wasm.netns = Some(net.namespace()),
        Net::User(_) => {
            wasm.address_map =
                vec![on_loopback(&welcome.pod_network)?, on_loopback(&welcome.service_network)?]
        }
    }
    let wasm = WasmRuntime::new(wasm).map_err(|e| {
        anyhow::anyhow!("the Wasm runtime in {}: {e}", config.agent.data_dir.display())
    })?;
    let mut runtimes: Vec<Arc<dyn Runtime>> = vec![Arc::new(wasm.clone())];
    runtimes.extend(oci.map(|oci| Arc::new(oci) as Arc<dyn Runtime>));
    let image_gc = config.image_gc;
    let config = agent.config();
    let free = Capacity::of(&config.data_dir).allocatable();
    let pods = Pods::start(
        rimward_node_pod::Config {
            data_dir: config.data_dir.clone(),
            runtimes,
            images: Arc::new(images.clone()),
            network: network.clone(),
            objects: agent.objects(),
            reports: agent.reports(),
            this_node: agent.this_node(),
            node_name: config.name.clone(),
            cluster_domain: welcome.cluster_domain.clone(),
            allocatable: Allocatable {
                cpu_millis: free.cpu_millis,
                memory_bytes: free.memory_bytes,
                ephemeral_storage_bytes: free.storage_bytes,
                pods: config.pods_max.into(),
            },
            memory_dir: rimward_node_pod::memory_dir(&config.data_dir),
            clock: Clock::system(),
        },
        shutdown.clone(),
    );
    let pods = pods.await?;
    // Every desired pod starts, the node becomes Ready.
    agent.attach(Arc::new(pods.clone()), network);
    agent.attach_images(images, image_gc, Arc::new(pods.clone()));
    let local = agent.clone().serve_local();
    tokio::spawn(async move {
        if let Err(error) = local.await {
            tracing::warn!(%error, "`rimward image` reaches this node through the API only");
        }
    });
    Ok((pods, wasm))
}

/// A machine on which containers cannot run still runs WebAssembly, and says why it runs no more.
fn containers(config: &Config) -> Option<OciRuntime> {
    let mut settings =
        rimward_node_oci::Config::new(config.agent.data_dir.clone(), config.exe.clone());
    settings.swap = config.swap;
    settings.low_level = config.low_level.clone();
    settings.runc = config.runc.clone();
    settings.pids.pod = config.pod_pids_max.unwrap_or(settings.pids.pod);
    if let Err(why) = &settings.user_ids {
        tracing::warn!(why, "pods with hostUsers: false cannot run on this node");
    }
    match OciRuntime::new(settings) {
        Ok(oci) => Some(oci),
        Err(error) => {
            tracing::error!(%error, "Linux containers cannot run on this machine; WebAssembly can");
            None
        }
    }
}

/// `10.42.0.0/16` at `127.42.0.0/16`.
fn on_loopback(network: &str) -> anyhow::Result<AddressMap> {
    let (base, prefix) = network.split_once('/').unwrap_or((network, "32"));
    let from: Ipv4Addr = base.parse()?;
    let IpAddr::V4(to) = loopback_of(from.into()) else { unreachable!("IPv4 maps to IPv4") };
    Ok(AddressMap { from, to, prefix: prefix.parse()? })
}

#[allow(clippy::too_many_arguments, reason = "the one place where all parts meet")]
async fn route_services(
    config: &Config,
    agent: &Agent,
    welcome: &Welcome,
    net: &Net,
    backends: Backends,
    dial: Arc<dyn Dial>,
    dns_addr: SocketAddr,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let services = agent.desired().services.clone();
    let api: SocketAddr = welcome.api_service.parse()?;
    let net = match net {
        Net::User(_) => {
            let proxies = user::Proxies::new(services, backends, dial, config.agent.name.clone());
            tasks.spawn(proxies.run(shutdown.clone()));
            tracing::info!(
                "user mode: what the API shows as {api} answers at {}:{}",
                loopback_of(api.ip()),
                unprivileged_port(api.port())
            );
            return Ok(());
        }
        Net::Root(net) => net.clone(),
    };
    let record = config.agent.data_dir.join("api-port");
    let api_door = same_port(
        &record,
        async |port| TcpListener::bind((root::HOST_END, port)).await,
        |door: &TcpListener| Ok(door.local_addr()?.port()),
    );
    let api_door = api_door.await?;
    let fixed = |address: IpAddr, protocol, port, to| match address {
        IpAddr::V4(address) => Some(root::Fixed { address, protocol, port, to }),
        IpAddr::V6(_) => None,
    };
    let dns_ip: IpAddr = welcome.cluster_dns.parse()?;
    let fixed = [
        fixed(dns_ip, Protocol::Udp, 53, dns_addr),
        fixed(dns_ip, Protocol::Tcp, 53, dns_addr),
        fixed(api.ip(), Protocol::Tcp, api.port(), api_door.local_addr()?),
    ];
    tasks.spawn(until(shutdown.clone(), serve_api(api_door, agent.clone())));
    let (routing, name, stop) = (net.clone(), config.agent.name.clone(), shutdown.clone());
    let fixed = fixed.into_iter().flatten().collect();
    let says = agent.clone();
    let trouble = move |cause: Option<&root::CommandError>| match cause {
        Some(cause) => {
            tracing::error!(%cause, "cannot program Services; trying again");
            says.node_event(
                true,
                "ServiceRulesFailed",
                &format!("cannot program Services: {cause}"),
            );
        }
        None => {
            tracing::info!("Services are programmed again");
            says.node_event(false, "ServiceRulesProgrammed", "Services are programmed again");
        }
    };
    tasks.spawn(async move {
        routing.run_services(services, backends, name, fixed, trouble, stop).await
    });
    let overlay = net.overlay().await.map_err(anyhow::Error::msg)?;
    let (agent, stop) = (agent.clone(), shutdown.clone());
    tasks.spawn(async move {
        while let Some(link) = agent.packets().await {
            overlay.run(&TunnelPackets(link), &stop).await;
            if stop.is_cancelled() {
                return;
            }
        }
    });
    Ok(())
}

/// Connections of this node's pods to the API server, through the tunnel; TLS is theirs, end to end.
async fn serve_api(listener: TcpListener, agent: Agent) {
    loop {
        let mut client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Out of descriptors: give the open ones time to close.
                tracing::warn!(%error, "accepting a pod's connection to the API failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            match agent.dial_api().await {
                Ok(mut api) => {
                    let _either_side_may_hang_up =
                        tokio::io::copy_bidirectional(&mut client, &mut api).await;
                }
                Err(error) => tracing::debug!(%error, "a pod could not reach the API"),
            }
        });
    }
}
