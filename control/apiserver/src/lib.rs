//! The Kubernetes API: one pipeline for every request, one generic engine for every kind.

pub mod nodes;
