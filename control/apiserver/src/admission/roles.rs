//! Nobody grants through a role or a binding what they do not hold themselves.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>

use rimward_api::Status;
use serde_json::Value;

use super::Review;
use crate::rbac::Rule;
use crate::request::{Attributes, Resource};
use crate::server::Inner;

pub fn admit(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let resource = review.served.kind.resource.as_str();
    let binds = matches!(resource, "rolebindings" | "clusterrolebindings");
    let fields: &[&str] =
        if binds { &["roleRef", "subjects"] } else { &["rules", "aggregationRule"] };
    if review.old.is_some_and(|old| fields.iter().all(|f| old.get(f) == review.object.get(*f))) {
        return Ok(());
    }
    let namespace = review.text("namespace").to_owned();
    // `escalate` on the role itself, `bind` on the role that is bound.
    let (verb, target, name) = match binds {
        false => ("escalate", resource.to_owned(), review.text("name").to_owned()),
        true => {
            let reference = |f: &str| {
                review.object["roleRef"].get(f).and_then(Value::as_str).unwrap_or_default()
            };
            let target = if reference("kind") == "Role" { "roles" } else { "clusterroles" };
            ("bind", target.to_owned(), reference("name").to_owned())
        }
    };
    let asked = Attributes {
        verb: verb.into(),
        path: String::new(),
        resource: Some(Resource {
            group: "rbac.authorization.k8s.io".into(),
            version: "v1".into(),
            namespace: namespace.clone(),
            resource: target,
            name,
            ..Resource::default()
        }),
    };
    if server.rbac.allows(review.user, &asked) {
        return Ok(());
    }
    let rules = match binds {
        false => Rule::all_of(review.object),
        // A role that is not there grants nothing yet; whoever makes it must hold what it says.
        true => server.rbac.role_rules(review.object, &namespace).unwrap_or_default(),
    };
    match server.rbac.not_held(review.user, &namespace, &rules) {
        None => Ok(()),
        Some(why) => Err(review.forbidden(&why)),
    }
}
