//! Questions about other people's names: asked of the machine's resolvers, in order.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long one upstream server gets.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions under way upstream at once; more get SERVFAIL at once.
const IN_FLIGHT_MAX: usize = 512;

pub struct Forwarder {
    servers: Vec<SocketAddr>,
    slots: Semaphore,
}

/// The `nameserver` lines of a resolv.conf; loopback stubs included, `own` left out (it would loop).
pub fn resolv_conf_servers(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .filter(|address| !own.contains(address))
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

impl Forwarder {
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, slots: Semaphore::new(IN_FLIGHT_MAX) }
    }

    /// The upstream's answer to a question, both in wire form; None when nobody answered.
    pub async fn ask(&self, question: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let _slot = self.slots.try_acquire().ok()?;
        for server in &self.servers {
            let asked = async {
                if over_tcp {
                    ask_tcp(*server, question).await
                } else {
                    ask_udp(*server, question).await
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "upstream DNS server failed"),
                Err(_) => tracing::debug!(%server, "upstream DNS server did not answer in time"),
            }
        }
        None
    }
}

/// A socket of its own for each question: its random port is what makes forging hard (RFC 5452).
async fn ask_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let mut asked = question.to_vec();
    let id = rand::random::<[u8; 2]>();
    asked[..2].copy_from_slice(&id);
    socket.send(&asked).await?;
    let mut answer = vec![0; 4096];
    loop {
        let len = socket.recv(&mut answer).await?;
        if len >= 12 && answer[..2] == id {
            answer.truncate(len);
            answer[..2].copy_from_slice(&question[..2]);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(question.len() as u16).await?;
    stream.write_all(question).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let own = ["10.43.0.10".parse().unwrap()];
        let text = "# x\nsearch a b\nnameserver 10.43.0.10\nnameserver 192.0.2.1\nnameserver  ::1\noptions x";
        let expected: Vec<SocketAddr> =
            ["192.0.2.1:53", "[::1]:53"].map(|a| a.parse().unwrap()).to_vec();
        assert_eq!(resolv_conf_servers(text, &own), expected);
    }
}
