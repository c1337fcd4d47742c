//! What controllers decide: a world in, a plan out. Nothing runs.

mod deployments;
mod nodes;
mod replicasets;
mod slices;
