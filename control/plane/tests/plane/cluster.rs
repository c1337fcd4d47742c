//! A control plane for one test, which can be stopped and started again on its directory, and a way to it
//! that can be cut.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use rimward_control_plane::{Config, Plane};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(90);

pub struct Cluster {
    dir: TempDir,
    pub plane: Plane,
    shutdown: CancellationToken,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_in(dir: TempDir, api: SocketAddr) -> Self {
        let shutdown = CancellationToken::new();
        let config = Config {
            data_dir: dir.path().to_owned(),
            api,
            tunnel: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            // Nodes are played: nothing is heard of them.
            node_grace: Duration::from_secs(3600),
            audit: None,
            authentication: Default::default(),
        };
        let plane = Plane::start(config, shutdown.clone()).await.unwrap();
        Self { dir, plane, shutdown }
    }

    /// Stops the control plane and starts another on what it left, at the same address.
    pub async fn restart(self) -> Self {
        let (dir, api) = (self.dir, self.plane.api_addr);
        self.shutdown.cancel();
        in_time("the control plane ends", self.plane.stopped()).await;
        Self::start_in(dir, api).await
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        in_time("the control plane ends", self.plane.stopped()).await;
    }

    /// An administrator's client, at the API server's own address or at that of a way to it.
    pub async fn client(&self, address: SocketAddr) -> Client {
        let file = Kubeconfig::read_from(&self.plane.kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let mut config = ClientConfig::from_custom_kubeconfig(file, &options).await.unwrap();
        config.cluster_url = format!("https://{address}").parse().unwrap();
        Client::try_from(config).unwrap()
    }

    pub async fn admin(&self) -> Client {
        self.client(self.plane.api_addr).await
    }
}

/// Waits for something that comes about by itself.
pub async fn in_time<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(done) => done,
        Err(_) => panic!("did not come about: {what}"),
    }
}

/// A TCP way to the API server. While it is cut, connections are closed as they come.
pub struct Way {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut: bool,
    connections: JoinSet<()>,
    seen: usize,
}

impl Way {
    pub async fn to(api: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut state = shared.lock().unwrap();
                if state.cut {
                    continue;
                }
                state.seen += 1;
                state.connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(api).await {
                        let _either_end_may_go =
                            tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { address, state }
    }

    /// Ends every connection; no other comes through until the way is open again.
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.cut = true;
        state.connections.abort_all();
    }

    pub fn open(&self) {
        self.state.lock().unwrap().cut = false;
    }

    /// Connections that came through so far.
    pub fn seen(&self) -> usize {
        self.state.lock().unwrap().seen
    }
}
