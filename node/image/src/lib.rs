//! Images on a node: named, pulled, verified, stored once, by digest.
//!
//! Wasm artifacts and Linux images come through the same door; what an image is, is read from the
//! image itself ([`form`]). It refuses to compile or to run anything, and to trust a byte whose
//! digest it did not compute.
//!
//! Where an image comes from: a name without a registry host is looked for in the cluster's own
//! registry first, through the node's tunnel ([`ClusterRegistry`]); any other registry is reached
//! directly with TLS.

mod archive;
mod content;
mod entries;
mod fetch;
mod form;
mod gc;
mod keyring;
mod layers;
mod name;
mod progress;
mod remote;
mod store;
mod unpack;

pub use archive::{Archive, ArchivedImage};
pub use fetch::{ClusterRegistry, ClusterResponse};
pub use gc::{Candidate, GcPolicy, Room};
pub use layers::Limits;
pub use remote::RemoteConfig;
pub use store::{Access, Config, ImageStore, StoredImage};
