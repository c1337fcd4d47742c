//! The control plane's end: one UDP socket on which nodes arrive.

mod node_trust;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::close::{CloseCode, close};
use crate::control::{Reader, Writer};
use crate::identity::Holder;
use crate::packets::PacketLink;
use crate::quic;
use crate::signer::{Signer, SignerError};
use crate::wire::codec::{FrameReader, ReadError, encode};
use crate::wire::{Hello, Join, Joined, Up};

/// How long a node may take from its first packet to its first frame.
const ARRIVAL_WAIT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("the tunnel's UDP socket cannot be used: {0}")]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Signer(#[from] SignerError),
}

/// Why someone did not become a connected node. One line for the control plane's log.
#[derive(Debug, thiserror::Error)]
pub enum ArrivalError {
    #[error("{from}: the handshake failed: {cause}")]
    Handshake { from: SocketAddr, cause: String },
    #[error("{from}: no first frame within {} s", ARRIVAL_WAIT.as_secs())]
    Silent { from: SocketAddr },
    #[error("{from}: {cause}")]
    Malformed { from: SocketAddr, cause: String },
    #[error("{from}: {cause}")]
    Refused { from: SocketAddr, cause: String },
}

/// Accepts nodes.
#[derive(Clone)]
pub struct Listener {
    endpoint: Endpoint,
}

/// Someone who has sent a first packet.
pub struct Knock {
    incoming: quinn::Incoming,
}

/// Who it turned out to be.
pub enum Arrival {
    Join(JoinRequest),
    Node(Box<NodeTunnel>),
    Packets { holder: Holder, link: PacketLink },
}

/// Somebody with a token. Answer it; dropping it refuses without a reason.
pub struct JoinRequest {
    pub join: Join,
    pub from: SocketAddr,
    connection: Connection,
    send: quinn::SendStream,
}

/// A node with a valid certificate that has said hello; not yet welcomed.
pub struct NodeTunnel {
    pub holder: Holder,
    pub hello: Hello,
    pub protocol: u16,
    pub connection: Connection,
    pub writer: Writer,
    pub reader: Reader<Up>,
}

impl Listener {
    /// Serves on a bound socket. Needs a tokio runtime.
    pub fn new(socket: UdpSocket, signer: Arc<Signer>) -> Result<Self, ListenError> {
        let tls = node_trust::server_config(signer.clone())?;
        let crypto = QuicServerConfig::try_from(tls).expect("the provider has TLS 1.3 suites");
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        // Datagrams are allowed on all: the ALPN is not known before the handshake is under way.
        config.transport_config(quic::packets(false)).migration(true);
        let reset = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, signer.reset_key());
        let mut endpoint = EndpointConfig::new(Arc::new(reset));
        // A restarted control plane answers the packets of connections that it never knew with resets
        // that nodes believe, so they dial again at once instead of after the idle timeout. quinn's own
        // connection ids would be recognised by the process that made them only.
        endpoint.cid_generator(|| Box::new(RandomIds)).min_reset_interval(Duration::from_millis(5));
        let runtime = quinn::default_runtime()
            .ok_or_else(|| std::io::Error::other("the tunnel needs a tokio runtime"))?;
        let endpoint = Endpoint::new(endpoint, Some(config), socket, runtime)?;
        Ok(Self { endpoint })
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next one to knock; None once the listener is closed.
    pub async fn accept(&self) -> Option<Knock> {
        Some(Knock { incoming: self.endpoint.accept().await? })
    }

    /// Tells all nodes that this end stops, and waits until that is sent.
    pub async fn close(&self) {
        self.endpoint.close((CloseCode::Stopping as u32).into(), b"the control plane stops");
        let _not_worth_waiting_longer =
            tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

/// Connection ids that no restart makes unrecognisable.
struct RandomIds;

const CONNECTION_ID_BYTES: usize = 8;

impl quinn::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&rand::random::<[u8; CONNECTION_ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

impl Knock {
    /// Carries the handshake through up to the first frame. Takes the other end's time: run it in a
    /// task of its own.
    pub async fn arrive(self) -> Result<Arrival, ArrivalError> {
        let from = self.incoming.remote_address();
        tokio::time::timeout(ARRIVAL_WAIT, arrive(self.incoming, from))
            .await
            .map_err(|_| ArrivalError::Silent { from })?
    }
}

async fn arrive(incoming: quinn::Incoming, from: SocketAddr) -> Result<Arrival, ArrivalError> {
    let handshake = |e: ConnectionError| ArrivalError::Handshake { from, cause: e.to_string() };
    let connection = incoming.await.map_err(handshake)?;
    let alpn = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol)
        .unwrap_or_default();
    if alpn == crate::ALPN_JOIN {
        return join(connection, from).await;
    }
    let certificate = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok())
        .and_then(|chain| chain.first().cloned());
    let Some(holder) = certificate.as_deref().and_then(Holder::of) else {
        let cause = "it shows no node certificate of this cluster";
        close(&connection, CloseCode::Denied, cause);
        return Err(ArrivalError::Refused { from, cause: cause.into() });
    };
    if alpn == crate::ALPN_NET {
        return Ok(Arrival::Packets { holder, link: PacketLink::new(connection) });
    }
    node(connection, holder, from).await
}

async fn join(connection: Connection, from: SocketAddr) -> Result<Arrival, ArrivalError> {
    let handshake = |e: ConnectionError| ArrivalError::Handshake { from, cause: e.to_string() };
    let (send, recv) = connection.accept_bi().await.map_err(handshake)?;
    let mut frames = FrameReader::new(recv);
    let join = loop {
        let frame = frames.next().await.map_err(|e| malformed(&connection, from, e))?;
        let Some(frame) = frame else {
            return Err(ArrivalError::Refused {
                from,
                cause: "it left before it asked to join".into(),
            });
        };
        if let Some(join) =
            frame.decode::<Join>().map_err(|e| malformed(&connection, from, e.into()))?
        {
            break join;
        }
    };
    if let Err(cause) = crate::agree(join.protocol_min, join.protocol_max) {
        close(&connection, CloseCode::Protocol, &cause);
        return Err(ArrivalError::Refused { from, cause });
    }
    Ok(Arrival::Join(JoinRequest { join, from, connection, send }))
}

async fn node(
    connection: Connection,
    holder: Holder,
    from: SocketAddr,
) -> Result<Arrival, ArrivalError> {
    let handshake = |e: ConnectionError| ArrivalError::Handshake { from, cause: e.to_string() };
    let (send, recv) = connection.accept_bi().await.map_err(handshake)?;
    let mut reader: Reader<Up> = Reader::new(FrameReader::new(recv));
    let first = reader.next().await.map_err(|e| malformed(&connection, from, e))?;
    let Some(Up::Hello(hello)) = first else {
        let cause = format!("node {:?} did not say hello first", holder.node);
        close(&connection, CloseCode::Malformed, &cause);
        return Err(ArrivalError::Malformed { from, cause });
    };
    match crate::agree(hello.protocol_min, hello.protocol_max) {
        Ok(protocol) => {
            let writer = Writer::new(send);
            Ok(Arrival::Node(Box::new(NodeTunnel {
                holder,
                hello,
                protocol,
                connection,
                writer,
                reader,
            })))
        }
        Err(cause) => {
            close(&connection, CloseCode::Protocol, &cause);
            Err(ArrivalError::Refused { from, cause: format!("node {:?}: {cause}", holder.node) })
        }
    }
}

fn malformed(connection: &Connection, from: SocketAddr, error: ReadError) -> ArrivalError {
    let cause = error.to_string();
    if let ReadError::Malformed(_) = error {
        close(connection, CloseCode::Malformed, &cause);
    }
    ArrivalError::Malformed { from, cause }
}

impl JoinRequest {
    /// Hands out the certificate.
    pub async fn admit(mut self, certificate: &[u8], ca: &[u8]) {
        let mut bytes = Vec::new();
        encode(&Joined { certificate: certificate.to_vec(), ca: ca.to_vec() }, &mut bytes);
        if self.send.write_all(&bytes).await.is_ok() && self.send.finish().is_ok() {
            // The node closes once it has read the answer.
            let _gone_either_way =
                tokio::time::timeout(ARRIVAL_WAIT, self.connection.closed()).await;
        }
    }

    /// Says no. `code` tells the node whether to try again.
    pub fn refuse(self, code: CloseCode, reason: &str) {
        close(&self.connection, code, reason);
    }
}
