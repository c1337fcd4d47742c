//! Every built-in kind as data plus a few hooks; CustomResourceDefinitions use the same [`Kind`].
//!
//! It refuses I/O: hooks see objects, never the store. What needs other objects (allocating a
//! cluster IP, admission, quota) is the API server's.

pub mod kind;

pub use kind::{Hooks, Kind, Scope, Subresource};
