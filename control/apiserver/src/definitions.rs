//! CustomResourceDefinitions at work: kinds that come and go while the server runs.
//!
//! The stored definitions are mirrored ([`Definitions`]), and with each change the next
//! [`Registry`] takes the place of the last one: by the time a write to a definition is answered, what
//! follows from it holds here. Custom kinds go through the same engine as built-in ones. Where they
//! differ, a [`Custom`] hangs on the [`Served`]: their bodies have a schema of their own ([`body`]), and
//! they are stored in one of several versions ([`stored`]), between which a webhook may convert
//! ([`conversion`]).
//!
//! A record says which version it is in and under which schema it was written. While both still
//! hold, its bytes are served as they are; else it is defaulted, pruned and converted on its way out,
//! and written in its new form only when somebody writes it.
//!
//! Names, conditions and the end of a definition are decided in [`keeper`], in this process as in
//! Kubernetes: without it no definition would be served, whoever else is there.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rimward_api::{GroupVersionResource, ObjectKey};
use rimward_control_kinds::custom::version::{Definition, Version};
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::mirror::Mirrored;
use crate::record;
use crate::served::{ModelRef, Registry, Served, WriteRules, next_index};
use crate::server::Inner;
use crate::views::Stored;

pub mod body;
pub mod conversion;
pub mod keeper;
mod model;
pub mod openapi;
pub mod stored;

/// What sets a custom kind apart from a built-in one.
pub struct Custom {
    pub definition: Arc<Definition>,
    pub version: Arc<Version>,
    /// Cancelled when the version is no longer served.
    pub gone: CancellationToken,
    /// The storage kind, in whose form records are encoded.
    pub storage: Arc<rimward_control_kinds::Kind>,
}

impl Custom {
    /// What a record of this version says of itself: version and schema.
    pub fn mark(version: &Version) -> String {
        format!("{}#{:016x}", version.name, version.fingerprint)
    }
}

/// One definition and the kinds that it brings.
struct Kept {
    object: Arc<Value>,
    kinds: Vec<Arc<Served>>,
}

/// The stored definitions, by name.
#[derive(Default)]
pub struct Definitions {
    kept: Mutex<BTreeMap<String, Kept>>,
    server: Mutex<Weak<Inner>>,
    /// Told after each change.
    pub changed: Notify,
}

impl Definitions {
    /// From now on the server's registry follows.
    pub fn attach(&self, server: &Arc<Inner>) {
        *self.server.lock() = Arc::downgrade(server);
        self.publish();
    }

    /// The definitions as they are stored.
    pub fn all(&self) -> Vec<Arc<Value>> {
        self.kept.lock().values().map(|k| k.object.clone()).collect()
    }

    fn read(&self, name: &str, stored: &Stored, kept: &mut BTreeMap<String, Kept>) {
        let Ok(mut object) = stored.record.parsed() else {
            tracing::error!(name, "a stored CustomResourceDefinition cannot be read");
            return;
        };
        object["metadata"]["resourceVersion"] = stored.revision.to_string().into();
        let old = kept.remove(name).map_or_else(Vec::new, |k| k.kinds);
        let kinds = Definition::read(&object).map_or_else(Vec::new, |d| serve(Arc::new(d), &old));
        forget(&old, &kinds);
        kept.insert(name.to_owned(), Kept { object: Arc::new(object), kinds });
    }

    /// Puts the next registry in the place of the last one.
    fn publish(&self) {
        let Some(server) = self.server.lock().upgrade() else { return };
        let kinds: Vec<Arc<Served>> =
            self.kept.lock().values().flat_map(|k| k.kinds.iter().cloned()).collect();
        server.served.rcu(|last| Registry::with(last, kinds.iter().cloned()));
        self.changed.notify_one();
    }
}

impl Mirrored for Definitions {
    fn replace(&self, all: Vec<(String, Stored)>) {
        {
            let mut kept = self.kept.lock();
            let gone: Vec<String> =
                kept.keys().filter(|k| !all.iter().any(|(name, _)| name == *k)).cloned().collect();
            for name in gone {
                kept.remove(&name).iter().for_each(|k| forget(&k.kinds, &[]));
            }
            all.iter().for_each(|(name, stored)| self.read(name, stored, &mut kept));
        }
        self.publish();
    }

    fn put(&self, key: &str, stored: &Stored) {
        self.read(key, stored, &mut self.kept.lock());
        self.publish();
    }

    fn remove(&self, key: &str) {
        if let Some(kept) = self.kept.lock().remove(key) {
            forget(&kept.kinds, &[]);
        }
        self.publish();
    }
}

/// A custom kind whose definition is stored but not yet mirrored: who read in its status that it is established
/// must find it, however soon after.
pub async fn just_come(server: &Inner, gvr: &GroupVersionResource) -> Option<Arc<Served>> {
    let kind = keeper::definitions_kind(server);
    let key = ObjectKey::new("", format!("{}.{}", gvr.resource, gvr.group));
    let entry = server.store.get(&kind.key(&key), None).await.ok()??;
    server.mirrors.caught_up(&kind.kind.storage, entry.revision).await;
    server.registry().get(gvr).cloned()
}

/// The kinds of a definition. Those who watch a version go on with its next form.
fn serve(definition: Arc<Definition>, old: &[Arc<Served>]) -> Vec<Arc<Served>> {
    let served = definition.versions.iter().filter(|v| v.served);
    served
        .map(|version| {
            let was = old
                .iter()
                .filter_map(|s| s.custom.as_ref())
                .find(|c| c.version.name == version.name && c.definition.uid == definition.uid);
            let gone = was.map_or_else(CancellationToken::new, |c| c.gone.clone());
            served_as(&definition, version, gone)
        })
        .collect()
}

fn served_as(
    definition: &Arc<Definition>,
    version: &Arc<Version>,
    gone: CancellationToken,
) -> Arc<Served> {
    let kind = Arc::new(definition.kind_of(version));
    let (model, id) = model::of(definition, version);
    Arc::new(Served {
        stored: kind.clone(),
        definition: Some(id),
        stored_definition: Some(id),
        head: record::head(&kind.api_version(), &kind.kind),
        index: next_index(),
        model: ModelRef::Own(Arc::new(model)),
        rules: WriteRules::of_custom(version.has_status),
        protobuf: false,
        custom: Some(Arc::new(Custom {
            definition: definition.clone(),
            version: version.clone(),
            gone,
            storage: Arc::new(definition.kind_of(&definition.storage)),
        })),
        kind,
    })
}

/// The kind of a definition in its storage version, also while no version is served.
pub fn any_version(object: &Value) -> Option<Arc<Served>> {
    let definition = Arc::new(Definition::read(object)?);
    let storage = definition.storage.clone();
    Some(served_as(&definition, &storage, CancellationToken::new()))
}

/// Tells those who watch a version that it is no longer served.
fn forget(old: &[Arc<Served>], new: &[Arc<Served>]) {
    for custom in old.iter().filter_map(|s| s.custom.as_ref()) {
        let stays = new.iter().filter_map(|s| s.custom.as_ref()).any(|c| {
            c.version.name == custom.version.name && c.definition.uid == custom.definition.uid
        });
        if !stays {
            custom.gone.cancel();
        }
    }
}
