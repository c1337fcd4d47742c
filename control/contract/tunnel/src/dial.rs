//! The node's end: dials the control plane, joins, opens the control stream.

mod server_trust;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};

use crate::call::{CallError, call};
use crate::close::{CloseCode, closed_by_peer};
use crate::control::{Reader, Writer};
use crate::identity::{Identity, IdentityDir, IdentityError};
use crate::packets::PacketLink;
use crate::quic;
use crate::token::BootstrapToken;
use crate::wire::codec::{FrameReader, ReadError, encode};
use crate::wire::{Down, Hello, Join, Joined, RenewRequest, Welcome};

/// How long a connection may take to be accepted, answer included.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// Why there is no tunnel. The text is one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot reach the control plane at {server}: {cause}")]
    Unreachable { server: String, cause: String },
    /// The other end is not the cluster that this node belongs to, or that the token names.
    #[error("{server} is not the expected control plane: {cause}")]
    WrongCa { server: String, cause: String, joining: bool },
    /// It ended the connection, and said why.
    #[error("the control plane at {server} says: {message}")]
    Refused { server: String, code: CloseCode, message: String },
    #[error("{0}")]
    Expired(String),
    #[error(
        "the control plane at {server} does not speak this node's tunnel protocol; upgrade the older of the two"
    )]
    NoCommonProtocol { server: String },
    #[error("the control plane at {server} sent what is not the protocol: {cause}")]
    Malformed { server: String, cause: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Error {
    /// Whether trying again cannot help: a person has to act.
    pub fn permanent(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Malformed { .. } => false,
            // While joining, the pin is wrong. Later, whatever answered at that address may go away.
            Self::WrongCa { joining, .. } => *joining,
            Self::Refused { code, .. } => code.permanent(),
            Self::Expired(_) | Self::NoCommonProtocol { .. } | Self::Identity(_) => true,
        }
    }
}

/// The node's UDP socket and where the control plane is.
#[derive(Clone)]
pub struct Dialer {
    endpoint: Endpoint,
    server: String,
}

/// A connection that the control plane has accepted.
pub struct Tunnel {
    pub connection: Connection,
    pub welcome: Welcome,
    pub writer: Writer,
    pub reader: Reader<Down>,
}

impl Dialer {
    /// `server` is HOST:PORT; the name is looked up at each attempt. Needs a tokio runtime.
    pub fn new(server: &str) -> std::io::Result<Self> {
        // Both address families where the kernel has them: the name may resolve to either.
        let any = ["[::]:0", "0.0.0.0:0"];
        let mut last = std::io::Error::other("no address family");
        for bind in any {
            match Endpoint::client(bind.parse().expect("a socket address")) {
                Ok(endpoint) => return Ok(Self { endpoint, server: server.to_owned() }),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Moves to a new local socket; open connections migrate. For changes of network.
    pub fn rebind(&self, socket: std::net::UdpSocket) -> std::io::Result<()> {
        self.endpoint.rebind(socket)
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    /// Says goodbye to what is still open, and waits until that is sent.
    pub async fn close(&self) {
        self.endpoint.close((CloseCode::Stopping as u32).into(), b"the node stops");
        let _not_worth_waiting_longer =
            tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, Error> {
        let unreachable = |cause: String| Error::Unreachable { server: self.server.clone(), cause };
        let found: Vec<SocketAddr> = tokio::net::lookup_host(&self.server)
            .await
            .map_err(|e| unreachable(format!("the name cannot be looked up: {e}")))?
            .collect();
        if found.is_empty() {
            return Err(unreachable("the name has no address".into()));
        }
        Ok(found)
    }

    async fn connect(
        &self,
        tls: rustls::ClientConfig,
        transport: Arc<quinn::TransportConfig>,
        joining: bool,
    ) -> Result<Connection, Error> {
        let crypto = QuicClientConfig::try_from(tls).expect("the provider has TLS 1.3 suites");
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport);
        let dual = self.endpoint.local_addr().is_ok_and(|a| a.is_ipv6());
        let mut last = None;
        for address in self.addresses().await? {
            let address = match address {
                SocketAddr::V4(v4) if dual => {
                    SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
                }
                other => other,
            };
            let connecting =
                match self.endpoint.connect_with(config.clone(), address, crate::SERVER_NAME) {
                    Ok(connecting) => connecting,
                    Err(e) => {
                        last = Some(Error::Unreachable {
                            server: self.server.clone(),
                            cause: e.to_string(),
                        });
                        continue;
                    }
                };
            match tokio::time::timeout(ANSWER_WAIT, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(e)) => last = Some(self.explain(&e, joining)),
                Err(_) => last = Some(self.silent()),
            }
        }
        Err(last.expect("there is at least one address"))
    }

    fn silent(&self) -> Error {
        Error::Unreachable {
            server: self.server.clone(),
            cause: format!("no answer within {} s", ANSWER_WAIT.as_secs()),
        }
    }

    /// A connection error in words.
    pub fn explain(&self, error: &ConnectionError, joining: bool) -> Error {
        let server = self.server.clone();
        if let Some((code, message)) = closed_by_peer(error) {
            return Error::Refused { server, code, message };
        }
        // RFC 9001 §4.8: CRYPTO_ERROR is 0x100 plus the TLS alert.
        let (alert, text) = match error {
            ConnectionError::TransportError(e) => (u64::from(e.code), e.reason.clone()),
            ConnectionError::ConnectionClosed(close) => {
                (u64::from(close.error_code), String::from_utf8_lossy(&close.reason).into_owned())
            }
            ConnectionError::TimedOut => (0, "no answer".to_owned()),
            other => (0, other.to_string()),
        };
        let local = matches!(error, ConnectionError::TransportError(_));
        match alert {
            0x178 => Error::NoCommonProtocol { server },
            // unknown_ca, bad_certificate, certificate_unknown, decrypt_error, raised here
            0x130 | 0x12a | 0x12e | 0x133 if local => Error::WrongCa { server, cause: text, joining },
            0x12d if local => Error::WrongCa { server, cause: "its certificate has expired; check both clocks".into(), joining },
            0x12d => Error::Expired(format!("the control plane at {server} says that this node's certificate has expired; check both clocks, or join the node anew with a token")),
            0x12a | 0x12e | 0x130 | 0x133 | 0x174 => Error::Refused {
                server,
                code: CloseCode::Denied,
                message: "it does not accept this node's certificate (another cluster's?); join the node anew with a token".into(),
            },
            _ => Error::Unreachable { server, cause: text },
        }
    }

    fn read_error(&self, connection: &Connection, error: ReadError, joining: bool) -> Error {
        match (error, connection.close_reason()) {
            (_, Some(reason)) => self.explain(&reason, joining),
            (ReadError::Malformed(e), None) => {
                Error::Malformed { server: self.server.clone(), cause: e.to_string() }
            }
            (ReadError::Io(e), None) => {
                Error::Unreachable { server: self.server.clone(), cause: e.to_string() }
            }
        }
    }

    /// After a failed write: why the connection is gone.
    async fn gone(&self, connection: &Connection, joining: bool) -> Error {
        match tokio::time::timeout(ANSWER_WAIT, connection.closed()).await {
            Ok(reason) => self.explain(&reason, joining),
            Err(_) => self.silent(),
        }
    }

    /// Trades a bootstrap token for a certificate, and keeps it in `dir`.
    pub async fn join(
        &self,
        token: &BootstrapToken,
        name: &str,
        version: &str,
        dir: &IdentityDir,
    ) -> Result<Identity, Error> {
        let join = Join {
            protocol_min: crate::PROTOCOL_MIN,
            protocol_max: crate::PROTOCOL,
            version: version.to_owned(),
            name: name.to_owned(),
            token_id: token.id.clone(),
            token_secret: token.secret.clone(),
            csr: dir.request(name)?,
        };
        let connection =
            self.connect(server_trust::pinned(&token.ca_hash), quic::control(true), true).await?;
        let joined = tokio::time::timeout(ANSWER_WAIT, self.ask_to_join(&connection, &join))
            .await
            .map_err(|_| self.silent())??;
        crate::close::close(&connection, CloseCode::Stopping, "joined");
        if crate::token::ca_hash(&joined.ca).as_deref() != Some(token.ca_hash.as_str()) {
            let cause = "it handed out a CA that the token does not name".to_owned();
            return Err(Error::WrongCa { server: self.server.clone(), cause, joining: true });
        }
        Ok(dir.store(&joined.certificate, &joined.ca)?)
    }

    async fn ask_to_join(&self, connection: &Connection, join: &Join) -> Result<Joined, Error> {
        let mut bytes = Vec::new();
        encode(join, &mut bytes);
        let Ok((mut send, recv)) = connection.open_bi().await else {
            return Err(self.gone(connection, true).await);
        };
        if send.write_all(&bytes).await.is_err() || send.finish().is_err() {
            return Err(self.gone(connection, true).await);
        }
        let mut frames = FrameReader::new(recv);
        loop {
            match frames.next().await {
                Ok(Some(frame)) => {
                    let joined = frame
                        .decode::<Joined>()
                        .map_err(|e| self.read_error(connection, e.into(), true))?;
                    if let Some(joined) = joined {
                        return Ok(joined);
                    }
                }
                Ok(None) => return Err(self.gone(connection, true).await),
                Err(e) => return Err(self.read_error(connection, e, true)),
            }
        }
    }

    /// Connects, says hello, and waits until the control plane has accepted the node.
    pub async fn open(&self, identity: &Identity, hello: &Hello) -> Result<Tunnel, Error> {
        let now = jiff::Timestamp::now();
        if identity.holder.not_after <= now {
            return Err(Error::Expired(format!(
                "the certificate of node {:?} expired at {}; check the clock, or join the node anew with a token",
                identity.holder.node, identity.holder.not_after
            )));
        }
        let tls = server_trust::known(identity, crate::ALPN_CONTROL).map_err(|cause| {
            Error::WrongCa { server: self.server.clone(), cause, joining: false }
        })?;
        let connection = self.connect(tls, quic::control(true), false).await?;
        tokio::time::timeout(ANSWER_WAIT, self.greet(connection, hello))
            .await
            .map_err(|_| self.silent())?
    }

    async fn greet(&self, connection: Connection, hello: &Hello) -> Result<Tunnel, Error> {
        let Ok((send, recv)) = connection.open_bi().await else {
            return Err(self.gone(&connection, false).await);
        };
        let mut writer = Writer::new(send);
        writer.push(hello);
        if writer.flush().await.is_err() {
            return Err(self.gone(&connection, false).await);
        }
        let mut reader: Reader<Down> = Reader::new(FrameReader::new(recv));
        match reader.next().await {
            Ok(Some(Down::Welcome(welcome))) => Ok(Tunnel { connection, welcome, writer, reader }),
            Ok(Some(_)) => {
                Err(Error::Malformed { server: self.server.clone(), cause: "no welcome".into() })
            }
            Ok(None) => Err(self.gone(&connection, false).await),
            Err(e) => Err(self.read_error(&connection, e, false)),
        }
    }

    /// The second connection, for pod packets.
    pub async fn packets(&self, identity: &Identity) -> Result<PacketLink, Error> {
        let tls = server_trust::known(identity, crate::ALPN_NET).map_err(|cause| {
            Error::WrongCa { server: self.server.clone(), cause, joining: false }
        })?;
        Ok(PacketLink::new(self.connect(tls, quic::packets(true), false).await?))
    }
}

/// Asks over an open tunnel for the next certificate, and keeps it in `dir`. The connection stays;
/// the next one uses the new certificate.
pub async fn renew(
    connection: &Connection,
    name: &str,
    dir: &IdentityDir,
) -> Result<Identity, CallError> {
    let broken = |e: IdentityError| CallError::Broken(e.to_string());
    let request = RenewRequest { csr: dir.request(name).map_err(broken)? };
    let (reply, _stream) = call(connection, &request).await?;
    let ca = dir.load().map_err(broken)?.map(|identity| identity.ca.to_vec()).unwrap_or_default();
    dir.store(&reply.body, &ca).map_err(broken)
}
