//! Pod packets as QUIC datagrams: a link from a node to the relay, and the relay's rules.
//!
//! The rules are pure: [`Routes::forward`] takes a sender and bytes and says where they go. A packet
//! whose source is not in its sender's block is dropped, so that no node can speak for another's pods.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, SendDatagramError};

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

/// A block of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    base: u32,
    bits: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 block such as 10.42.3.0/24")]
pub struct ParseBlockError(String);

impl std::str::FromStr for Block {
    type Err = ParseBlockError;

    fn from_str(text: &str) -> Result<Self, ParseBlockError> {
        let error = || ParseBlockError(text.to_owned());
        let (ip, bits) = text.split_once('/').ok_or_else(error)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| error())?;
        let bits: u8 = bits.parse().map_err(|_| error())?;
        if bits > 32 || u32::from(ip) & !mask(bits) != 0 {
            return Err(error());
        }
        Ok(Self { base: ip.into(), bits })
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

impl Block {
    /// The length of the prefix.
    pub fn bits(self) -> u8 {
        self.bits
    }

    pub fn contains(self, ip: Ipv4Addr) -> bool {
        u32::from(ip) & mask(self.bits) == self.base
    }

    /// How many blocks of `bits` fit into this one.
    pub fn count(self, bits: u8) -> u32 {
        1u32.checked_shl(u32::from(bits.saturating_sub(self.bits))).unwrap_or(u32::MAX)
    }

    /// The `index`th block of `bits` inside this one.
    pub fn nth(self, bits: u8, index: u32) -> Option<Self> {
        (bits >= self.bits && bits <= 32 && index < self.count(bits)).then_some(())?;
        let size = 1u64 << (32 - u32::from(bits));
        let base = u64::from(self.base) + u64::from(index) * size;
        Some(Self { base: u32::try_from(base).ok()?, bits })
    }

    /// Whether two blocks share an address.
    pub fn overlaps(self, other: Self) -> bool {
        let bits = self.bits.min(other.bits);
        (self.base ^ other.base) & mask(bits) == 0
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
        if !self.sizes.contains(&block.bits) {
            self.sizes.push(block.bits);
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
        self.sizes.iter().find_map(|bits| {
            self.by_block.get(&Block { base: u32::from(ip) & mask(*bits), bits: *bits })
        })
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

    #[test]
    fn blocks() {
        let network: Block = "10.42.0.0/16".parse().unwrap();
        assert_eq!(network.count(24), 256);
        assert_eq!(network.nth(24, 255).unwrap().to_string(), "10.42.255.0/24");
        assert_eq!(network.nth(24, 256), None);
        assert!(network.overlaps("10.42.7.0/24".parse().unwrap()));
        assert!(!network.overlaps("10.43.0.0/24".parse().unwrap()));
        assert!("10.42.0.1/24".parse::<Block>().is_err());
        assert!("10.42.0.0".parse::<Block>().is_err());
        assert!("0.0.0.0/0".parse::<Block>().unwrap().contains([1, 2, 3, 4].into()));
    }
}
