//! Sockets: UDP and TCP on the same addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use k8s_openapi::api::core::v1::Service;
use parking_lot::RwLock;
use rimward_client::{Cache, Delta, Deltas};
use rimward_node_network::Slices;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, answer};
use crate::forward::Forwarder;
use crate::names::Names;

/// A TCP client that says nothing for this long is let go (RFC 7766 section 6.2.3).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// TCP clients at once.
const TCP_MAX: usize = 256;
/// Without EDNS a UDP answer must fit this (RFC 1035).
const UDP_PLAIN_MAX: usize = 512;
const UDP_EDNS_MAX: usize = 1232;

pub struct Config {
    /// The cluster domain, such as `cluster.local`.
    pub domain: String,
    pub services: Cache<Service>,
    pub slices: Slices,
    pub upstream: Vec<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve DNS on {address}: {source}; is another DNS server there? Choose another address with --dns-address"
)]
pub struct BindError {
    pub address: SocketAddr,
    source: std::io::Error,
}

/// Bound sockets, not yet served.
pub struct Server {
    shared: Arc<Shared>,
    udp: UdpSocket,
    tcp: TcpListener,
}

struct Shared {
    zone: Name,
    services: Cache<Service>,
    slices: Slices,
    names: RwLock<Names>,
    forwarder: Forwarder,
}

impl Server {
    /// Binds UDP and TCP on one address; port 0 picks one free on both.
    ///
    /// # Errors
    /// Names the address, and the option that changes it.
    pub async fn bind(address: SocketAddr, config: Config) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let (udp, tcp) = bind_both(address).await.map_err(failed)?;
        let mut zone = Name::from_ascii(&config.domain).map_err(|e| {
            failed(std::io::Error::other(format!("cluster domain {:?}: {e}", config.domain)))
        })?;
        zone.set_fqdn(true);
        let shared = Arc::new(Shared {
            zone,
            services: config.services,
            slices: config.slices,
            names: RwLock::default(),
            forwarder: Forwarder::new(config.upstream),
        });
        Ok(Self { shared, udp, tcp })
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Serves until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared, udp, tcp } = self;
        let feeds = [shared.services.subscribe(), shared.slices.subscribe()];
        // What is known is answered from the first question on.
        shared.changed(&Delta::All);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow(&shared, feeds) => {}
            () = serve_udp(Arc::new(udp), shared.clone()) => {}
            () = serve_tcp(tcp, shared.clone()) => {}
        }
    }
}

/// With port 0 the TCP port that the system picked may be taken for UDP: try again.
async fn bind_both(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind(address).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(e) if address.port() != 0 || tries >= 16 => return Err(e),
            Err(_) => tries += 1,
        }
    }
}

/// Keeps the index in step; returns when the caches are gone.
async fn follow(shared: &Shared, [mut services, mut slices]: [Deltas; 2]) {
    loop {
        let delta = tokio::select! {
            delta = services.next() => delta,
            delta = slices.next() => delta,
        };
        let Some(delta) = delta else { return };
        shared.changed(&delta);
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (len, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error of an earlier answer; the socket is fine.
            Err(error) => {
                tracing::debug!(%error, "receiving a DNS question failed");
                continue;
            }
        };
        match shared.local(&buffer[..len], false) {
            Local::Done(Some(answer)) => {
                let _a_client_that_left_is_fine = socket.send_to(&answer, client).await;
            }
            Local::Done(None) => {}
            Local::Ask(pending) => {
                let (socket, shared) = (socket.clone(), shared.clone());
                tokio::spawn(async move {
                    let answer = shared.finish(pending, false).await;
                    let _a_client_that_left_is_fine = socket.send_to(&answer, client).await;
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(TCP_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(error) = serve_stream(stream, &shared).await {
                        tracing::debug!(%error, "a DNS client over TCP went away");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors: give the open ones time to close.
                tracing::warn!(%error, "accepting a DNS client failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    loop {
        let Ok(len) = timeout(TCP_IDLE, stream.read_u16()).await else { return Ok(()) };
        let mut question = vec![0; usize::from(len?)];
        timeout(TCP_IDLE, stream.read_exact(&mut question)).await??;
        let answer = match shared.local(&question, true) {
            Local::Done(answer) => answer,
            Local::Ask(pending) => Some(shared.finish(pending, true).await),
        };
        let Some(answer) = answer else { return Ok(()) };
        stream.write_u16(answer.len() as u16).await?;
        stream.write_all(&answer).await?;
    }
}

/// What the index alone can do with a packet.
enum Local {
    /// The answer, or None for what deserves none.
    Done(Option<Vec<u8>>),
    Ask(Box<Pending>),
}

/// A question for the forwarder.
struct Pending {
    question: Message,
    raw: Vec<u8>,
    /// A CNAME that leads out, to put before the upstream's answer.
    cname: Option<(hickory_proto::rr::Record, Name, RecordType)>,
}

impl Shared {
    fn changed(&self, delta: &Delta) {
        self.names.write().changed(delta, &self.services, &self.slices);
    }

    fn local(&self, packet: &[u8], over_tcp: bool) -> Local {
        let question = match Message::from_vec(packet) {
            Ok(question) if question.metadata.message_type == MessageType::Query => question,
            // Answers to answers would loop.
            Ok(_) => return Local::Done(None),
            Err(_) if packet.len() >= 12 && packet[2] & 0x80 == 0 => {
                let id = u16::from_be_bytes([packet[0], packet[1]]);
                let refusal = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
                return Local::Done(refusal.to_vec().ok());
            }
            Err(_) => return Local::Done(None),
        };
        let refuse = |code| {
            let mut refusal = reply(&question);
            refusal.metadata.response_code = code;
            Local::Done(encode(&refusal, &question, over_tcp))
        };
        if question.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [query] = question.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        let answer = answer(&self.names.read(), &self.zone, &query.name, query.query_type);
        match answer {
            // A node that was not told all Services yet cannot say that there is none; who hears this
            // asks again.
            Answer::Ours { code: ResponseCode::NXDomain, .. } if !self.services.is_synced() => {
                refuse(ResponseCode::ServFail)
            }
            Answer::Ours { code, records, additional, soa } => {
                let mut answered = reply(&question);
                answered.metadata.authoritative = true;
                answered.metadata.response_code = code;
                answered.insert_answers(records);
                answered.insert_additionals(additional);
                answered.insert_authorities(soa.into_iter().collect());
                Local::Done(encode(&answered, &question, over_tcp))
            }
            Answer::External { record, target } => {
                let kind = query.query_type;
                Local::Ask(Box::new(Pending {
                    raw: Vec::new(),
                    cname: Some((record, target, kind)),
                    question,
                }))
            }
            Answer::Forward => {
                Local::Ask(Box::new(Pending { raw: packet.to_vec(), cname: None, question }))
            }
        }
    }

    /// Asks upstream. Always has an answer: SERVFAIL when nobody else had one.
    async fn finish(&self, pending: Box<Pending>, over_tcp: bool) -> Vec<u8> {
        let Pending { question, raw, cname } = *pending;
        let mut answered = reply(&question);
        match cname {
            None => {
                if let Some(answer) = self.forwarder.ask(&raw, over_tcp).await {
                    return answer;
                }
                answered.metadata.response_code = ResponseCode::ServFail;
            }
            Some((record, target, kind)) => {
                answered.add_answer(record);
                if kind != RecordType::CNAME {
                    answered.add_answers(self.resolve(target, kind, over_tcp).await);
                }
            }
        }
        encode(&answered, &question, over_tcp).unwrap_or_default()
    }

    async fn resolve(
        &self,
        name: Name,
        kind: RecordType,
        over_tcp: bool,
    ) -> Vec<hickory_proto::rr::Record> {
        let mut ask = Message::query();
        ask.metadata.recursion_desired = true;
        ask.add_query(hickory_proto::op::Query::query(name, kind));
        let Ok(raw) = ask.to_vec() else { return Vec::new() };
        let answer = self.forwarder.ask(&raw, over_tcp).await;
        answer.and_then(|a| Message::from_vec(&a).ok()).map_or(Vec::new(), |m| m.answers)
    }
}

fn reply(question: &Message) -> Message {
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(question.queries.iter().cloned());
    if question.edns.is_some() {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(UDP_EDNS_MAX as u16);
        reply.set_edns(edns);
    }
    reply
}

/// The wire form; too long for UDP means truncated, and the client comes back by TCP.
fn encode(reply: &Message, question: &Message, over_tcp: bool) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    let max = match &question.edns {
        _ if over_tcp => usize::from(u16::MAX),
        Some(edns) => usize::from(edns.max_payload()).clamp(UDP_PLAIN_MAX, UDP_EDNS_MAX),
        None => UDP_PLAIN_MAX,
    };
    if bytes.len() <= max {
        return Some(bytes);
    }
    let mut short = reply.truncate();
    short.metadata.truncation = true;
    short.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use rimward_api::ObjectKey;

    /// A server with one Service, and another server as its upstream.
    async fn start(upstream: Vec<SocketAddr>, domain: &str) -> (SocketAddr, CancellationToken) {
        let (address, stop, services) = start_unsynced(upstream, domain).await;
        services.mark_synced();
        (address, stop)
    }

    async fn start_unsynced(
        upstream: Vec<SocketAddr>,
        domain: &str,
    ) -> (SocketAddr, CancellationToken, Cache<Service>) {
        let (services, slices) = (Cache::new(), Slices::new(Cache::new()));
        let service = serde_json::json!({"metadata": {}, "spec": {"clusterIP": "10.43.0.7"}});
        services.apply(
            ObjectKey::new("shop", "web"),
            Arc::new(serde_json::from_value(service).unwrap()),
        );
        let known = services.clone();
        let config = Config { domain: domain.into(), services, slices, upstream };
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), config).await.unwrap();
        let (address, stop) = (server.local_addr().unwrap(), CancellationToken::new());
        tokio::spawn(server.run(stop.clone()));
        (address, stop, known)
    }

    async fn ask(server: SocketAddr, name: &str) -> Message {
        let mut question = Message::query();
        question.metadata.id = 77;
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question.to_vec().unwrap(), server).await.unwrap();
        let mut buffer = vec![0; 4096];
        let len =
            timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
        let answer = Message::from_vec(&buffer[..len]).unwrap();
        assert_eq!(answer.metadata.id, 77);
        answer
    }

    #[tokio::test]
    async fn answers_and_forwards() {
        let (other, _stop_other) = start(vec![], "other.test").await;
        let (server, _stop) = start(vec![other], "cluster.local").await;
        let own = ask(server, "web.shop.svc.cluster.local.").await;
        assert_eq!(own.answers[0].data.to_string(), "10.43.0.7");
        let forwarded = ask(server, "web.shop.svc.other.test.").await;
        assert_eq!(forwarded.answers.len(), 1);
        let nobody = ask(other, "example.test.").await;
        assert_eq!(nobody.metadata.response_code, ResponseCode::ServFail);
    }

    #[tokio::test]
    async fn what_is_not_known_yet_is_not_denied() {
        let (server, _stop, services) = start_unsynced(vec![], "cluster.local").await;
        let code = async |name: &str| {
            ask(server, &format!("{name}.shop.svc.cluster.local.")).await.metadata.response_code
        };
        assert_eq!(code("web").await, ResponseCode::NoError);
        assert_eq!(code("new").await, ResponseCode::ServFail);
        services.mark_synced();
        assert_eq!(code("new").await, ResponseCode::NXDomain);
    }

    #[tokio::test]
    async fn odd_packets_get_an_error_or_nothing() {
        let (server, _stop) = start(vec![], "cluster.local").await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for packet in [&b""[..], b"x", &[0xff; 40], &[0; 11]] {
            socket.send_to(packet, server).await.unwrap();
        }
        // Still there.
        assert!(!ask(server, "web.shop.svc.cluster.local.").await.answers.is_empty());
        let mut stream = TcpStream::connect(server).await.unwrap();
        let mut question = Message::query();
        question.add_query(Query::query(
            Name::from_ascii("none.cluster.local.").unwrap(),
            RecordType::A,
        ));
        let raw = question.to_vec().unwrap();
        stream.write_u16(raw.len() as u16).await.unwrap();
        stream.write_all(&raw).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }
}
