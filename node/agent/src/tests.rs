//! A real agent against a scripted control plane over loopback QUIC.

mod link;
mod offline;
mod sessions;

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use rimward_node_pod::outside::{Attachment, Network};
use rimward_node_pod::runtime::Handler;
use rimward_node_pod::{LogError, LogRequest, NoSession, RunningContainer};
use rimward_tunnel::BootstrapToken;
use rimward_tunnel::accept::{Arrival, Listener, NodeTunnel};
use rimward_tunnel::signer::Signer;
use rimward_tunnel::wire::{Delta, Synced, Up, Welcome};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Agent, Config, PodHandler};

/// The control plane's end, played by the test.
struct ControlPlane {
    signer: Arc<Signer>,
    listener: Listener,
}

impl ControlPlane {
    fn new() -> Self {
        let (ca, key) = Signer::generate_ca("test").unwrap();
        let signer = Arc::new(Signer::from_pem(&ca, &key).unwrap());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listener = Listener::new(socket, signer.clone()).unwrap();
        Self { signer, listener }
    }

    fn config(&self, dir: &Path) -> Config {
        Config {
            data_dir: dir.to_owned(),
            name: "edge-1".into(),
            server: self.listener.local_addr().unwrap().to_string(),
            token: Some(BootstrapToken::generate(self.signer.ca_hash())),
            labels: [("site".to_owned(), "x".to_owned())].into(),
            node_ip: Some("192.0.2.7".parse().unwrap()),
            pods_max: 250,
            eviction_hard: crate::EvictionHard::default(),
            handlers: vec![Handler::named("wasm")],
            eviction_soft: crate::EvictionSoft::default(),
            eviction_max_pod_grace_seconds: 0,
            static_pods: None,
            version: "test".into(),
        }
    }

    async fn arrival(&self) -> Arrival {
        let next = async { self.listener.accept().await.unwrap().arrive().await.unwrap() };
        tokio::time::timeout(Duration::from_secs(20), next).await.expect("the agent must come")
    }

    async fn let_join(&self) {
        let Arrival::Join(request) = self.arrival().await else { panic!("not a join") };
        let csr = Signer::read_request(&request.join.csr).unwrap();
        let certificate =
            self.signer.sign_node(&request.join.name, &csr, Timestamp::now()).unwrap();
        request.admit(&certificate, self.signer.ca()).await;
    }

    /// The next connection, welcomed.
    async fn connected(&self) -> NodeTunnel {
        let Arrival::Node(mut node) = self.arrival().await else { panic!("not a node") };
        node.writer.push(&Welcome { pod_cidr: "10.42.7.0/24".into(), ..Welcome::default() });
        node.writer.flush().await.unwrap();
        *node
    }

    /// A fresh agent that has joined and is connected.
    async fn agent(&self, dir: &Path) -> (Agent, NodeTunnel, CancellationToken) {
        let shutdown = CancellationToken::new();
        let agent = Agent::start(self.config(dir), shutdown.clone()).unwrap();
        self.let_join().await;
        (agent, self.connected().await, shutdown)
    }
}

async fn hear(node: &mut NodeTunnel) -> Up {
    let next = tokio::time::timeout(Duration::from_secs(20), node.reader.next()).await;
    next.expect("the agent must say something").unwrap().expect("the stream goes on")
}

async fn say_delta(node: &mut NodeTunnel, kind: &str, upserts: &[Value], removes: &[(&str, &str)]) {
    node.writer.push(&Delta {
        revision: 1,
        kind: kind.into(),
        upserts: upserts.iter().map(|object| object.to_string().into_bytes()).collect(),
        removes: removes.iter().map(|(ns, name)| ((*ns).to_owned(), (*name).to_owned())).collect(),
    });
    node.writer.flush().await.unwrap();
}

async fn say_synced(node: &mut NodeTunnel) {
    node.writer.push(&Synced { revision: 2 });
    node.writer.flush().await.unwrap();
}

fn object(name: &str, uid: &str, version: &str) -> Value {
    json!({"metadata": {"namespace": "a", "name": name, "uid": uid, "resourceVersion": version}})
}

fn pod(name: &str, uid: &str) -> Value {
    let mut pod = object(name, uid, "1");
    pod["spec"] = json!({"containers": []});
    pod
}

/// Remembers what it was told.
#[derive(Default)]
struct Recording {
    /// `set UID`, `remove UID`, `synced`.
    calls: Mutex<Vec<String>>,
    /// What runs in container `c` of any pod.
    runs: Mutex<Option<RunningContainer>>,
    changed: watch::Sender<()>,
}

impl Recording {
    fn note(&self, call: String) {
        self.calls.lock().push(call);
        self.changed.send_replace(());
    }

    async fn until(&self, expect: &[&str]) {
        let mut changed = self.changed.subscribe();
        let wait = changed.wait_for(|()| *self.calls.lock() == expect);
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "{:?} is not {expect:?}", self.calls.lock());
    }
}

#[async_trait]
impl PodHandler for Recording {
    fn set(&self, pod: Arc<Pod>) {
        self.note(format!("set {}", pod.metadata.uid.as_deref().unwrap()));
    }

    fn remove(&self, uid: &str) {
        self.note(format!("remove {uid}"));
    }

    fn synced(&self) {
        self.note("synced".into());
    }

    async fn logs(
        &self,
        _namespace: &str,
        name: &str,
        _uid: &str,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, LogError>>, LogError> {
        if name == "missing" {
            return Err(LogError::NotFound("no such pod".into()));
        }
        let first = futures::stream::iter([Ok(Bytes::from(format!("log of {name}\n")))]);
        // A log that is followed does not end.
        let rest = if request.follow {
            futures::stream::pending().boxed()
        } else {
            futures::stream::empty().boxed()
        };
        Ok(first.chain(rest).boxed())
    }

    fn running(
        &self,
        _namespace: &str,
        name: &str,
        _uid: &str,
        container: &str,
    ) -> Result<RunningContainer, NoSession> {
        match (name, container) {
            ("missing", _) => Err(NoSession::NoPod),
            (_, "c") => self.runs.lock().clone().ok_or(NoSession::NoPod),
            _ => Err(NoSession::NotRunning(container.to_owned())),
        }
    }

    fn attachment(
        &self,
        _namespace: &str,
        name: &str,
        _uid: &str,
    ) -> Result<Attachment, NoSession> {
        let (pod_ips, bind_ip) = (vec!["10.42.7.9".parse().unwrap()], "127.0.0.1".parse().unwrap());
        match name {
            "missing" => Err(NoSession::NoPod),
            _ => Ok(Attachment { pod_ips, bind_ip, netns: None }),
        }
    }
}

/// Pod addresses are loopback ones.
struct Loopback;

#[async_trait]
impl Network for Loopback {
    async fn attach(&self, _pod_uid: &str, _host_network: bool) -> Result<Attachment, String> {
        Err("not in this test".into())
    }

    async fn detach(&self, _pod_uid: &str) {}

    fn reach(&self, _pod_ip: IpAddr) -> IpAddr {
        "127.0.0.1".parse().unwrap()
    }

    fn dns_server(&self) -> std::net::SocketAddr {
        "127.0.0.1:53".parse().unwrap()
    }

    fn host_ip(&self) -> IpAddr {
        "192.0.2.7".parse().unwrap()
    }
}
