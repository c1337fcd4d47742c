//! Finalizers that keep an object while it is in use.

use rimward_client::{Client, Error, Object};

use crate::pods::is_deleting;

/// The object with its finalizer as it should be: there, until the object is deleted and not in use.
/// None when it is so already. Pure.
pub fn plan<K: Object>(object: &K, finalizer: &str, in_use: bool) -> Option<K> {
    let meta = object.metadata();
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let there = finalizers.iter().any(|f| f == finalizer);
    match (is_deleting(meta), there) {
        (true, true) if !in_use => finalizers.retain(|f| f != finalizer),
        (false, false) => finalizers.push(finalizer.to_owned()),
        _ => return None,
    }
    let mut changed = object.clone();
    changed.metadata_mut().finalizers = Some(finalizers);
    Some(changed)
}

/// Writes it. One that is gone meanwhile is no error.
pub async fn act<K: Object>(client: &Client, changed: &K) -> Result<(), Error> {
    match client.update(changed).await {
        Err(e) if e.is_not_found() => Ok(()),
        other => other.map(|_| ()),
    }
}
