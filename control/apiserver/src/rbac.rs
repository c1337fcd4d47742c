//! Role-based access control: who may do what, from Roles and Bindings kept in memory.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>
//!
//! Bindings are indexed by subject, so a decision looks at the rules of the asking user only,
//! however many bindings there are.

mod rule;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use rimward_api::{Reason, Status, UserInfo};
use serde_json::Value;

use crate::mirror::Mirrored;
use crate::request::Attributes;
use crate::views::Stored;

pub use rule::Rule;

/// May do everything, whatever the roles say: the way in when they are broken.
const MASTERS: &str = "system:masters";

/// A role that a binding grants: the namespace is empty for a ClusterRole.
type RoleKey = (String, String);

#[derive(Debug)]
struct Grant {
    /// Where it holds; empty is everywhere.
    namespace: String,
    binding: String,
    role: RoleKey,
    /// The subject as it is named to those who ask why: `Group "system:masters"`.
    subject: String,
}

impl Grant {
    /// Why a request was allowed, in Kubernetes' words.
    fn reason(&self) -> String {
        let (namespace, role) = &self.role;
        let kind = if namespace.is_empty() { "ClusterRole" } else { "Role" };
        let binding = match self.namespace.as_str() {
            "" => format!("ClusterRoleBinding {:?}", self.binding),
            namespace => format!("RoleBinding \"{}/{namespace}\"", self.binding),
        };
        format!("RBAC: allowed by {binding} of {kind} {role:?} to {}", self.subject)
    }
}

#[derive(Default)]
struct Index {
    roles: HashMap<RoleKey, Arc<[Rule]>>,
    /// By subject: `User:x`, `Group:y`.
    grants: HashMap<String, Vec<Grant>>,
    /// The subjects of each binding, to take a changed one out again.
    subjects: HashMap<(String, String), Vec<String>>,
}

impl Index {
    fn unbind(&mut self, namespace: &str, binding: &str) {
        let key = (namespace.to_owned(), binding.to_owned());
        for subject in self.subjects.remove(&key).unwrap_or_default() {
            if let Some(grants) = self.grants.get_mut(&subject) {
                grants.retain(|g| g.namespace != namespace || g.binding != binding);
                if grants.is_empty() {
                    self.grants.remove(&subject);
                }
            }
        }
    }

    fn bind(&mut self, namespace: &str, binding: &str, object: &Value) {
        self.unbind(namespace, binding);
        let role = role_of(object, namespace);
        let mut subjects = Vec::new();
        for subject in object.get("subjects").and_then(Value::as_array).into_iter().flatten() {
            let text = |field: &str| subject.get(field).and_then(Value::as_str).unwrap_or_default();
            let name = text("name");
            let (subject, shown) = match text("kind") {
                "User" => (format!("User:{name}"), format!("User {name:?}")),
                "Group" => (format!("Group:{name}"), format!("Group {name:?}")),
                "ServiceAccount" => {
                    let home = match text("namespace") {
                        "" => namespace,
                        home => home,
                    };
                    let user = format!("User:system:serviceaccount:{home}:{name}");
                    (user, format!("ServiceAccount \"{name}/{home}\""))
                }
                _ => continue,
            };
            self.grants.entry(subject.clone()).or_default().push(Grant {
                namespace: namespace.to_owned(),
                binding: binding.to_owned(),
                role: role.clone(),
                subject: shown,
            });
            subjects.push(subject);
        }
        self.subjects.insert((namespace.to_owned(), binding.to_owned()), subjects);
    }

    /// What grants a user rights in a namespace, and the rules of each.
    fn grants<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Grant, &'a [Rule])> {
        let subjects = std::iter::once(format!("User:{}", user.name))
            .chain(user.groups.iter().map(|g| format!("Group:{g}")));
        subjects
            .filter_map(|s| self.grants.get(&s))
            .flatten()
            .filter(move |g| g.namespace.is_empty() || g.namespace == namespace)
            .filter_map(|g| Some((g, &**self.roles.get(&g.role)?)))
    }

    /// The rules that hold for a user in a namespace.
    fn rules<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Rule> {
        self.grants(user, namespace).flat_map(|(_, rules)| rules.iter())
    }
}

fn role_of(binding: &Value, namespace: &str) -> RoleKey {
    let text =
        |field: &str| binding["roleRef"].get(field).and_then(Value::as_str).unwrap_or_default();
    let home = if text("kind") == "Role" { namespace } else { "" };
    (home.to_owned(), text("name").to_owned())
}

/// The refusal that Kubernetes words so, with what there is to add.
pub fn refusal(user: &UserInfo, asked: &Attributes, why: &str) -> Status {
    let added = if why.is_empty() { String::new() } else { format!(": {why}") };
    let Some(r) = &asked.resource else {
        let text = format!(
            "forbidden: User {:?} cannot {} path {:?}{added}",
            user.name, asked.verb, asked.path
        );
        let status = Status::new(403, Reason::Forbidden, text);
        return Status { details: Some(Box::default()), ..status };
    };
    let full = match r.subresource.as_str() {
        "" => r.resource.clone(),
        sub => format!("{}/{sub}", r.resource),
    };
    let place = match r.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        ns => format!("in the namespace {ns:?}"),
    };
    let text = format!(
        "User {:?} cannot {} resource {full:?} in API group {:?} {place}{added}",
        user.name, asked.verb, r.group
    );
    Status::forbidden(&r.group_resource(), &r.name, &text)
}

/// The authorizer.
#[derive(Clone, Default)]
pub struct Rbac {
    index: Arc<RwLock<Index>>,
}

impl Rbac {
    /// Whether a user may do that.
    pub fn allows(&self, user: &UserInfo, asked: &Attributes) -> bool {
        if user.in_group(MASTERS) {
            return true;
        }
        let namespace = asked.resource.as_ref().map_or("", |r| r.namespace.as_str());
        let index = self.index.read();
        index.rules(user, namespace).any(|rule| rule.allows(asked))
    }

    /// Why a user may do that; None if they may not.
    pub fn reason(&self, user: &UserInfo, asked: &Attributes) -> Option<String> {
        if user.in_group(MASTERS) {
            return Some(String::new());
        }
        let namespace = asked.resource.as_ref().map_or("", |r| r.namespace.as_str());
        let index = self.index.read();
        let mut grants = index.grants(user, namespace);
        grants.find(|(_, rules)| rules.iter().any(|r| r.allows(asked))).map(|(g, _)| g.reason())
    }

    /// Allowed, or the refusal that Kubernetes words so.
    pub fn authorize(&self, user: &UserInfo, asked: &Attributes) -> Result<(), Status> {
        if self.allows(user, asked) {
            return Ok(());
        }
        Err(refusal(user, asked, ""))
    }

    /// Every rule that holds for a user in a namespace, for SelfSubjectRulesReview.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        if user.in_group(MASTERS) {
            return vec![Rule::everything(), Rule::every_path()];
        }
        self.index.read().rules(user, namespace).cloned().collect()
    }

    /// The rules of the role that a binding refers to.
    pub fn role_rules(&self, binding: &Value, namespace: &str) -> Option<Vec<Rule>> {
        self.index.read().roles.get(&role_of(binding, namespace)).map(|r| r.to_vec())
    }

    /// What of `rules` a user does not hold in a namespace: nobody grants what they do not have.
    pub fn not_held(&self, user: &UserInfo, namespace: &str, rules: &[Rule]) -> Option<String> {
        let held = self.rules_for(user, namespace);
        let parts = rules.iter().flat_map(Rule::breakdown);
        let missing = parts.filter(|part| !held.iter().any(|h| h.covers(part))).collect();
        let missing = rule::shown(missing);
        (!missing.is_empty()).then(|| {
            let groups: Vec<String> = user.groups.iter().map(|g| format!("{g:?}")).collect();
            format!(
                "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
                user.name,
                groups.join(" "),
                missing.join("\n")
            )
        })
    }

    /// The part of the index that a resource fills.
    pub fn part(&self, what: Part, namespaced: bool) -> Arc<dyn Mirrored> {
        Arc::new(Mirror { index: self.index.clone(), what, namespaced })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Roles,
    Bindings,
}

struct Mirror {
    index: Arc<RwLock<Index>>,
    what: Part,
    namespaced: bool,
}

impl Mirror {
    fn set(&self, index: &mut Index, key: &str, object: Option<&Value>) {
        // Cluster-scoped keys have no namespace part.
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        match (self.what, object) {
            (Part::Roles, Some(role)) => {
                index.roles.insert((namespace.into(), name.into()), Rule::all_of(role).into());
            }
            (Part::Roles, None) => {
                index.roles.remove(&(namespace.to_owned(), name.to_owned()));
            }
            (Part::Bindings, Some(binding)) => index.bind(namespace, name, binding),
            (Part::Bindings, None) => index.unbind(namespace, name),
        }
    }
}

impl Mirrored for Mirror {
    fn replace(&self, all: Vec<(String, Stored)>) {
        let mut index = self.index.write();
        // Cluster-wide and namespaced parts share the index, so nothing is cleared at large: what is
        // gone since is found by name.
        let kept: HashSet<&str> = all.iter().map(|(k, _)| k.as_str()).collect();
        let before: Vec<RoleKey> = match self.what {
            Part::Roles => index.roles.keys().cloned().collect(),
            Part::Bindings => index.subjects.keys().cloned().collect(),
        };
        for (ns, name) in before {
            let key = if ns.is_empty() { name } else { format!("{ns}/{name}") };
            if key.contains('/') == self.namespaced && !kept.contains(key.as_str()) {
                self.set(&mut index, &key, None);
            }
        }
        for (key, stored) in &all {
            let object = serde_json::from_slice(stored.record.body()).ok();
            self.set(&mut index, key, object.as_ref());
        }
    }

    fn put(&self, key: &str, stored: &Stored) {
        match serde_json::from_slice::<Value>(stored.record.body()) {
            Ok(object) => self.set(&mut self.index.write(), key, Some(&object)),
            Err(e) => tracing::error!(key, error = %e, "a role or binding is not JSON"),
        }
    }

    fn remove(&self, key: &str) {
        self.set(&mut self.index.write(), key, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use serde_json::json;

    fn rbac() -> Rbac {
        let rbac = Rbac::default();
        {
            let mut index = rbac.index.write();
            let rule = |v: Value| -> Arc<[Rule]> { Rule::all_of(&json!({ "rules": [v] })).into() };
            index.roles.insert(
                ("".into(), "reader".into()),
                rule(json!({ "verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"] })),
            );
            index.roles.insert(
                ("a".into(), "one".into()),
                rule(json!({ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["x"] })),
            );
            index.roles.insert(
                ("".into(), "paths".into()),
                rule(json!({ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/openapi/*"] })),
            );
            index.bind("", "b1", &json!({ "roleRef": { "kind": "ClusterRole", "name": "reader" }, "subjects": [{ "kind": "Group", "name": "readers" }] }));
            index.bind("a", "b2", &json!({ "roleRef": { "kind": "Role", "name": "one" }, "subjects": [{ "kind": "ServiceAccount", "name": "sa" }] }));
            index.bind("b", "b3", &json!({ "roleRef": { "kind": "ClusterRole", "name": "reader" }, "subjects": [{ "kind": "User", "name": "u" }] }));
            index.bind("", "b4", &json!({ "roleRef": { "kind": "ClusterRole", "name": "paths" }, "subjects": [{ "kind": "User", "name": "u" }] }));
        }
        rbac
    }

    #[test]
    fn decisions() {
        let rbac = rbac();
        let user = |name: &str, groups: &[&str]| UserInfo::authenticated(name, groups);
        let check = |user: &UserInfo, method: &str, path: &str, expected: bool| {
            let method = method.parse().expect("a method");
            let asked = Attributes::parse(&method, path, &Query::default());
            assert_eq!(rbac.allows(user, &asked), expected, "{} {method} {path}", user.name);
        };
        let reader = user("r", &["readers"]);
        check(&reader, "GET", "/api/v1/pods", true);
        check(&reader, "GET", "/api/v1/namespaces/q/pods/p/log", true);
        check(&reader, "GET", "/api/v1/namespaces/q/pods/p/status", false);
        check(&reader, "DELETE", "/api/v1/namespaces/q/pods/p", false);
        check(&reader, "GET", "/apis/apps/v1/deployments", false);
        let sa = UserInfo::service_account("a", "sa");
        check(&sa, "PUT", "/apis/apps/v1/namespaces/a/deployments/x/scale", true);
        check(&sa, "PUT", "/apis/apps/v1/namespaces/b/deployments/x", false);
        check(&sa, "PUT", "/apis/apps/v1/namespaces/a/deployments/y", false);
        let u = user("u", &[]);
        check(&u, "GET", "/api/v1/namespaces/b/pods", true);
        check(&u, "GET", "/api/v1/pods", false);
        check(&u, "GET", "/openapi/v3/api/v1", true);
        check(&u, "GET", "/version", false);
        check(&user("root", &["system:masters"]), "DELETE", "/api/v1/namespaces/default", true);
        rbac.index.write().unbind("b", "b3");
        check(&u, "GET", "/api/v1/namespaces/b/pods", false);
    }

    #[test]
    fn nobody_grants_what_they_do_not_hold() {
        let rbac = rbac();
        let u = UserInfo::authenticated("u", &[]);
        let rules = |resources: &[&str]| {
            Rule::all_of(
                &json!({ "rules": [{ "verbs": ["get"], "apiGroups": [""], "resources": resources }] }),
            )
        };
        assert_eq!(rbac.not_held(&u, "b", &rules(&["pods"])), None);
        let refusal = rbac.not_held(&u, "b", &rules(&["pods", "secrets"])).expect("refused");
        assert!(
            refusal.ends_with("{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"),
            "{refusal}"
        );
    }
}
