//! Services on a node that runs as root, on a host without a default route: every way in, clients that stay,
//! names, and rules that a stranger's hand took away.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rimward_tests_cluster::hosts::Hosts;
use rimward_tests_cluster::{Cluster, curl, eventually, repository, skip_without_root, text};
use serde_json::{Value, json};

fn greeter(cluster: &Cluster) {
    let example = repository().join("examples/greeter");
    cluster.push(&example.join("greeter.wasm"), "greeter:v1");
    cluster.apply(&std::fs::read_to_string(example.join("manifest.yaml")).expect("the manifest"));
    cluster.ok(&["rollout", "status", "deployment/greeter", "--timeout=90s"]);
}

fn host(cluster: &Cluster) -> &Hosts {
    cluster.host().expect("root has hosts")
}

/// A Service in front of the greeter's pods; answers its spec.
fn service(cluster: &Cluster, name: &str, spec: Value) -> Value {
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    let mut whole = json!({"selector": {"app": "greeter"}, "ports": ports});
    for (key, value) in spec.as_object().expect("fields") {
        whole[key] = value.clone();
    }
    let object =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": whole});
    cluster.apply(&object.to_string());
    cluster.get(&["service", name])["spec"].clone()
}

fn cluster_ip(spec: &Value) -> &str {
    spec["clusterIP"].as_str().expect("a cluster IP")
}

fn dig(cluster: &Cluster, words: &[&str]) -> String {
    let mut command = host(cluster).command(0, Path::new("dig"));
    let command = command.args(["+short", "+time=2", "+tries=1", "@10.43.0.10"]).args(words);
    text(&command.output().expect("dig runs").stdout).trim().to_owned()
}

#[test]
fn services_of_every_kind() {
    if skip_without_root("services_of_every_kind") {
        return;
    }
    let cluster = Cluster::up();
    greeter(&cluster);
    let routes = Command::new("ip").args(["-n", &host(&cluster).name(0), "route"]).output();
    let routes = text(&routes.expect("ip runs").stdout);
    assert!(!routes.contains("default"), "{routes}");

    node_ports(&cluster);
    clients_that_stay(&cluster);
    udp(&cluster);
    nobody_there(&cluster);
    names(&cluster);
    ingress_status(&cluster);
    rules_that_went(&cluster);
}

/// On every address of the node, loopback too.
fn node_ports(cluster: &Cluster) {
    let spec = service(cluster, "by-node-port", json!({"type": "NodePort"}));
    let port = spec["ports"][0]["nodePort"].as_u64().expect("a node port");
    for address in [host(cluster).address(0), "127.0.0.1".to_owned()] {
        let answer = curl(cluster.wrap(), &[&format!("http://{address}:{port}/")]);
        assert!(answer.contains("greeter-"), "{answer}");
    }
}

/// A client keeps its pod while other pods come and go.
fn clients_that_stay(cluster: &Cluster) {
    let spec = service(cluster, "sticky", json!({"sessionAffinity": "ClientIP"}));
    let url = format!("http://{}/", cluster_ip(&spec));
    let pod = || {
        let answer = curl(cluster.wrap(), &[&url]);
        let name = answer.split(|c: char| c.is_whitespace() || c == ',' || c == '!');
        name.into_iter().find(|w| w.starts_with("greeter-")).expect("a pod's name").to_owned()
    };
    let first = BTreeSet::from([pod()]);
    let again = || -> BTreeSet<String> { (0..8).map(|_| pod()).collect() };
    assert_eq!(again(), first);
    cluster.ok(&["scale", "deployment/greeter", "--replicas=6"]);
    cluster.ok(&["rollout", "status", "deployment/greeter", "--timeout=90s"]);
    assert_eq!(again(), first, "after six pods");
}

/// A Service without a selector leads where its slice says: here to a server of this test.
fn udp(cluster: &Cluster) {
    let address = host(cluster).address(0);
    let server =
        host(cluster).within(0, || UdpSocket::bind((address.as_str(), 0)).expect("a port"));
    let port = server.local_addr().expect("its address").port();
    let ports = json!([{"port": 9, "targetPort": port, "protocol": "UDP"}]);
    let spec = service(cluster, "echo", json!({"selector": null, "ports": ports}));
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "echo-1", "labels": {"kubernetes.io/service-name": "echo"}},
        "ports": [{"port": port, "protocol": "UDP", "name": ""}],
        "endpoints": [{"addresses": [address]}],
    });
    cluster.apply(&slice.to_string());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            let _the_client_may_have_gone = server.send_to(&buffer[..len], from);
        }
    });
    let to = format!("{}:9", cluster_ip(&spec));
    eventually("the datagram comes back", || {
        host(cluster).within(0, || {
            let client = UdpSocket::bind("0.0.0.0:0").ok()?;
            client.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
            client.send_to(b"ping", &to).ok()?;
            let mut buffer = [0; 64];
            let len = client.recv(&mut buffer).ok()?;
            (&buffer[..len] == b"ping").then_some(())
        })
    });
}

/// What no Service has is refused at once, it neither hangs nor goes round.
fn nobody_there(cluster: &Cluster) {
    let mut command = host(cluster).command(0, Path::new("curl"));
    let command = command.args(["-sS", "--max-time", "5", "http://10.43.250.250/"]);
    let output = command.output().expect("curl runs");
    assert_eq!(output.status.code(), Some(7), "refused: {}", text(&output.stderr));
}

fn names(cluster: &Cluster) {
    let ports = json!([{"name": "http", "port": 8080}]);
    service(cluster, "headless", json!({"clusterIP": "None", "ports": ports}));
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
        "metadata": {"name": "headless-v6", "labels": {"kubernetes.io/service-name": "headless"}},
        "ports": [{"port": 8080, "name": "http"}], "endpoints": [{"addresses": ["fd00::7"]}],
    });
    cluster.apply(&slice.to_string());
    let name = "headless.default.svc.cluster.local";
    eventually("an address for each pod", || {
        (dig(cluster, &[name]).lines().count() == 6).then_some(())
    });
    eventually("an IPv6 address where there is one", || {
        (dig(cluster, &["AAAA", name]) == "fd00::7").then_some(())
    });
    let srv = dig(cluster, &["SRV", &format!("_http._tcp.{name}")]);
    assert!(srv.lines().count() == 7 && srv.contains(" 8080 "), "{srv}");
    let ip = dig(cluster, &["greeter.default.svc.cluster.local"]);
    assert_eq!(dig(cluster, &["-x", &ip]), "greeter.default.svc.cluster.local.");
}

/// The Ingress says where it answers, and has the class that means this cluster's nodes.
fn ingress_status(cluster: &Cluster) {
    let at = eventually("the Ingress has an address", || {
        let ingress = cluster.get(&["ingress", "greeter"]);
        assert_eq!(ingress["spec"]["ingressClassName"], "rimward");
        ingress["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned)
    });
    assert_eq!(at, host(cluster).address(0));
    let url = format!("http://{at}:{}/", cluster.port_of("ingress"));
    let answer = curl(cluster.wrap(), &["-H", "Host: greeter.localhost", &url]);
    assert!(answer.contains("greeter-"), "{answer}");
}

/// The rules are made anew when a change finds them gone; the node says what happened.
fn rules_that_went(cluster: &Cluster) {
    let nft = |line: &str| {
        let mut command = host(cluster).command(0, Path::new("nft"));
        let output = command.args(line.split(' ')).output().expect("nft runs");
        assert!(output.status.success(), "nft {line}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let tables = nft("list tables");
    let table = tables.lines().find(|t| t.contains("rimward_")).expect("the node's table");
    nft(&format!("delete {table}"));
    let new = service(cluster, "after", json!({}));
    let old = cluster.get(&["service", "by-node-port"])["spec"].clone();
    for spec in [new, old] {
        let answer = curl(cluster.wrap(), &[&format!("http://{}/", cluster_ip(&spec))]);
        assert!(answer.contains("greeter-"), "{answer}");
    }
    eventually("Events on the node", || {
        let filter = "involvedObject.kind=Node";
        let events = cluster.ok(&["get", "events", "--field-selector", filter]);
        let told = |reason: &str| events.contains(reason);
        (told("ServiceRulesFailed") && told("ServiceRulesProgrammed")).then_some(())
    });
}
