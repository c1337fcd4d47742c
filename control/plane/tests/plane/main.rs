//! The control plane as clients meet it: over TLS, with its own keys, on a disk.

#![allow(clippy::unwrap_used, reason = "tests")]

mod certificates;
mod cluster;
mod helm;
mod operator;
mod tokens;
