//! The network of an ordinary user: pod and Service addresses on loopback, Services as proxies.
//!
//! The API shows ordinary addresses (10.42.0.5); listeners bind the same address on loopback
//! (127.42.0.5), so nothing collides and nothing needs a privilege. Ports below 1024 move up by 8000.
//! NetworkPolicy is not enforced in this mode.
//!
//! The proxies live in the agent, and so do the connections through them: where a restart of the agent must
//! not be felt, the node runs as root, and the kernel routes. Here a restart ends the connections that go
//! through Services and refuses new ones until the next agent listens; pods run on, and their own addresses
//! answer.

mod host_ports;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;
use rimward_api::{Block, ObjectKey};
use rimward_client::{Cache, Delta};
use rimward_node_pod::outside::{Attachment, HostPort, Network};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::addresses::Addresses;
use crate::backends::Backends;
use crate::dial::{Dial, loopback_of, unprivileged_port};
use crate::services::{Entry, Protocol, Route, routes};

/// A UDP client that is silent for this long loses its backend.
const UDP_IDLE: Duration = Duration::from_secs(60);
/// UDP clients of one Service port at once.
const UDP_CLIENTS_MAX: usize = 1024;
/// Clients remembered for session affinity, per Service port.
const AFFINE_CLIENTS_MAX: usize = 10_000;

pub struct Config {
    /// For the records of pod addresses.
    pub dir: PathBuf,
    pub pod_block: Block,
    pub host_ip: IpAddr,
    /// The cluster DNS server's address in the API, such as 10.43.0.10.
    pub dns_ip: Ipv4Addr,
}

/// Pod addresses in user mode.
pub struct UserNetwork {
    addresses: Addresses,
    /// What stops serving them, by pod.
    published: Mutex<HashMap<String, (Vec<HostPort>, DropGuard)>>,
    host_ip: IpAddr,
    dns_ip: Ipv4Addr,
}

impl UserNetwork {
    /// # Errors
    /// Names the directory that cannot be used.
    pub fn open(config: Config) -> Result<Self, String> {
        let addresses = Addresses::open(&config.dir, config.pod_block)?;
        Ok(Self {
            addresses,
            published: Mutex::default(),
            host_ip: config.host_ip,
            dns_ip: config.dns_ip,
        })
    }
}

#[async_trait]
impl Network for UserNetwork {
    async fn attach(&self, pod_uid: &str, host_network: bool) -> Result<Attachment, String> {
        if host_network {
            let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
            return Ok(Attachment { pod_ips: vec![self.host_ip], bind_ip: any, netns: None });
        }
        let address = IpAddr::from(self.addresses.give(pod_uid)?);
        Ok(Attachment { pod_ips: vec![address], bind_ip: loopback_of(address), netns: None })
    }

    async fn publish(&self, pod_uid: &str, ports: &[HostPort]) -> Result<(), String> {
        let address = IpAddr::from(self.addresses.give(pod_uid)?);
        if self.published.lock().get(pod_uid).is_some_and(|(known, _)| known == ports) {
            return Ok(());
        }
        let guard = host_ports::serve(address, ports, self.host_ip).await?;
        self.published.lock().insert(pod_uid.to_owned(), (ports.to_vec(), guard));
        Ok(())
    }

    async fn detach(&self, pod_uid: &str) {
        self.published.lock().remove(pod_uid);
        self.addresses.take_back(pod_uid);
    }

    fn reach(&self, pod_ip: IpAddr) -> IpAddr {
        if pod_ip == self.host_ip { IpAddr::from(Ipv4Addr::LOCALHOST) } else { loopback_of(pod_ip) }
    }

    fn reach_port(&self, pod_ip: IpAddr, port: u16) -> SocketAddr {
        SocketAddr::new(self.reach(pod_ip), unprivileged_port(port))
    }

    fn dns_server(&self) -> SocketAddr {
        SocketAddr::new(loopback_of(self.dns_ip.into()), unprivileged_port(53))
    }

    fn host_ip(&self) -> IpAddr {
        self.host_ip
    }
}

/// Service proxies: one listener for each way into a Service.
pub struct Proxies {
    services: Cache<Service>,
    backends: Backends,
    dial: Arc<dyn Dial>,
    node: String,
    open: BTreeMap<ObjectKey, HashMap<Entry, Listening>>,
}

struct Listening {
    port: Arc<ServicePort>,
    _stops_when_dropped: DropGuard,
}

/// What a listener needs to choose a backend.
struct ServicePort {
    route: Mutex<Arc<Route>>,
    turn: AtomicUsize,
    affine: Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>,
    dial: Arc<dyn Dial>,
}

impl Proxies {
    pub fn new(
        services: Cache<Service>,
        backends: Backends,
        dial: Arc<dyn Dial>,
        node: String,
    ) -> Self {
        Self { services, backends, dial, node, open: BTreeMap::new() }
    }

    /// Keeps the listeners in step with the Services until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut services = self.services.subscribe();
        let mut backends = self.backends.subscribe();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                delta = services.next() => match delta {
                    Some(Delta::Key(key)) => self.refresh(&key),
                    Some(Delta::All) => self.refresh_all(),
                    None => return,
                },
                changed = backends.recv() => match changed {
                    Ok(key) => self.refresh(&key),
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => self.refresh_all(),
                    Err(_) => return,
                },
            }
        }
    }

    fn refresh_all(&mut self) {
        let mut keys: Vec<ObjectKey> = self.open.keys().cloned().collect();
        keys.extend(self.services.list().into_iter().map(|(key, _)| key));
        keys.sort();
        keys.dedup();
        keys.iter().for_each(|key| self.refresh(key));
    }

    fn refresh(&mut self, key: &ObjectKey) {
        let wanted = match self.services.get_key(key) {
            Some(service) => routes(key, &service, &self.backends.of(key), &self.node),
            None => Vec::new(),
        };
        let mut old = self.open.remove(key).unwrap_or_default();
        let mut open = HashMap::new();
        for route in wanted {
            let route = Arc::new(route);
            for entry in &route.entries {
                let listening = match old.remove(entry) {
                    Some(listening) => {
                        *listening.port.route.lock() = route.clone();
                        listening
                    }
                    None => self.listen(entry.clone(), route.clone()),
                };
                open.insert(entry.clone(), listening);
            }
        }
        if !open.is_empty() {
            self.open.insert(key.clone(), open);
        }
    }

    fn listen(&self, entry: Entry, route: Arc<Route>) -> Listening {
        let stop = CancellationToken::new();
        let port = ServicePort::new(route, self.dial.clone());
        let (protocol, address) = match entry {
            Entry::Address(ip, protocol, port) => {
                (protocol, SocketAddr::new(loopback_of(ip), unprivileged_port(port)))
            }
            Entry::NodePort(protocol, port) => (protocol, (Ipv4Addr::UNSPECIFIED, port).into()),
        };
        let (task_port, task_stop) = (port.clone(), stop.clone());
        tokio::spawn(async move {
            let served = async {
                match protocol {
                    Protocol::Tcp => serve_tcp(address, &task_port).await,
                    Protocol::Udp => serve_udp(address, &task_port).await,
                }
            };
            tokio::select! {
                () = task_stop.cancelled() => {}
                Err(error) = served => {
                    let service = task_port.route.lock().service.clone();
                    tracing::error!(%service, %address, %error, "cannot serve a Service's address; is the port taken by another program?");
                }
            }
        });
        Listening { port, _stops_when_dropped: stop.drop_guard() }
    }
}

impl ServicePort {
    fn new(route: Arc<Route>, dial: Arc<dyn Dial>) -> Arc<Self> {
        Arc::new(Self {
            route: Mutex::new(route),
            turn: AtomicUsize::new(0),
            affine: Mutex::default(),
            dial,
        })
    }

    /// A backend for a client: its own again if the Service wants that, else the next in turn.
    fn choose(&self, client: IpAddr) -> Option<SocketAddr> {
        let route = self.route.lock().clone();
        if route.backends.is_empty() {
            return None;
        }
        let next =
            || route.backends[self.turn.fetch_add(1, Ordering::Relaxed) % route.backends.len()];
        let Some(seconds) = route.affinity_seconds else { return Some(next()) };
        let (now, patience) = (Instant::now(), Duration::from_secs(u64::from(seconds)));
        let mut affine = self.affine.lock();
        if affine.len() >= AFFINE_CLIENTS_MAX {
            affine.retain(|_, (_, seen)| now.duration_since(*seen) < patience);
        }
        let kept = affine.get(&client).filter(|(backend, seen)| {
            now.duration_since(*seen) < patience && route.backends.contains(backend)
        });
        let backend = kept.map_or_else(next, |(backend, _)| *backend);
        if affine.len() < AFFINE_CLIENTS_MAX || affine.contains_key(&client) {
            affine.insert(client, (backend, now));
        }
        Some(backend)
    }
}

async fn serve_tcp(address: SocketAddr, port: &Arc<ServicePort>) -> std::io::Result<()> {
    accept(TcpListener::bind(address).await?, address, port).await
}

async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    port: &Arc<ServicePort>,
) -> std::io::Result<()> {
    loop {
        let (mut client, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: give the open ones time to close.
                tracing::warn!(%address, %error, "accepting a Service client failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let port = port.clone();
        tokio::spawn(async move {
            // A Service without ready endpoints refuses; so does closing at once.
            let Some(backend) = port.choose(from.ip()) else { return };
            let _a_slow_start_is_all_that_is_lost = client.set_nodelay(true);
            match port.dial.dial(backend).await {
                Ok(mut server) => {
                    let _either_side_may_hang_up =
                        tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
                Err(error) => tracing::debug!(%backend, %error, "a Service's backend refused"),
            }
        });
    }
}

/// Each client gets a socket of its own towards its backend, as NAT would do it.
async fn serve_udp(address: SocketAddr, port: &Arc<ServicePort>) -> std::io::Result<()> {
    forward(UdpSocket::bind(address).await?, port).await
}

async fn forward(socket: UdpSocket, port: &Arc<ServicePort>) -> std::io::Result<()> {
    let socket = Arc::new(socket);
    let clients: Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>> = Arc::default();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        let known = clients.lock().get(&client).cloned();
        let upstream = match known {
            Some(upstream) => upstream,
            None => {
                let Some(backend) = port.choose(client.ip()) else { continue };
                if clients.lock().len() >= UDP_CLIENTS_MAX {
                    continue;
                }
                let target =
                    SocketAddr::new(loopback_of(backend.ip()), unprivileged_port(backend.port()));
                let upstream = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
                if upstream.connect(target).await.is_err() {
                    continue;
                }
                clients.lock().insert(client, upstream.clone());
                tokio::spawn(answers(upstream.clone(), socket.clone(), client, clients.clone()));
                upstream
            }
        };
        let _lost_datagrams_are_udp = upstream.send(&buffer[..len]).await;
    }
}

async fn answers(
    upstream: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    clients: Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(Ok(len)) = tokio::time::timeout(UDP_IDLE, upstream.recv(&mut buffer)).await {
        let _lost_datagrams_are_udp = socket.send_to(&buffer[..len], client).await;
    }
    clients.lock().remove(&client);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Duplex;
    use crate::slices::Slices;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    struct Loopback;

    #[async_trait]
    impl Dial for Loopback {
        async fn dial(&self, pod: SocketAddr) -> std::io::Result<Box<dyn Duplex>> {
            Ok(Box::new(
                TcpStream::connect(SocketAddr::new(loopback_of(pod.ip()), pod.port())).await?,
            ))
        }
    }

    #[tokio::test]
    async fn a_service_leads_to_its_pods_and_goes() {
        // The pod's port is whatever is free; its address is one that no other test uses.
        let pod = TcpListener::bind("127.91.3.4:0").await.unwrap();
        let pod_port = pod.local_addr().unwrap().port();
        let spare = TcpListener::bind("127.92.0.7:0").await.unwrap().local_addr().unwrap().port();
        let (services, slices, backends) = (Cache::new(), Cache::new(), Backends::new());
        let mut changed = backends.subscribe();
        tokio::spawn(backends.clone().follow(Slices::new(slices.clone())));
        let key = ObjectKey::new("a", "web");
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "a", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": pod_port}], "endpoints": [{"addresses": ["10.91.3.4"]}]})).unwrap();
        slices.apply(key.clone(), Arc::new(slice));
        changed.recv().await.unwrap();
        let service: Service = serde_json::from_value(serde_json::json!({"metadata": {}, "spec":
            {"clusterIP": "10.92.0.7", "ports": [{"port": spare}]}}))
        .unwrap();
        services.apply(key.clone(), Arc::new(service));
        let stop = CancellationToken::new();
        let proxies = Proxies::new(services.clone(), backends, Arc::new(Loopback), "n1".into());
        let running = tokio::spawn(proxies.run(stop.clone()));
        tokio::spawn(async move {
            let (mut stream, _) = pod.accept().await.unwrap();
            let mut text = [0; 4];
            stream.read_exact(&mut text).await.unwrap();
            stream.write_all(&text).await.unwrap();
        });
        let address = format!("127.92.0.7:{spare}");
        let mut client = loop {
            match TcpStream::connect(&address).await {
                Ok(client) => break client,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        client.write_all(b"ping").await.unwrap();
        let mut text = [0; 4];
        client.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"ping");
        services.remove(&key);
        while TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn affinity_and_turns() {
        let backends: Vec<SocketAddr> =
            ["10.0.0.1:1", "10.0.0.2:1"].map(|a| a.parse().unwrap()).to_vec();
        let port = |affinity_seconds| ServicePort {
            route: Mutex::new(Arc::new(Route {
                service: ObjectKey::new("a", "b"),
                port_name: String::new(),
                entries: vec![],
                backends: backends.clone(),
                affinity_seconds,
            })),
            turn: AtomicUsize::new(0),
            affine: Mutex::default(),
            dial: Arc::new(Loopback),
        };
        let client = IpAddr::from([127, 0, 0, 1]);
        let spread = port(None);
        assert_ne!(spread.choose(client), spread.choose(client));
        let sticky = port(Some(60));
        assert_eq!(sticky.choose(client), sticky.choose(client));
        assert_ne!(sticky.choose(client), sticky.choose(IpAddr::from([127, 0, 0, 2])));
    }
}
