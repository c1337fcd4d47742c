//! One measurement, one file. Each starts what it needs and leaves nothing behind.

pub mod api;
pub mod containers;
pub mod fleet;
pub mod http;
pub mod idle_pods;
pub mod memory;
pub mod pod_start;
pub mod schedule;
pub mod start;
