//! Nobody grants through a role or a binding what they do not hold themselves.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>

use rimward_api::Status;
use serde_json::Value;

use super::Review;
use crate::rbac::Rule;
use crate::request::{Attributes, Resource};
use crate::server::Inner;

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn admit(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    if review.user.in_group("system:masters") {
        return Ok(());
    }
    match review.served.kind.resource.as_str() {
        "rolebindings" | "clusterrolebindings" => bind(server, review),
        _ => escalate(server, review),
    }
}

/// A role may say no more than its author holds, unless they may `escalate` it.
fn escalate(server: &Inner, review: &Review<'_>) -> Result<(), Status> {
    if review.old.is_some_and(|old| same_but_for_collection(old, review.object)) {
        return Ok(());
    }
    let (resource, namespace) = (review.served.kind.resource.clone(), review.text("namespace"));
    let asked = on_role("escalate", resource, namespace, review.text("name"));
    if server.rbac.allows(review.user, &asked) {
        return Ok(());
    }
    let rules = Rule::all_of(review.object);
    if let Some(why) = server.rbac.not_held(review.user, namespace, &rules) {
        return Err(review.forbidden(&why));
    }
    // What is gathered later can be anything.
    let gathers = |role: &Value| role.get("aggregationRule").is_some_and(|a| !a.is_null());
    let everything = [Rule::everything(), Rule::every_path()];
    if (gathers(review.object) || review.old.is_some_and(gathers))
        && server.rbac.not_held(review.user, "", &everything).is_some()
    {
        return Err(
            review.forbidden("must have cluster-admin privileges to use an aggregationRule")
        );
    }
    Ok(())
}

/// Binding a role gives away what it says: who does it must hold that, or may `bind` the role.
fn bind(server: &Inner, review: &Review<'_>) -> Result<(), Status> {
    if review.old.is_some_and(|old| same_but_for_collection(old, review.object)) {
        return Ok(());
    }
    let reference =
        |f: &str| review.object["roleRef"].get(f).and_then(Value::as_str).unwrap_or_default();
    let resource = if reference("kind") == "Role" { "roles" } else { "clusterroles" };
    let (namespace, name) = (review.text("namespace"), reference("name"));
    let asked = on_role("bind", resource.into(), namespace, name);
    if server.rbac.allows(review.user, &asked) {
        return Ok(());
    }
    // A role that is not there could later become anything.
    let rules = server.rbac.role_rules(review.object, namespace).ok_or_else(|| {
        Status::not_found(&rimward_api::GroupResource::new(GROUP, resource), name)
    })?;
    match server.rbac.not_held(review.user, namespace, &rules) {
        None => Ok(()),
        Some(why) => Err(review.forbidden(&why)),
    }
}

fn on_role(verb: &str, resource: String, namespace: &str, name: &str) -> Attributes {
    Attributes {
        verb: verb.into(),
        path: String::new(),
        resource: Some(Resource {
            group: GROUP.into(),
            version: "*".into(),
            namespace: namespace.into(),
            resource,
            name: name.into(),
            ..Resource::default()
        }),
    }
}

/// Whether an update changes only what garbage collection needs to change.
fn same_but_for_collection(old: &Value, new: &Value) -> bool {
    let bare = |o: &Value| {
        let mut o = o.clone();
        if let Some(meta) = o.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                meta.remove(field);
            }
        }
        o
    };
    bare(old) == bare(new)
}
