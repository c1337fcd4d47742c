//! The runtime with real shims and real containers, of Debian's busybox-static. As root.
//!
//! Containers are made by libcontainer, or with `RIMWARD_TEST_LOW_LEVEL=runc` by the machine's runc: what is to be
//! seen is the same.

// In a test, and in what only tests call, a panic is the message.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod adopt;
mod commands;
mod confinement;
mod life;
mod limits;
mod mounts;
mod node;
mod runc;
mod sharing;
mod soak;
mod unified;
mod users;
