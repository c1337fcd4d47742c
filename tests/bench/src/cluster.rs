//! What is measured: processes of the release binary on directories of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rimward_tests_cluster::Process;

use crate::api::{Api, Door, condition};
use crate::{Setup, process};

/// How long anything may take before the measurement is given up.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A control plane, with a node in its process (`up`) or without (`control`).
pub struct Server {
    pub process: Process,
    pub door: Door,
    dir: PathBuf,
    rimward: PathBuf,
    _own_dir: Option<tempfile::TempDir>,
}

impl Server {
    /// `rimward up` on a new directory, its node Ready.
    pub async fn up(setup: &Setup, extra: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut server = Self::start(setup, "up", dir.path(), extra).await?;
        server._own_dir = Some(dir);
        server.node_ready().await?;
        Ok(server)
    }

    /// `rimward control` on a new directory, its API answering.
    pub async fn control(setup: &Setup) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut server = Self::start(setup, "control", dir.path(), &[]).await?;
        server._own_dir = Some(dir);
        Ok(server)
    }

    /// Starts `rimward up` or `rimward control`; comes back as soon as the API answers.
    pub async fn start(
        setup: &Setup,
        command: &str,
        dir: &Path,
        extra: &[&str],
    ) -> anyhow::Result<Self> {
        let (process, kubeconfig) = spawn(&setup.rimward, command, dir, extra)?;
        let start = Instant::now();
        let door = loop {
            // The file is replaced when the port is known; until then there is none.
            if let Ok(door) = Door::of(&kubeconfig)
                && let Ok(api) = door.connect().await
                && api.read("/readyz", &[]).await.is_ok()
            {
                break door;
            }
            if start.elapsed() > PATIENCE {
                bail!("the API does not answer; the end of its log:\n{}", tail(&process.log()));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        Ok(Self {
            process,
            door,
            dir: dir.to_owned(),
            rimward: setup.rimward.clone(),
            _own_dir: None,
        })
    }

    pub fn pid(&self) -> i32 {
        self.process.pid().as_raw()
    }

    /// Its data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until a node is connected in this run, and Ready in the API.
    pub async fn node_ready(&self) -> anyhow::Result<()> {
        let api = self.door.connect().await?;
        let mut watch = api.watch("/api/v1/nodes?watch=true").await?;
        let ready = async {
            // A node that was Ready in an earlier run is so in the store: the log says when it is back.
            while !self.process.log().contains("a node is connected") {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            while !condition(&watch.event().await?["object"], "Ready") {}
            anyhow::Ok(())
        };
        within("the node Ready", ready, || self.process.log()).await
    }

    /// Pushes the guest as `guest:v1`, and has the node fetch and compile it by a first pod.
    pub async fn prepare_guest(&self, setup: &Setup, api: &Api) -> anyhow::Result<()> {
        let pushed = Command::new(&self.rimward)
            .args(["image", "push"])
            .arg(&setup.guest)
            .arg("guest:v1")
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .output()?;
        ensure!(pushed.status.success(), "image push: {}", String::from_utf8_lossy(&pushed.stderr));
        service_account(api).await?;
        let mut watch = api.watch("/api/v1/namespaces/default/pods?watch=true").await?;
        api.create("/api/v1/namespaces/default/pods", pod("first", "first")).await?;
        let ready = async {
            while !condition(&watch.event().await?["object"], "Ready") {}
            anyhow::Ok(())
        };
        within("a first pod Ready", ready, || self.process.log()).await
    }

    /// `rimward token create`.
    pub fn token(&self) -> anyhow::Result<String> {
        let made = Command::new(&self.rimward)
            .args(["token", "create"])
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .output()?;
        ensure!(made.status.success(), "token create: {}", String::from_utf8_lossy(&made.stderr));
        Ok(String::from_utf8(made.stdout)?.trim().to_owned())
    }

    /// `127.0.0.1:PORT` where nodes dial.
    pub fn tunnel(&self) -> anyhow::Result<String> {
        // tracing colours field names: `tunnel=` may have an escape sequence in it.
        let log = self.process.log();
        let line =
            log.lines().find(|l| l.contains("control plane is ready")).context("the ready line")?;
        let after = line.split_once("tunnel").context("no tunnel in the ready line")?.1;
        let after = after.split_once(':').context("no tunnel port in the ready line")?.1;
        let port: String = after.chars().take_while(char::is_ascii_digit).collect();
        Ok(format!("127.0.0.1:{port}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.process, &self.dir.join("node"));
    }
}

/// A node in a process of its own.
pub struct Node {
    pub process: Process,
    dir: tempfile::TempDir,
}

impl Node {
    /// Joins the control plane; its name is `bench`.
    pub async fn join(binary: &Path, server: &Server, extra: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(binary);
        command.arg("node").arg("--data-dir").arg(dir.path()).args(["--server", &server.tunnel()?]);
        command.args([
            "--token",
            &server.token()?,
            "--node-name",
            "bench",
            "--ingress-http-port",
            "0",
            // The next one is another node, which must not find this one's devices.
            "--stop-pods",
        ]);
        // Its images come from the control plane's registry, on this port of the same host.
        let process = Process::start("node", dir.path(), logged(command.args(extra)));
        let node = Self { process, dir };
        server.node_ready().await.map_err(|e| e.context(tail(&node.process.log())))?;
        Ok(node)
    }

    /// The agent and its hosts.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = vec![self.process.pid().as_raw()];
        pids.extend(self.hosts());
        pids
    }

    pub fn hosts(&self) -> Vec<i32> {
        process::hosts_of(&self.dir.path().join("node"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&mut self.process, &self.dir.path().join("node"));
    }
}

/// Ends the agent and, since hosts outlive agents, its hosts.
fn end(process: &mut Process, node_dir: &Path) {
    process.signal(Signal::SIGTERM);
    let start = Instant::now();
    while process.is_running() && start.elapsed() < Duration::from_secs(30) {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    process.kill();
    for pid in process::hosts_of(node_dir) {
        let _gone_meanwhile_is_fine = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn spawn(
    rimward: &Path,
    what: &str,
    dir: &Path,
    extra: &[&str],
) -> anyhow::Result<(Process, PathBuf)> {
    let mut command = Command::new(rimward);
    command.arg(what).arg("--data-dir").arg(dir).args(extra);
    let given = |option: &str| extra.contains(&option);
    for option in ["--api-port", "--tunnel-port"].into_iter().filter(|o| !given(o)) {
        command.args([option, "0"]);
    }
    if what == "up" {
        command.args(["--ingress-http-port", "0"]);
    }
    let kubeconfig = dir.join("kubeconfig");
    if kubeconfig.exists() {
        std::fs::remove_file(&kubeconfig)?;
    }
    let log = dir.join("rimward.log");
    if log.exists() {
        std::fs::remove_file(&log)?;
    }
    Ok((Process::start("rimward", dir, logged(&mut command)), kubeconfig))
}

/// Takes the command out of its builder, with the log level that operators have.
fn logged(command: &mut Command) -> Command {
    let mut own = Command::new(command.get_program());
    own.args(command.get_args()).env("RIMWARD_LOG", "info").env("NO_COLOR", "1");
    own
}

/// Controllers make it a moment after the namespace; pods are refused before.
async fn service_account(api: &Api) -> anyhow::Result<()> {
    let mut watch = api.watch("/api/v1/namespaces/default/serviceaccounts?watch=true").await?;
    let there = async {
        while watch.event().await?["object"]["metadata"]["name"] != "default" {}
        anyhow::Ok(())
    };
    within("the default service account", there, String::new).await
}

pub async fn default_account(api: &Api) -> anyhow::Result<()> {
    service_account(api).await
}

/// Waits for something with patience; the error carries the end of a log.
pub async fn within<T>(
    what: &str,
    future: impl Future<Output = anyhow::Result<T>>,
    log: impl Fn() -> String,
) -> anyhow::Result<T> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done.with_context(|| what.to_owned()),
        Err(_) => bail!("did not come about within {PATIENCE:?}: {what}\n{}", tail(&log())),
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// A pod of the HTTP guest, with the limits that a user would give it.
pub fn pod(name: &str, app: &str) -> bytes::Bytes {
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": app } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "guest", "image": "guest:v1",
                "ports": [{ "containerPort": 8080 }],
                "resources": { "requests": { "cpu": "0", "memory": "0" }, "limits": { "memory": "64Mi" } },
            }],
        },
    });
    pod.to_string().into()
}
