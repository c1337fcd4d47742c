//! A node without a node: a scripted runtime, and the rest of the world around pods, in memory.
//!
//! For tests and the fleet simulator. Everything goes by tokio's clock, so that a paused runtime
//! lives through hours of back-off in a moment. Nothing here runs a program or opens a socket.

mod runtime;
mod world;

pub use runtime::{FakeRuntime, Script};
pub use world::{FakeImages, FakeNetwork, FakeNode, FakeObjects, FakeReports, SeenEvent, World};
