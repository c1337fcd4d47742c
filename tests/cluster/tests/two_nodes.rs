//! A control plane and two nodes on three hosts (network namespaces): join by token, Services across
//! nodes, logs through the tunnel, an agent killed and started again, a node lost. Slim binaries.

use std::path::Path;
use std::process::Command;

use rimward_tests_cluster::hosts::Hosts;
use rimward_tests_cluster::{
    ANY_DISK, Cluster, Process, binary, condition, curl, eventually, repository, skip_without_root,
    text,
};

struct Fleet {
    cluster: Cluster,
    nodes: Vec<Option<Process>>,
    token: String,
    hosts: Hosts,
    dir: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Self {
        let hosts = Hosts::new(3);
        let dir = tempfile::tempdir().expect("a directory");
        let mut control = hosts.command(0, &binary("rimward-control"));
        control.arg("control").arg("--data-dir").arg(dir.path());
        control.args(["--advertise-address", &hosts.address(0), "--node-grace-seconds", "20"]);
        let process = Process::start("control", dir.path(), control);
        let mut cluster = Cluster::of(process, dir.path(), hosts.on(0));
        cluster.wait_api();
        let token = hosts
            .command(0, &binary("rimward-control"))
            .args(["token", "create"])
            .env("KUBECONFIG", cluster.kubeconfig())
            .output()
            .expect("the binary runs");
        assert!(token.status.success(), "{}", text(&token.stderr));
        let token = text(&token.stdout).trim().to_owned();
        let mut fleet = Self { cluster, nodes: vec![None, None], token, hosts, dir };
        fleet.start_node(1);
        fleet.start_node(2);
        fleet.cluster.wait_nodes(2);
        fleet
    }

    fn start_node(&mut self, i: usize) {
        let process = self.spawn_node(i, &self.token.clone(), &format!("n{i}"));
        self.nodes[i - 1] = Some(process);
    }

    fn spawn_node(&self, i: usize, token: &str, name: &str) -> Process {
        let mut command = self.hosts.command(i, &binary("rimward-node"));
        command.arg("node").arg("--data-dir").arg(self.dir.path().join(name));
        command.args(["--server", &format!("{}:6444", self.hosts.address(0)), "--token", token]);
        command.args(["--node-name", name, "--stop-pods"]).args(ANY_DISK);
        Process::start(name, self.dir.path(), command)
    }

    fn greeter(&self) {
        let example = repository().join("examples/greeter");
        let push = self
            .hosts
            .command(0, &binary("rimward-control"))
            .args(["image", "push"])
            .arg(example.join("greeter.wasm"))
            .arg("greeter:v1")
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .output()
            .expect("the binary runs");
        assert!(push.status.success(), "{}", text(&push.stderr));
        let manifest =
            std::fs::read_to_string(example.join("manifest.yaml")).expect("the manifest");
        // Four pods spread two and two; a lost node is given up on quickly.
        let manifest = manifest.replace("replicas: 3", "replicas: 4").replace(
            "      containers:\n",
            "      tolerations:\n        - { key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1 }\n      containers:\n",
        );
        self.cluster.apply(&manifest);
        self.cluster.ok(&["rollout", "status", "deployment/greeter", "--timeout=90s"]);
    }

    /// (pod, node) of the pods that are not on their way out.
    fn placed(&self) -> Vec<(String, String)> {
        let pods = self.cluster.get(&["pods", "-l", "app=greeter"]);
        let staying = pods["items"].as_array().into_iter().flatten().filter(|p| {
            p["metadata"]["deletionTimestamp"].is_null() && condition(p, "Ready") == "True"
        });
        let name = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
        staying.map(|p| (name(&p["metadata"]["name"]), name(&p["spec"]["nodeName"]))).collect()
    }

    fn service_ip(&self) -> String {
        let service = self.cluster.get(&["service", "greeter"]);
        service["spec"]["clusterIP"].as_str().expect("a cluster IP").to_owned()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Nodes before their control plane, and all before their hosts.
        for node in &mut self.nodes {
            drop(node.take());
        }
    }
}

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

    // kill -9 of an agent: its pods answer on, and the next agent adopts them.
    fleet.nodes[0].as_mut().expect("it runs").kill();
    curl(&fleet.hosts.on(1), &[&url]);
    fleet.start_node(1);
    let log = fleet.dir.path().join("n1.log");
    eventually("the agent is back", || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        (log.matches("connected to the control plane").count() >= 2).then_some(())
    });
    fleet.cluster.wait_nodes(2);
    let pods = fleet.cluster.get(&["pods", "-l", "app=greeter"]);
    for pod in pods["items"].as_array().expect("pods") {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "nothing restarted");
    }

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
