//! What the node tells this runtime about itself.

use std::path::PathBuf;
use std::time::Duration;

use crate::address::AddressMap;

/// Settings of the Wasm runtime. [`Config::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's directory. Sockets and records of runs are in `run/`, machine code in `aot/`.
    /// Paths of a [`rimward_node_pod::runtime::ContainerSpec`] below it are opened by hosts
    /// relative to it, so its parents need not be open to the host's user.
    pub data_dir: PathBuf,
    /// The binary whose `wasm-host` and `wasm-compile` subcommands are [`crate::host_main`] and
    /// [`crate::compile_main`].
    pub exe: PathBuf,
    /// The network namespace that Wasm pods without one of their own share.
    pub netns: Option<PathBuf>,
    /// The node is not root: pods live on loopback addresses (see `address_map`).
    pub user_mode: bool,
    /// The user that hosts run as when the agent is root and the pod names none.
    pub host_uid: u32,
    /// The group that may walk to pods' files; every host is in it when the agent is root.
    pub host_gid: u32,
    /// PEM certificates that guests trust besides the system's. Read once, when the runtime starts.
    pub ca_bundle: Option<PathBuf>,
    /// Offer WASI 0.3.
    pub allow_p3: bool,
    /// Where addresses of pods and Services really are on this node, in user mode.
    pub address_map: Vec<AddressMap>,
    /// What the cache of machine code may take on disk.
    pub aot_cache_bytes: u64,
    /// Address space of one compilation.
    pub compile_memory_bytes: u64,
    pub compile_timeout: Duration,
    /// Guest instances at once in one shared host; fewer where the machine allows fewer.
    pub slots: u32,
}

impl Config {
    pub fn new(data_dir: PathBuf, exe: PathBuf) -> Self {
        Self {
            data_dir,
            exe,
            netns: None,
            user_mode: !rustix::process::geteuid().is_root(),
            host_uid: 65532,
            host_gid: 65532,
            ca_bundle: None,
            allow_p3: true,
            address_map: Vec::new(),
            aot_cache_bytes: 1 << 30,
            compile_memory_bytes: 4 << 30,
            compile_timeout: Duration::from_secs(300),
            slots: 2048,
        }
    }
}
