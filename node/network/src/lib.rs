//! Pod addresses and service routing on one node.
//!
//! As root ([`root`]): Wasm pods live in one network namespace per node, where their addresses are local
//! routes; Services are nftables maps; packets to other nodes leave through a TUN device. As an ordinary
//! user ([`user`]): the same addresses on loopback, Services are proxies in this process.
//!
//! It knows addresses, not kinds of containers: who listens is the runtimes' business, what a name
//! means is `rimward-node-dns`'s, HTTP is `rimward-node-ingress`'s.

pub mod addresses;
pub mod backends;
pub mod devices;
pub mod dial;
pub mod root;
pub mod services;
pub mod slices;
pub mod user;

pub use addresses::Addresses;
pub use backends::{Backend, Backends};
pub use dial::Dial;
pub use slices::Slices;
