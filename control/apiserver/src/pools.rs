//! Numbers that must never be given out twice: cluster IPs and node ports.
//!
//! Each pool is a bitmap, rebuilt from the stored Services at start. A number is taken before its
//! Service is stored and given back if that fails, so concurrent creates cannot get the same one.
//! Cluster IPs come from the configured range first, then from those that ServiceCIDRs add.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rimward_api::Status;
use rimward_control_store::{ListRequest, Store};
use serde_json::Value;

use crate::error;
use crate::mirror::Mirrored;
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

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
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

    fn is_taken(&self, n: usize) -> bool {
        self.words[n / 64] & (1 << (n % 64)) != 0
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
    /// Everywhere it counts: ranges may overlap.
    places: Vec<(Arc<Pool>, usize)>,
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
            self.places.iter().for_each(|(pool, n)| pool.give_back(*n));
        }
    }
}

/// The ranges that cluster IPs come from: the configured one, and those of ServiceCIDR objects.
struct Ranges {
    /// The configured range is the first, and stays.
    all: Vec<Range>,
    /// Addresses that Services hold in no range: they stay theirs if one is added that has them.
    strays: HashSet<Ipv4Addr>,
}

struct Range {
    /// The ServiceCIDR, and which of its networks.
    source: (String, usize),
    cidr: Cidr,
    /// No address is given out of a range that is on its way out.
    open: bool,
    pool: Arc<Pool>,
}

impl Range {
    fn new(source: (String, usize), cidr: Cidr) -> Self {
        let pool = Pool::new(cidr.size());
        // The network's own and its broadcast address are no host's.
        pool.bits.lock().take(0);
        pool.bits.lock().take(cidr.size() - 1);
        Self { source, cidr, open: true, pool: Arc::new(pool) }
    }
}

impl Ranges {
    fn places(&self, address: Ipv4Addr) -> Vec<(Arc<Pool>, usize)> {
        let each = self.all.iter();
        each.filter_map(|r| Some((r.pool.clone(), r.cidr.index(address)?))).collect()
    }

    /// Takes an address wherever it counts; all or nothing.
    fn take(&self, address: Ipv4Addr) -> Result<Vec<(Arc<Pool>, usize)>, Refusal> {
        let places = self.places(address);
        for (i, (pool, n)) in places.iter().enumerate() {
            if let Err(e) = pool.take(*n) {
                places[..i].iter().for_each(|(pool, n)| pool.give_back(*n));
                return Err(e);
            }
        }
        Ok(places)
    }

    fn add(&mut self, range: Range) {
        for other in &self.all {
            let bits = other.pool.bits.lock();
            let hosts = 1..other.cidr.size() - 1;
            let taken = hosts.filter(|n| bits.is_taken(*n)).map(|n| other.cidr.nth(n));
            for n in taken.filter_map(|address| range.cidr.index(address)) {
                let _marked_twice_is_fine = range.pool.take(n);
            }
        }
        self.strays.retain(|address| match range.cidr.index(*address) {
            Some(n) => {
                let _marked_twice_is_fine = range.pool.take(n);
                false
            }
            None => true,
        });
        self.all.push(range);
    }

    fn remove(&mut self, name: &str) {
        let (gone, kept): (Vec<Range>, Vec<Range>) =
            std::mem::take(&mut self.all).into_iter().partition(|r| r.source.0 == name);
        self.all = kept;
        for range in gone {
            let bits = range.pool.bits.lock();
            for n in (1..range.cidr.size() - 1).filter(|n| bits.is_taken(*n)) {
                let address = range.cidr.nth(n);
                if self.places(address).is_empty() {
                    self.strays.insert(address);
                }
            }
        }
    }
}

/// Clones are handles to the same pools.
#[derive(Clone)]
pub struct Pools {
    cidr: Cidr,
    ports: std::ops::RangeInclusive<u16>,
    ranges: Arc<RwLock<Ranges>>,
    node_ports: Arc<Pool>,
}

/// The name of the ServiceCIDR that stands for the configured range.
pub const DEFAULT_RANGE: &str = "kubernetes";

impl Pools {
    pub fn new(cidr: Cidr, ports: std::ops::RangeInclusive<u16>) -> Self {
        let count = usize::from(ports.end().saturating_sub(*ports.start())) + 1;
        let configured = Range::new((DEFAULT_RANGE.into(), 0), cidr);
        let ranges = Ranges { all: vec![configured], strays: HashSet::new() };
        let node_ports = Arc::new(Pool::new(count));
        Self { cidr, ports, ranges: Arc::new(RwLock::new(ranges)), node_ports }
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
                let mut ranges = self.ranges.write();
                match ranges.take(address) {
                    Ok(places) if places.is_empty() => {
                        ranges.strays.insert(address);
                    }
                    Ok(_) => {}
                    Err(_) => {
                        tracing::warn!(service = %entry.key, %address, "holds a cluster IP that is twice taken");
                    }
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

    /// What a ServiceCIDR says now: its networks, and whether addresses may be given out of them.
    /// The configured range follows the configuration, whatever is stored.
    fn follow(&self, name: &str, networks: &[Cidr], open: bool) {
        let mut ranges = self.ranges.write();
        if name == DEFAULT_RANGE {
            return;
        }
        let known: Vec<Cidr> =
            ranges.all.iter().filter(|r| r.source.0 == name).map(|r| r.cidr).collect();
        if known != networks {
            ranges.remove(name);
            for (i, cidr) in networks.iter().enumerate() {
                ranges.add(Range::new((name.to_owned(), i), *cidr));
            }
        }
        ranges.all.iter_mut().filter(|r| r.source.0 == name).for_each(|r| r.open = open);
    }

    fn port_index(&self, port: u16) -> Option<usize> {
        self.ports.contains(&port).then(|| usize::from(port - self.ports.start()))
    }

    fn hold(places: Vec<(Arc<Pool>, usize)>) -> Reservation {
        Reservation { places, kept: false }
    }

    pub fn address(&self, wanted: Ipv4Addr) -> Result<Reservation, Refusal> {
        let ranges = self.ranges.read();
        if !ranges.all.iter().any(|r| r.open && r.cidr.index(wanted).is_some()) {
            return Err(Refusal::OutOfRange);
        }
        ranges.take(wanted).map(Self::hold)
    }

    pub fn any_address(&self) -> Result<(Ipv4Addr, Reservation), Refusal> {
        let ranges = self.ranges.read();
        for range in ranges.all.iter().filter(|r| r.open) {
            while let Ok(n) = range.pool.take_any() {
                let address = range.cidr.nth(n);
                let mut places = vec![(range.pool.clone(), n)];
                let others = ranges.places(address);
                let mut others =
                    others.into_iter().filter(|(pool, _)| !Arc::ptr_eq(pool, &range.pool));
                // Another range that has it too may know it as no host's.
                let free = others.all(|(pool, n)| {
                    let taken = pool.take(n).is_ok();
                    if taken {
                        places.push((pool, n));
                    }
                    taken
                });
                if free {
                    return Ok((address, Self::hold(places)));
                }
                places[1..].iter().for_each(|(pool, n)| pool.give_back(*n));
            }
        }
        Err(Refusal::Exhausted)
    }

    pub fn port(&self, wanted: u16) -> Result<Reservation, Refusal> {
        let n = self.port_index(wanted).ok_or(Refusal::OutOfRange)?;
        self.node_ports.take(n)?;
        Ok(Self::hold(vec![(self.node_ports.clone(), n)]))
    }

    pub fn any_port(&self) -> Result<(u16, Reservation), Refusal> {
        let n = self.node_ports.take_any()?;
        Ok((self.ports.start() + n as u16, Self::hold(vec![(self.node_ports.clone(), n)])))
    }

    /// Gives back what `old` held and `new` does not.
    pub fn release(&self, old: &Value, new: Option<&Value>) {
        let (old, new) = (Held::of(old), new.map(Held::of).unwrap_or_default());
        for address in old.addresses.iter().filter(|a| !new.addresses.contains(a)) {
            let mut ranges = self.ranges.write();
            ranges.strays.remove(address);
            ranges.places(*address).iter().for_each(|(pool, n)| pool.give_back(*n));
        }
        for port in old.ports.iter().filter(|p| !new.ports.contains(p)) {
            if let Some(n) = self.port_index(*port) {
                self.node_ports.give_back(n);
            }
        }
    }
}

impl Mirrored for Pools {
    fn replace(&self, all: Vec<(String, Stored)>) {
        let known: Vec<String> =
            self.ranges.read().all.iter().map(|r| r.source.0.clone()).collect();
        for name in known.iter().filter(|name| !all.iter().any(|(key, _)| key == *name)) {
            self.remove(name);
        }
        all.iter().for_each(|(key, stored)| self.put(key, stored));
    }

    fn put(&self, key: &str, stored: &Stored) {
        let Ok(object) = serde_json::from_slice::<Value>(stored.record.body()) else { return };
        let networks = object["spec"].get("cidrs").and_then(Value::as_array);
        let networks = networks.into_iter().flatten().filter_map(|c| c.as_str()?.parse().ok());
        let conditions = object["status"].get("conditions").and_then(Value::as_array);
        let unready = |c: &Value| c["type"] == "Ready" && c["status"] == "False";
        let unready = conditions.is_some_and(|c| c.iter().any(unready));
        self.follow(key, &networks.collect::<Vec<_>>(), !unready && !stored.record.deleting());
    }

    fn remove(&self, key: &str) {
        if key != DEFAULT_RANGE {
            self.ranges.write().remove(key);
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

    #[test]
    fn ranges_come_and_go() {
        let cidr = |text: &str| text.parse::<Cidr>().expect("a network");
        let ip = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
        let pools = Pools::new(cidr("10.43.0.0/30"), 30000..=32767);
        let mut held: Vec<Reservation> = Vec::new();
        for _ in 0..2 {
            held.push(pools.any_address().expect("two hosts").1);
        }
        assert_eq!(pools.any_address().err(), Some(Refusal::Exhausted));
        pools.follow("more", &[cidr("10.44.0.0/30")], true);
        let (address, more) = pools.any_address().expect("of the new range");
        assert!(cidr("10.44.0.0/30").index(address).is_some());
        // An overlapping range knows what is taken.
        pools.follow("wide", &[cidr("10.44.0.0/29")], true);
        assert_eq!(pools.address(address).err(), Some(Refusal::Taken));
        // One that is on its way out gives nothing out.
        pools.follow("wide", &[cidr("10.44.0.0/29")], false);
        assert_eq!(pools.address(ip("10.44.0.5")).err(), Some(Refusal::OutOfRange));
        // What was held outlives its range.
        Mirrored::remove(&pools, "more");
        Mirrored::remove(&pools, "wide");
        assert_eq!(pools.address(address).err(), Some(Refusal::OutOfRange));
        pools.follow("again", &[cidr("10.44.0.0/29")], true);
        assert_eq!(pools.address(address).err(), Some(Refusal::Taken));
        drop(more);
    }
}
