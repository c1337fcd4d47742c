//! Services as nftables maps, changed in atomic batches.
//!
//! A Service port is a chain that picks a backend; two maps lead to the chains: by (address, protocol,
//! port), and by (protocol, node port). A change rewrites only the chains and elements of the Services
//! that changed. Ports without a ready backend are refused at once.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use rimward_api::ObjectKey;

use super::command::{CommandError, run};
use super::{Config, Fixed, Names};
use crate::services::{Entry, Protocol, Route};

/// Makes the table anew in both namespaces: maps and base chains, no Services. The Services follow with
/// the first state; connections that are up are not touched, the kernel tracks them by itself.
pub(crate) async fn ensure(names: &Names, config: &Config) -> Result<(), CommandError> {
    let nat = format!(
        "chain postrouting {{ type nat hook postrouting priority srcnat;
           oifname {veth:?} ip saddr 127.0.0.0/8 masquerade
           oifname {tun:?} ip saddr != {block} masquerade
           ip saddr {block} oifname != {{ {veth:?}, {tun:?} }} masquerade
         }}",
        veth = names.veth,
        tun = names.tun,
        block = config.pod_block,
    );
    on_host(&table(names, &nat)).await?;
    in_pods(names, &table(names, "")).await
}

fn table(names: &Names, nat: &str) -> String {
    let name = &names.table;
    let lead = "ip daddr . meta l4proto . th dport vmap @addresses
           fib daddr type local meta l4proto . th dport vmap @node_ports";
    let refuse = "ip daddr . meta l4proto . th dport @refused reject
           fib daddr type local meta l4proto . th dport @refused_node_ports reject";
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

/// What is in the kernel, to know what to take out.
pub(crate) struct Rules {
    names: Names,
    fixed: Vec<Fixed>,
    fixed_done: bool,
    installed: BTreeMap<ObjectKey, Vec<Route>>,
}

impl Rules {
    pub fn new(names: Names, fixed: Vec<Fixed>) -> Self {
        Self { names, fixed, fixed_done: false, installed: BTreeMap::new() }
    }

    pub fn known(&self) -> Vec<ObjectKey> {
        self.installed.keys().cloned().collect()
    }

    /// Brings the kernel to these routes for these Services, in one transaction per namespace.
    pub async fn apply(
        &mut self,
        wanted: BTreeMap<ObjectKey, Vec<Route>>,
    ) -> Result<(), CommandError> {
        let wanted: BTreeMap<ObjectKey, Vec<Route>> =
            wanted.into_iter().map(|(key, routes)| (key, self.without_fixed(routes))).collect();
        let mut script = String::new();
        if !self.fixed_done {
            self.fixed.iter().for_each(|fixed| fixed_script(&mut script, &self.names.table, fixed));
        }
        for (key, routes) in &wanted {
            let old = self.installed.get(key).map_or(&[][..], Vec::as_slice);
            if old != routes.as_slice() {
                change(&mut script, &self.names.table, old, routes);
            }
        }
        if script.is_empty() {
            return Ok(());
        }
        on_host(&script).await?;
        in_pods(&self.names, &script).await?;
        self.fixed_done = true;
        for (key, routes) in wanted {
            if routes.is_empty() {
                self.installed.remove(&key);
            } else {
                self.installed.insert(key, routes);
            }
        }
        Ok(())
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
    let text = format!("{}/{}/{port_name}/{entries:?}", service.namespace, service.name);
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let readable: String = format!("{}_{}", service.namespace, service.name)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(80)
        .collect();
    format!("svc_{readable}_{hash:016x}")
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
    let line = |script: &mut String, text: String| {
        writeln!(script, "{text}").expect("a String takes every write");
    };
    for route in old {
        let chain = chain(route);
        for (map, set, key) in route.entries.iter().map(element) {
            match route.backends.is_empty() {
                true => line(script, format!("delete element ip {table} {set} {{ {key} }}")),
                false => line(
                    script,
                    format!("delete element ip {table} {map} {{ {key} : goto {chain} }}"),
                ),
            }
        }
        if !route.backends.is_empty() {
            line(
                script,
                format!("flush chain ip {table} {chain}\ndelete chain ip {table} {chain}"),
            );
        }
    }
    for route in new {
        let chain = chain(route);
        if !route.backends.is_empty() {
            line(script, format!("add chain ip {table} {chain}"));
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let speaks = |e: &Entry| matches!(e, Entry::Address(_, p, _) | Entry::NodePort(p, _) if *p == protocol);
                if route.entries.iter().any(speaks) {
                    let pick = pick(route);
                    line(
                        script,
                        format!(
                            "add rule ip {table} {chain} meta l4proto {} {pick}",
                            protocol.name()
                        ),
                    );
                }
            }
        }
        for (map, set, key) in route.entries.iter().map(element) {
            match route.backends.is_empty() {
                true => line(script, format!("add element ip {table} {set} {{ {key} }}")),
                false => {
                    line(script, format!("add element ip {table} {map} {{ {key} : goto {chain} }}"))
                }
            }
        }
    }
}

/// One backend for a new connection: at random, or by the client's address where it shall stay.
fn pick(route: &Route) -> String {
    if let [only] = route.backends.as_slice() {
        return format!("dnat to {only}");
    }
    let count = route.backends.len();
    let by = match route.affinity_seconds {
        Some(_) => format!("jhash ip saddr mod {count}"),
        None => format!("numgen random mod {count}"),
    };
    let choices = route.backends.iter().enumerate();
    let choices: Vec<String> =
        choices.map(|(i, b)| format!("{i} : {} . {}", b.ip(), b.port())).collect();
    format!("dnat to {by} map {{ {} }}", choices.join(", "))
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
