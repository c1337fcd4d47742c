//! The runtime with real host processes and real guests.

mod adopt;
mod handlers;
mod images;
mod node;
mod tasks;
