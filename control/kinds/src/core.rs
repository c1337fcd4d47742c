//! The core group, without Pod and Service, which have modules of their own.

pub mod config;
pub mod event;
pub mod namespace;
pub mod node;
pub mod quota;
