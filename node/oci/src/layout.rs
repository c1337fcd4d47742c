//! Where everything of one run lies, and the files that agent and shim leave for each other.

use std::io::Write;
use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::{ContainerSpec, RunId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::low_level::LowLevel;
use crate::seccomp_profile::Compiled;

/// The directory of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunDir(pub PathBuf);

/// What libcontainer and runc call each container: its state has a directory of its own anyway.
pub(crate) const CONTAINER_ID: &str = "c";

/// The directory of runc's state in a run's.
pub(crate) const RUNC_STATE: &str = "runc";

/// Those of a pod with users of its own which belong to them, and theirs.
pub(crate) const NAMESPACES_OF_USERS: [&str; 4] = ["user", "ipc", "uts", "net"];

/// `spec.json`
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    pub spec: ContainerSpec,
    /// A run of another boot is over, whatever files say.
    pub boot_id: String,
    /// Relative to each hierarchy's root.
    pub cgroup: PathBuf,
}

/// `shim.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub log_path: PathBuf,
    /// The agent is told when the log has this size.
    pub log_bytes_max: u64,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// Files that take the shim's pid, to be in cgroups of its own.
    pub own_cgroups: Vec<PathBuf>,
    /// Where the kernel counts what it killed for memory: `memory.events`, `memory.oom_control`.
    pub oom_file: Option<PathBuf>,
    pub oom_score_adj: i32,
    /// Volumes that the machine's later mounts do not come through: paths in the container.
    #[serde(default)]
    pub private_mounts: Vec<String>,
    /// What made it.
    #[serde(default)]
    pub low_level: LowLevel,
    pub confinement: Confinement,
    /// The namespace of the pod's own users, if it has such.
    #[serde(default)]
    pub users: Option<PathBuf>,
}

/// What the container's program, and each that is run in it, may not do. Of libcontainer's; runc keeps by itself
/// what `config.json` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// Bits by capability number.
    pub capabilities: u64,
    /// The runtime's own profile.
    pub seccomp: bool,
    /// One of the node's operator, instead.
    #[serde(default)]
    pub profile: Option<Compiled>,
}

/// `started.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    pub pid: i32,
    pub at: jiff::Timestamp,
}

/// `exit.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// 128 + signal when a signal ended it.
    pub code: i32,
    pub signal: Option<i32>,
    pub out_of_memory: bool,
    pub at: jiff::Timestamp,
}

impl RunDir {
    pub fn of(data_dir: &Path, id: &RunId) -> Self {
        let name = format!("{}.{}.{}", id.pod_uid, id.container, id.attempt);
        Self(runs(data_dir).join(name))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.file("rootfs")
    }

    pub fn socket(&self) -> PathBuf {
        self.file("shim.sock")
    }

    pub fn termination(&self) -> PathBuf {
        self.file("etc/termination-log")
    }

    pub fn read<T: DeserializeOwned>(&self, name: &str) -> std::io::Result<T> {
        let content = std::fs::read(self.file(name))?;
        serde_json::from_slice(&content).map_err(Into::into)
    }

    /// Whole or not at all, for whoever reads it at the same time.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> std::io::Result<()> {
        let (path, new) = (self.file(name), self.file(&format!("{name}.new")));
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(value).expect("it is plain data"))?;
        std::fs::rename(new, path)
    }

    /// Takes the room on disk that [`RunDir::write_reserved`] is to need.
    pub fn reserve(&self, name: &str) -> std::io::Result<()> {
        std::fs::write(self.file(&format!("{name}.new")), [b' '; RESERVED_BYTES])
    }

    /// Writes what was reserved for: also when the disk is full by now.
    pub fn write_reserved<T: Serialize>(&self, name: &str, value: &T) -> std::io::Result<()> {
        let (path, new) = (self.file(name), self.file(&format!("{name}.new")));
        let mut text = serde_json::to_vec(value).expect("it is plain data");
        if text.len() > RESERVED_BYTES {
            return self.write(name, value);
        }
        // Blanks after a value are none of it.
        text.resize(RESERVED_BYTES, b' ');
        // Not emptied: what it has of the disk is what it is for.
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&new)?;
        file.write_all(&text)?;
        std::fs::rename(new, path)
    }
}

/// Of a reserved file: how a run ended takes a tenth of it.
const RESERVED_BYTES: usize = 1024;

pub(crate) fn runs(data_dir: &Path) -> PathBuf {
    data_dir.join("run").join("oci")
}

/// What a pod's containers share.
pub(crate) fn pods(data_dir: &Path) -> PathBuf {
    data_dir.join("run").join("oci-pods")
}
