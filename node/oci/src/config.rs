//! What the node tells this runtime about itself.

use std::path::PathBuf;

use crate::low_level::{LowLevel, Runc};
use crate::user_ids::UserIds;

/// Settings of the container runtime. [`Config::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's directory; see the crate's page for what lies in it.
    pub data_dir: PathBuf,
    /// The binary whose `oci-shim` subcommand is [`crate::reexecuted`].
    pub exe: PathBuf,
    /// Tells the cgroups of several nodes on one machine apart; stable over restarts.
    pub node_key: String,
    /// A log file of this size is rotated.
    pub log_bytes_max: u64,
    /// Files that one run's log has at most, the current one included.
    pub log_files_max: usize,
    /// Processes and threads: a fork bomb ends at it.
    pub pids: PidLimits,
    /// Directory of seccomp profiles of type Localhost.
    pub seccomp_dir: PathBuf,
    /// What of the machine's swap containers may have.
    pub swap: Swap,
    /// For pods with users of their own. Err says why there are none to give.
    pub user_ids: Result<UserIds, String>,
    /// What makes containers of pods that do not say it.
    pub low_level: LowLevel,
    /// For pods whose RuntimeClass says `runc`.
    pub runc: Option<Runc>,
}

/// Handlers: what this node makes containers with, and runc.
pub(crate) const HANDLER: &str = "oci";
pub(crate) const HANDLER_OF_RUNC: &str = "runc";

impl Config {
    pub fn new(data_dir: PathBuf, exe: PathBuf) -> Self {
        Self {
            node_key: data_dir.display().to_string(),
            seccomp_dir: data_dir.join("seccomp"),
            data_dir,
            exe,
            // As the kubelet has them.
            log_bytes_max: 10 << 20,
            log_files_max: 5,
            pids: PidLimits::of_machine(),
            swap: Swap::None,
            user_ids: UserIds::of_machine(),
            low_level: LowLevel::default(),
            runc: None,
        }
    }

    /// What makes the containers of a pod that asks for a handler, or by an empty one for none.
    ///
    /// # Errors
    /// When this node has no runc, and the pod wants that.
    pub(crate) fn low_level_of(&self, handler: &str) -> Result<LowLevel, String> {
        match (handler, &self.runc) {
            (HANDLER_OF_RUNC, Some(runc)) => Ok(LowLevel::Runc(runc.clone())),
            (HANDLER_OF_RUNC, None) => {
                Err(format!("the runtime handler {handler:?} is not on this node"))
            }
            _ => Ok(self.low_level.clone()),
        }
    }
}

/// <https://kubernetes.io/docs/concepts/cluster-administration/swap-memory-management/#swap-behaviors>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swap {
    /// `NoSwap`: nothing of it.
    #[default]
    None,
    /// `LimitedSwap`: containers of Burstable pods as large a part of it as they ask for of the memory. Only with
    /// cgroup v2.
    Limited,
}

/// How many processes and threads there may be.
/// <https://kubernetes.io/docs/concepts/policy/pid-limiting/>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PidLimits {
    /// In one pod.
    pub pod: u64,
    /// In all pods together.
    pub node: u64,
}

impl PidLimits {
    /// What pods may not have: the machine's own programs go on, and this node can end what is too much.
    const RESERVED: u64 = 1000;

    /// A quarter of what the machine has for each pod, and nearly all for all of them.
    pub fn of_machine() -> Self {
        let limit = |name: &str| -> Option<u64> {
            let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
            text.trim().parse().ok()
        };
        let limits = [limit("pid_max"), limit("threads-max")];
        let most = limits.into_iter().flatten().min().unwrap_or(32768);
        Self { pod: most / 4, node: most.saturating_sub(Self::RESERVED).max(most / 2) }
    }
}
