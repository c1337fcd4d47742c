//! The life of one pod on a node, whatever runs its containers.
//!
//! It decides and orders; it refuses to know wasmtime, cgroups, registries, sockets of the pod
//! network, or the tunnel: those are behind [`runtime::Runtime`] and the traits in [`outside`].
//!
//! Each pod is one small task around one state (`state`). Every input (a changed spec, an ended
//! container, a probe's result) is applied to the state under its lock and wakes the task; the task
//! plans from the whole state (`steps`, `ending`, `probing`), writes down what must survive the
//! agent (`record`), and only then acts (`act`), in short tasks that feed their results back. So an
//! idle pod is a state and a parked task, a plan needs no clock and no socket, and an agent that
//! was killed finds on disk whatever it had begun. One long task that awaits each step in turn was
//! rejected: every wait would have to listen for deletion, updates and ends as well.

pub mod clock;
pub mod outside;
pub mod pods;
pub mod runtime;
pub mod session;

mod task;

mod admission;
mod preemption;

mod state;
mod steps;

mod ending;
mod probing;

mod resize;
mod restart;
mod status;

mod act;
mod allocation;
mod record;

mod command;
mod container_spec;
mod dns;
mod downward;
mod env;
mod env_file;
mod hooks;
mod host_ports;
mod image_pull;
mod image_volumes;
mod probe;
mod references;
mod sessions;
mod sources;
mod usage;
mod volumes;

pub mod logs;

pub mod fake;

#[cfg(test)]
mod tests;

pub use clock::Clock;
pub use image_pull::of_docker_config;
pub use logs::{LogError, LogRequest};
pub use pods::{Allocatable, Config, Error, Pods, memory_dir};
pub use probe::connect_text;
pub use sessions::{NoSession, RunningContainer};
pub use usage::{
    ClaimFiles, ClaimUsage, ContainerUsage, DiskUsage, ImagesInUse, PodDisk, PodUsage,
};
