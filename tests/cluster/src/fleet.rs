//! A control plane and two nodes, each on a host of its own.

use std::path::Path;

use crate::hosts::Hosts;
use crate::{Cluster, Process, binary, condition, repository, text};

/// A control plane on host 0, nodes n1 and n2 on hosts 1 and 2: slim binaries, joined by a token.
pub struct Fleet {
    pub cluster: Cluster,
    pub nodes: Vec<Option<Process>>,
    pub token: String,
    pub hosts: Hosts,
    pub dir: tempfile::TempDir,
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Fleet {
    /// Both nodes are Ready.
    pub fn new() -> Self {
        let hosts = Hosts::new(3);
        let dir = tempfile::tempdir().expect("a directory");
        let process = control(&hosts, dir.path());
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

    /// Starts node `i` (again).
    pub fn start_node(&mut self, i: usize) {
        let process = self.spawn_node(i, &self.token.clone(), &format!("n{i}"));
        self.nodes[i - 1] = Some(process);
    }

    /// A node on host `i` that the caller keeps.
    pub fn spawn_node(&self, i: usize, token: &str, name: &str) -> Process {
        self.spawn_node_with(i, token, name, &[])
    }

    /// The same with more options.
    pub fn spawn_node_with(&self, i: usize, token: &str, name: &str, extra: &[&str]) -> Process {
        let mut command = self.hosts.command(i, &binary("rimward-node"));
        command.arg("node").arg("--data-dir").arg(self.dir.path().join(name));
        command.args(["--server", &format!("{}:6444", self.hosts.address(0)), "--token", token]);
        command.args(["--node-name", name, "--stop-pods"]).args(crate::ANY_DISK).args(extra);
        Process::start(name, self.dir.path(), command)
    }

    /// The control plane again, after its end.
    pub fn restart_control(&mut self) {
        self.cluster.process = control(&self.hosts, self.dir.path());
        self.cluster.wait_api();
    }

    /// Pushes a Wasm file.
    pub fn push(&self, file: &Path, name: &str) {
        let mut command = self.hosts.command(0, &binary("rimward-control"));
        let command = command.args(["image", "push"]).arg(file).arg(name);
        let push = command.env("KUBECONFIG", self.cluster.kubeconfig()).output();
        let push = push.expect("the binary runs");
        assert!(push.status.success(), "{}", text(&push.stderr));
    }

    /// Four pods behind a Service, two on each node.
    pub fn greeter(&self) {
        let example = repository().join("examples/greeter");
        self.push(&example.join("greeter.wasm"), "greeter:v1");
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
    pub fn placed(&self) -> Vec<(String, String)> {
        let pods = self.cluster.get(&["pods", "-l", "app=greeter"]);
        let staying = pods["items"].as_array().into_iter().flatten().filter(|p| {
            p["metadata"]["deletionTimestamp"].is_null() && condition(p, "Ready") == "True"
        });
        let name = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
        staying.map(|p| (name(&p["metadata"]["name"]), name(&p["spec"]["nodeName"]))).collect()
    }

    pub fn service_ip(&self) -> String {
        let service = self.cluster.get(&["service", "greeter"]);
        service["spec"]["clusterIP"].as_str().expect("a cluster IP").to_owned()
    }
}

fn control(hosts: &Hosts, dir: &Path) -> Process {
    let mut control = hosts.command(0, &binary("rimward-control"));
    control.arg("control").arg("--data-dir").arg(dir);
    control.args(["--advertise-address", &hosts.address(0), "--node-grace-seconds", "20"]);
    Process::start("control", dir, control)
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Nodes before their control plane, and all before their hosts.
        for node in &mut self.nodes {
            drop(node.take());
        }
    }
}
