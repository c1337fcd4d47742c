//! Where addresses and ports really are when a node has no network of its own to put them on.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// Addresses of one IPv4 network live, on this node, at the same offset of another:
/// 10.42.0.0/16 at 127.42.0.0/16, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressMap {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub prefix: u8,
}

impl AddressMap {
    fn apply(&self, ip: Ipv4Addr) -> Option<Ipv4Addr> {
        let host_bits = 32u32.saturating_sub(self.prefix.into());
        let host_mask = u32::MAX.checked_shr(32 - host_bits).unwrap_or(0);
        let (ip, from, to) = (u32::from(ip), u32::from(self.from), u32::from(self.to));
        (ip & !host_mask == from & !host_mask)
            .then(|| Ipv4Addr::from((to & !host_mask) | (ip & host_mask)))
    }
}

/// The node's rules for one pod: its own address, and where others are.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub bind_ip: IpAddr,
    /// The pod has a namespace to itself: nothing needs rewriting.
    pub own_netns: bool,
    pub user_mode: bool,
    pub maps: Vec<AddressMap>,
    /// Ports below cannot be bound by this user.
    pub first_free_port: u16,
}

impl Addresses {
    /// Where to listen when a guest asks for `ip`: a pod that shares its namespace has but its own
    /// address, which is its loopback too. None is an address that is not the pod's.
    pub fn local(&self, ip: IpAddr) -> Option<IpAddr> {
        if self.own_netns || ip == self.bind_ip {
            return Some(ip);
        }
        (ip.is_unspecified() || ip.is_loopback()).then_some(self.bind_ip)
    }

    /// Where a server listens that says nothing of addresses. In a namespace of the pod's own that is everywhere:
    /// its other containers look for it at localhost too.
    pub fn of_servers(&self) -> IpAddr {
        match self.bind_ip {
            ip if !self.own_netns => ip,
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Where to connect when a guest asks for `ip` and `port`.
    pub fn remote(&self, ip: IpAddr, port: u16) -> (IpAddr, u16) {
        if self.own_netns {
            return (ip, port);
        }
        let mapped = match ip.to_canonical() {
            IpAddr::V4(v4) => self.maps.iter().find_map(|map| map.apply(v4)).map(IpAddr::V4),
            IpAddr::V6(_) => None,
        };
        match mapped {
            Some(there) => (there, unprivileged_port(port, self.first_free_port)),
            None if is_localhost(ip) => (self.bind_ip, port),
            None => (ip, port),
        }
    }

    /// The source address of a connection to `to`, if it must be chosen. In user mode the pod's
    /// loopback address cannot reach beyond this machine.
    pub fn source(&self, to: IpAddr) -> Option<IpAddr> {
        let fits = to.is_ipv4() == self.bind_ip.is_ipv4();
        let reaches = !self.user_mode || to.is_loopback() || !self.bind_ip.is_loopback();
        (fits && reaches).then_some(self.bind_ip)
    }
}

/// 127.0.0.1 and ::1 only: other loopback addresses are other pods in user mode.
fn is_localhost(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
}

/// A port that this user cannot bind is served 8000 higher.
pub(crate) fn unprivileged_port(port: u16, first_free: u16) -> u16 {
    if port != 0 && port < first_free.min(1024) { port + 8000 } else { port }
}

/// Ports below this are served 8000 higher: all that an ordinary user may not bind, in user mode.
pub(crate) fn first_free_port(user_mode: bool) -> u16 {
    if user_mode { 1024 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(own_netns: bool) -> Addresses {
        let map = |from: &str, to: &str| AddressMap {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            prefix: 16,
        };
        Addresses {
            bind_ip: "127.42.0.9".parse().unwrap(),
            own_netns,
            user_mode: true,
            maps: vec![map("10.42.0.0", "127.42.0.0"), map("10.43.0.0", "127.43.0.0")],
            first_free_port: 1024,
        }
    }

    #[track_caller]
    fn check_remote(ip: &str, port: u16, expected: &str) {
        let (ip, port) = pod(false).remote(ip.parse().unwrap(), port);
        assert_eq!(std::net::SocketAddr::new(ip, port).to_string(), expected);
    }

    #[test]
    fn remote_addresses() {
        check_remote("10.43.0.10", 53, "127.43.0.10:8053");
        check_remote("10.42.7.3", 8080, "127.42.7.3:8080");
        check_remote("::ffff:10.42.7.3", 80, "127.42.7.3:8080");
        check_remote("127.0.0.1", 7000, "127.42.0.9:7000");
        check_remote("10.44.0.1", 80, "10.44.0.1:80");
        check_remote("192.0.2.1", 443, "192.0.2.1:443");
        assert_eq!(
            pod(true).remote("127.0.0.1".parse().unwrap(), 80),
            ("127.0.0.1".parse().unwrap(), 80)
        );
    }

    #[test]
    fn local_and_source_addresses() {
        let own: IpAddr = "127.42.0.9".parse().unwrap();
        assert_eq!(pod(false).local("0.0.0.0".parse().unwrap()), Some(own));
        assert_eq!(pod(false).local("127.0.0.1".parse().unwrap()), Some(own));
        assert_eq!(pod(false).local("192.0.2.1".parse().unwrap()), None);
        assert_eq!((pod(false).of_servers(), pod(true).of_servers().is_unspecified()), (own, true));
        assert_eq!(pod(false).source("192.0.2.1".parse().unwrap()), None);
        assert_eq!(pod(false).source("127.43.0.1".parse().unwrap()), Some(own));
    }
}
