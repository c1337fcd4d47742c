//! The Kubernetes API: one pipeline for every request, one generic engine for every kind.
//!
//! A request comes by TLS ([`serve`]) or from inside the process ([`ApiServer::client`]), goes through
//! the visible list of steps in [`pipeline`], and ends in [`rest`], which knows no kind: what differs
//! from kind to kind is data and hooks of `rimward-control-kinds`, what a body must look like is
//! `rimward-control-schema`'s, what is durable is `rimward-control-store`'s.
//!
//! It refuses to keep objects in memory (small indexes for authorization aside), to re-encode what is
//! stored when it is read, to run controllers, and to reach nodes by itself (see [`nodes`]). (What decides
//! which kinds it serves is its own: [`definitions`] names and removes custom kinds, [`aggregation`] watches
//! extension servers.) It calls out, to webhooks and extension API servers, through [`outbound`] only.

pub mod config;
mod server;

mod in_process;
pub mod serve;

pub mod audit;
mod authn;
mod deadline;
mod flow;
mod pipeline;
mod rbac;
mod request;

mod admission;
mod cluster_ips;
mod decode;
mod duration;
mod error;
mod freshness;
mod meta;
mod negotiate;
mod options;
mod pools;
mod pretty;
mod protobuf;
mod quotas;
mod record;
mod rest;
mod table;
mod views;
mod watch;

mod aggregation;
mod definitions;
mod discovery;
mod health;
mod identity;
mod metrics;
mod openapi;
mod paths;
mod reviews;

mod forward;
mod lingering;
mod proxy;
mod streams;

mod bootstrap;
mod mirror;
mod served;
mod sweep;

pub mod nodes;
pub mod outbound;

mod body;

pub use audit::Auditor;
pub use authn::oidc;
pub use authn::tokens::KeyError;
pub use body::{BoxBody, BoxError};
pub use config::{Build, Config};
pub use nodes::Nodes;
pub use paths::GIT_VERSION;
pub use pools::NotACidr;
pub use request::Attributes;
pub use serve::Extra;
pub use server::{ApiServer, StartError};

#[cfg(test)]
mod bad_input;
