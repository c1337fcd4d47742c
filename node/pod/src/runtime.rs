//! What runs containers: the trait that `wasm` and `oci` implement, and the fake.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::outside::Image;

mod linux;
mod usage;

pub use linux::{DiskDevice, Linux, MountFlags, PodLimits, Propagation, QosClass, Seccomp};
pub use usage::{Pressure, Stall, Stalls, SwapUsage, Usage};

/// One run of one container: a restart has the next attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId {
    pub pod_uid: String,
    pub container: String,
    /// 0 for the first run; equals the restart count.
    pub attempt: u32,
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}#{}", self.pod_uid, self.container, self.attempt)
    }
}

/// Everything a runtime needs to start one container. Complete and serialisable: a runtime keeps it
/// on disk so that the next agent can adopt what runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub id: RunId,
    pub pod_namespace: String,
    pub pod_name: String,
    /// Of the container's spec and the pod-level settings that shape it; adoption compares it.
    pub spec_hash: String,
    pub image: Image,
    /// argv after Kubernetes' rules for command and args against the image's entrypoint and cmd.
    /// For a component argv[0] is the command, else the component's name.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub mounts: Vec<Mount>,
    /// The pod's address as the API shows it.
    pub pod_ip: IpAddr,
    /// Where this node really binds it: equal to `pod_ip` with a pod network, a loopback address in
    /// user mode (see `rimward-node-network`).
    pub bind_ip: IpAddr,
    /// A network namespace to be in (`/run/netns/…`), when pods have one.
    pub netns: Option<PathBuf>,
    /// Declared TCP containerPorts, in order. A handler is served on each of them, else on 8080.
    pub tcp_ports: Vec<u16>,
    pub resources: Resources,
    /// The file that the runtime appends log lines to, in the CRI format
    /// (`<RFC3339Nano> <stdout|stderr> <F|P> <text>`).
    pub log_path: PathBuf,
    pub user: User,
    pub dns: Dns,
    /// Extra /etc/hosts entries (hostAliases).
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// The handler of the pod's RuntimeClass: `wasm`, `wasm-isolated`, `oci` …; empty is the node's default for
    /// the image.
    pub runtime_class: String,
    pub stdin: bool,
    /// With `stdin`: its end is the end of the first attached session's. Without it the container's
    /// stdin stays open over any number of sessions.
    #[serde(default)]
    pub stdin_once: bool,
    pub tty: bool,
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub linux: Linux,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub memory_limit_bytes: Option<u64>,
    /// Thousandths of a core.
    pub cpu_limit_millis: Option<u64>,
    pub cpu_request_millis: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub supplemental_gids: Vec<i64>,
    /// `supplementalGroupsPolicy: Strict`: what the image says of the user's groups does not hold.
    #[serde(default)]
    pub strict_groups: bool,
}

/// Who a container's program really is, as its pod's status shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: i64,
    pub gid: i64,
    /// The primary one among them.
    pub groups: Vec<i64>,
}

/// A prepared directory or file of the node, seen by the container at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: String,
    pub read_only: bool,
}

/// The pod's resolver settings after dnsPolicy and dnsConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Socket addresses really reachable from the container.
    pub servers: Vec<std::net::SocketAddr>,
    pub searches: Vec<String>,
    pub ndots: u8,
    /// Others than ndots, as resolv.conf has them: `name` or `name:value`. Only the C library of a container
    /// knows what to make of them.
    #[serde(default)]
    pub options: Vec<String>,
}

/// What a runtime says without being asked.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeEvent {
    Started {
        id: RunId,
        at: jiff::Timestamp,
    },
    Exited {
        id: RunId,
        exit: Exit,
    },
    /// Something a user should see as an Event on the pod (`Warning`, reason, message), which did
    /// not end the container: a handler's request was refused for memory, say.
    Notice {
        id: RunId,
        reason: String,
        message: String,
    },
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// 0–255; 128 + signal when a signal ended it; 137 with `OOMKilled`.
    pub code: i32,
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, `StartError` …
    pub reason: String,
    /// A trap's text, say. Empty mostly.
    pub message: String,
    pub started_at: jiff::Timestamp,
    pub finished_at: jiff::Timestamp,
}

/// A run that a runtime knows: what an agent finds when it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    pub id: RunId,
    pub spec_hash: String,
    pub started_at: Option<jiff::Timestamp>,
    /// None while it runs.
    pub exit: Option<Exit>,
}

/// Why a container did not start: `reason` becomes the waiting reason in the pod's status, `message`
/// names the cause (the missing import, the trap), for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct StartError {
    /// `CreateContainerError`, `RunContainerError`, `CreateContainerConfigError` …
    pub reason: String,
    pub message: String,
}

/// A command to run in a container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Not empty. No shell is put around it, and `$(VAR)` is not expanded.
    pub argv: Vec<String>,
    /// On a terminal of its own: its stderr comes with its stdout then.
    pub tty: bool,
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// Bytes that somebody types.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;
/// Where bytes that were printed go. It takes them as fast as its reader does: a runtime holds a
/// bounded number of them and lets the program wait.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// What a session is connected with. A part that is None is not wanted: such a stdin is at its end
/// at once, such an output is read and dropped.
#[derive(Default)]
pub struct Streams {
    /// Its end closes the program's stdin. An error is a client that is gone.
    pub stdin: Option<Input>,
    /// Dropped (or shut down) when the program has printed its last.
    pub stdout: Option<Output>,
    /// Never given together with a terminal.
    pub stderr: Option<Output>,
    /// Sizes as the client's terminal takes them, the first at once. Only with a terminal.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish()
    }
}

/// What a RuntimeClass may name as its handler, and what it can do.
/// <https://kubernetes.io/docs/concepts/containers/runtime-class/>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    pub name: &'static str,
    /// `recursiveReadOnly` of a volume's mount.
    pub recursive_read_only: bool,
    /// `hostUsers: false`
    pub user_namespaces: bool,
}

impl Handler {
    pub fn named(name: &'static str) -> Self {
        Self { name, recursive_read_only: false, user_namespaces: false }
    }
}

/// Runs containers. One event feed; every call is safe to repeat.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// `wasm`, `oci`, `fake`: the scheme of the containerID in a pod's status.
    fn name(&self) -> &'static str;

    /// What pods may ask for by their RuntimeClass. A pod that asks for nothing gets what runs its image.
    fn handlers(&self) -> Vec<Handler> {
        vec![Handler::named(self.name())]
    }

    /// Whether images of this form are its business.
    fn runs(&self, image: &Image) -> bool;

    /// Connects to what an earlier agent left running, and says what there is, ended runs included
    /// that were not yet removed. Called once, before anything else; events flow into `events` from
    /// then on.
    async fn adopt(&self, events: mpsc::Sender<RuntimeEvent>) -> Result<Vec<Known>, StartError>;

    /// Whether its containers want a network namespace of their pod's own
    /// (see [`crate::outside::Network::own_namespace`]).
    fn needs_namespace(&self) -> bool {
        false
    }

    /// Whether its containers in a pod with this runtime handler are to be in a network namespace of that pod's own.
    fn isolates(&self, _handler: &str) -> bool {
        false
    }

    /// Makes the namespaces of a pod whose users are none of the machine's (`hostUsers: false`), where they are
    /// not yet there. The answer is the network namespace that belongs to those users: the pod's network is made
    /// in it. May be repeated; [`Runtime::release`] undoes it.
    ///
    /// # Errors
    /// Says why this node cannot.
    async fn own_users(&self, _pod_uid: &str, _hostname: &str) -> Result<PathBuf, String> {
        Err(format!("the {} runtime does not support user namespaces", self.name()))
    }

    /// Makes sure that what can be done before a start is done: compiles the image, say. `start`
    /// does it too when this was not called.
    async fn prepare(&self, image: &Image) -> Result<(), StartError>;

    /// Starts a container. When it answers, it runs (a handler: its ports answer).
    async fn start(&self, spec: ContainerSpec) -> Result<(), StartError>;

    /// Asks it to end, forces it after `grace`. An [`RuntimeEvent::Exited`] follows. Not known is fine.
    async fn stop(&self, id: &RunId, grace: Duration);

    /// Forgets an ended run.
    async fn remove(&self, id: &RunId);

    /// The pod is over and its runs were removed: what they shared goes too. Not known is fine.
    async fn release(&self, _pod_uid: &str) {}

    /// Who a run that was started is, if it is a user of the system at all.
    async fn identity(&self, _id: &RunId) -> Option<Identity> {
        None
    }

    async fn usage(&self, id: &RunId) -> Option<Usage>;

    /// What all its runs use together (`pods`), and what it takes itself to run them (`runtime`), where that is
    /// counted.
    fn usage_of_all(&self) -> Vec<(&'static str, Usage)> {
        Vec::new()
    }

    /// What a pod's containers waited for, together. None where the kernel does not tell.
    async fn pressure(&self, _pod_uid: &str) -> Option<Pressure> {
        None
    }

    /// Whether containers with [`Linux::may_swap`] have swap, by how much memory they ask for.
    fn has_swap(&self) -> bool {
        false
    }

    /// Whether [`Runtime::update`] is possible.
    fn resizes(&self) -> bool {
        false
    }

    /// Gives a container that runs other limits, and its pod.
    ///
    /// # Errors
    /// Why not: it takes more than that already, say. Then it goes on with what it had.
    async fn update(
        &self,
        id: &RunId,
        _resources: &Resources,
        _pod: &PodLimits,
    ) -> Result<(), StartError> {
        Err(StartError {
            reason: "ResizeNotSupported".into(),
            message: format!("the {} runtime cannot resize {id}", self.name()),
        })
    }

    /// The images of all runs that it knows and whose files it still needs.
    fn images(&self) -> Vec<Image> {
        Vec::new()
    }

    /// The directory that holds what a run has written into its root file system, if it has one.
    fn written(&self, _id: &RunId) -> Option<PathBuf> {
        None
    }

    /// Runs a command in a container's environment and waits for its end. All that it printed is in
    /// `streams` by then. Whoever drops the call ends the command by force: that is how a client's
    /// departure and a probe's timeout end what they began. An output that cannot be written any
    /// more is dropped, the command goes on.
    ///
    /// # Errors
    /// When the command could not be started: `NotFound` as the reason when the container does not
    /// run, else what the runtime calls it. A command that ran and failed is an [`Exit`].
    async fn exec(
        &self,
        id: &RunId,
        _request: ExecRequest,
        _streams: Streams,
    ) -> Result<Exit, StartError> {
        Err(StartError {
            reason: "ExecNotSupported".into(),
            message: format!("the {} runtime cannot run commands in {id}", self.name()),
        })
    }

    /// Connects a client with the container's own main process: what it prints from now on, and its
    /// stdin if the container has one (`ContainerSpec::stdin`). Several may be attached. Answers when
    /// the container has ended and all was handed over, or when nobody reads any more. Whoever drops
    /// the call detaches; the container runs on.
    ///
    /// # Errors
    /// As [`Runtime::exec`]'s.
    async fn attach(&self, id: &RunId, _streams: Streams) -> Result<(), StartError> {
        Err(StartError {
            reason: "AttachNotSupported".into(),
            message: format!("the {} runtime cannot attach to {id}", self.name()),
        })
    }
}
