//! HTTP routing from Ingress objects (<https://kubernetes.io/docs/concepts/services-networking/ingress/>).
//!
//! [`routes`] decides from a host and a path, purely; [`proxy`] carries the request to a ready backend,
//! streaming both ways, WebSockets included. It refuses to serve Ingresses of a class that is not ours,
//! and to buffer bodies.

mod proxy;
mod routes;
mod server;

pub use routes::{Routes, Target};
pub use server::{BindError, Config, Server};
