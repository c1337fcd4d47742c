//! What controllers decide: a world in, a plan out. Nothing runs.

mod cronjobs;
mod daemonsets;
mod deployments;
mod disruption;
mod histories;
mod ingresses;
mod jobs;
mod nodes;
mod replicasets;
mod slices;
mod statefulsets;

mod mirroring;
mod ranges;
mod times;
mod unseen;
mod volumes;
