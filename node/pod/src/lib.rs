//! The life of one pod on a node, whatever runs its containers.
//!
//! It decides and orders; it refuses to know wasmtime, cgroups, registries, sockets of the pod
//! network, or the tunnel: those are behind [`runtime::Runtime`] and the traits in [`outside`].

pub mod clock;
pub mod logs;
pub mod outside;
pub mod pods;
pub mod runtime;

pub use clock::Clock;
pub use logs::{LogError, LogRequest};
pub use pods::{Allocatable, Config, ContainerUsage, Error, Pods, memory_dir};
