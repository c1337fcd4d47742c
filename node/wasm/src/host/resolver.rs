//! A stub resolver: the pod's servers, search domains and `ndots`, as resolv.conf has them.
//!
//! The C library's resolver would read the node's files and block a thread; a full client crate
//! would bring caches and policies that pods do not have. Answers are kept briefly and few.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use rimward_node_pod::runtime::Dns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

use crate::address::Addresses;

/// For one server to answer one question, as in resolv.conf(5).
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// For servers that refuse: the node's own does while its agent starts again, and is worth waiting for.
const REFUSED_PATIENCE: Duration = Duration::from_secs(10);
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
const CACHE_ENTRIES_MAX: usize = 4096;
const TTL_MAX: Duration = Duration::from_secs(30);
const TTL_NONE: Duration = Duration::from_secs(2);
const ADDRESSES_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("no such name")]
    NotFound,
    #[error("not a name")]
    Invalid,
    #[error("no DNS server answered")]
    TimedOut,
    #[error("the DNS servers cannot answer")]
    Failed,
}

/// One a pod network address: what it asks leaves from the pod.
pub(crate) struct Resolver {
    addresses: Addresses,
    cache: std::sync::Arc<Cache>,
}

/// Shared by the pods of a host. The key has the servers: pods may have different ones.
#[derive(Default)]
pub(crate) struct Cache(Mutex<HashMap<CacheKey, (Instant, Answer)>>);

type CacheKey = (Vec<SocketAddr>, String);
type Answer = Result<Vec<IpAddr>, LookupError>;

impl Resolver {
    pub fn new(addresses: Addresses, cache: std::sync::Arc<Cache>) -> Self {
        Self { addresses, cache }
    }

    /// The addresses of `name`, IPv4 first.
    pub async fn lookup(&self, dns: &Dns, hosts: &[(IpAddr, Vec<String>)], name: &str) -> Answer {
        let name = name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(vec![ip]);
        }
        let listed: Vec<IpAddr> = hosts
            .iter()
            .filter(|(_, names)| {
                names.iter().any(|listed| listed.eq_ignore_ascii_case(name.trim_end_matches('.')))
            })
            .map(|(ip, _)| *ip)
            .collect();
        if !listed.is_empty() {
            return Ok(listed);
        }
        if name.eq_ignore_ascii_case("localhost") {
            return Ok(vec![IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)]);
        }
        let mut last = LookupError::NotFound;
        for candidate in candidates(name, dns) {
            match self.ask_all(dns, &candidate).await {
                Err(LookupError::NotFound) => {}
                Err(LookupError::Invalid) => return Err(LookupError::Invalid),
                // A server that fails for one name may know another: go on, but remember.
                Err(error) => last = error,
                found => return found,
            }
        }
        Err(last)
    }

    async fn ask_all(&self, dns: &Dns, name: &str) -> Answer {
        let fqdn = Name::from_utf8(name).map_err(|_| LookupError::Invalid)?;
        if dns.servers.is_empty() {
            return Err(LookupError::Failed);
        }
        let key = (dns.servers.clone(), name.to_ascii_lowercase());
        if let Some((until, answer)) = self.cache.0.lock().get(&key)
            && *until > Instant::now()
        {
            return answer.clone();
        }
        let (v4, v6) = tokio::join!(
            self.ask(dns, &fqdn, RecordType::A),
            self.ask(dns, &fqdn, RecordType::AAAA)
        );
        let (answer, ttl) = match (v4, v6) {
            (Ok((mut list, ttl)), Ok((more, ttl6))) => {
                list.extend(more);
                (Ok(list), ttl.min(ttl6))
            }
            // One family is enough; many servers know nothing of AAAA.
            (Ok((list, ttl)), Err(_)) | (Err(_), Ok((list, ttl))) if !list.is_empty() => {
                (Ok(list), ttl)
            }
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let answer = answer.and_then(|mut list: Vec<IpAddr>| {
            list.truncate(ADDRESSES_MAX);
            if list.is_empty() { Err(LookupError::NotFound) } else { Ok(list) }
        });
        self.cache.put(key, answer.clone(), ttl);
        answer
    }

    async fn ask(
        &self,
        dns: &Dns,
        name: &Name,
        kind: RecordType,
    ) -> Result<(Vec<IpAddr>, Duration), LookupError> {
        let mut last = LookupError::TimedOut;
        let begun = Instant::now();
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let mut refused = true;
            for server in &dns.servers {
                let exchange = self.exchange(*server, name, kind);
                match tokio::time::timeout(ATTEMPT_TIMEOUT, exchange).await {
                    Ok(Ok(message)) => match message.metadata.response_code {
                        ResponseCode::NoError | ResponseCode::NXDomain => {
                            return Ok(addresses_in(&message));
                        }
                        _ => (last, refused) = (LookupError::Failed, false),
                    },
                    Ok(Err(error)) => {
                        last = LookupError::Failed;
                        refused &= error.kind() == std::io::ErrorKind::ConnectionRefused;
                    }
                    Err(_) => refused = false,
                }
            }
            match refused && begun.elapsed() < REFUSED_PATIENCE {
                true => tokio::time::sleep(REFUSED_PAUSE).await,
                false => attempts += 1,
            }
        }
        Err(last)
    }

    async fn exchange(
        &self,
        server: SocketAddr,
        name: &Name,
        kind: RecordType,
    ) -> std::io::Result<Message> {
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name.clone(), kind));
        let bytes = question.to_vec().map_err(std::io::Error::other)?;
        let fits = |answer: &Message| {
            answer.metadata.id == question.metadata.id
                && answer.queries.first().is_none_or(|asked| asked.query_type == kind)
        };
        let (ip, port) = self.addresses.remote(server.ip(), server.port());
        let server = SocketAddr::new(ip, port);
        let any: IpAddr = if ip.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
        let source = SocketAddr::new(self.addresses.source(ip).unwrap_or(any), 0);

        let socket = UdpSocket::bind(source).await?;
        socket.connect(server).await?;
        socket.send(&bytes).await?;
        let mut buffer = vec![0; 4096];
        let answer = loop {
            let len = socket.recv(&mut buffer).await?;
            match Message::from_vec(&buffer[..len]) {
                Ok(answer) if fits(&answer) => break answer,
                // A late answer to another question, or noise: the timeout bounds the wait.
                _ => {}
            }
        };
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        let socket = if ip.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(source)?;
        let mut stream = socket.connect(server).await?;
        let len = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
        stream.write_all(&[&len.to_be_bytes()[..], &bytes].concat()).await?;
        let len = stream.read_u16().await?;
        let mut buffer = vec![0; len.into()];
        stream.read_exact(&mut buffer).await?;
        let answer = Message::from_vec(&buffer).map_err(std::io::Error::other)?;
        if fits(&answer) {
            Ok(answer)
        } else {
            Err(std::io::Error::other("an answer to another question"))
        }
    }
}

impl Cache {
    fn put(&self, key: CacheKey, answer: Answer, ttl: Duration) {
        let now = Instant::now();
        let mut entries = self.0.lock();
        if entries.len() >= CACHE_ENTRIES_MAX {
            entries.retain(|_, (until, _)| *until > now);
            if entries.len() >= CACHE_ENTRIES_MAX {
                entries.clear();
            }
        }
        let ttl = if answer.is_ok() { ttl.min(TTL_MAX) } else { TTL_NONE };
        entries.insert(key, (now + ttl, answer));
    }
}

/// The addresses of an answer; aliases were followed by the server.
fn addresses_in(message: &Message) -> (Vec<IpAddr>, Duration) {
    let mut ttl = TTL_MAX;
    let mut list = Vec::new();
    for record in &message.answers {
        let ip = match &record.data {
            RData::A(a) => IpAddr::V4(a.0),
            RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
            _ => continue,
        };
        ttl = ttl.min(Duration::from_secs(record.ttl.into()));
        list.push(ip);
    }
    (list, ttl)
}

/// The fully qualified names to try, in order. A name with `ndots` dots or more is tried as it is
/// first, others with the search domains first; a final dot forbids the search.
fn candidates(name: &str, dns: &Dns) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let absolute = format!("{name}.");
    let dots = name.bytes().filter(|byte| *byte == b'.').count();
    let mut list: Vec<String> = dns
        .searches
        .iter()
        .map(|domain| format!("{name}.{}.", domain.trim_end_matches('.')))
        .collect();
    let at = if dots >= usize::from(dns.ndots.max(1)) { 0 } else { list.len() };
    list.insert(at, absolute);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_candidates(name: &str, ndots: u8, expected: &[&str]) {
        let dns = Dns {
            servers: vec![],
            searches: vec!["ns.svc.cluster.local".into(), "cluster.local".into()],
            ndots,
            ..Dns::default()
        };
        assert_eq!(candidates(name, &dns), expected);
    }

    #[test]
    fn search_domains_and_ndots() {
        check_candidates("web", 5, &["web.ns.svc.cluster.local.", "web.cluster.local.", "web."]);
        check_candidates("a.b", 1, &["a.b.", "a.b.ns.svc.cluster.local.", "a.b.cluster.local."]);
        check_candidates("a.b.", 5, &["a.b."]);
    }

    fn resolver() -> Resolver {
        let addresses = Addresses {
            bind_ip: "127.0.0.1".parse().unwrap(),
            own_netns: false,
            user_mode: true,
            maps: vec![],
            first_free_port: 0,
        };
        Resolver::new(addresses, Default::default())
    }

    /// A server that knows one name, and counts what it is asked.
    async fn serve(server: UdpSocket, asked: std::sync::Arc<std::sync::atomic::AtomicUsize>) {
        let mut buffer = [0; 512];
        loop {
            let (len, from) = server.recv_from(&mut buffer).await.unwrap();
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut answer = Message::from_vec(&buffer[..len]).unwrap().into_response();
            let query = answer.queries[0].clone();
            if query.query_type == RecordType::A && query.name.to_string() == "web.ns.svc." {
                let data = RData::A("10.43.0.7".parse::<std::net::Ipv4Addr>().unwrap().into());
                answer.add_answer(hickory_proto::rr::Record::from_rdata(query.name, 5, data));
            }
            server.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    }

    #[tokio::test]
    async fn asks_the_pods_servers_and_remembers() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        tokio::spawn(serve(server, asked.clone()));
        let resolver = resolver();
        let dns =
            Dns { servers: vec![at], searches: vec!["ns.svc".into()], ndots: 5, ..Dns::default() };
        let found: Vec<IpAddr> = vec!["10.43.0.7".parse().unwrap()];
        assert_eq!(resolver.lookup(&dns, &[], "web").await, Ok(found.clone()));
        assert_eq!(resolver.lookup(&dns, &[], "web").await, Ok(found));
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 2);
        assert_eq!(resolver.lookup(&dns, &[], "other").await, Err(LookupError::NotFound));
        assert_eq!(resolver.lookup(&dns, &[], "192.0.2.1").await.unwrap().len(), 1);
        let hosts = [("192.0.2.9".parse().unwrap(), vec!["db".to_owned()])];
        assert_eq!(resolver.lookup(&dns, &hosts, "db").await.unwrap(), [hosts[0].0]);
    }

    #[tokio::test]
    async fn a_server_that_starts_again_is_waited_for() {
        let at = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (resolver, dns) = (
            resolver(),
            Dns { servers: vec![at], searches: vec!["ns.svc".into()], ndots: 5, ..Dns::default() },
        );
        let mut lookup = std::pin::pin!(resolver.lookup(&dns, &[], "web"));
        let early = tokio::time::timeout(REFUSED_PAUSE * 2, &mut lookup).await;
        assert!(early.is_err(), "nobody is there, and it gave up: {early:?}");
        tokio::spawn(serve(UdpSocket::bind(at).await.unwrap(), Default::default()));
        assert_eq!(lookup.await, Ok(vec!["10.43.0.7".parse().unwrap()]));
    }
}
