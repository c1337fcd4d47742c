//! The policies and bindings as the store has them, compiled, kept current by a watch.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::Notify;

use super::policy::{Binding, Body, Policy};
use crate::mirror::Mirrored;
use crate::views::Stored;

/// A policy and the bindings that put it to use.
#[derive(Debug)]
pub struct Bound<B> {
    pub policy: Arc<Policy<B>>,
    pub bindings: Vec<Arc<Binding>>,
}

/// All policies of a kind.
pub struct Held<B> {
    parts: Mutex<Parts<B>>,
    /// Those that have bindings, by name.
    bound: RwLock<Arc<Vec<Bound<B>>>>,
    /// Told after each change.
    pub changed: Notify,
}

struct Parts<B> {
    policies: BTreeMap<String, Arc<Policy<B>>>,
    bindings: BTreeMap<String, Arc<Binding>>,
}

impl<B> Default for Held<B> {
    fn default() -> Self {
        let parts = Parts { policies: BTreeMap::new(), bindings: BTreeMap::new() };
        Self {
            parts: Mutex::new(parts),
            bound: RwLock::new(Arc::new(Vec::new())),
            changed: Notify::new(),
        }
    }
}

impl<B> Held<B> {
    pub fn is_empty(&self) -> bool {
        self.bound.read().is_empty()
    }

    pub fn all(&self) -> Arc<Vec<Bound<B>>> {
        self.bound.read().clone()
    }

    fn change(&self, change: impl FnOnce(&mut Parts<B>)) {
        let mut parts = self.parts.lock();
        change(&mut parts);
        let mut bound: BTreeMap<&str, Vec<Arc<Binding>>> = BTreeMap::new();
        for binding in parts.bindings.values() {
            bound.entry(&binding.policy).or_default().push(binding.clone());
        }
        let bound = bound.into_iter().filter_map(|(policy, bindings)| {
            Some(Bound { policy: parts.policies.get(policy)?.clone(), bindings })
        });
        *self.bound.write() = Arc::new(bound.collect());
        self.changed.notify_one();
    }
}

/// One of the two resources that a kind of policy consists of.
pub enum Part<B> {
    Policies(Arc<Held<B>>),
    Bindings(Arc<Held<B>>),
}

fn object(stored: &Stored) -> Value {
    serde_json::from_slice(stored.record.body()).unwrap_or_default()
}

impl<B: Body> Mirrored for Part<B> {
    fn replace(&self, all: Vec<(String, Stored)>) {
        match self {
            Self::Policies(held) => {
                let compiled = all.iter().map(|(name, stored)| {
                    (name.clone(), Arc::new(Policy::compile(name, &object(stored))))
                });
                let compiled = compiled.collect();
                held.change(|parts| parts.policies = compiled);
            }
            Self::Bindings(held) => {
                let read = all.iter().map(|(name, stored)| {
                    (name.clone(), Arc::new(Binding::read(name, &object(stored))))
                });
                let read = read.collect();
                held.change(|parts| parts.bindings = read);
            }
        }
    }

    fn put(&self, name: &str, stored: &Stored) {
        match self {
            Self::Policies(held) => {
                let compiled = Arc::new(Policy::compile(name, &object(stored)));
                held.change(|parts| drop(parts.policies.insert(name.to_owned(), compiled)));
            }
            Self::Bindings(held) => {
                let read = Arc::new(Binding::read(name, &object(stored)));
                held.change(|parts| drop(parts.bindings.insert(name.to_owned(), read)));
            }
        }
    }

    fn remove(&self, name: &str) {
        match self {
            Self::Policies(held) => held.change(|parts| drop(parts.policies.remove(name))),
            Self::Bindings(held) => held.change(|parts| drop(parts.bindings.remove(name))),
        }
    }
}
