//! A control plane for one test, which can be killed and started again on its directory, and a way to it
//! that can be cut.

use std::future::Future;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rimward_tests_cluster::{Cluster as Process, binary};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(90);

pub struct Cluster {
    process: Process,
    /// Where the API is served.
    pub api: SocketAddr,
    // After the process, which writes into it.
    dir: TempDir,
}

impl Cluster {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), 0)
    }

    fn start_in(dir: TempDir, port: u16) -> Self {
        let mut command = Command::new(binary("rimward-control"));
        command.arg("control").arg("--data-dir").arg(dir.path());
        command.args(["--listen", "127.0.0.1", "--tunnel-port", "0"]);
        // Nodes are played: nothing is heard of them.
        command.args(["--node-grace-seconds", "3600", "--api-port", &port.to_string()]);
        let process = rimward_tests_cluster::Process::start("control", dir.path(), command);
        let mut process = Process::of(process, dir.path(), Vec::new());
        tokio::task::block_in_place(|| process.wait_api());
        let file = Kubeconfig::read_from(process.kubeconfig()).unwrap();
        let server = file.clusters[0].cluster.as_ref().unwrap().server.clone().unwrap();
        let api = server.strip_prefix("https://").unwrap().parse().unwrap();
        Self { process, api, dir }
    }

    /// Kills the control plane and starts another on what it left, at the same address.
    pub fn kill_and_restart(self) -> Self {
        let Self { mut process, api, dir } = self;
        process.process.kill();
        drop(process);
        Self::start_in(dir, api.port())
    }

    pub async fn config(&self) -> Config {
        let file = Kubeconfig::read_from(self.dir.path().join("kubeconfig")).unwrap();
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()
    }

    pub async fn admin(&self) -> Client {
        Client::try_from(self.config().await).unwrap()
    }

    /// An administrator's client that goes another way to the API.
    pub async fn admin_by(&self, way: SocketAddr) -> Client {
        let mut config = self.config().await;
        config.cluster_url = format!("https://{way}").parse().unwrap();
        Client::try_from(config).unwrap()
    }

    /// A client that acts as somebody else.
    pub async fn acting_as(&self, user: &str, group: &str) -> Client {
        let mut config = self.config().await;
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(vec![group.to_owned()]);
        Client::try_from(config).unwrap()
    }

    /// A client that has nothing but a token, as a pipeline outside has it.
    pub async fn with_token(&self, token: &str) -> Client {
        let mut config = self.config().await;
        config.auth_info = Default::default();
        config.auth_info.token = Some(token.to_owned().into());
        Client::try_from(config).unwrap()
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
