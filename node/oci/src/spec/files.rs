//! The files of /etc that are the node's to write.

use std::fmt::Write;

use rimward_node_pod::runtime::{ContainerSpec, Dns};

/// As the kubelet manages it: the machine's own for a pod on the machine's network would say other names,
/// so such a pod gets this one too, with its aliases.
pub(crate) fn hosts(spec: &ContainerSpec) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for (ip, names) in &spec.hosts {
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
    if dns.ndots > 1 {
        writeln!(text, "options ndots:{}", dns.ndots).expect("a String takes every write");
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
        };
        assert_eq!(
            resolv_conf(&dns),
            "search n.svc.cluster.local lan\nnameserver 10.43.0.10\noptions ndots:5\n"
        );
        let mut spec = crate::spec::tests::container();
        spec.hosts = vec![("10.42.0.5".parse().unwrap(), vec!["p.s".into(), "p".into()])];
        assert!(hosts(&spec).ends_with("\n10.42.0.5\tp.s\tp\n"));
    }
}
