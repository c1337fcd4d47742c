//! A byte stream to a pod address, wherever the pod is.

use std::io;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A bidirectional byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Connects to pod addresses: straight where the pod network reaches them, through the tunnel where
/// it does not.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// # Errors
    /// As a TCP connect: refused, timed out, unreachable.
    async fn dial(&self, pod: SocketAddr) -> io::Result<Box<dyn Duplex>>;
}

/// Where a pod or Service address of the API is really reached in user mode: the same last three
/// bytes on loopback, so that no two addresses collide (10.42.3.4 is 127.42.3.4).
pub fn loopback_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if !v4.is_loopback() => {
            let [_, b, c, d] = v4.octets();
            IpAddr::from([127, b, c, d])
        }
        other => other,
    }
}

/// Where a port that an ordinary user may not bind goes: 80 is 8080, 443 is 8443, 53 is 8053.
pub fn unprivileged_port(port: u16) -> u16 {
    if port < 1024 { port + 8000 } else { port }
}
