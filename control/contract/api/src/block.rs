//! Blocks of IPv4 addresses, such as 10.42.3.0/24: what nodes are given, what packets are routed by.

use std::net::Ipv4Addr;
use std::ops::Range;

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
        if bits > 32 || Self::around(ip, bits).base != u32::from(ip) {
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
    u32::MAX.checked_shl(32u32.saturating_sub(u32::from(bits))).unwrap_or(0)
}

impl Block {
    /// The block of a size that an address is in.
    pub fn around(ip: Ipv4Addr, bits: u8) -> Self {
        Self { base: u32::from(ip) & mask(bits), bits }
    }

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

    /// In a node's block: its own address in the pod network, never a pod's.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base.saturating_add(1))
    }

    /// In a node's block: addresses for pods, as numbers. Neither the block's first two (network, gateway)
    /// nor its last.
    pub fn pods(self) -> Range<u32> {
        self.base.saturating_add(2)..(self.base | !mask(self.bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks() {
        for wrong in ["", "10.42.0.0", "10.42.0.1/24", "10.42.0.0/33", "x/24", "1.2.3.4/-1"] {
            assert!(wrong.parse::<Block>().is_err(), "{wrong}");
        }
        let network: Block = "10.42.0.0/16".parse().unwrap();
        assert_eq!(network.count(24), 256);
        assert_eq!(network.nth(24, 255).unwrap().to_string(), "10.42.255.0/24");
        assert_eq!(network.nth(24, 256), None);
        assert!(network.overlaps("10.42.7.0/24".parse().unwrap()));
        assert!(!network.overlaps("10.43.0.0/24".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Block>().unwrap().contains([1, 2, 3, 4].into()));
        assert_eq!(Block::around([10, 42, 3, 9].into(), 24), "10.42.3.0/24".parse().unwrap());
    }

    #[test]
    fn a_nodes_block() {
        let block: Block = "10.42.3.0/29".parse().unwrap();
        assert_eq!(block.gateway(), Ipv4Addr::new(10, 42, 3, 1));
        let pods: Vec<Ipv4Addr> = block.pods().map(Ipv4Addr::from).collect();
        assert_eq!(pods.first(), Some(&Ipv4Addr::new(10, 42, 3, 2)));
        assert_eq!(pods.last(), Some(&Ipv4Addr::new(10, 42, 3, 6)));
        for tiny in ["10.0.0.0/32", "10.0.0.0/31", "255.255.255.255/32"] {
            assert!(tiny.parse::<Block>().unwrap().pods().is_empty(), "{tiny}");
        }
    }
}
