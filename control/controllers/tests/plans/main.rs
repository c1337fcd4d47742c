//! What controllers decide: a world in, a plan out. Nothing runs.

mod deployments;
mod disruption;
mod ingresses;
mod nodes;
mod replicasets;
mod slices;

mod mirroring;
mod ranges;
mod times;
mod unseen;
mod volumes;
