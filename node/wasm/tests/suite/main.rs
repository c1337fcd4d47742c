//! The runtime with real host processes and real guests.

// In a test, and in what only tests call, a panic is the message.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod adopt;
mod handlers;
mod images;
mod limits;
mod node;
mod outgoing;
mod sessions;
mod tasks;
