//! A node of one: a data directory, the runtime, and what it said.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rimward_node_pod::outside::{Image, ImageForm};
use rimward_node_pod::runtime::{
    ContainerSpec, Dns, Exit, Known, Resources, RunId, Runtime, RuntimeEvent, User,
};
use rimward_node_wasm::{Config, WasmRuntime};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub runtime: WasmRuntime,
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
        let runtime = WasmRuntime::new(config).unwrap();
        let (sender, events) = mpsc::channel(64);
        let known = runtime.adopt(sender).await.unwrap();
        Self { runtime, known, events, seen: Vec::new(), dir, _temp: None }
    }

    pub async fn end(self) {
        self.runtime.end_hosts().await;
    }

    pub fn spec(&self, guest: &str) -> ContainerSpec {
        let file = testdata(guest);
        let bytes = std::fs::read(&file).unwrap();
        self.spec_of(guest, &file, &format!("sha256:test-{guest}-{}", bytes.len()))
    }

    pub fn spec_of(&self, name: &str, file: &Path, digest: &str) -> ContainerSpec {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Each test process and each pod in it has a loopback address to itself.
        let process = std::process::id();
        let ip =
            IpAddr::V4(Ipv4Addr::new(127, 64 | (process >> 8) as u8 & 63, process as u8, number));
        let id = RunId { pod_uid: format!("pod-{number}"), container: "guest".into(), attempt: 0 };
        ContainerSpec {
            log_path: self.dir.join("pods").join(&id.pod_uid).join("guest/0.log"),
            id,
            pod_namespace: "default".into(),
            pod_name: format!("{name}-{number}"),
            spec_hash: format!("hash-{number}"),
            image: Image {
                reference: name.into(),
                id: format!("{name}@{digest}"),
                digest: digest.into(),
                form: ImageForm::Wasm {
                    file: file.into(),
                    digest: digest.into(),
                    entrypoint: vec![],
                    cmd: vec![],
                    env: vec![],
                    working_dir: String::new(),
                },
            },
            argv: vec![name.into()],
            env: vec![],
            working_dir: String::new(),
            mounts: vec![],
            pod_ip: ip,
            bind_ip: ip,
            netns: None,
            tcp_ports: vec![free_port(ip)],
            resources: Resources::default(),
            user: User::default(),
            dns: Dns::default(),
            hosts: vec![],
            runtime_class: String::new(),
            stdin: false,
            stdin_once: false,
            tty: false,
            annotations: Default::default(),
            linux: Default::default(),
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

    /// Starts a task and waits for its end.
    pub async fn run(&mut self, spec: &ContainerSpec) -> Exit {
        self.runtime.start(spec.clone()).await.unwrap();
        self.exit(&spec.id).await
    }
}

impl Drop for Node {
    /// A test that failed leaves no process behind.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            let command =
                std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
                && command.contains("\0wasm-host\0")
                && command.contains(&format!("{:?}", self.dir))
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

pub fn config(dir: &Path) -> Config {
    Config {
        user_mode: false,
        ..Config::new(dir.to_owned(), env!("CARGO_BIN_EXE_rimward-wasm-host").into())
    }
}

pub fn testdata(guest: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(guest)
}

pub fn free_port(ip: IpAddr) -> u16 {
    TcpListener::bind(SocketAddr::new(ip, 0)).unwrap().local_addr().unwrap().port()
}

/// A log's lines without their timestamps.
pub fn log(spec: &ContainerSpec) -> Vec<String> {
    let text = std::fs::read_to_string(&spec.log_path).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

pub fn address(spec: &ContainerSpec) -> SocketAddr {
    SocketAddr::new(spec.bind_ip, spec.tcp_ports[0])
}

/// One request on a connection of its own; the whole answer.
pub async fn get(to: SocketAddr) -> String {
    tokio::task::spawn_blocking(move || {
        request(to, "GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
    })
    .await
    .unwrap()
}

pub fn request(to: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits until something that has no event is so.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
