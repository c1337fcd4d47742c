//! Packets between nodes: a TUN device on this side, the tunnel's datagrams on the other.

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tun_rs::AsyncDevice;

use super::command::{ip_batch, run};
use super::{Config, Names};

/// What fits a QUIC datagram on every path that carries QUIC at all.
const MTU: u16 = 1280;

/// Carries IP packets to and from the rest of the cluster.
#[async_trait]
pub trait PacketPath: Send + Sync {
    /// Queues a packet, or drops it: packets may be lost, callers must not wait.
    fn send(&self, packet: Bytes);

    /// The next packet for this node; None when the path is gone.
    async fn recv(&self) -> Option<Bytes>;
}

/// The TUN device, up and routed.
pub struct Overlay {
    device: AsyncDevice,
}

pub(crate) async fn open(names: &Names, config: &Config) -> Result<Overlay, String> {
    let tun = &names.tun;
    let device = tun_rs::DeviceBuilder::new().name(tun).mtu(MTU).build_async();
    let device = device.map_err(|e| {
        format!("cannot make the TUN device {tun}: {e}; /dev/net/tun and the tun module are needed")
    })?;
    // With the device its route would go, and what is addressed to other nodes be refused, while an agent
    // restarts.
    device.persist().map_err(|e| format!("cannot keep the TUN device {tun}: {e}"))?;
    let gateway = config.pod_block.gateway();
    // The node's own address in the pod network, so that its own calls to remote pods have a source that
    // the other side can answer.
    let lines = format!(
        "addr replace {gateway}/32 dev {tun}\nlink set {tun} mtu {MTU} up\n\
         route replace {} dev {tun} src {gateway}\n",
        config.cluster_block
    );
    ip_batch(&lines).await.map_err(|e| e.to_string())?;
    Ok(Overlay { device })
}

pub(crate) async fn remove(names: &Names) {
    // A node that ended before it had a tunnel has no device.
    let _there_may_be_none = run(&format!("ip link del {}", names.tun), "").await;
}

impl Overlay {
    /// Moves packets until the path is gone or shutdown. Call again with the next path.
    pub async fn run(&self, path: &dyn PacketPath, shutdown: &CancellationToken) {
        let out = async {
            let mut buffer = vec![0; usize::from(u16::MAX)];
            loop {
                match self.device.recv(&mut buffer).await {
                    Ok(len) => path.send(Bytes::copy_from_slice(&buffer[..len])),
                    Err(error) => {
                        tracing::error!(%error, "reading the TUN device failed");
                        return;
                    }
                }
            }
        };
        let back = async {
            while let Some(packet) = path.recv().await {
                if let Err(error) = self.device.send(&packet).await {
                    tracing::debug!(%error, "a packet from another node was not taken");
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = out => {}
            () = back => {}
        }
    }
}
