//! Starts real clusters for tests: the binaries that `scripts/build-test-binaries` made, the `kubectl` on
//! the PATH, ports of the system's choice, data in a temporary directory.
//!
//! A [`Cluster`] stops its processes, by pid, when it is dropped, and shows their logs when the test failed.

pub mod busybox;
pub mod disk;
pub mod fleet;
pub mod hosts;
pub mod liar;
pub mod pods;
pub mod registry;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a condition may take to come about on a loaded CI machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// More of it where the processor is emulated.
pub fn patience() -> Duration {
    if in_vm() { 5 * PATIENCE } else { PATIENCE }
}

fn in_vm() -> bool {
    std::env::var_os("RIMWARD_VM").is_some()
}

/// Options of a node for which how full the developer's disk is makes no difference.
pub const ANY_DISK: [&str; 2] = ["--eviction-hard", "nodefs.available<64Mi,nodefs.inodesFree<1000"];

/// A binary that `scripts/build-test-binaries` made: `rimward`, `rimward-control` or `rimward-node`.
pub fn binary(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    // <target>/debug/deps/<test>
    let target = exe.ancestors().nth(3).expect("tests run from cargo's target directory");
    let path = target.join("test-binaries").join(name);
    assert!(path.exists(), "{} is missing: run scripts/build-test-binaries", path.display());
    path
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says loudly that a test which needs root does nothing now.
pub fn skip_without_root(test: &str) -> bool {
    if !is_root() {
        eprintln!("SKIPPED {test}: it needs root (network namespaces); CI runs it as root");
    }
    !is_root()
}

/// Says loudly that a test which needs a machine of its own does nothing now: one with cgroup v2 alone, swap, huge
/// pages and an NFS server.
pub fn skip_without_vm(test: &str) -> bool {
    if !in_vm() {
        eprintln!(
            "SKIPPED {test}: it needs cgroup v2, swap, huge pages and an NFS server: run scripts/test-in-vm"
        );
    }
    !in_vm()
}

/// Tries until there is an answer; panics with `what` when [`patience`] is over.
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(start.elapsed() < patience(), "did not come about: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A process of the test, ended with it.
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts a command whose output goes to `dir/<name>.log`.
    pub fn start(name: &str, dir: &Path, mut command: Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("a second handle")).stderr(out);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, log, name: name.to_owned() }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// SIGKILL, and gone.
    pub fn kill(&mut self) {
        let _already_gone_is_fine = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// SIGTERM, and the exit status within patience.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        let name = self.name.clone();
        let child = &mut self.child;
        eventually(&format!("{name} ends"), || child.try_wait().expect("a child can be waited for"))
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _gone_meanwhile_is_fine = kill(self.pid(), Signal::SIGTERM);
            let start = Instant::now();
            while self.is_running() && start.elapsed() < Duration::from_secs(15) {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            self.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("---- the end of {}'s log", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A control plane (with or without a node in the same process) and its kubectl.
pub struct Cluster {
    pub process: Process,
    pub dir: PathBuf,
    /// Runs kubectl there (a network namespace's `nsenter` words); empty is here.
    wrap: Vec<String>,
    host: Option<hosts::Hosts>,
    _own_dir: Option<tempfile::TempDir>,
}

impl Cluster {
    /// `rimward up` with free ports and a node that is Ready.
    pub fn up() -> Self {
        Self::up_with(&[])
    }

    pub fn up_with(extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // A node that runs as root has a network of its own: one to a host.
        let mut cluster = match is_root() {
            true => Self::start_on(hosts::Hosts::new(1), dir.path(), extra),
            false => Self::start_in(dir.path(), extra),
        };
        cluster._own_dir = Some(dir);
        cluster.wait_ready();
        cluster
    }

    /// `rimward up` on a directory that the caller keeps (to start again on it), on this host.
    pub fn start_in(dir: &Path, extra: &[&str]) -> Self {
        Self::start(None, dir, extra)
    }

    /// The same on a host of its own.
    pub fn start_on(host: hosts::Hosts, dir: &Path, extra: &[&str]) -> Self {
        Self::start(Some(host), dir, extra)
    }

    /// SIGKILL, and the same again.
    pub fn kill_and_restart(mut self) -> Self {
        self.process.kill();
        let (host, dir, own_dir) = (self.host.take(), self.dir.clone(), self._own_dir.take());
        drop(self);
        let mut cluster = Self::start(host, &dir, &[]);
        cluster._own_dir = own_dir;
        cluster.wait_ready();
        cluster
    }

    fn start(host: Option<hosts::Hosts>, dir: &Path, extra: &[&str]) -> Self {
        let wrap = host.as_ref().map(|host| host.on(0)).unwrap_or_default();
        let mut command = match &host {
            Some(host) => host.command(0, &binary("rimward")),
            None => Command::new(binary("rimward")),
        };
        command.arg("up").arg("--data-dir").arg(dir);
        command.args(["--listen", "127.0.0.1", "--api-port", "0", "--tunnel-port", "0"]);
        if !extra.contains(&"--ingress-http-port") {
            command.args(["--ingress-http-port", "0"]);
        }
        if !extra.contains(&"--eviction-hard") {
            command.args(ANY_DISK);
        }
        command.args(extra);
        let _stale = std::fs::remove_file(dir.join("kubeconfig"));
        let process = Process::start("rimward", dir, command);
        Self { process, dir: dir.to_owned(), wrap, host, _own_dir: None }
    }

    /// The words that run a command on this cluster's host; empty is this one.
    pub fn wrap(&self) -> &[String] {
        &self.wrap
    }

    /// The host of its own that this cluster has as root.
    pub fn host(&self) -> Option<&hosts::Hosts> {
        self.host.as_ref()
    }

    /// A control plane that the test started itself.
    pub fn of(process: Process, dir: &Path, wrap: Vec<String>) -> Self {
        Self { process, dir: dir.to_owned(), wrap, host: None, _own_dir: None }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The API answers and every node is Ready; there is at least one.
    pub fn wait_ready(&mut self) {
        self.wait_api();
        self.wait_nodes(1);
    }

    pub fn wait_api(&mut self) {
        let start = Instant::now();
        while !self.kubeconfig().exists()
            || !self.kubectl(&["get", "--raw", "/readyz"]).status.success()
        {
            assert!(self.process.is_running(), "rimward ended:\n{}", self.process.log());
            assert!(start.elapsed() < patience(), "the API does not answer");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    pub fn wait_nodes(&self, count: usize) {
        eventually(&format!("{count} nodes Ready"), || {
            let nodes = self.get(&["nodes"]);
            let ready =
                nodes["items"].as_array()?.iter().filter(|n| condition(n, "Ready") == "True");
            (ready.count() >= count).then_some(())
        });
    }

    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_with(args, "")
    }

    /// kubectl with text on its standard input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Output {
        use std::io::Write;
        let mut child = self
            .kubectl_command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is on the PATH");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let _it_may_not_read = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("kubectl can be waited for")
    }

    /// For tests that follow kubectl's output as it comes.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        // A server that hangs is a failure, not a hanging test.
        let kubectl = ["timeout", if in_vm() { "600" } else { "120" }, "kubectl"];
        let mut words = self.wrap.iter().map(String::as_str).chain(kubectl);
        let mut command = Command::new(words.next().expect("at least kubectl"));
        command.args(words).args(args).env("KUBECONFIG", self.kubeconfig());
        // Discovery must be this cluster's, not what an earlier one left.
        command.env("HOME", &self.dir).env("KUBECACHEDIR", self.dir.join("kubecache"));
        command
    }

    /// What a user would look at first, for the report of a test that failed.
    fn tell(&self) {
        for what in [&["describe", "nodes"][..], &["get", "pods,events", "-A", "-o", "wide"]] {
            let output = self.kubectl(what);
            eprintln!("---- kubectl {what:?}\n{}{}", text(&output.stdout), text(&output.stderr));
        }
    }

    /// kubectl that must succeed; answers its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "")
    }

    #[track_caller]
    pub fn ok_with(&self, args: &[&str], input: &str) -> String {
        let output = self.kubectl_with(args, input);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "kubectl {args:?} failed:\n{err}{out}");
        out
    }

    /// kubectl that must fail; answers its standard error.
    #[track_caller]
    pub fn refused(&self, args: &[&str], input: &str) -> String {
        let output = self.kubectl_with(args, input);
        assert!(!output.status.success(), "kubectl {args:?} succeeded:\n{}", text(&output.stdout));
        text(&output.stderr)
    }

    /// `kubectl get … -o json`; null when it is not there.
    pub fn get(&self, what: &[&str]) -> Value {
        let args: Vec<&str> = ["get"].iter().chain(what).chain(&["-o", "json"]).copied().collect();
        let output = self.kubectl(&args);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Applies a manifest.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.ok_with(&["apply", "-f", "-"], manifest)
    }

    /// Pushes a Wasm file.
    #[track_caller]
    pub fn push(&self, file: &Path, name: &str) {
        let mut words = self.wrap.clone();
        words.extend([binary("rimward").display().to_string(), "image".into(), "push".into()]);
        words.extend([file.display().to_string(), name.to_owned()]);
        let output = Command::new(&words[0])
            .args(&words[1..])
            .env("KUBECONFIG", self.kubeconfig())
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "push {name}: {}", text(&output.stderr));
    }

    /// The port in the log line in which a part says where it listens.
    pub fn port_of(&self, part: &str) -> u16 {
        eventually(&format!("{part} listens"), || port_in(&self.process.log(), part))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && self.process.is_running() {
            self.tell();
        }
    }
}

/// The port in the last log line that says `<part> … listening on ADDRESS:PORT`.
pub fn port_in(log: &str, part: &str) -> Option<u16> {
    let line = log.lines().rev().find(|l| l.contains(part) && l.contains("listening on "))?;
    let after = line.split("listening on ").nth(1)?;
    let address = after.split_whitespace().next()?;
    address.rsplit(':').next()?.parse().ok()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A condition's status in `status.conditions`, "" when it is not there.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let found = conditions.into_iter().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout")
}

/// One HTTP GET by curl (in a namespace with `wrap`), retried until it answers.
#[track_caller]
pub fn curl(wrap: &[String], args: &[&str]) -> String {
    eventually(&format!("curl {args:?}"), || {
        let mut words = wrap.iter().map(String::as_str).chain(["curl", "-fsS", "--max-time", "5"]);
        let output = Command::new(words.next()?).args(words).args(args).output().ok()?;
        output.status.success().then(|| text(&output.stdout))
    })
}
