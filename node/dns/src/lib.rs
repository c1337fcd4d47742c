//! The node's DNS server: names of Services and pods as Kubernetes specifies them
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>), everything else forwarded.
//!
//! [`names`] keeps an index in step with Services and EndpointSlices; [`answer`] is a pure function of
//! it; [`server`] is a thin socket. It refuses to ask the control plane anything: a node answers from
//! what it knows, also offline.

mod answer;
mod forward;
mod names;
mod server;

pub use answer::{Answer, answer};
pub use forward::{Forwarder, resolv_conf_servers};
pub use names::Names;
pub use server::{BindError, Config, Server};
