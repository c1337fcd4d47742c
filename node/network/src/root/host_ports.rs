//! Ports of the machine that lead to pods (`hostPort`), in a table of their own: it is small, and written
//! anew as a whole in one transaction when a pod comes or goes.
//!
//! Which pod has which ports is kept on disk too: the first pod that an agent attaches must not take the
//! others' ways in along.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rimward_node_pod::outside::{HostPort, Transport};
use serde::{Deserialize, Serialize};

use super::command::{CommandError, Tools};
use super::{Config, Names};
use crate::addresses::Addresses;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Published {
    address: Ipv4Addr,
    ports: Vec<HostPort>,
}

type ByPod = BTreeMap<String, Published>;

pub(super) struct HostPorts {
    record: PathBuf,
    table: String,
    /// The rule by which a pod that calls a pod of this node through such a port gets its answers.
    hairpin: String,
    tools: Arc<dyn Tools>,
    by_pod: tokio::sync::Mutex<ByPod>,
}

impl HostPorts {
    /// With what an earlier agent published, of pods that still have an address.
    pub async fn open(
        names: &Names,
        config: &Config,
        addresses: &Addresses,
        tools: Arc<dyn Tools>,
    ) -> Result<Self, CommandError> {
        let record = config.dir.with_file_name("host-ports.json");
        let text = std::fs::read(&record).unwrap_or_default();
        let mut by_pod: ByPod = serde_json::from_slice(&text).unwrap_or_default();
        by_pod.retain(|uid, published| addresses.of(uid) == Some(published.address));
        // Masquerading is what others do there too; of Services the caller's address is kept.
        let hairpin = format!(
            "ip saddr {} oifname \"{}*\" ct status dnat ct original ip daddr != {} masquerade",
            config.pod_block, names.devices, config.service_block
        );
        let this = Self {
            record,
            table: format!("{}_ports", names.table),
            hairpin,
            tools,
            by_pod: tokio::sync::Mutex::default(),
        };
        if !by_pod.is_empty() {
            this.write(&by_pod).await?;
        }
        *this.by_pod.lock().await = by_pod;
        Ok(this)
    }

    pub async fn publish(
        &self,
        uid: &str,
        address: Ipv4Addr,
        ports: &[HostPort],
    ) -> Result<(), String> {
        let published = Published { address, ports: ports.to_vec() };
        let mut by_pod = self.by_pod.lock().await;
        if by_pod.get(uid) == Some(&published) {
            return Ok(());
        }
        let mut next = by_pod.clone();
        next.insert(uid.to_owned(), published);
        self.change(&mut by_pod, next).await
    }

    pub async fn withdraw(&self, uid: &str) -> Result<(), String> {
        let mut by_pod = self.by_pod.lock().await;
        let mut next = by_pod.clone();
        match next.remove(uid) {
            Some(_) => self.change(&mut by_pod, next).await,
            None => Ok(()),
        }
    }

    async fn change(&self, now: &mut ByPod, next: ByPod) -> Result<(), String> {
        self.write(&next).await.map_err(|e| e.to_string())?;
        let text = serde_json::to_vec(&next).expect("it is plain data");
        let failed = |e: std::io::Error| format!("{}: {e}", self.record.display());
        replace(&self.record, &text).map_err(failed)?;
        *now = next;
        Ok(())
    }

    async fn write(&self, by_pod: &ByPod) -> Result<(), CommandError> {
        let script = match by_pod.is_empty() {
            true => anew(&self.table),
            false => anew(&self.table) + &table(&self.table, &self.hairpin, by_pod),
        };
        self.tools.run("nft -f -", &script).await.map(drop)
    }
}

fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("json.new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

fn anew(table: &str) -> String {
    format!("table ip {table} {{}}\ndelete table ip {table}\n")
}

/// Before the tables of Services: what a pod was given is not a NodePort's.
fn table(table: &str, hairpin: &str, by_pod: &ByPod) -> String {
    let mut rules: Vec<(bool, String)> = Vec::new();
    for Published { address, ports } in by_pod.values() {
        for HostPort { protocol, host_ip, host_port, container_port } in ports {
            let protocol = match protocol {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
                Transport::Sctp => "sctp",
            };
            let at = match host_ip {
                None => String::new(),
                Some(IpAddr::V4(ip)) => format!("ip daddr {ip} "),
                // The tables are IPv4's.
                Some(IpAddr::V6(_)) => continue,
            };
            let rule =
                format!("    {at}{protocol} dport {host_port} dnat to {address}:{container_port}");
            rules.push((host_ip.is_none(), rule));
        }
    }
    // Those of one address come first.
    rules.sort();
    let mut text = format!("table ip {table} {{\n  chain ports {{\n");
    for (_, rule) in rules {
        writeln!(text, "{rule}").expect("a String takes every write");
    }
    text += "  }\n";
    for (name, hook) in [("prerouting", "prerouting"), ("output", "output")] {
        writeln!(
            text,
            "  chain {name} {{ type nat hook {hook} priority -110; fib daddr type local jump ports; }}"
        )
        .expect("a String takes every write");
    }
    writeln!(
        text,
        "  chain postrouting {{ type nat hook postrouting priority 90; {hairpin}; }}\n}}"
    )
    .expect("a String takes every write");
    text
}

/// Takes the table away.
pub(super) async fn remove(names: &Names, config: &Config, tools: &dyn Tools) {
    let _gone_already = std::fs::remove_file(config.dir.with_file_name("host-ports.json"));
    if let Err(error) = tools.run("nft -f -", &anew(&format!("{}_ports", names.table))).await {
        tracing::warn!(%error, "cannot remove the rules of host ports");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(protocol: Transport, host_ip: Option<&str>, host_port: u16) -> HostPort {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        HostPort { protocol, host_ip, host_port, container_port: 80 }
    }

    #[test]
    fn one_address_prevails_over_all() {
        let pod = |last: u8, ports| Published { address: [10, 42, 0, last].into(), ports };
        let by_pod = BTreeMap::from([
            ("a".to_owned(), pod(2, vec![port(Transport::Tcp, None, 8080)])),
            ("b".to_owned(), pod(3, vec![port(Transport::Tcp, Some("192.0.2.7"), 8080)])),
            ("c".to_owned(), pod(4, vec![port(Transport::Udp, Some("::1"), 53)])),
        ]);
        let text = table("t", "hairpin", &by_pod);
        let rules: Vec<&str> =
            text.lines().filter(|l| l.contains("dnat to")).map(str::trim).collect();
        assert_eq!(
            rules,
            [
                "ip daddr 192.0.2.7 tcp dport 8080 dnat to 10.42.0.3:80",
                "tcp dport 8080 dnat to 10.42.0.2:80"
            ]
        );
    }
}
