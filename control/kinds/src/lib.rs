//! Every built-in kind as data plus a few hooks; CustomResourceDefinitions use the same [`Kind`].
//!
//! It refuses I/O: hooks see objects, never the store. What needs other objects (allocating a
//! cluster IP, admission, quota) is the API server's.
//!
//! What a resource is called and offers is data (`facts/resources.json`); what it does is a
//! [`rules::Rules`]: a row of functions, written beside the other rules of its family. A rule that
//! several kinds share is written once, in `check`.

pub mod bootstrap;
pub mod catalog;
pub mod kind;
pub mod rules;

mod admission_policy;
mod apps;
mod autoscaling;
mod batch;
mod certificates;
mod cluster;
mod core;
pub mod custom;
mod device;
mod extension;
mod flowcontrol;
mod networking;
pub mod pod;
pub mod quota;
mod rbac;
pub mod service;
mod storage;
mod warnings;

pub mod check;
pub mod path;
pub mod print;
pub mod read;
pub mod schedule;

pub use catalog::{Catalog, builtin};
pub use kind::{Column, Conversion, Hooks, Kind, Scope, Subresource, Write};
pub use path::{Errors, Path};
