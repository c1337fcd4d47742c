//! Numbers that must never be given out twice: cluster IPs and node ports.
//!
//! Each pool is a bitmap, rebuilt from the stored Services at start. A number is taken before its
//! Service is stored and given back if that fails, so concurrent creates cannot get the same one.

use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use rimward_api::Status;
use rimward_control_store::{ListRequest, Store};
use serde_json::Value;

use crate::error;
use crate::views::Stored;

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 network such as 10.43.0.0/16 (between /12 and /30)")]
pub struct NotACidr(String);

impl std::str::FromStr for Cidr {
    type Err = NotACidr;
    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let wrong = || NotACidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if !(12..=30).contains(&prefix) {
            return Err(wrong());
        }
        Ok(Self { base: u32::from(address) & (u32::MAX << (32 - prefix)), prefix })
    }
}

impl Cidr {
    fn size(&self) -> usize {
        1 << (32 - self.prefix)
    }

    /// The n-th address.
    pub fn nth(&self, n: usize) -> Ipv4Addr {
        Ipv4Addr::from(self.base + n as u32)
    }

    fn index(&self, address: Ipv4Addr) -> Option<usize> {
        let offset = u32::from(address).checked_sub(self.base)? as usize;
        (offset < self.size()).then_some(offset)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    OutOfRange,
    Taken,
    Exhausted,
}

/// A bitmap of which numbers of 0..len are taken.
struct Bitmap {
    words: Vec<u64>,
    len: usize,
    free: usize,
}

impl Bitmap {
    fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len, free: len }
    }

    fn take(&mut self, n: usize) -> bool {
        let (word, bit) = (&mut self.words[n / 64], 1 << (n % 64));
        let was_free = *word & bit == 0;
        *word |= bit;
        self.free -= usize::from(was_free);
        was_free
    }

    fn give_back(&mut self, n: usize) {
        let (word, bit) = (&mut self.words[n / 64], 1 << (n % 64));
        self.free += usize::from(*word & bit != 0);
        *word &= !bit;
    }

    /// The first free number from `start` on within `range`, around its end.
    fn free_in(&self, range: std::ops::Range<usize>, start: usize) -> Option<usize> {
        let seek = |mut n: usize, end: usize| {
            while n < end {
                let word = self.words[n / 64] >> (n % 64);
                match word.trailing_ones() as usize {
                    ones if ones >= 64 - n % 64 => n = (n / 64 + 1) * 64,
                    ones => return Some(n + ones).filter(|n| *n < end),
                }
            }
            None
        };
        seek(start, range.end).or_else(|| seek(range.start, start))
    }
}

struct Pool {
    bits: Mutex<Bitmap>,
    /// Numbers below this are given out only when the rest is taken: they are for those who ask for
    /// a particular one.
    band: usize,
}

impl Pool {
    fn new(len: usize) -> Self {
        // As Kubernetes splits its ranges: a sixteenth, at least 16, at most 256.
        let band = (len / 16).clamp(16, 256).min(len / 2);
        Self { bits: Mutex::new(Bitmap::new(len)), band }
    }

    fn take(&self, n: usize) -> Result<(), Refusal> {
        let mut bits = self.bits.lock();
        if n >= bits.len {
            return Err(Refusal::OutOfRange);
        }
        if bits.take(n) { Ok(()) } else { Err(Refusal::Taken) }
    }

    fn take_any(&self) -> Result<usize, Refusal> {
        let mut bits = self.bits.lock();
        if bits.free == 0 {
            return Err(Refusal::Exhausted);
        }
        let (band, len) = (self.band, bits.len);
        let start = rand::random_range(band..len);
        let found = bits.free_in(band..len, start).or_else(|| bits.free_in(0..band, 0));
        let n = found.ok_or(Refusal::Exhausted)?;
        bits.take(n);
        Ok(n)
    }

    fn give_back(&self, n: usize) {
        let mut bits = self.bits.lock();
        if n < bits.len {
            bits.give_back(n);
        }
    }
}

/// A number that is taken until this is dropped, or for good once kept.
pub struct Reservation {
    pool: Arc<Pool>,
    n: usize,
    kept: bool,
}

impl Reservation {
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.pool.give_back(self.n);
        }
    }
}

pub struct Pools {
    cidr: Cidr,
    ports: std::ops::RangeInclusive<u16>,
    addresses: Arc<Pool>,
    node_ports: Arc<Pool>,
}

impl Pools {
    pub fn new(cidr: Cidr, ports: std::ops::RangeInclusive<u16>) -> Self {
        let addresses = Pool::new(cidr.size());
        // The network's own and its broadcast address are no host's.
        addresses.bits.lock().take(0);
        addresses.bits.lock().take(cidr.size() - 1);
        let count = usize::from(ports.end().saturating_sub(*ports.start())) + 1;
        Self { cidr, ports, addresses: Arc::new(addresses), node_ports: Arc::new(Pool::new(count)) }
    }

    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    pub fn ports(&self) -> &std::ops::RangeInclusive<u16> {
        &self.ports
    }

    /// Marks what the stored Services hold.
    pub async fn rebuild(&self, store: &Arc<dyn Store>, prefix: &str) -> Result<(), Status> {
        let request = ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() };
        for entry in store.list(request).await.map_err(error::store)?.entries {
            let stored = Stored::open(&entry)?;
            let service: Value = serde_json::from_slice(stored.record.body())
                .map_err(|e| Status::internal(format!("{}: {e}", entry.key)))?;
            let held = Held::of(&service);
            for address in held.addresses {
                let taken = self.cidr.index(address).map(|n| self.addresses.take(n));
                if taken != Some(Ok(())) {
                    tracing::warn!(service = %entry.key, %address, "holds a cluster IP that is outside of the range, or twice taken");
                }
            }
            for port in held.ports {
                if let Some(n) = self.port_index(port) {
                    let _twice_within_one_service_is_allowed = self.node_ports.take(n);
                }
            }
        }
        Ok(())
    }

    fn port_index(&self, port: u16) -> Option<usize> {
        self.ports.contains(&port).then(|| usize::from(port - self.ports.start()))
    }

    fn hold(pool: &Arc<Pool>, n: usize) -> Reservation {
        Reservation { pool: pool.clone(), n, kept: false }
    }

    pub fn address(&self, wanted: Ipv4Addr) -> Result<Reservation, Refusal> {
        let n = self.cidr.index(wanted).ok_or(Refusal::OutOfRange)?;
        self.addresses.take(n)?;
        Ok(Self::hold(&self.addresses, n))
    }

    pub fn any_address(&self) -> Result<(Ipv4Addr, Reservation), Refusal> {
        let n = self.addresses.take_any()?;
        Ok((self.cidr.nth(n), Self::hold(&self.addresses, n)))
    }

    pub fn port(&self, wanted: u16) -> Result<Reservation, Refusal> {
        let n = self.port_index(wanted).ok_or(Refusal::OutOfRange)?;
        self.node_ports.take(n)?;
        Ok(Self::hold(&self.node_ports, n))
    }

    pub fn any_port(&self) -> Result<(u16, Reservation), Refusal> {
        let n = self.node_ports.take_any()?;
        Ok((self.ports.start() + n as u16, Self::hold(&self.node_ports, n)))
    }

    /// Gives back what `old` held and `new` does not.
    pub fn release(&self, old: &Value, new: Option<&Value>) {
        let (old, new) = (Held::of(old), new.map(Held::of).unwrap_or_default());
        for address in old.addresses.iter().filter(|a| !new.addresses.contains(a)) {
            if let Some(n) = self.cidr.index(*address) {
                self.addresses.give_back(n);
            }
        }
        for port in old.ports.iter().filter(|p| !new.ports.contains(p)) {
            if let Some(n) = self.port_index(*port) {
                self.node_ports.give_back(n);
            }
        }
    }
}

/// What a Service holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub addresses: Vec<Ipv4Addr>,
    pub ports: Vec<u16>,
}

impl Held {
    pub fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        let list = |field: &str| spec.get(field).and_then(Value::as_array).into_iter().flatten();
        let addresses =
            list("clusterIPs").filter_map(Value::as_str).filter_map(|a| a.parse().ok()).collect();
        let mut ports: Vec<u16> = list("ports")
            .filter_map(|p| p.get("nodePort")?.as_u64())
            .chain(spec.get("healthCheckNodePort").and_then(Value::as_u64))
            .filter_map(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
            .collect();
        ports.dedup();
        Self { addresses, ports }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_every_number_once_and_the_band_last() {
        let pool = Pool::new(256);
        let given: Vec<usize> = (0..256).map(|_| pool.take_any().expect("is free")).collect();
        assert!(given[..240].iter().all(|n| *n >= 16), "the band is kept back");
        let mut sorted = given;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..256).collect::<Vec<_>>());
        assert_eq!(pool.take_any(), Err(Refusal::Exhausted));
        pool.give_back(77);
        assert_eq!(pool.take(77), Ok(()));
        assert_eq!(pool.take(77), Err(Refusal::Taken));
        assert_eq!(pool.take(256), Err(Refusal::OutOfRange));
    }

    #[test]
    fn reservations_return_unless_kept() {
        let pools = Pools::new("10.43.0.0/16".parse().expect("a network"), 30000..=32767);
        let ip: Ipv4Addr = "10.43.0.10".parse().expect("an address");
        drop(pools.address(ip).expect("is free"));
        let mut held = pools.address(ip).expect("is free again");
        held.keep();
        drop(held);
        assert_eq!(pools.address(ip).err(), Some(Refusal::Taken));
        pools.release(&serde_json::json!({ "spec": { "clusterIPs": ["10.43.0.10"] } }), None);
        assert!(pools.address(ip).is_ok());
        assert_eq!(pools.address(Ipv4Addr::new(1, 2, 3, 4)).err(), Some(Refusal::OutOfRange));
        assert_eq!(pools.port(80).err(), Some(Refusal::OutOfRange));
        for wrong in ["10.0.0.0", "10.0.0.0/8", "x/16", "10.0.0.0/31"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
