//! A node of one: a data directory, the runtime, and what it said.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rimward_node_oci::{Config, LowLevel, OciRuntime, Runc};
use rimward_node_pod::outside::{Image, ImageForm};
use rimward_node_pod::runtime::{
    ContainerSpec, Dns, Exit, Known, Linux, Resources, RunId, Runtime, RuntimeEvent, User,
};
use tokio::sync::mpsc;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub runtime: OciRuntime,
    pub known: Vec<Known>,
    events: mpsc::Receiver<RuntimeEvent>,
    seen: Vec<RuntimeEvent>,
    pub dir: PathBuf,
    _temp: Option<tempfile::TempDir>,
}

impl Node {
    pub async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut node = Self::at(temp.path()).await;
        node._temp = Some(temp);
        node
    }

    /// A node on a directory that may have had one before.
    pub async fn at(dir: &Path) -> Self {
        Self::with(config(dir)).await
    }

    pub async fn with(config: Config) -> Self {
        let dir = config.data_dir.clone();
        layer(&dir);
        // As a node's own directory, and not as one for passing files.
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        let runtime = OciRuntime::new(config).unwrap();
        let (sender, events) = mpsc::channel(64);
        let known = runtime.adopt(sender).await.unwrap();
        Self { runtime, known, events, seen: Vec::new(), dir, _temp: None }
    }

    /// A container of one shell script.
    pub fn spec(&self, script: &str) -> ContainerSpec {
        self.spec_of(&["/bin/sh", "-c", script])
    }

    pub fn spec_of(&self, argv: &[&str]) -> ContainerSpec {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = RunId { pod_uid: format!("pod-{number}"), container: "main".into(), attempt: 0 };
        let logs = self.dir.join("pods").join(&id.pod_uid).join("main");
        std::fs::create_dir_all(&logs).unwrap();
        let ip = "10.42.0.9".parse().unwrap();
        ContainerSpec {
            log_path: logs.join("0.log"),
            pod_namespace: "default".into(),
            pod_name: id.pod_uid.clone(),
            spec_hash: format!("hash-{number}"),
            image: Image {
                reference: "busybox".into(),
                id: "busybox@sha256:0".into(),
                digest: "sha256:0".into(),
                form: ImageForm::Linux {
                    layers: vec![layer(&self.dir)],
                    entrypoint: vec![],
                    cmd: vec![],
                    env: vec![],
                    working_dir: String::new(),
                    user: String::new(),
                    stop_signal: String::new(),
                },
            },
            argv: argv.iter().map(|word| word.to_string()).collect(),
            env: vec![("GREETING".into(), "hello".into())],
            working_dir: String::new(),
            mounts: vec![],
            pod_ip: ip,
            bind_ip: ip,
            netns: None,
            tcp_ports: vec![],
            resources: Resources::default(),
            user: User::default(),
            dns: Dns::default(),
            hosts: vec![(ip, vec![id.pod_uid.clone()])],
            runtime_class: String::new(),
            stdin: false,
            stdin_once: false,
            tty: false,
            annotations: Default::default(),
            linux: Linux {
                hostname: id.pod_uid.clone(),
                termination_message_path: "/dev/termination-log".into(),
                ..Linux::default()
            },
            id,
        }
    }

    /// Waits for a run's end.
    pub async fn exit(&mut self, id: &RunId) -> Exit {
        let event = self
            .event(|event| matches!(event, RuntimeEvent::Exited { id: ended, .. } if ended == id))
            .await;
        let RuntimeEvent::Exited { exit, .. } = event else { unreachable!() };
        exit
    }

    /// Waits for an event; others stay to be found.
    pub async fn event(&mut self, wanted: impl Fn(&RuntimeEvent) -> bool) -> RuntimeEvent {
        loop {
            if let Some(at) = self.seen.iter().position(&wanted) {
                return self.seen.remove(at);
            }
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            self.seen.push(
                event.unwrap_or_else(|_| panic!("no such event; seen: {:?}", self.seen)).unwrap(),
            );
        }
    }

    /// Starts a container and waits for its end.
    pub async fn run(&mut self, spec: &ContainerSpec) -> Exit {
        self.runtime.start(spec.clone()).await.unwrap();
        self.exit(&spec.id).await
    }

    /// What a script prints that ends well.
    pub async fn output(&mut self, spec: &ContainerSpec) -> Vec<String> {
        let exit = self.run(spec).await;
        assert_eq!(exit.code, 0, "{exit:?} {:?}", log(spec));
        // A line without its end is told as a part of one.
        let printed = |line: &str| {
            let whole = line.strip_prefix("stdout F ").or_else(|| line.strip_prefix("stdout P "));
            whole.unwrap_or(line).to_owned()
        };
        log(spec).iter().map(|line| printed(line)).collect()
    }

    pub async fn end(self) {
        self.runtime.end_all().await;
        assert_eq!(leftovers(&self.dir), Vec::<String>::new());
    }

    /// Waits for what a container that goes on has printed.
    pub async fn until_logged(&self, spec: &ContainerSpec, line: &str) {
        until(line, async || log(spec).iter().any(|l| l.ends_with(line))).await;
    }
}

/// Mounts, directories, processes and cgroups of a node.
pub fn leftovers(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let text = dir.to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|l| l.contains(text)).map(|l| format!("mount {l}")));
    for name in ["run/oci", "run/oci-pods"] {
        let entries = std::fs::read_dir(dir.join(name)).into_iter().flatten().flatten();
        found.extend(entries.map(|e| format!("directory {}", e.path().display())));
    }
    found.extend(shims(dir).into_iter().map(|pid| format!("shim {pid}")));
    found.extend(cgroups(dir).into_iter().map(|dir| format!("cgroup {}", dir.display())));
    found
}

/// The shims of a node, by what they were started with.
pub fn shims(dir: &Path) -> Vec<i32> {
    let text = dir.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read_to_string(process.path().join("cmdline")).ok()?;
            (command.contains("\0oci-shim\0") && command.contains(text)).then_some(pid)
        })
        .collect()
}

pub fn cgroups(dir: &Path) -> Vec<PathBuf> {
    let key = dir.display().to_string();
    let hash =
        key.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let name = format!("rimward-{hash:08x}");
    let base = Path::new("/sys/fs/cgroup");
    let mut roots = vec![base.to_owned()];
    roots.extend(std::fs::read_dir(base).unwrap().flatten().map(|e| e.path()));
    roots.into_iter().map(|root| root.join(&name)).filter(|dir| dir.exists()).collect()
}

impl Drop for Node {
    /// A test that failed leaves no process behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for cgroup in cgroups(&self.dir) {
                kill_all(&cgroup);
            }
        }
    }
}

fn kill_all(cgroup: &Path) {
    for child in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            kill_all(&child.path());
        }
    }
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|l| rustix::process::Pid::from_raw(l.parse().ok()?)) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

pub fn config(dir: &Path) -> Config {
    let runc = Runc::find(None).expect("runc is installed: scripts/bootstrap --tests");
    let low_level = if by_runc() { LowLevel::Runc(runc.clone()) } else { LowLevel::Libcontainer };
    let shim = env!("CARGO_BIN_EXE_rimward-oci-shim").into();
    Config { low_level, runc: Some(runc), ..Config::new(dir.to_owned(), shim) }
}

/// Whether it is runc that makes containers which say nothing of it.
pub fn by_runc() -> bool {
    match std::env::var("RIMWARD_TEST_LOW_LEVEL").as_deref() {
        Ok("runc") => true,
        Ok("libcontainer") | Err(_) => false,
        Ok(other) => panic!("RIMWARD_TEST_LOW_LEVEL is {other:?}: neither libcontainer nor runc"),
    }
}

/// An unpacked layer with busybox in it, shared by all containers of a node.
fn layer(dir: &Path) -> PathBuf {
    let layer = dir.join("layer");
    if layer.exists() {
        return layer;
    }
    let made = dir.join("layer.new");
    // Of a node that was killed just then.
    let _there_is_none_mostly = std::fs::remove_dir_all(&made);
    for name in ["bin", "etc", "tmp", "home/web"] {
        std::fs::create_dir_all(made.join(name)).unwrap();
    }
    std::fs::copy("/usr/bin/busybox", made.join("bin/busybox"))
        .expect("busybox-static is installed: scripts/bootstrap --tests");
    let applets = std::process::Command::new("/usr/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", made.join("bin").join(applet)).unwrap();
    }
    std::fs::write(
        made.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:1001:1002::/home/web:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(made.join("etc/group"), "root:x:0:\nweb:x:1002:\nextra:x:1003:web\n").unwrap();
    std::fs::write(made.join("bin/not-executable"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(made.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::rename(&made, &layer).unwrap();
    layer
}

/// A log's lines without their timestamps, older files first.
pub fn log(spec: &ContainerSpec) -> Vec<String> {
    let name = spec.log_path.file_name().unwrap().to_str().unwrap();
    let dir = spec.log_path.parent().unwrap();
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(name))
        .collect();
    // `0.log` is the newest, but sorts before those with a time.
    files.sort_by_key(|path| (path == &spec.log_path, path.clone()));
    let texts = files.iter().map(|path| std::fs::read_to_string(path).unwrap());
    texts
        .flat_map(|text| {
            let lines = text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned());
            lines.collect::<Vec<_>>()
        })
        .collect()
}

/// Waits until something that has no event is so.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
