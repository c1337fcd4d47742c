//! ResourceQuotas, charged with the write itself.
//!
//! What a write adds to or takes from a quota's `status.used` is part of its transaction, with the
//! quota's revision as a condition. So usage is exact at every revision: two creates cannot both take
//! the last place, a create that fails takes none, and a delete has given its place back when it is
//! answered. Kubernetes writes the usage first and the object after, and lets a controller repair
//! what failed in between and notice what was deleted; that is one more write per create, a recount
//! of the namespace per delete, and a quota that refuses for seconds what it has room for.
//!
//! Writes that a quota counts take turns within their namespace: without that, 32 clients would spend
//! their time on lost races for the same quota. Namespaces without quotas pay one look into a map.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use rimward_api::{ObjectKey, Status};
use rimward_control_kinds::quota::{self, Change};
use rimward_control_store::{CommitError, Expect, Op, Revision, Txn};
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::admission::Operation;
use crate::cluster_ips;
use crate::error;
use crate::metrics::admission::Timed;
use crate::mirror::Mirrored;
use crate::record::Record;
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

/// The namespaces that have quotas.
#[derive(Default)]
pub struct Quotas(RwLock<HashMap<String, Namespace>>);

#[derive(Default)]
struct Namespace {
    quotas: BTreeSet<String>,
    turn: Arc<Mutex<()>>,
}

impl Mirrored for Quotas {
    fn replace(&self, all: Vec<(String, Stored)>) {
        let mut namespaces = HashMap::<String, Namespace>::new();
        for (key, _) in &all {
            if let Some((namespace, name)) = key.split_once('/') {
                namespaces.entry(namespace.into()).or_default().quotas.insert(name.into());
            }
        }
        *self.0.write() = namespaces;
    }

    fn put(&self, key: &str, _stored: &Stored) {
        if let Some((namespace, name)) = key.split_once('/') {
            // Most events are charges to a quota that is known.
            let known = self.0.read().get(namespace).is_some_and(|n| n.quotas.contains(name));
            if !known {
                let mut namespaces = self.0.write();
                namespaces.entry(namespace.into()).or_default().quotas.insert(name.into());
            }
        }
    }

    fn remove(&self, key: &str) {
        let Some((namespace, name)) = key.split_once('/') else { return };
        let mut namespaces = self.0.write();
        if let Some(entry) = namespaces.get_mut(namespace) {
            entry.quotas.remove(name);
            if entry.quotas.is_empty() {
                namespaces.remove(namespace);
            }
        }
    }
}

impl Quotas {
    fn of(&self, namespace: &str) -> Option<(Vec<String>, Arc<Mutex<()>>)> {
        let namespaces = self.0.read();
        let entry = namespaces.get(namespace)?;
        Some((entry.quotas.iter().cloned().collect(), entry.turn.clone()))
    }
}

/// What a write does to the quotas of its namespace: operations for its own transaction. Until this
/// is dropped no other counted write of the namespace begins.
pub struct Charge {
    pub ops: Vec<Op>,
    _turn: OwnedMutexGuard<()>,
}

/// A write, as quotas see it.
pub struct Counted<'a> {
    served: &'a Served,
    subresource: &'a str,
    operation: Operation,
    old: Option<&'a Value>,
    new: Option<&'a Value>,
}

impl<'a> Counted<'a> {
    pub fn create(served: &'a Served, new: &'a Value) -> Self {
        Self { served, subresource: "", operation: Operation::Create, old: None, new: Some(new) }
    }

    /// `new` is None when the update is the end of the object.
    pub fn update(
        served: &'a Served,
        subresource: &'a str,
        old: &'a Value,
        new: Option<&'a Value>,
    ) -> Self {
        Self { served, subresource, operation: Operation::Update, old: Some(old), new }
    }

    /// `marked` is what stays while others hold it.
    pub fn delete(served: &'a Served, old: &'a Value, marked: Option<&'a Value>) -> Self {
        let operation = Operation::Delete;
        Self { served, subresource: "", operation, old: Some(old), new: marked }
    }

    /// Whether a quota may refuse it. Deletes and reports only count.
    fn enforced(&self) -> bool {
        let grows =
            || self.served.is("", "services") || self.served.is("", "persistentvolumeclaims");
        match (self.operation, self.subresource) {
            (Operation::Create, "") => true,
            (Operation::Update, "") => grows(),
            (Operation::Update, "resize") => self.served.is("", "pods"),
            _ => false,
        }
    }
}

impl Inner {
    /// Commits a write with what it does to others: the quotas that count it, the objects of its
    /// cluster IPs. A quota that changed meanwhile is charged again; any other lost race is the
    /// caller's, and the number of the operation in it is that of `ops`.
    pub async fn commit_counted(
        &self,
        ops: Vec<Op>,
        write: &Counted<'_>,
    ) -> Result<Result<Revision, CommitError>, Status> {
        loop {
            let charge = match write.enforced() {
                true => {
                    let timed = Timed::validate(self, write.operation);
                    timed.plugin("ResourceQuota", charge(self, write)).await?
                }
                // Nothing can refuse it: it is counted, not admitted.
                false => charge(self, write).await?,
            };
            let mut all = ops.clone();
            all.extend(charge.iter().flat_map(|c| c.ops.iter().cloned()));
            all.extend(cluster_ips::ops(self, write.served, write.old, write.new)?);
            match self.store.commit(Txn { ops: all }).await {
                // Only the quota controller, or another control plane, comes in between.
                Err(CommitError::Conflict { op, .. }) if op >= ops.len() => {}
                done => return Ok(done),
            }
        }
    }
}

/// Charges a write to every quota that counts it; refuses what one has no room for. None when no
/// quota is touched.
pub async fn charge(server: &Inner, write: &Counted<'_>) -> Result<Option<Charge>, Status> {
    let served = write.served;
    if !served.kind.namespaced() {
        return Ok(None);
    }
    let Some(object) = write.new.or(write.old) else { return Ok(None) };
    let namespace = object["metadata"].get("namespace").and_then(Value::as_str);
    let Some((names, turn)) = server.plugins.quotas.of(namespace.unwrap_or_default()) else {
        return Ok(None);
    };
    let change = Change {
        resource: (&served.kind.group, &served.kind.resource),
        old: write.old,
        new: write.new,
        enforced: write.enforced(),
    };
    if change.counts_nothing() {
        return Ok(None);
    }
    let turn = turn.lock_owned().await;
    let quotas = server.registry().resource("", "resourcequotas").expect("a built-in kind");
    let own = served.is("", "resourcequotas").then(|| served.key(&ObjectKey::of(object)));
    let mut ops = Vec::new();
    for name in names {
        let key = quotas.key(&ObjectKey::new(namespace.unwrap_or_default(), name));
        if own.as_deref() == Some(&key) {
            continue;
        }
        let Some(entry) = server.store.get(&key, None).await.map_err(error::store)? else {
            continue;
        };
        let mut quota = Stored::open(&entry)?.stored_value(&quotas)?;
        let refused = |why: String| {
            let name = object["metadata"].get("name").and_then(Value::as_str).unwrap_or_default();
            Status::forbidden(&served.group_resource(), name, &why)
        };
        let Some(used) = quota::charge(&quota, &change).map_err(refused)? else { continue };
        quota["status"]["used"] = used;
        let value = Record::encode(&quota, &quotas.stored).map_err(Status::internal)?;
        ops.push(Op::Put { key, value, expect: Expect::At(entry.revision) });
    }
    Ok((!ops.is_empty()).then_some(Charge { ops, _turn: turn }))
}
