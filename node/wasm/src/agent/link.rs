//! One connection to one host: requests and their answers, events, and the host's end.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rimward_node_pod::runtime::RuntimeEvent;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::host::Settings;
use crate::protocol::{self, Reply, Request, Run, ToAgent, ToHost};

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const REQUESTS: usize = 256;
/// A host that is told to end, or whose socket broke, is gone by then or is not waited for.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The host is gone, or as good as gone.
#[derive(Debug)]
pub(super) struct LinkLost;

pub(super) struct Link {
    pid: u32,
    runs: Mutex<Vec<Run>>,
    next: AtomicU64,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>,
    out: mpsc::Sender<ToHost>,
    /// The connection broke.
    broken: CancellationToken,
    /// And everything that follows from it is done.
    gone: CancellationToken,
}

/// Starts a host and waits until it listens.
pub(super) async fn spawn(config: &Config, settings: &Settings) -> Result<Child, String> {
    let log = config.data_dir.join("run").join(format!("{}.log", settings.name));
    // What it says about itself, the last time only: a panic's text is what one looks for.
    let log = std::fs::File::create(&log)
        .map_err(|error| format!("cannot write {}: {error}", log.display()))?;
    let mut command = Command::new(&config.exe);
    command.arg("wasm-host").arg(serde_json::to_string(settings).expect("settings are plain data"));
    // No environment: nothing of the agent's is the guests' business.
    command
        .env_clear()
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    // SAFETY: setsid is async-signal-safe. In a session of its own no terminal's or group's signal
    // that ends the agent reaches the host.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
    }
    let mut child =
        command.spawn().map_err(|error| format!("{}: {error}", config.exe.display()))?;
    let mut line = String::new();
    let stdout = BufReader::new(child.stdout.take().expect("it is piped").take(64));
    let read = async {
        tokio::pin!(stdout);
        stdout.read_line(&mut line).await
    };
    let ready = tokio::time::timeout(READY_TIMEOUT, read).await;
    if matches!(ready, Ok(Ok(_))) && line.trim() == "ready" {
        return Ok(child);
    }
    let _ = child.start_kill();
    let _ = child.wait().await;
    Err(last_words(&config.data_dir, &settings.name)
        .unwrap_or_else(|| "it said nothing and is not ready".into()))
}

/// The end of what a host wrote about itself.
fn last_words(data_dir: &Path, name: &str) -> Option<String> {
    let text = std::fs::read(data_dir.join("run").join(format!("{name}.log"))).ok()?;
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take(3).collect();
    (!lines.is_empty()).then(|| lines.join(" "))
}

impl Link {
    /// Connects to a host that listens. `lost` is called once, with how it ended and the exit code
    /// that its runs get, after all its events.
    pub async fn connect<L, F>(
        data_dir: &Path,
        name: &str,
        child: Option<Child>,
        events: mpsc::UnboundedSender<RuntimeEvent>,
        lost: L,
    ) -> io::Result<Arc<Self>>
    where
        L: FnOnce(String, i32) -> F + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let stream = open(data_dir, name).await?;
        let (mut reader, mut writer) = stream.into_split();
        protocol::write(&mut writer, &ToHost { seq: 0, request: Request::Hello }).await?;
        let mut early = Vec::new();
        let hello = tokio::time::timeout(HELLO_TIMEOUT, hello(&mut reader, &mut early));
        let (pid, runs) = hello.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;

        let (out, mut requests) = mpsc::channel::<ToHost>(REQUESTS);
        let link = Arc::new(Self {
            pid,
            runs: Mutex::new(runs),
            next: AtomicU64::new(1),
            waiting: Arc::default(),
            out,
            broken: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        let broken = link.broken.clone();
        tokio::spawn(async move {
            loop {
                let frame = tokio::select! {
                    () = broken.cancelled() => return,
                    frame = requests.recv() => frame,
                };
                let Some(frame) = frame else { return };
                if protocol::write(&mut writer, &frame).await.is_err() {
                    return broken.cancel();
                }
            }
        });
        // Holds no Arc of the link: a link that nobody holds must not keep its host's events away
        // from the next agent in this process.
        let (waiting, broken, gone) =
            (link.waiting.clone(), link.broken.clone(), link.gone.clone());
        let (data_dir, name) = (data_dir.to_owned(), name.to_owned());
        tokio::spawn(async move {
            for event in early {
                let _ = events.send(event);
            }
            listen(&mut reader, &waiting, &broken, &events).await;
            broken.cancel();
            waiting.lock().clear();
            let (how, code) = how_it_ended(child, pid, &data_dir, &name).await;
            lost(how, code).await;
            gone.cancel();
        });
        Ok(link)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn alive(&self) -> bool {
        !self.broken.is_cancelled()
    }

    /// What it ran when the connection was made.
    pub fn runs(&self) -> Vec<Run> {
        std::mem::take(&mut self.runs.lock())
    }

    pub async fn request(&self, request: Request) -> Result<Reply, LinkLost> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().insert(seq, sender);
        if !self.alive() || self.out.send(ToHost { seq, request }).await.is_err() {
            self.waiting.lock().remove(&seq);
            return Err(LinkLost);
        }
        tokio::select! {
            reply = receiver => reply.map_err(|_| LinkLost),
            () = self.broken.cancelled() => Err(LinkLost),
        }
    }

    /// Resolves when the host is gone and its runs' ends were told.
    pub async fn gone(&self) {
        let _ = tokio::time::timeout(END_TIMEOUT, self.gone.cancelled()).await;
        self.broken.cancel();
    }
}

/// A socket's path may be too long for its address: it is named through its directory's descriptor.
pub(super) async fn open(data_dir: &Path, name: &str) -> io::Result<UnixStream> {
    let dir = std::fs::File::open(data_dir.join("run"))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}.sock", dir.as_raw_fd())).await
}

async fn hello(
    reader: &mut OwnedReadHalf,
    early: &mut Vec<RuntimeEvent>,
) -> io::Result<(u32, Vec<Run>)> {
    loop {
        match protocol::read::<ToAgent>(reader).await? {
            Some(ToAgent::Reply { reply: Reply::Hello { pid, runs }, .. }) => {
                return Ok((pid, runs));
            }
            Some(event) => early.extend(event.into_event()),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

async fn listen(
    reader: &mut OwnedReadHalf,
    waiting: &Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
    broken: &CancellationToken,
    events: &mpsc::UnboundedSender<RuntimeEvent>,
) {
    loop {
        let frame = tokio::select! {
            () = broken.cancelled() => return,
            frame = protocol::read::<ToAgent>(reader) => frame,
        };
        match frame {
            Ok(Some(ToAgent::Reply { seq, reply })) => {
                if let Some(sender) = waiting.lock().remove(&seq) {
                    let _ = sender.send(reply);
                }
            }
            Ok(Some(event)) => {
                if let Some(event) = event.into_event()
                    && events.send(event).is_err()
                {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!("the connection to a wasm host broke: {error}");
                return;
            }
        }
    }
}

/// How a host ended, in words and as the exit code of what it ran. A host that still lives is ended:
/// without a connection nobody would hear of its runs again.
async fn how_it_ended(
    child: Option<Child>,
    pid: u32,
    data_dir: &Path,
    name: &str,
) -> (String, i32) {
    let said = || last_words(data_dir, name).map(|text| format!(": {text}")).unwrap_or_default();
    let Some(mut child) = child else {
        // It is not our child: its earlier agent's. It closes its socket only when it ends.
        return (format!("(pid {pid}) ended{}", said()), 137);
    };
    let status = match tokio::time::timeout(END_TIMEOUT, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    match status.ok().map(|status| (status.signal(), status.code())) {
        Some((Some(signal), _)) => {
            (format!("(pid {pid}) was ended by signal {signal}{}", said()), 128 + signal)
        }
        Some((_, Some(code))) => (format!("(pid {pid}) ended with code {code}{}", said()), 137),
        _ => (format!("(pid {pid}) ended{}", said()), 137),
    }
}
