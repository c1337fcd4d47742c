//! Which objects belong to an owner: adopt what its selector matches and nobody controls, release
//! what it controls but no longer matches.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector as TypedSelector, ObjectMeta, OwnerReference,
};
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Client, Error, Object, Patch};
use serde_json::json;

use crate::indexes::{self, BY_CONTROLLER, ORPHANS};
use crate::pods::{is_deleting, name, uid};

pub struct Claims<K> {
    /// Controlled already, and rightly.
    pub kept: Vec<Arc<K>>,
    pub adopt: Vec<Arc<K>>,
    pub release: Vec<Arc<K>>,
}

/// What an owner controls, and what nobody does and it might adopt. `children` must have the indexes of
/// [`indexes::owned`].
pub fn candidates<K: Object>(
    children: &Cache<K>,
    owner: &ObjectMeta,
    selector: &TypedSelector,
) -> (Vec<Arc<K>>, Vec<Arc<K>>) {
    // In this order, so that a child that is adopted in between is seen twice rather than not at all.
    let mut orphans = children.indexed(ORPHANS, &indexes::selector_value(owner, selector));
    let controlled = children.indexed(BY_CONTROLLER, uid(owner));
    let known: HashSet<&str> = controlled.iter().map(|c| uid(c.metadata())).collect();
    orphans.retain(|o| !known.contains(uid(o.metadata())));
    (controlled, orphans)
}

/// An owner that is being deleted neither adopts nor releases: the garbage collector decides then.
pub fn plan<K: Object>(
    selector: &LabelSelector,
    owner_deleting: bool,
    controlled: Vec<Arc<K>>,
    orphans: Vec<Arc<K>>,
) -> Claims<K> {
    plan_by(|object| selects(selector, object.metadata()), owner_deleting, controlled, orphans)
}

pub fn selects(selector: &LabelSelector, meta: &ObjectMeta) -> bool {
    let empty = Default::default();
    selector.matches(meta.labels.as_ref().unwrap_or(&empty))
}

/// The same, for owners that ask for more than labels.
pub fn plan_by<K: Object>(
    matches: impl Fn(&K) -> bool,
    owner_deleting: bool,
    controlled: Vec<Arc<K>>,
    orphans: Vec<Arc<K>>,
) -> Claims<K> {
    let (kept, release) = controlled.into_iter().partition(|o| owner_deleting || matches(o));
    let adoptable = |o: &Arc<K>| !owner_deleting && !is_deleting(o.metadata()) && matches(o);
    Claims { kept, adopt: orphans.into_iter().filter(adoptable).collect(), release }
}

/// Our reference to `owner` as the controller of what it creates.
pub fn controller_reference<K: Object>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::API_VERSION.into(),
        kind: K::KIND.into(),
        name: name(owner.metadata()).into(),
        uid: uid(owner.metadata()).into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Adopts and releases; answers with the adopted as the server now has them. One that is gone or was
/// taken meanwhile is no error.
pub async fn act<O: Object, K: Object>(
    client: &Client,
    owner: &O,
    claims: &Claims<K>,
) -> Result<Vec<Arc<K>>, Error> {
    act_holding(client, owner, claims, None).await
}

/// The same; who is adopted gets a finalizer, who is released loses it.
pub async fn act_holding<O: Object, K: Object>(
    client: &Client,
    owner: &O,
    claims: &Claims<K>,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>, Error> {
    let meta = owner.metadata();
    let mut adopted = Vec::new();
    if !claims.adopt.is_empty() {
        // The cache may be behind a deletion; an owner that is going must not collect children.
        let fresh: O =
            client.get(meta.namespace.as_deref().unwrap_or_default(), name(meta)).await?;
        if uid(fresh.metadata()) != uid(meta) || is_deleting(fresh.metadata()) {
            return Ok(adopted);
        }
    }
    for object in &claims.adopt {
        let mut change = json!({ "ownerReferences": [controller_reference(owner)] });
        if let Some(finalizer) = finalizer {
            change["finalizers"] = json!([finalizer]);
        }
        if let Some(object) = patch_metadata(client, object.as_ref(), change).await? {
            adopted.push(Arc::new(object));
        }
    }
    for object in &claims.release {
        let mut change = json!({ "ownerReferences": [{"$patch": "delete", "uid": uid(meta)}] });
        if let Some(finalizer) = finalizer {
            change["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
        }
        patch_metadata(client, object.as_ref(), change).await?;
    }
    Ok(adopted)
}

async fn patch_metadata<K: Object>(
    client: &Client,
    object: &K,
    mut change: serde_json::Value,
) -> Result<Option<K>, Error> {
    let meta = object.metadata();
    change["uid"] = uid(meta).into();
    let body = json!({ "metadata": change });
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    match client.patch(namespace, name(meta), "", &Patch::strategic(body)).await {
        Ok(object) => Ok(Some(object)),
        Err(e) if e.is_not_found() || e.is_conflict() => Ok(None),
        // 422: its controller was set meanwhile, or its uid is another's.
        Err(e) if e.status().is_some_and(|s| s.code == 422) => Ok(None),
        Err(e) => Err(e),
    }
}
