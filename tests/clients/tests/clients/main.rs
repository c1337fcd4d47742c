//! The control plane as clients meet it: a process of its own, over TLS, on a disk.

#![allow(clippy::unwrap_used, reason = "tests")]

mod certificates;
mod cluster;
mod helm;
mod operator;
mod tokens;
