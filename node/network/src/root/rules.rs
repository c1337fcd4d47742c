//! Services in the words of nft. Pure.
//!
//! A Service port is a chain that picks a backend; two maps lead to the chains: by (address, protocol,
//! port), and by (protocol, node port). A change rewrites only the chains and elements of the Services
//! that changed. Ports without a ready backend are refused at once.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;

use super::Fixed;
use crate::services::{Entry, Protocol, Route};

/// Clients that a backend remembers for session affinity.
const AFFINE_CLIENTS_MAX: u32 = 65_535;

/// A chain's name: a Service's identity in the characters that nft takes. Names that are too long or
/// would read alike are told apart by a hash.
fn chain(route: &Route) -> String {
    let Route { service, port_name, entries, .. } = route;
    let hash = fnv(&format!("{}/{}/{port_name}/{entries:?}", service.namespace, service.name));
    let readable: String = format!("{}_{}", service.namespace, service.name)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(80)
        .collect();
    format!("svc_{readable}_{hash:016x}")
}

/// FNV-1a: names must be the same in every build.
pub(crate) fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// (map or set of entries with a backend, of entries without, the element's key).
fn element(entry: &Entry) -> (&'static str, &'static str, String) {
    match entry {
        Entry::Address(ip, protocol, port) => {
            ("addresses", "refused", format!("{ip} . {} . {port}", protocol.name()))
        }
        Entry::NodePort(protocol, port) => {
            ("node_ports", "refused_node_ports", format!("{} . {port}", protocol.name()))
        }
    }
}

/// What the names of chains of Services and of fixed ways in begin with, and of the chains of their backends.
pub(crate) const CHAINS: [&str; 3] = ["svc_", "fixed_", "to_"];
/// What the names of the sets begin with that remember clients.
pub(crate) const CLIENTS: &str = "of_";

/// The sets that remember a route's clients.
pub(crate) fn clients(route: &Route) -> impl Iterator<Item = String> {
    sticky(route).into_iter().map(|sticky| sticky.clients)
}

/// Takes the old routes of a Service out and puts the new ones in.
pub(crate) fn change(script: &mut String, table: &str, old: &[Route], new: &[Route]) {
    let mut line = |text: String| {
        writeln!(script, "{text}").expect("a String takes every write");
    };
    let stays: BTreeSet<String> = new.iter().flat_map(clients).collect();
    for route in old {
        let chain = chain(route);
        for (map, set, key) in route.entries.iter().map(element) {
            match route.backends.is_empty() {
                true => line(format!("delete element ip {table} {set} {{ {key} }}")),
                false => {
                    line(format!("delete element ip {table} {map} {{ {key} : goto {chain} }}"))
                }
            }
        }
        if !route.backends.is_empty() {
            line(format!("flush chain ip {table} {chain}\ndelete chain ip {table} {chain}"));
        }
        for Sticky { chain, clients, .. } in sticky(route) {
            line(format!("flush chain ip {table} {chain}\ndelete chain ip {table} {chain}"));
            // Clients of a backend that stays keep it.
            if !stays.contains(&clients) {
                line(format!("delete set ip {table} {clients}"));
            }
        }
    }
    for route in new {
        let chain = chain(route);
        if !route.backends.is_empty() {
            for Sticky { chain, clients, to, seconds } in sticky(route) {
                line(format!(
                    "add set ip {table} {clients} {{ type ipv4_addr; size {AFFINE_CLIENTS_MAX}; flags dynamic,timeout; timeout {seconds}s; }}\n\
                     add chain ip {table} {chain}\n\
                     add rule ip {table} {chain} update @{clients} {{ ip saddr }}"
                ));
                protocols(route).for_each(|p| {
                    line(format!("add rule ip {table} {chain} meta l4proto {p} dnat to {to}"))
                });
            }
            line(format!("add chain ip {table} {chain}"));
            pick(route)
                .into_iter()
                .for_each(|rule| line(format!("add rule ip {table} {chain} {rule}")));
        }
        for (map, set, key) in route.entries.iter().map(element) {
            match route.backends.is_empty() {
                true => line(format!("add element ip {table} {set} {{ {key} }}")),
                false => line(format!("add element ip {table} {map} {{ {key} : goto {chain} }}")),
            }
        }
    }
}

/// The protocols that a route's entries speak: DNAT to a port wants one named.
fn protocols(route: &Route) -> impl Iterator<Item = &'static str> {
    let speaks = |protocol: Protocol| {
        let is = |e: &Entry| matches!(e, Entry::Address(_, p, _) | Entry::NodePort(p, _) if *p == protocol);
        route.entries.iter().any(is).then(|| protocol.name())
    };
    [speaks(Protocol::Tcp), speaks(Protocol::Udp)].into_iter().flatten()
}

/// The rules by which a new connection gets a backend: the one that its client had lately, where it shall
/// stay, else any.
fn pick(route: &Route) -> Vec<String> {
    let sticky = sticky(route);
    let mut rules: Vec<String> = sticky
        .iter()
        .map(|Sticky { chain, clients, .. }| format!("ip saddr @{clients} goto {chain}"))
        .collect();
    let count = route.backends.len();
    if sticky.is_empty() {
        let choices = route.backends.iter().enumerate();
        let choices: Vec<String> =
            choices.map(|(i, b)| format!("{i} : {} . {}", b.ip(), b.port())).collect();
        let to = match route.backends.as_slice() {
            [only] => only.to_string(),
            _ => format!("numgen random mod {count} map {{ {} }}", choices.join(", ")),
        };
        rules.extend(protocols(route).map(|p| format!("meta l4proto {p} dnat to {to}")));
    } else {
        let choices: Vec<String> =
            sticky.iter().enumerate().map(|(i, s)| format!("{i} : goto {}", s.chain)).collect();
        rules.push(match sticky.as_slice() {
            [only] => format!("goto {}", only.chain),
            _ => format!("numgen random mod {count} vmap {{ {} }}", choices.join(", ")),
        });
    }
    rules
}

/// A backend whose clients stay with it: `sessionAffinity: ClientIP`.
struct Sticky {
    chain: String,
    /// The set of the clients, each with the time for which it is still remembered.
    clients: String,
    to: SocketAddr,
    seconds: u32,
}

fn sticky(route: &Route) -> Vec<Sticky> {
    let Some(seconds) = route.affinity_seconds else { return Vec::new() };
    let of = |to: &SocketAddr| {
        let hash = fnv(&format!("{}/{to}/{seconds}", chain(route)));
        Sticky {
            chain: format!("to_{hash:016x}"),
            clients: format!("{CLIENTS}{hash:016x}"),
            to: *to,
            seconds,
        }
    };
    route.backends.iter().map(of).collect()
}

/// Puts a way in to a server of the agent.
pub(crate) fn fixed(script: &mut String, table: &str, way: &Fixed) {
    let Fixed { address, protocol, port, to } = way;
    let protocol = protocol.name();
    let chain = format!("fixed_{}_{protocol}_{port}", u32::from(*address));
    writeln!(
        script,
        "add chain ip {table} {chain}
         add rule ip {table} {chain} meta l4proto {protocol} dnat to {to}
         add element ip {table} addresses {{ {address} . {protocol} . {port} : goto {chain} }}"
    )
    .expect("a String takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;
    use rimward_api::ObjectKey;

    fn route(backends: &[&str], affinity_seconds: Option<u32>) -> Route {
        Route {
            service: ObjectKey::new("a", "web"),
            port_name: "http".into(),
            entries: vec![
                Entry::Address("10.43.0.7".parse().unwrap(), Protocol::Tcp, 80),
                Entry::NodePort(Protocol::Tcp, 30_001),
            ],
            backends: backends.iter().map(|b| b.parse().unwrap()).collect(),
            affinity_seconds,
        }
    }

    fn scripted(old: &[Route], new: &[Route]) -> String {
        let mut script = String::new();
        change(&mut script, "t", old, new);
        script
    }

    #[test]
    fn what_goes_in_comes_out() {
        for affinity in [None, Some(60)] {
            let both = route(&["10.42.0.2:8080", "10.42.0.3:8080"], affinity);
            let (added, removed) = (
                scripted(&[], std::slice::from_ref(&both)),
                scripted(std::slice::from_ref(&both), &[]),
            );
            for what in ["chain", "element", "set"] {
                let count = |script: &str, verb: &str| {
                    script.lines().filter(|l| l.starts_with(&format!("{verb} {what} "))).count()
                };
                assert_eq!(count(&added, "add"), count(&removed, "delete"), "{what}: {removed}");
            }
        }
    }

    #[test]
    fn clients_keep_a_backend_that_stays() {
        let both = route(&["10.42.0.2:8080", "10.42.0.3:8080"], Some(60));
        let one = route(&["10.42.0.3:8080"], Some(60));
        let script = scripted(&[both], &[one]);
        assert_eq!(script.lines().filter(|l| l.starts_with("delete set")).count(), 1, "{script}");
    }

    #[test]
    fn nothing_behind_is_refused() {
        let script = scripted(&[], &[route(&[], None)]);
        assert!(script.contains("add element ip t refused { 10.43.0.7 . tcp . 80 }"), "{script}");
        assert!(script.contains("refused_node_ports { tcp . 30001 }"), "{script}");
        assert!(!script.contains("chain"), "{script}");
    }
}
