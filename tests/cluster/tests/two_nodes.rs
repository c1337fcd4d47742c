//! A control plane and two nodes on three hosts (network namespaces): join by token, Services across
//! nodes, logs through the tunnel, a node lost. Slim binaries.

use std::path::Path;
use std::process::Command;

use rimward_tests_cluster::fleet::Fleet;
use rimward_tests_cluster::{condition, curl, eventually, skip_without_root, text};

#[test]
fn two_nodes_one_of_them_lost() {
    if skip_without_root("two_nodes_one_of_them_lost") {
        return;
    }
    let mut fleet = Fleet::new();
    fleet.greeter();
    let placed = fleet.placed();
    for node in ["n1", "n2"] {
        assert_eq!(placed.iter().filter(|(_, n)| n == node).count(), 2, "{placed:?}");
    }

    // From either node the Service reaches pods on both.
    let url = format!("http://{}/", fleet.service_ip());
    for host in [1, 2] {
        let mut answered = std::collections::BTreeSet::new();
        eventually("every pod answers through the Service", || {
            answered.insert(curl(&fleet.hosts.on(host), &[&url]));
            (answered.len() == 4).then_some(())
        });
    }
    // By name, asked of the node's own DNS server.
    let dig = ["+short", "@10.43.0.10", "greeter.default.svc.cluster.local"];
    let answer = fleet.hosts.command(2, Path::new("dig")).args(dig).output().expect("dig runs");
    assert_eq!(text(&answer.stdout).trim(), fleet.service_ip());
    for (pod, _) in &placed {
        eventually("logs through the tunnel", || {
            fleet.cluster.ok(&["logs", pod]).contains("/ 200").then_some(())
        });
    }

    traffic_policies(&fleet, &placed);

    // A node is lost for good: its pods come back on the other.
    let mut lost = fleet.nodes[1].take().expect("it runs");
    let host = fleet.hosts.name(2);
    cut_off(&host);
    eventually("all four on the node that is left", || {
        let placed = fleet.placed();
        (placed.len() == 4 && placed.iter().all(|(_, n)| n == "n1")).then_some(())
    });
    let answer = curl(&fleet.hosts.on(1), &[&url]);
    assert!(answer.starts_with("Hello from"), "{answer}");
    let node = fleet.cluster.get(&["node", "n2"]);
    assert_eq!(condition(&node, "Ready"), "Unknown");
    lost.stop();
}

/// With policy Local only a node's own pods answer, inside by the cluster IP and outside by the node port.
fn traffic_policies(fleet: &Fleet, placed: &[(String, String)]) {
    let patch = r#"{"spec":{"type":"NodePort","externalTrafficPolicy":"Local","internalTrafficPolicy":"Local"}}"#;
    fleet.cluster.ok(&["patch", "service", "greeter", "-p", patch]);
    let service = fleet.cluster.get(&["service", "greeter"]);
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().expect("a node port");
    for (host, node) in [(1, "n1"), (2, "n2")] {
        let own = |answer: &str| placed.iter().any(|(pod, n)| n == node && answer.contains(pod));
        // The node's own clients by the cluster IP, the other node's by its node port.
        let inside = format!("http://{}/", fleet.service_ip());
        let outside = format!("http://{}:{port}/", fleet.hosts.address(host));
        for (from, url) in [(host, inside), (3 - host, outside)] {
            let mut in_a_row = 0;
            eventually(&format!("only pods of {node} answer at {url}"), || {
                let answer = curl(&fleet.hosts.on(from), &[&url]);
                in_a_row = if own(&answer) { in_a_row + 1 } else { 0 };
                (in_a_row == 12).then_some(())
            });
        }
    }
    let patch = r#"{"spec":{"externalTrafficPolicy":"Cluster","internalTrafficPolicy":"Cluster"}}"#;
    fleet.cluster.ok(&["patch", "service", "greeter", "-p", patch]);
}

fn cut_off(namespace: &str) {
    let down = Command::new("ip").args(["-n", namespace, "link", "set", "eth0", "down"]).status();
    assert!(down.expect("ip runs").success());
}

#[test]
fn who_may_not_join() {
    if skip_without_root("who_may_not_join") {
        return;
    }
    let fleet = Fleet::new();
    // A wrong secret, a CA that is not ours: one clear line, and the end.
    let (id, rest) = fleet.token.split_once('.').expect("a token has parts");
    let (secret, ca) = rest.split_once('.').expect("a token has three parts");
    let wrong_secret = format!("{id}.{}.{ca}", secret.chars().rev().collect::<String>());
    let wrong_ca = format!("{id}.{secret}.{}", ca.chars().rev().collect::<String>());
    for (name, token) in [("wrong-secret", wrong_secret), ("wrong-ca", wrong_ca)] {
        let mut node = fleet.spawn_node(1, &token, name);
        let status = node.wait();
        assert!(!status.success(), "{name} must not join");
        let last = node.log().lines().last().unwrap_or_default().to_owned();
        assert!(last.starts_with("rimward: "), "{name}: {last}");
    }
}
