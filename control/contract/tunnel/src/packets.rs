//! Pod packets as QUIC datagrams: a link from a node to the relay, and the relay's rules.
//!
//! The rules are pure: [`Routes::forward`] takes a sender and bytes and says where they go. A packet
//! whose source is not in its sender's block is dropped, so that no node can speak for another's pods.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, SendDatagramError};
use rimward_api::Block;

/// The packets of one node. Clones are handles to the same connection.
#[derive(Clone)]
pub struct PacketLink {
    connection: Connection,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The path does not carry packets of this size now.
    #[error("a packet of {bytes} bytes is too long, at most {max} fit")]
    TooLong { bytes: usize, max: usize },
    #[error("the packet link is closed: {0}")]
    Closed(String),
}

impl PacketLink {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Queues an IP packet; the oldest waiting ones give way when the path is too slow. Never waits.
    pub fn send(&self, packet: Bytes) -> Result<(), PacketError> {
        let bytes = packet.len();
        match self.connection.send_datagram(packet) {
            Ok(()) => Ok(()),
            Err(SendDatagramError::ConnectionLost(e)) => Err(PacketError::Closed(e.to_string())),
            Err(_) => Err(PacketError::TooLong { bytes, max: self.max_bytes() }),
        }
    }

    /// The next IP packet for this end. Cancel-safe.
    pub async fn recv(&self) -> Result<Bytes, PacketError> {
        self.connection.read_datagram().await.map_err(|e| PacketError::Closed(e.to_string()))
    }

    /// The longest packet that the path carries now.
    pub fn max_bytes(&self) -> usize {
        self.connection.max_datagram_size().unwrap_or(0)
    }

    /// Waits until the link is gone.
    pub async fn closed(&self) -> ConnectionError {
        self.connection.closed().await
    }

    /// Ends the link.
    pub fn close(&self, reason: &str) {
        crate::close::close(&self.connection, crate::CloseCode::Stopping, reason);
    }

    /// Tells links of one process apart.
    pub fn id(&self) -> usize {
        self.connection.stable_id()
    }
}

/// Where packets go: node blocks to links. Lookups take constant time in the number of nodes.
pub struct Routes<L> {
    by_block: HashMap<Block, L>,
    /// The block sizes in use, mostly one.
    sizes: Vec<u8>,
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Forward<'a, L> {
    To(&'a L),
    /// Not an IPv4 packet.
    NotIp,
    /// The source is not in the sender's block.
    Spoofed {
        source: Ipv4Addr,
    },
    /// No connected node has the destination.
    NoRoute {
        destination: Ipv4Addr,
    },
}

impl<L> Default for Routes<L> {
    fn default() -> Self {
        Self { by_block: HashMap::new(), sizes: Vec::new() }
    }
}

impl<L> Routes<L> {
    pub fn insert(&mut self, block: Block, link: L) -> Option<L> {
        if !self.sizes.contains(&block.bits()) {
            self.sizes.push(block.bits());
            // Longest prefix first.
            self.sizes.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.by_block.insert(block, link)
    }

    pub fn get(&self, block: &Block) -> Option<&L> {
        self.by_block.get(block)
    }

    pub fn remove(&mut self, block: &Block) -> Option<L> {
        self.by_block.remove(block)
    }

    fn find(&self, ip: Ipv4Addr) -> Option<&L> {
        self.sizes.iter().find_map(|bits| self.by_block.get(&Block::around(ip, *bits)))
    }

    /// Decides about one packet from the node that owns `sender`.
    pub fn forward(&self, sender: Block, packet: &[u8]) -> Forward<'_, L> {
        let address = |at: usize| -> Option<Ipv4Addr> {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4) && packet.len() >= 20;
        let (true, Some(source), Some(destination)) = (is_v4, address(12), address(16)) else {
            return Forward::NotIp;
        };
        if !sender.contains(source) {
            return Forward::Spoofed { source };
        }
        match self.find(destination) {
            Some(link) => Forward::To(link),
            None => Forward::NoRoute { destination },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(source: &str, destination: &str) -> Vec<u8> {
        let mut bytes = vec![0x45; 20];
        bytes[12..16].copy_from_slice(&source.parse::<Ipv4Addr>().unwrap().octets());
        bytes[16..20].copy_from_slice(&destination.parse::<Ipv4Addr>().unwrap().octets());
        bytes
    }

    #[test]
    fn packets_go_where_their_destination_lives() {
        let block = |text: &str| text.parse::<Block>().unwrap();
        let mut routes = Routes::default();
        routes.insert(block("10.42.1.0/24"), "one");
        routes.insert(block("10.42.2.0/24"), "two");
        routes.insert(block("10.42.2.128/25"), "half of two");

        #[track_caller]
        fn check(routes: &Routes<&str>, bytes: &[u8], expect: Forward<'_, &str>) {
            assert_eq!(routes.forward("10.42.1.0/24".parse().unwrap(), bytes), expect);
        }
        check(&routes, &packet("10.42.1.5", "10.42.2.9"), Forward::To(&"two"));
        check(&routes, &packet("10.42.1.5", "10.42.2.200"), Forward::To(&"half of two"));
        check(
            &routes,
            &packet("10.42.2.5", "10.42.2.9"),
            Forward::Spoofed { source: [10, 42, 2, 5].into() },
        );
        check(
            &routes,
            &packet("10.42.1.5", "10.42.3.9"),
            Forward::NoRoute { destination: [10, 42, 3, 9].into() },
        );
        check(&routes, &[], Forward::NotIp);
        check(&routes, &[0x60; 40], Forward::NotIp);
    }
}
