//! The controllers and the scheduler against the real API server in one process, with nodes that are
//! played: pods become ready as soon as they are bound, unless their image says otherwise.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cluster;
mod cronjobs;
mod custom;
mod daemonsets;
mod deployments;
mod disruptions;
mod garbage;
mod jobs;
mod load;
mod namespaces;
mod nodes;
mod protection;
mod quotas;
mod replicationcontrollers;
mod services;
mod statefulsets;
mod volumes;
