//! Which pods are to look again when a ConfigMap or Secret changes.
//!
//! One index for the node, by object: a change costs as much as there are distinct objects, not as
//! there are pods.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::outside::{ObjectError, Objects};
use crate::sources::Name;

type Key = (String, Name);

#[derive(Default)]
pub(crate) struct References {
    inner: Mutex<HashMap<Key, Watched>>,
}

#[derive(Default)]
struct Watched {
    /// Newest seen; None when it was not there.
    version: Option<String>,
    pods: HashSet<Arc<str>>,
}

impl References {
    /// From now on `uid` is told about these objects, which it has just seen in these versions.
    /// Answers the other pods that saw another one: they should look again.
    pub fn watch(
        &self,
        namespace: &str,
        uid: &Arc<str>,
        seen: &[(Name, Option<String>)],
    ) -> HashSet<Arc<str>> {
        let mut stale = HashSet::new();
        let mut inner = self.inner.lock();
        for (name, version) in seen {
            let watched = inner.entry((namespace.to_owned(), name.clone())).or_default();
            if watched.version != *version {
                watched.version.clone_from(version);
                stale.extend(watched.pods.iter().cloned());
            }
            watched.pods.insert(uid.clone());
        }
        stale.remove(uid);
        stale
    }

    /// The same for what an earlier agent saw: it says nothing of what is there now.
    pub fn resume(&self, namespace: &str, uid: &Arc<str>, seen: &[(Name, Option<String>)]) {
        let mut inner = self.inner.lock();
        for (name, version) in seen {
            let fresh = || Watched { version: version.clone(), pods: HashSet::new() };
            let watched = inner.entry((namespace.to_owned(), name.clone())).or_insert_with(fresh);
            watched.pods.insert(uid.clone());
        }
    }

    pub fn forget<'a>(&self, namespace: &str, uid: &str, names: impl Iterator<Item = &'a Name>) {
        let mut inner = self.inner.lock();
        for name in names {
            let key = (namespace.to_owned(), name.clone());
            if let Some(watched) = inner.get_mut(&key) {
                watched.pods.remove(uid);
                if watched.pods.is_empty() {
                    inner.remove(&key);
                }
            }
        }
    }

    /// Looks at every object that anybody waits for; answers the pods whose objects changed.
    pub async fn changed(&self, objects: &dyn Objects) -> HashSet<Arc<str>> {
        let keys: Vec<Key> = self.inner.lock().keys().cloned().collect();
        let mut pods = HashSet::new();
        for key in keys {
            let Some(version) = version(objects, &key).await else { continue };
            if let Some(watched) = self.inner.lock().get_mut(&key)
                && watched.version != version
            {
                watched.version = version;
                pods.extend(watched.pods.iter().cloned());
            }
        }
        pods
    }
}

/// None when nothing can be said now.
async fn version(objects: &dyn Objects, (namespace, name): &Key) -> Option<Option<String>> {
    let look = async {
        match name {
            Name::ConfigMap(n) => {
                objects.config_map(namespace, n).await.map(|m| m.metadata.resource_version.clone())
            }
            Name::Secret(n) => {
                objects.secret(namespace, n).await.map(|s| s.metadata.resource_version.clone())
            }
            Name::Claim(n) => {
                objects.claim(namespace, n).await.map(|c| c.metadata.resource_version.clone())
            }
        }
    };
    match tokio::time::timeout(Duration::from_secs(5), look).await {
        Ok(Ok(version)) => Some(version),
        Ok(Err(ObjectError::NotFound(_))) => Some(None),
        Ok(Err(ObjectError::Unavailable(_))) | Err(_) => None,
    }
}
