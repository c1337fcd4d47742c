//! Services as nftables maps, changed in atomic batches.
//!
//! A Service port is a chain that picks a backend; two maps lead to the chains: by (address, protocol,
//! port), and by (protocol, node port). A change rewrites only the chains and elements of the Services
//! that changed. Ports without a ready backend are refused at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use rimward_api::ObjectKey;

use super::command::{CommandError, run};
use super::{Config, Fixed, HOST_END, Names};
use crate::services::{Entry, Protocol, Route};

/// The table without Services: maps and base chains, in both namespaces. Making it anew touches no
/// connection that is up, the kernel tracks those by itself.
#[derive(Clone)]
pub(crate) struct Skeleton {
    host: String,
    pods: String,
}

impl Skeleton {
    pub fn new(names: &Names, config: &Config) -> Self {
        let Names { tun, devices, .. } = names;
        // The veths, all of them, and the TUN device.
        let own = format!("\"{devices}*\"");
        let block = config.pod_block;
        // What leaves for a Service may carry the veth's address, which no other machine can answer.
        let nat = format!(
            "chain postrouting {{ type nat hook postrouting priority srcnat;
               oifname {own} ip saddr 127.0.0.0/8 masquerade
               oifname {tun:?} ip saddr != {block} masquerade
               ip saddr {block} oifname != {own} masquerade
               ip saddr {HOST_END} oifname != {own} masquerade
             }}"
        );
        Self { host: table(names, config, &nat), pods: table(names, config, "") }
    }

    /// Makes the tables, without Services; these follow with the first state.
    pub async fn ensure(&self, names: &Names) -> Result<(), CommandError> {
        on_host(&self.host).await?;
        in_pods(names, &self.pods).await
    }
}

/// What is still addressed to the Service network after DNAT leads nowhere: without the last rule it would
/// go round between the two namespaces, whose routes for that network point at each other.
fn table(names: &Names, config: &Config, nat: &str) -> String {
    let name = &names.table;
    let lead = "ip daddr . meta l4proto . th dport vmap @addresses
           fib daddr type local meta l4proto . th dport vmap @node_ports";
    let refuse = format!(
        "ip daddr . meta l4proto . th dport @refused reject
           fib daddr type local meta l4proto . th dport @refused_node_ports reject
           ip daddr {} reject",
        config.service_block
    );
    format!(
        "table ip {name} {{}}
         delete table ip {name}
         table ip {name} {{
           map addresses {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
           map node_ports {{ type inet_proto . inet_service : verdict; }}
           set refused {{ type ipv4_addr . inet_proto . inet_service; }}
           set refused_node_ports {{ type inet_proto . inet_service; }}
           chain prerouting {{ type nat hook prerouting priority dstnat; {lead}\n }}
           chain output {{ type nat hook output priority -100; {lead}\n }}
           chain refuse_output {{ type filter hook output priority filter; {refuse}\n }}
           chain refuse_forward {{ type filter hook forward priority filter; {refuse}\n }}
           {nat}
         }}\n"
    )
}

pub(crate) async fn remove(names: &Names) {
    let gone = format!("delete table ip {}\n", names.table);
    if let Err(error) = on_host(&gone).await {
        tracing::warn!(%error, "cannot remove the Service rules");
    }
}

async fn on_host(script: &str) -> Result<(), CommandError> {
    run("nft -f -", script).await.map(drop)
}

async fn in_pods(names: &Names, script: &str) -> Result<(), CommandError> {
    let command = format!("nsenter --net=/run/netns/{} nft -f -", names.namespace);
    run(&command, script).await.map(drop)
}

/// Clients that a backend remembers for session affinity.
const AFFINE_CLIENTS_MAX: u32 = 65_535;

/// What is in the kernel, to know what to take out.
pub(crate) struct Rules {
    names: Names,
    skeleton: Skeleton,
    fixed: Vec<Fixed>,
    wanted: BTreeMap<ObjectKey, Vec<Route>>,
    /// Whether the kernel has just what `wanted` says. If not, the next change makes the tables anew: after
    /// a batch that went into one namespace only, or that a stranger's hand made fail, differences are
    /// unknown.
    certain: bool,
}

impl Rules {
    pub fn new(names: Names, skeleton: Skeleton, fixed: Vec<Fixed>) -> Self {
        Self { names, skeleton, fixed, wanted: BTreeMap::new(), certain: false }
    }

    pub fn known(&self) -> Vec<ObjectKey> {
        self.wanted.keys().cloned().collect()
    }

    /// Brings the kernel to these routes for these Services, in one transaction per namespace. What failed
    /// before is tried again too.
    pub async fn apply(
        &mut self,
        changed: BTreeMap<ObjectKey, Vec<Route>>,
    ) -> Result<(), CommandError> {
        let mut differences = String::new();
        for (key, routes) in changed {
            let routes = self.without_fixed(routes);
            let old = match routes.is_empty() {
                true => self.wanted.remove(&key).unwrap_or_default(),
                false => self.wanted.insert(key.clone(), routes.clone()).unwrap_or_default(),
            };
            if self.certain && old != routes {
                change(&mut differences, &self.names.table, &old, &routes);
            }
        }
        let (host, pods) = match self.certain {
            true if differences.is_empty() => return Ok(()),
            true => (differences.clone(), differences),
            false => self.whole(),
        };
        self.certain = false;
        on_host(&host).await?;
        in_pods(&self.names, &pods).await?;
        self.certain = true;
        Ok(())
    }

    /// Both tables from nothing.
    fn whole(&self) -> (String, String) {
        let mut services = String::new();
        self.fixed.iter().for_each(|fixed| fixed_script(&mut services, &self.names.table, fixed));
        for routes in self.wanted.values() {
            change(&mut services, &self.names.table, &[], routes);
        }
        (format!("{}{services}", self.skeleton.host), format!("{}{services}", self.skeleton.pods))
    }

    /// The agent's own servers stand where objects say otherwise (the API as this node reaches it).
    fn without_fixed(&self, mut routes: Vec<Route>) -> Vec<Route> {
        for route in &mut routes {
            route.entries.retain(|entry| match entry {
                Entry::Address(IpAddr::V4(ip), protocol, port) => !self
                    .fixed
                    .iter()
                    .any(|f| (f.address, f.protocol, f.port) == (*ip, *protocol, *port)),
                // The tables are IPv4's.
                Entry::Address(IpAddr::V6(_), ..) => false,
                Entry::NodePort(..) => true,
            });
            route.backends.retain(SocketAddr::is_ipv4);
        }
        routes.retain(|route| !route.entries.is_empty());
        routes
    }
}

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
fn fnv(text: &str) -> u64 {
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

/// Takes the old routes of a Service out and puts the new ones in.
fn change(script: &mut String, table: &str, old: &[Route], new: &[Route]) {
    let mut line = |text: String| {
        writeln!(script, "{text}").expect("a String takes every write");
    };
    let stays: BTreeSet<String> = new.iter().flat_map(sticky).map(|s| s.clients).collect();
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
            clients: format!("of_{hash:016x}"),
            to: *to,
            seconds,
        }
    };
    route.backends.iter().map(of).collect()
}

fn fixed_script(script: &mut String, table: &str, fixed: &Fixed) {
    let Fixed { address, protocol, port, to } = fixed;
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
