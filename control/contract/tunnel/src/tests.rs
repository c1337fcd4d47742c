//! Both ends in one process, over real QUIC on loopback.

mod golden;
mod joining;
mod streams;

use std::net::UdpSocket;
use std::sync::Arc;

use jiff::Timestamp;

use crate::accept::{Arrival, ArrivalError, JoinRequest, Listener, NodeTunnel};
use crate::close::CloseCode;
use crate::dial::{Dialer, Error, Tunnel};
use crate::identity::{Identity, IdentityDir};
use crate::signer::Signer;
use crate::token::BootstrapToken;
use crate::wire::{Hello, Welcome};

/// A control plane's end with one CA, and whatever nodes a test wants.
struct Pair {
    signer: Arc<Signer>,
    listener: Listener,
    dialer: Dialer,
    dir: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        let (ca, key) = Signer::generate_ca("test").unwrap();
        Self::with(Signer::from_pem(&ca, &key).unwrap())
    }

    fn with(signer: Signer) -> Self {
        let signer = Arc::new(signer);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listener = Listener::new(socket, signer.clone()).unwrap();
        let dialer = Dialer::new(&listener.local_addr().unwrap().to_string()).unwrap();
        Self { signer, listener, dialer, dir: tempfile::tempdir().unwrap() }
    }

    fn identity_dir(&self, name: &str) -> IdentityDir {
        IdentityDir::open(self.dir.path().join(name)).unwrap()
    }

    fn token(&self) -> BootstrapToken {
        BootstrapToken::generate(self.signer.ca_hash())
    }

    /// An identity as a join would have left it.
    fn identity(&self, name: &str) -> Identity {
        let dir = self.identity_dir(name);
        let request = Signer::read_request(&dir.request(name).unwrap()).unwrap();
        let certificate = self.signer.sign_node(name, &request, Timestamp::now()).unwrap();
        dir.store(&certificate, self.signer.ca()).unwrap()
    }

    async fn arrival(&self) -> Result<Arrival, ArrivalError> {
        self.listener.accept().await.unwrap().arrive().await
    }

    async fn node_arrives(&self) -> NodeTunnel {
        match self.arrival().await {
            Ok(Arrival::Node(node)) => *node,
            Ok(_) => panic!("something else arrived"),
            Err(e) => panic!("{e}"),
        }
    }

    async fn joiner_arrives(&self) -> JoinRequest {
        match self.arrival().await {
            Ok(Arrival::Join(join)) => join,
            Ok(_) => panic!("something else arrived"),
            Err(e) => panic!("{e}"),
        }
    }

    /// A node that is connected and welcomed, seen from both ends.
    async fn connected(&self, name: &str) -> (Tunnel, NodeTunnel) {
        let identity = self.identity(name);
        let accept = async {
            let mut node = self.node_arrives().await;
            node.writer.push(&Welcome { pod_cidr: "10.42.0.0/24".into(), ..Welcome::default() });
            node.writer.flush().await.unwrap();
            node
        };
        let hello = hello();
        let (tunnel, node) = tokio::join!(self.dialer.open(&identity, &hello), accept);
        (tunnel.unwrap(), node)
    }

    /// What a node is told when the control plane does `answer`.
    async fn refused_open(&self, identity: &Identity, hello: &Hello) -> (Error, ArrivalError) {
        let (opened, arrival) = tokio::join!(self.dialer.open(identity, hello), self.arrival());
        let error = opened.err().expect("the node must be refused");
        (error, arrival.err().expect("the control plane must refuse"))
    }
}

fn hello() -> Hello {
    Hello {
        protocol_min: crate::PROTOCOL_MIN,
        protocol_max: crate::PROTOCOL,
        version: "test".into(),
        node: b"{}".to_vec(),
        held: Vec::new(),
    }
}

#[track_caller]
fn refused_with(error: &Error, expect: CloseCode) {
    match error {
        Error::Refused { code, .. } => assert_eq!(*code, expect, "{error}"),
        other => panic!("expected a refusal, got: {other}"),
    }
}
