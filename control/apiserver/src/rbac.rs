//! Role-based access control: who may do what, from Roles and Bindings kept in memory.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>
//!
//! Bindings are indexed by subject, so a decision looks at the rules of the asking user only,
//! however many bindings there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use rimward_api::{Reason, Status, UserInfo};
use serde_json::Value;

use crate::mirror::Mirrored;
use crate::request::Attributes;
use crate::views::Stored;

/// May do everything, whatever the roles say: the way in when they are broken.
const MASTERS: &str = "system:masters";

/// One PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|v| v == "*" || v == wanted)
}

impl Rule {
    fn parse(value: &Value) -> Self {
        let list = |field: &str| {
            let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn all_of(role: &Value) -> Vec<Self> {
        role.get("rules").and_then(Value::as_array).into_iter().flatten().map(Self::parse).collect()
    }

    fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        match &asked.resource {
            Some(r) => {
                has(&self.groups, &r.group)
                    && self.allows_resource(&r.resource, &r.subresource)
                    && (self.names.is_empty() || self.names.contains(&r.name))
            }
            None => self.allows_url(&asked.path),
        }
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|r| match (r.as_str(), subresource) {
            ("*", _) => true,
            (r, "") => r == resource,
            (r, sub) => match r.split_once('/') {
                Some((parent, child)) => child == sub && (parent == "*" || parent == resource),
                None => false,
            },
        })
    }

    fn allows_url(&self, path: &str) -> bool {
        self.urls.iter().any(|u| match u.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => u == path,
        })
    }

    /// The single permissions that a rule is made of.
    fn breakdown(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for group in &self.groups {
                for resource in &self.resources {
                    let one = |names: Vec<String>| Self {
                        verbs: vec![verb.clone()],
                        groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        names,
                        urls: Vec::new(),
                    };
                    match self.names.as_slice() {
                        [] => parts.push(one(Vec::new())),
                        names => parts.extend(names.iter().map(|n| one(vec![n.clone()]))),
                    }
                }
            }
            for url in &self.urls {
                let (verbs, urls) = (vec![verb.clone()], vec![url.clone()]);
                parts.push(Self { verbs, urls, ..Self::default() });
            }
        }
        parts
    }

    /// Whether holding this rule is holding `part`, one of a [`Rule::breakdown`].
    fn covers(&self, part: &Self) -> bool {
        let within = |mine: &[String], theirs: &[String]| theirs.iter().all(|v| has(mine, v));
        if !within(&self.verbs, &part.verbs) {
            return false;
        }
        if let Some(url) = part.urls.first() {
            return self.urls.iter().any(|u| {
                u == "*" || u == url || u.strip_suffix('*').is_some_and(|p| url.starts_with(p))
            });
        }
        let resource = &part.resources[0];
        let resources = self.resources.iter().any(|r| {
            let same_sub = r
                .strip_prefix("*/")
                .zip(resource.split_once('/'))
                .is_some_and(|(mine, (_, theirs))| mine == theirs);
            r == "*" || r == resource || same_sub
        });
        within(&self.groups, &part.groups)
            && resources
            && (self.names.is_empty() || part.names.first().is_some_and(|n| self.names.contains(n)))
    }

    /// As Kubernetes prints a rule that is not held.
    fn show(&self) -> String {
        let mut parts = Vec::new();
        let lists = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("NonResourceURLs", &self.urls),
            ("Verbs", &self.verbs),
        ];
        for (name, list) in lists {
            if !list.is_empty() {
                let quoted: Vec<String> = list.iter().map(|v| format!("{v:?}")).collect();
                parts.push(format!("{name}:[{}]", quoted.join(" ")));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

/// A role that a binding grants: the namespace is empty for a ClusterRole.
type RoleKey = (String, String);

#[derive(Debug)]
struct Grant {
    /// Where it holds; empty is everywhere.
    namespace: String,
    binding: String,
    role: RoleKey,
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
            let subject = match text("kind") {
                "User" => format!("User:{}", text("name")),
                "Group" => format!("Group:{}", text("name")),
                "ServiceAccount" => {
                    let home = match text("namespace") {
                        "" => namespace,
                        home => home,
                    };
                    format!("User:system:serviceaccount:{home}:{}", text("name"))
                }
                _ => continue,
            };
            self.grants.entry(subject.clone()).or_default().push(Grant {
                namespace: namespace.to_owned(),
                binding: binding.to_owned(),
                role: role.clone(),
            });
            subjects.push(subject);
        }
        self.subjects.insert((namespace.to_owned(), binding.to_owned()), subjects);
    }

    /// The rules that hold for a user in a namespace.
    fn rules<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Rule> {
        let subjects = std::iter::once(format!("User:{}", user.name))
            .chain(user.groups.iter().map(|g| format!("Group:{g}")));
        subjects
            .filter_map(|s| self.grants.get(&s))
            .flatten()
            .filter(move |g| g.namespace.is_empty() || g.namespace == namespace)
            .filter_map(|g| self.roles.get(&g.role))
            .flat_map(|rules| rules.iter())
    }
}

fn role_of(binding: &Value, namespace: &str) -> RoleKey {
    let text =
        |field: &str| binding["roleRef"].get(field).and_then(Value::as_str).unwrap_or_default();
    let home = if text("kind") == "Role" { namespace } else { "" };
    (home.to_owned(), text("name").to_owned())
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

    /// Allowed, or the refusal that Kubernetes words so.
    pub fn authorize(&self, user: &UserInfo, asked: &Attributes) -> Result<(), Status> {
        if self.allows(user, asked) {
            return Ok(());
        }
        let Some(r) = &asked.resource else {
            return Err(Status {
                details: Some(Box::default()),
                ..Status::new(
                    403,
                    Reason::Forbidden,
                    format!(
                        "forbidden: User {:?} cannot {} path {:?}",
                        user.name, asked.verb, asked.path
                    ),
                )
            });
        };
        let full = match r.subresource.as_str() {
            "" => r.resource.clone(),
            sub => format!("{}/{sub}", r.resource),
        };
        let place = match r.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            ns => format!("in the namespace {ns:?}"),
        };
        let why = format!(
            "User {:?} cannot {} resource {full:?} in API group {:?} {place}",
            user.name, asked.verb, r.group
        );
        Err(Status::forbidden(&r.group_resource(), &r.name, &why))
    }

    /// Every rule that holds for a user in a namespace, for SelfSubjectRulesReview.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        if user.in_group(MASTERS) {
            let star = || vec!["*".to_owned()];
            return vec![
                Rule { verbs: star(), groups: star(), resources: star(), ..Rule::default() },
                Rule { verbs: star(), urls: star(), ..Rule::default() },
            ];
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
        let missing: Vec<String> = rules
            .iter()
            .flat_map(Rule::breakdown)
            .filter(|part| !held.iter().any(|h| h.covers(part)))
            .map(|part| part.show())
            .collect();
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
