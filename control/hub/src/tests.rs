//! A hub over a small API server, with nodes that are real tunnels.

mod api;
mod hostile;
mod serving;
mod telling;

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use rimward_client::{Body, Client, Informers};
use rimward_tunnel::accept::ListenError;
use rimward_tunnel::dial::{Dialer, Error, Tunnel};
use rimward_tunnel::identity::{Identity, IdentityDir};
use rimward_tunnel::signer::Signer;
use rimward_tunnel::wire::{Delta, Down, Hello, PodReport};
use rimward_tunnel::{BootstrapToken, CloseCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::api::TestApi;
use crate::{Config, Hub, RegistryFetch};

struct World {
    api: TestApi,
    hub: Hub,
    dialer: Dialer,
    dir: tempfile::TempDir,
    shutdown: CancellationToken,
}

struct TestRegistry;

#[async_trait]
impl RegistryFetch for TestRegistry {
    async fn fetch(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, String> {
        let code = if request.uri().path().ends_with("missing") { 404 } else { 200 };
        let text = format!("{} {}", request.method(), request.uri().path());
        let body = futures::stream::iter([Ok(Bytes::from(text))]).boxed();
        Ok(http::Response::builder().status(code).header("x-test", "yes").body(body).unwrap())
    }
}

impl World {
    fn new() -> Self {
        Self::over(TestApi::new()).unwrap()
    }

    fn over(api: TestApi) -> Result<Self, ListenError> {
        let (ca, key) = Signer::generate_ca("test").unwrap();
        let shutdown = CancellationToken::new();
        let client = Client::new(Arc::new(api.clone()));
        let config = Config {
            signer: Arc::new(Signer::from_pem(&ca, &key).unwrap()),
            socket: UdpSocket::bind("127.0.0.1:0").unwrap(),
            informers: Informers::new(client.clone(), shutdown.clone()),
            client,
            network: crate::NetworkConfig::default(),
            registry: Arc::new(TestRegistry),
            api_addr: "127.0.0.1:1".parse().unwrap(),
            version: "test".into(),
        };
        let hub = Hub::start(config, shutdown.clone())?;
        let dialer = Dialer::new(&hub.local_addr().unwrap().to_string()).unwrap();
        Ok(Self { api, hub, dialer, dir: tempfile::tempdir().unwrap(), shutdown })
    }

    async fn token(&self) -> BootstrapToken {
        crate::token::create(&self.hub.inner.client, self.hub.ca_hash(), None).await.unwrap()
    }

    /// Joins with a directory of its own for each `machine`.
    async fn join(
        &self,
        token: &BootstrapToken,
        machine: &str,
        name: &str,
    ) -> Result<Identity, Error> {
        let dir = IdentityDir::open(self.dir.path().join(machine)).unwrap();
        self.dialer.join(token, name, "test", &dir).await
    }

    async fn open(&self, identity: &Identity) -> Result<Tunnel, Error> {
        self.dialer.open(identity, &hello()).await
    }

    /// A node that is joined, connected and synchronised (nothing of what came is kept).
    async fn node(&self, name: &str) -> Tunnel {
        let identity = self.join(&self.token().await, name, name).await.unwrap();
        let mut tunnel = self.open(&identity).await.unwrap();
        synced(&mut tunnel).await;
        tunnel
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn hello() -> Hello {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "ignored", "labels": {"kubernetes.io/os": "linux", "node-role.kubernetes.io/x": ""}},
        "status": {
            "capacity": {"cpu": "2", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}],
        },
    });
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        version: "test".into(),
        node: node.to_string().into_bytes(),
        held: Vec::new(),
    }
}

async fn next(tunnel: &mut Tunnel) -> Down {
    let next = tokio::time::timeout(Duration::from_secs(20), tunnel.reader.next()).await;
    next.expect("something must come").unwrap().expect("the stream goes on")
}

/// Everything up to the end of the first synchronisation, without what is of the node itself.
async fn synced(tunnel: &mut Tunnel) -> Vec<Down> {
    let mut all = Vec::new();
    loop {
        match next(tunnel).await {
            Down::Synced(_) => return all,
            Down::Delta(delta) if delta.kind == "Node" => {}
            other => all.push(other),
        }
    }
}

/// The next that is not of the node itself.
async fn delta(tunnel: &mut Tunnel) -> Delta {
    loop {
        match next(tunnel).await {
            Down::Delta(delta) if delta.kind == "Node" => {}
            Down::Delta(delta) => return delta,
            other => panic!("expected a delta, got {other:?}"),
        }
    }
}

fn names(delta: &Delta) -> Vec<String> {
    let name = |json: &Vec<u8>| {
        let value: Value = serde_json::from_slice(json).unwrap();
        value["metadata"]["name"].as_str().unwrap().to_owned()
    };
    delta.upserts.iter().map(name).collect()
}

/// A pod bound to a node, which mounts the ConfigMap `settings`.
fn pod(node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {},
        "spec": {
            "nodeName": node, "serviceAccountName": "robot",
            "containers": [{"name": "c"}],
            "volumes": [{"name": "v", "configMap": {"name": "settings"}}],
        },
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    })
}

fn config_map(value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {"k": value}})
}

fn report(stored: &Value, seq: u64, phase: &str, terminated: bool) -> PodReport {
    let text = |field: &str| stored["metadata"][field].as_str().unwrap().to_owned();
    PodReport {
        seq,
        namespace: text("namespace"),
        name: text("name"),
        uid: text("uid"),
        terminated,
        status: json!({"phase": phase}).to_string().into_bytes(),
    }
}

/// Why the hub closed a connection.
async fn closed(world: &World, tunnel: &Tunnel) -> (CloseCode, String) {
    let closed = tokio::time::timeout(Duration::from_secs(20), tunnel.connection.closed()).await;
    match world.dialer.explain(&closed.expect("the hub must close the connection"), false) {
        Error::Refused { code, message, .. } => (code, message),
        other => panic!("{other}"),
    }
}
