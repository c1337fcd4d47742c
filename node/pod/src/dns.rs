//! A pod's resolver settings from its dnsPolicy and dnsConfig, and its names.
//! <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::runtime::Dns;

/// The node's own resolver settings, from the text of its resolv.conf.
pub(crate) fn of_host(resolv_conf: &str) -> Dns {
    let mut dns = Dns { ndots: 1, ..Dns::default() };
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                // A scoped address (`fe80::1%eth0`) means nothing elsewhere.
                let ip = words.next().and_then(|w| w.parse::<IpAddr>().ok());
                dns.servers.extend(ip.map(|ip| SocketAddr::new(ip, 53)));
            }
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => {
                words.for_each(|option| set_option(&mut dns, option));
            }
            _ => {}
        }
    }
    dns
}

/// The settings of one pod.
pub(crate) fn of_pod(pod: &Pod, cluster: SocketAddr, domain: &str, host: &Dns) -> Dns {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let on_host = spec.host_network == Some(true);
    let mut dns = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Dns { ndots: 1, ..Dns::default() },
        "Default" => host.clone(),
        "ClusterFirst" if on_host => host.clone(),
        _ => {
            let mut searches = vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.to_owned(),
            ];
            searches.extend(host.searches.iter().filter(|s| *s != ".").cloned());
            Dns { servers: vec![cluster], searches, ndots: 5, options: Vec::new() }
        }
    };
    let Some(config) = &spec.dns_config else { return dns };
    for server in config.nameservers.iter().flatten().filter_map(|s| s.parse::<IpAddr>().ok()) {
        let server = SocketAddr::new(server, 53);
        if !dns.servers.contains(&server) {
            dns.servers.push(server);
        }
    }
    for search in config.searches.iter().flatten() {
        if !dns.searches.contains(search) {
            dns.searches.push(search.clone());
        }
    }
    for option in config.options.iter().flatten() {
        let name = option.name.as_deref().unwrap_or_default();
        match option.value.as_deref().filter(|value| !value.is_empty()) {
            Some(value) => set_option(&mut dns, &format!("{name}:{value}")),
            None => set_option(&mut dns, name),
        }
    }
    dns
}

/// `name` or `name:value`, in the place of an earlier one of that name.
fn set_option(dns: &mut Dns, option: &str) {
    if let Some(ndots) = option.strip_prefix("ndots:") {
        dns.ndots = ndots.parse().unwrap_or(dns.ndots);
        return;
    }
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    match dns.options.iter_mut().find(|other| name(other) == name(option)) {
        Some(other) => option.clone_into(other),
        None => dns.options.push(option.to_owned()),
    }
}

/// The pod's host name, and its full name when it has a subdomain.
pub(crate) fn hostname(pod: &Pod, domain: &str) -> (String, Option<String>) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let given = |f: fn(&PodSpec) -> &Option<String>| {
        spec.and_then(|s| f(s).as_deref()).filter(|n| !n.is_empty())
    };
    if let Some(whole) = given(|s| &s.hostname_override) {
        return (whole.to_owned(), None);
    }
    // A host name has at most 63 bytes, and does not end in a dash or dot.
    let cut = given(|s| &s.hostname).unwrap_or(&name[..name.len().min(63)]);
    let host = cut.trim_end_matches(['-', '.']).to_owned();
    let full = given(|s| &s.subdomain).map(|sub| format!("{host}.{sub}.{namespace}.svc.{domain}"));
    match full {
        Some(full) if spec.and_then(|s| s.set_hostname_as_fqdn) == Some(true) => {
            (full.clone(), Some(full))
        }
        full => (host, full),
    }
}

/// The entries of /etc/hosts beyond localhost: the pod's own, then hostAliases.
pub(crate) fn hosts(pod: &Pod, pod_ip: IpAddr, domain: &str) -> Vec<(IpAddr, Vec<String>)> {
    let (host, full) = hostname(pod, domain);
    let own = full.into_iter().filter(|f| *f != host).chain([host.clone()]).collect();
    let aliases = pod.spec.iter().flat_map(|s| s.host_aliases.iter().flatten());
    let aliases = aliases.filter_map(|alias| {
        let ip = alias.ip.parse().ok()?;
        Some((ip, alias.hostnames.clone().unwrap_or_default()))
    });
    std::iter::once((pod_ip, own)).chain(aliases).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn policies() {
        #[track_caller]
        fn check(spec: Value, servers: &[&str], searches: &[&str], ndots: u8) {
            let host = of_host(
                "# c\nnameserver 192.0.2.53\nsearch lan example.org\noptions edns0 ndots:2\n",
            );
            let dns = of_pod(&pod(spec), "10.43.0.10:53".parse().unwrap(), "cluster.local", &host);
            let seen: Vec<String> = dns.servers.iter().map(|s| s.ip().to_string()).collect();
            assert_eq!(
                (seen, dns.searches, dns.ndots),
                (
                    servers.iter().map(|s| s.to_string()).collect(),
                    searches.iter().map(|s| s.to_string()).collect(),
                    ndots
                )
            );
        }
        let cluster =
            ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "example.org"];
        check(json!({}), &["10.43.0.10"], &cluster, 5);
        check(
            json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}),
            &["192.0.2.53"],
            &["lan", "example.org"],
            2,
        );
        check(
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            &["10.43.0.10"],
            &cluster,
            5,
        );
        check(json!({"dnsPolicy": "Default"}), &["192.0.2.53"], &["lan", "example.org"], 2);
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.2.3.4"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "3"}]}}),
            &["1.2.3.4"],
            &["a.b"],
            3,
        );
    }

    #[test]
    fn options() {
        let host = of_host("options edns0 ndots:2 timeout:1\n");
        let of = |spec: Value| {
            of_pod(&pod(spec), "10.43.0.10:53".parse().unwrap(), "cluster.local", &host).options
        };
        assert_eq!(of(json!({})), [""; 0], "the cluster's servers are asked in its own way");
        assert_eq!(of(json!({"dnsPolicy": "Default"})), ["edns0", "timeout:1"]);
        let config = json!({"options": [{"name": "timeout", "value": "4"}, {"name": "rotate"}]});
        let spec = json!({"dnsPolicy": "Default", "dnsConfig": config});
        assert_eq!(of(spec), ["edns0", "timeout:4", "rotate"]);
    }

    #[test]
    fn names() {
        #[track_caller]
        fn check(spec: Value, host: &str, full: Option<&str>) {
            assert_eq!(
                hostname(&pod(spec), "cluster.local"),
                (host.to_owned(), full.map(String::from))
            );
        }
        check(json!({}), "p", None);
        check(json!({"hostname": "h"}), "h", None);
        check(json!({"hostname": "h", "subdomain": "s"}), "h", Some("h.s.ns.svc.cluster.local"));
        check(
            json!({"subdomain": "s", "setHostnameAsFQDN": true}),
            "p.s.ns.svc.cluster.local",
            Some("p.s.ns.svc.cluster.local"),
        );
        let spec = json!({"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a", "b"]}]});
        let ip = "10.42.0.5".parse().unwrap();
        assert_eq!(
            hosts(&pod(spec), ip, "cluster.local"),
            [
                (ip, vec!["p".to_owned()]),
                ("10.0.0.1".parse().unwrap(), vec!["a".into(), "b".into()])
            ]
        );
    }
}
