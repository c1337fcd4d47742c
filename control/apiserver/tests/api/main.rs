//! The API server as a client sees it, in one process over the memory store.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

mod access;
mod aggregation;
mod allocation;
mod apps;
mod audit;
mod cluster;
mod crd;
mod crd_hostile;
mod crd_kubectl;
mod crd_objects;
mod crd_versions;
mod defaulting;
mod deletion;
mod discovery;
mod encodings;
mod events;
mod every_route;
mod field_validation;
mod flow;
mod identities;
mod kubectl;
mod lists;
mod nodes;
mod oidc;
mod patching;
mod plugins;
mod policies;
mod proxies;
mod quotas;
mod refusals;
mod replay;
mod shell;
mod slow_bodies;
mod streams;
mod tls;
mod usage;
mod warnings;
mod watches;
mod webhooks;
mod writes;
