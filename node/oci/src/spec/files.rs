//! The files of /etc that are the node's to write.

use std::fmt::Write;
use std::net::IpAddr;

use rimward_node_pod::runtime::{ContainerSpec, Dns};

/// As the kubelet manages it. A pod on the machine's network has the `machine`'s names instead of its own.
pub(crate) fn hosts(spec: &ContainerSpec, machine: Option<&str>) -> String {
    let (own, aliases) = spec.hosts.split_first().map_or((None, &[][..]), |(o, a)| (Some(o), a));
    let mut text = match machine {
        Some(machine) => format!("# Kubernetes-managed hosts file (host network).\n{machine}"),
        None => own_hosts(own),
    };
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
    }
    for (ip, names) in aliases {
        writeln!(text, "{ip}\t{}", names.join("\t")).expect("a String takes every write");
    }
    text
}

fn own_hosts(own: Option<&(IpAddr, Vec<String>)>) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    if let Some((ip, names)) = own {
        writeln!(text, "{ip}\t{}", names.join("\t")).expect("a String takes every write");
    }
    text
}

/// Port 53 is all that this file can say; node and pod network see to that.
pub(crate) fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        writeln!(text, "search {}", dns.searches.join(" ")).expect("a String takes every write");
    }
    for server in &dns.servers {
        writeln!(text, "nameserver {}", server.ip()).expect("a String takes every write");
    }
    let ndots = (dns.ndots > 1).then(|| format!("ndots:{}", dns.ndots));
    let options: Vec<String> = ndots.into_iter().chain(dns.options.iter().cloned()).collect();
    if !options.is_empty() {
        writeln!(text, "options {}", options.join(" ")).expect("a String takes every write");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let dns = Dns {
            servers: vec!["10.43.0.10:53".parse().unwrap()],
            searches: vec!["n.svc.cluster.local".into(), "lan".into()],
            ndots: 5,
            options: vec!["edns0".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search n.svc.cluster.local lan\nnameserver 10.43.0.10\noptions ndots:5 edns0\n"
        );
        let mut spec = crate::spec::tests::container();
        spec.hosts = vec![("10.42.0.5".parse().unwrap(), vec!["p.s".into(), "p".into()])];
        assert!(hosts(&spec, None).ends_with("\n10.42.0.5\tp.s\tp\n"));
        spec.hosts.push(("192.0.2.7".parse().unwrap(), vec!["a".into(), "b".into()]));
        let aliases = "\n# Entries added by HostAliases.\n192.0.2.7\ta\tb\n";
        assert!(hosts(&spec, None).ends_with(&format!("\n10.42.0.5\tp.s\tp\n{aliases}")));
        let expected =
            format!("# Kubernetes-managed hosts file (host network).\n127.0.0.1 here\n{aliases}");
        assert_eq!(hosts(&spec, Some("127.0.0.1 here\n")), expected);
    }
}
