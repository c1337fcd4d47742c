//! Pod packets between nodes that do not reach each other: from link to link, by destination.

use std::time::Duration;

use parking_lot::RwLock;
use rimward_api::Block;
use rimward_tunnel::packets::{Forward, PacketLink, Routes};

use crate::Hub;

/// How long a packet link may be there before its node's control connection is.
const CONTROL_WAIT: Duration = Duration::from_secs(10);

/// The links of all connected nodes.
#[derive(Default)]
pub(crate) struct Relay {
    routes: RwLock<Routes<PacketLink>>,
}

/// Forwards the packets of one node until its link ends.
pub(crate) async fn run(hub: &Hub, node: &str, link: PacketLink) {
    let inner = &hub.inner;
    let Some(block) = block_of(hub, node).await else {
        return link.close("the node is not connected");
    };
    if let Some(earlier) = inner.relay.routes.write().insert(block, link.clone()) {
        earlier.close("the same node connected again");
    }
    inner.shutdown.run_until_cancelled(forward(&inner.relay, node, block, &link)).await;
    let mut routes = inner.relay.routes.write();
    if routes.get(&block).is_some_and(|current| current.id() == link.id()) {
        routes.remove(&block);
    }
}

/// The node's block, once it is registered: it opens its link after it was welcomed, so this wait is
/// rare and short.
async fn block_of(hub: &Hub, node: &str) -> Option<Block> {
    let inner = &hub.inner;
    let find = || inner.connected.lock().get(node).map(|c| c.block);
    let registered = async {
        loop {
            let entered = inner.entered.notified();
            if let Some(block) = find() {
                return block;
            }
            entered.await;
        }
    };
    tokio::time::timeout(CONTROL_WAIT, registered).await.ok()
}

async fn forward(relay: &Relay, node: &str, block: Block, link: &PacketLink) {
    let mut spoofed = 0u64;
    while let Ok(packet) = link.recv().await {
        match relay.routes.read().forward(block, &packet) {
            // What does not fit or whose link is gone is lost, as packets are.
            Forward::To(to) => drop(to.send(packet)),
            Forward::Spoofed { source } => {
                spoofed += 1;
                // The first, then at powers of two: a line, not a flood.
                if spoofed.is_power_of_two() {
                    tracing::warn!(node, %source, %block, spoofed, "dropped a packet with a foreign source");
                }
            }
            Forward::NotIp | Forward::NoRoute { .. } => {}
        }
    }
}
