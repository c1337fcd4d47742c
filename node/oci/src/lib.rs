//! Runs Linux containers for pods: [`rimward_node_pod::runtime::Runtime`] on libcontainer or runc.
//!
//! Containers never run in the agent, nor are they its children. The agent starts this same binary again
//! as `oci-shim`, single-threaded: it makes one container with libcontainer or runc ([`LowLevel`]), by a child, so
//! that of all that making a container takes nothing stays in memory, becomes its parent, and tends it: it writes
//! the log, waits, and keeps the exit. A shim outlives its agent; the next one finds it by the container's directory:
//!
//! ```text
//! DIR/run/oci/<pod uid>.<container>.<attempt>/
//!   spec.json      what the container was started from, and in which boot of the machine
//!   config.json    the same as the OCI runtime specification says it
//!   shim.json      what the shim needs to know
//!   started.json   written once it runs
//!   exit.json      written once, when it is over and its log is whole
//!   shim.sock      where the shim listens
//!   rootfs/        the overlay: the image's layers, and upper/ on top
//!   etc/           hosts, hostname, resolv.conf, the termination message
//!   volumes/       of a pod with users of its own: its volumes as they see them
//!   lc/ or runc/   the own state of libcontainer or runc
//! DIR/run/oci-pods/<pod uid>/    what a pod's containers share: ipc and uts namespaces, shm; of a pod with
//!                                users of its own also theirs, and `users`, the first of their ids
//! ```
//!
//! An exit is known by the end of the shim's connection and by `exit.json`: neither needs a look at the
//! clock. `exec` is another process of this binary, a child of the agent, which enters the container and
//! ends with the call.
//!
//! What it refuses to do: pull or unpack images, give addresses, make network namespaces, restart
//! anything, know Kubernetes objects, or start a container less confined than it was asked to.
//!
//! Reading order: [`Config`], `layout` and `protocol` (what agent and shim share), `agent` (the Runtime),
//! `spec` (the decisions, pure), then `shim`, in it `low_level`.

mod agent;
mod capabilities;
mod config;
mod descriptors;
mod layout;
mod low_level;
mod protocol;
mod runtime_default;
mod seccomp_profile;
mod shim;
mod spec;
mod syscalls;
mod user_ids;

pub use agent::OciRuntime;
pub use config::{Config, PidLimits, Swap};
pub use low_level::{LowLevel, NoRunc, Runc};
pub use user_ids::{IDS_OF_POD, UserIds};

/// Does the work of `oci-shim` when this process was started as one: to be called before any thread is
/// started. None in an ordinary process.
pub fn reexecuted() -> Option<std::process::ExitCode> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("oci-shim") => Some(shim::main(args)),
        _ => None,
    }
}
