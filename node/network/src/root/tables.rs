//! The node's tables of Services, one on the host and one in the pods' namespace: made, kept when the agent
//! restarts, changed in transactions.
//!
//! An agent that starts finds what the one before it routed, and lets that stand until it knows better: its
//! first transaction takes the old Services out and puts the new ones in. Connections that are up are not
//! touched, the kernel tracks those by itself; clients that stay with a backend do so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rimward_api::ObjectKey;

use super::command::{CommandError, Tools};
use super::rules::{self, CHAINS, CLIENTS, change, fnv};
use super::{Config, Fixed, HOST_END, Names};
use crate::services::{Entry, Route};

const MAPS: [&str; 2] = ["addresses", "node_ports"];
const REFUSED: [&str; 2] = ["refused", "refused_node_ports"];

/// Where a table is.
#[derive(Clone, Copy)]
enum Place {
    Host,
    Pods,
}

/// A table without Services: maps and base chains, and an empty chain whose name says which text made it.
/// Tables of another text (another version's, or for other addresses) are not kept.
#[derive(Clone)]
struct Frame {
    body: String,
    mark: String,
}

impl Frame {
    /// What is still addressed to the Service network after DNAT leads nowhere: without the last rule it
    /// would go round between the two namespaces, whose routes for that network point at each other.
    fn new(config: &Config, nat: &str) -> Self {
        let lead = "ip daddr . meta l4proto . th dport vmap @addresses
               fib daddr type local meta l4proto . th dport vmap @node_ports";
        let refuse = format!(
            "ip daddr . meta l4proto . th dport @refused reject
               fib daddr type local meta l4proto . th dport @refused_node_ports reject
               ip daddr {} reject",
            config.service_block
        );
        let body = format!(
            "  map addresses {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
               map node_ports {{ type inet_proto . inet_service : verdict; }}
               set refused {{ type ipv4_addr . inet_proto . inet_service; }}
               set refused_node_ports {{ type inet_proto . inet_service; }}
               chain prerouting {{ type nat hook prerouting priority dstnat; {lead}\n }}
               chain output {{ type nat hook output priority -100; {lead}\n }}
               chain refuse_output {{ type filter hook output priority filter; {refuse}\n }}
               chain refuse_forward {{ type filter hook forward priority filter; {refuse}\n }}
               {nat}"
        );
        let mark = format!("made_by_{:016x}", fnv(&body));
        Self { body, mark }
    }

    fn on_host(names: &Names, config: &Config) -> Self {
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
        Self::new(config, &nat)
    }

    fn make(&self, table: &str) -> String {
        let Self { body, mark } = self;
        format!("table ip {table} {{\n{body}\n chain {mark} {{ }}\n}}\n")
    }

    /// Replaces a table of unknown content.
    fn make_anew(&self, table: &str) -> String {
        format!("table ip {table} {{}}\ndelete table ip {table}\n{}", self.make(table))
    }

    /// Takes the Services out of a table that this text made; `clients` are the sets that stay.
    fn empty(&self, table: &str, found: &Listing, clients: &BTreeSet<String>) -> String {
        let mut script = String::new();
        let mut line = |text: String| {
            writeln!(script, "{text}").expect("a String takes every write");
        };
        MAPS.iter().for_each(|map| line(format!("flush map ip {table} {map}")));
        REFUSED.iter().for_each(|set| line(format!("flush set ip {table} {set}")));
        let services = || found.chains.iter().filter(|c| CHAINS.iter().any(|p| c.starts_with(p)));
        // They lead to each other: all must be empty before one can go.
        services().for_each(|chain| line(format!("flush chain ip {table} {chain}")));
        services().for_each(|chain| line(format!("delete chain ip {table} {chain}")));
        let forgotten = found.sets.iter().filter(|s| s.starts_with(CLIENTS));
        forgotten
            .filter(|set| !clients.contains(*set))
            .for_each(|set| line(format!("delete set ip {table} {set}")));
        script
    }
}

/// The names in a table, as `nft list table` shows them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listing {
    chains: BTreeSet<String>,
    sets: BTreeSet<String>,
}

impl Listing {
    fn read(text: &str) -> Self {
        let named = |kind: &str| {
            let opens =
                |line: &str| line.trim().strip_prefix(kind)?.strip_suffix(" {").map(str::to_owned);
            text.lines().filter_map(opens).collect()
        };
        Self { chains: named("chain "), sets: named("set ") }
    }
}

/// What is known of the tables in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// They are there, with what an earlier agent put in.
    Inherited,
    /// They are there without Services: this agent made them.
    Fresh,
    /// They have just what is wanted.
    Current,
    /// A batch went into one namespace only, or failed by a stranger's hand: they are made anew.
    Unknown,
}

/// Both tables, and what is wanted of them.
pub(crate) struct Tables {
    names: Names,
    tools: Arc<dyn Tools>,
    host: Frame,
    pods: Frame,
    fixed: Vec<Fixed>,
    wanted: BTreeMap<ObjectKey, Vec<Route>>,
    kernel: Kernel,
}

impl Tables {
    /// Finds the tables, or makes them without Services.
    pub async fn open(
        names: Names,
        config: &Config,
        tools: Arc<dyn Tools>,
    ) -> Result<Self, CommandError> {
        let (host, pods) = (Frame::on_host(&names, config), Frame::new(config, ""));
        let mut tables = Self {
            names,
            tools,
            host,
            pods,
            fixed: Vec::new(),
            wanted: BTreeMap::new(),
            kernel: Kernel::Fresh,
        };
        for place in [Place::Host, Place::Pods] {
            match tables.list(place).await? {
                Some(_) => tables.kernel = Kernel::Inherited,
                None => tables.batch(place, &tables.frame(place).make(&tables.names.table)).await?,
            }
        }
        Ok(tables)
    }

    /// With ways in that are always there.
    pub fn with_fixed(mut self, fixed: Vec<Fixed>) -> Self {
        self.fixed = fixed;
        self
    }

    /// Whether an earlier agent's Services are still there.
    pub fn inherited(&self) -> bool {
        self.kernel == Kernel::Inherited
    }

    pub fn known(&self) -> impl Iterator<Item = ObjectKey> {
        self.wanted.keys().cloned()
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
            if self.kernel == Kernel::Current && old != routes {
                change(&mut differences, &self.names.table, &old, &routes);
            }
        }
        let (host, pods) = match self.kernel {
            Kernel::Current if differences.is_empty() => return Ok(()),
            Kernel::Current => (differences.clone(), differences),
            _ => (self.whole(Place::Host).await?, self.whole(Place::Pods).await?),
        };
        self.kernel = Kernel::Unknown;
        self.batch(Place::Host, &host).await?;
        self.batch(Place::Pods, &pods).await?;
        self.kernel = Kernel::Current;
        Ok(())
    }

    /// One transaction after which a table has what is wanted, whatever it had.
    async fn whole(&self, place: Place) -> Result<String, CommandError> {
        let (frame, table) = (self.frame(place), &self.names.table);
        let found = match self.kernel {
            Kernel::Unknown => None,
            _ => self.list(place).await?.filter(|found| found.chains.contains(&frame.mark)),
        };
        let clients = self.wanted.values().flatten().flat_map(rules::clients).collect();
        let mut script = match found {
            Some(found) => frame.empty(table, &found, &clients),
            None => frame.make_anew(table),
        };
        self.fixed.iter().for_each(|way| rules::fixed(&mut script, table, way));
        for routes in self.wanted.values() {
            change(&mut script, table, &[], routes);
        }
        Ok(script)
    }

    fn frame(&self, place: Place) -> &Frame {
        match place {
            Place::Host => &self.host,
            Place::Pods => &self.pods,
        }
    }

    /// None where there is no such table.
    async fn list(&self, place: Place) -> Result<Option<Listing>, CommandError> {
        // Terse: without what sets remember.
        match self.nft(place, &format!("-t list table ip {}", self.names.table), "").await {
            Ok(text) => Ok(Some(Listing::read(&text))),
            Err(CommandError::Failed { .. }) => Ok(None),
            Err(missing) => Err(missing),
        }
    }

    async fn batch(&self, place: Place, script: &str) -> Result<(), CommandError> {
        self.nft(place, "-f -", script).await.map(drop)
    }

    async fn nft(&self, place: Place, words: &str, input: &str) -> Result<String, CommandError> {
        let command = match place {
            Place::Host => format!("nft {words}"),
            Place::Pods => format!("nsenter --net=/run/netns/{} nft {words}", self.names.namespace),
        };
        self.tools.run(&command, input).await
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

/// Takes the host's table away; the other one goes with its namespace.
pub(crate) async fn remove(names: &Names, tools: &dyn Tools) {
    let gone = format!("delete table ip {}\n", names.table);
    if let Err(error) = tools.run("nft -f -", &gone).await {
        tracing::warn!(%error, "cannot remove the Service rules");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read() {
        let text = "table ip t {\n\tset of_1 {\n\t\ttype ipv4_addr\n\t}\n\n\tmap addresses {\n\t}\n\n\tchain svc_a {\n\t\tmeta l4proto tcp dnat to 10.42.0.2:80\n\t}\n\tchain output {\n\t}\n}\n";
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let expected = Listing { chains: names(&["output", "svc_a"]), sets: names(&["of_1"]) };
        assert_eq!(Listing::read(text), expected);
    }
}
