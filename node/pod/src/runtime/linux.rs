//! What a Linux container is told beyond what every container is told: isolation, rights, cgroups.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::RunId;

/// A Linux container's part of its spec. A runtime of sandboxes that have no system calls ignores it.
/// <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Linux {
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// `shareProcessNamespace`
    pub share_processes: bool,
    /// `hostUsers: false`: the pod's users are none of the machine's.
    pub own_users: bool,
    pub privileged: bool,
    pub read_only_root: bool,
    /// `allowPrivilegeEscalation: false`
    pub no_new_privileges: bool,
    /// `NET_ADMIN`, or `ALL`; with or without `CAP_`.
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub seccomp: Seccomp,
    /// `procMount: Unmasked`
    pub proc_unmasked: bool,
    /// Names as `net.ipv4.ip_unprivileged_port_start`; only such as belong to the pod's namespaces.
    pub sysctls: Vec<(String, String)>,
    pub qos: QosClass,
    pub memory_request_bytes: u64,
    /// What it may take before the kernel, out of memory, thinks of it as of one that requested nothing.
    pub memory_due_bytes: u64,
    /// A pod of `system-node-critical`: the kernel ends others first, whatever it requests.
    pub node_critical: bool,
    /// Its memory may go to swap, if the node lets any have some.
    pub may_swap: bool,
    pub pod: PodLimits,
    /// Where the container may leave its last words.
    pub termination_message_path: String,
    /// By the path in the container, where they are not as usual.
    pub mount_flags: BTreeMap<String, MountFlags>,
    /// Disks that the container has as devices (`volumeDevices`).
    pub disks: Vec<DiskDevice>,
    /// Page size in bytes, and bytes.
    pub huge_pages: Vec<(u64, u64)>,
    /// The run whose processes it sees and is seen by, instead of a process namespace of its own.
    pub pid_of: Option<RunId>,
    /// What asks it to end, as `SIGTERM`, `TERM` or a number; empty is SIGTERM.
    pub stop_signal: String,
}

/// A block device of the node, and where a container finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDevice {
    pub host_path: PathBuf,
    pub container_path: String,
    pub read_only: bool,
}

/// How a volume is mounted, beside what every mount says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountFlags {
    pub propagation: Propagation,
    /// What is mounted below it is read-only too.
    pub recursive_read_only: bool,
}

/// <https://kubernetes.io/docs/concepts/storage/volumes/#mount-propagation>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// A profile's path below the node's directory of profiles.
    Localhost(String),
}

/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    #[default]
    BestEffort,
}

/// What all containers of the pod get together. A limit is there when each container has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLimits {
    pub cpu_request_millis: u64,
    pub cpu_limit_millis: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
}
