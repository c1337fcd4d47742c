//! Ports of the machine that lead to pods (`hostPort`), as proxies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use rimward_api::ObjectKey;
use rimward_node_pod::outside::{HostPort, Transport};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{ServicePort, accept, forward};
use crate::dial::{Dial, Duplex, loopback_of, unprivileged_port};
use crate::services::Route;

/// Listens at the ports, until what is answered is dropped.
///
/// # Errors
/// Names the port that cannot be had.
pub(super) async fn serve(
    pod: IpAddr,
    ports: &[HostPort],
    host_ip: IpAddr,
) -> Result<DropGuard, String> {
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    for port in ports {
        let to = SocketAddr::new(pod, port.container_port);
        for at in addresses(port, host_ip) {
            let served = serve_one(port.protocol, at, to, stop.clone()).await;
            served.map_err(|e| format!("hostPort {} at {at}: {e}", port.host_port))?;
        }
    }
    Ok(guard)
}

/// Not every address: pods have theirs on loopback, and listen at the same port numbers.
fn addresses(port: &HostPort, host_ip: IpAddr) -> Vec<SocketAddr> {
    let mut addresses = match port.host_ip {
        Some(ip) => vec![ip],
        None => vec![IpAddr::from(Ipv4Addr::LOCALHOST), host_ip],
    };
    addresses.dedup();
    let number = unprivileged_port(port.host_port);
    addresses.into_iter().map(|ip| SocketAddr::new(ip, number)).collect()
}

async fn serve_one(
    transport: Transport,
    at: SocketAddr,
    to: SocketAddr,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let route = Route {
        service: ObjectKey::new("", ""),
        port_name: String::new(),
        entries: Vec::new(),
        backends: vec![to],
        affinity_seconds: None,
    };
    let port = ServicePort::new(Arc::new(route), Arc::new(OwnPod));
    match transport {
        Transport::Tcp => {
            let listener = TcpListener::bind(at).await?;
            tokio::spawn(
                async move { stop.run_until_cancelled(accept(listener, at, &port)).await },
            );
        }
        Transport::Udp => {
            let socket = UdpSocket::bind(at).await?;
            tokio::spawn(async move { stop.run_until_cancelled(forward(socket, &port)).await });
        }
        Transport::Sctp => return Err(std::io::Error::other("SCTP has no proxy in user mode")),
    }
    Ok(())
}

/// Dials pods of this node, where they really listen.
struct OwnPod;

#[async_trait]
impl Dial for OwnPod {
    async fn dial(&self, pod: SocketAddr) -> std::io::Result<Box<dyn Duplex>> {
        let at = SocketAddr::new(loopback_of(pod.ip()), unprivileged_port(pod.port()));
        Ok(Box::new(TcpStream::connect(at).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_port_of_the_machine_leads_to_the_pod_until_it_goes() {
        let pod = TcpListener::bind("127.91.3.9:0").await.unwrap();
        let spare = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let port = HostPort {
            protocol: Transport::Tcp,
            host_ip: None,
            host_port: spare,
            container_port: pod.local_addr().unwrap().port(),
        };
        let own = IpAddr::from(Ipv4Addr::LOCALHOST);
        let to = "10.91.3.9".parse().unwrap();
        let guard = serve(to, std::slice::from_ref(&port), own).await.unwrap();
        let error = serve(to, &[port], own).await.unwrap_err();
        assert!(error.contains(&format!("hostPort {spare} at 127.0.0.1:{spare}")), "{error}");
        let mut client = TcpStream::connect(("127.0.0.1", spare)).await.unwrap();
        let (mut server, _) = pod.accept().await.unwrap();
        server.write_all(b"pong").await.unwrap();
        let mut text = [0; 4];
        client.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"pong");
        drop(guard);
        while TcpStream::connect(("127.0.0.1", spare)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
