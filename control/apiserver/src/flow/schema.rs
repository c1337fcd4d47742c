//! FlowSchemas: which requests they mean. Pure.

use rimward_api::UserInfo;
use serde::Deserialize;

use crate::request::{Attributes, Resource};

/// `flowcontrol.apiserver.k8s.io/v1` FlowSchemaSpec, as far as it decides.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub priority_level_configuration: Reference,
    pub matching_precedence: i64,
    pub distinguisher_method: Option<Distinguisher>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reference {
    pub name: String,
    pub namespace: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Distinguisher {
    r#type: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    kind: String,
    user: Option<Reference>,
    group: Option<Reference>,
    service_account: Option<Reference>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PathRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
}

impl Spec {
    pub fn matches(&self, user: &UserInfo, asked: &Attributes) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|s| s.is(user))
                && match &asked.resource {
                    Some(r) => rule.resource_rules.iter().any(|rule| rule.matches(&asked.verb, r)),
                    None => rule.non_resource_rules.iter().any(|rule| rule.matches(asked)),
                }
        })
    }

    /// What tells the flows of this schema apart.
    pub fn distinguisher<'a>(&self, user: &'a UserInfo, asked: &'a Attributes) -> &'a str {
        match self.distinguisher_method.as_ref().map(|d| d.r#type.as_str()) {
            Some("ByUser") => &user.name,
            Some("ByNamespace") => asked.resource.as_ref().map_or("", |r| &r.namespace),
            _ => "",
        }
    }
}

impl Subject {
    fn is(&self, user: &UserInfo) -> bool {
        match self.kind.as_str() {
            "User" => self.user.as_ref().is_some_and(|u| u.name == "*" || u.name == user.name),
            "Group" => {
                self.group.as_ref().is_some_and(|g| g.name == "*" || user.groups.contains(&g.name))
            }
            "ServiceAccount" => self.service_account.as_ref().is_some_and(|account| {
                let whose = user.name.strip_prefix("system:serviceaccount:");
                whose.and_then(|w| w.split_once(':')).is_some_and(|(namespace, name)| {
                    namespace == account.namespace && (account.name == "*" || account.name == name)
                })
            }),
            _ => false,
        }
    }
}

impl ResourceRule {
    fn matches(&self, verb: &str, asked: &Resource) -> bool {
        let joined;
        let resource = match asked.subresource.as_str() {
            "" => asked.resource.as_str(),
            sub => {
                joined = format!("{}/{sub}", asked.resource);
                &joined
            }
        };
        has(&self.verbs, verb)
            && has(&self.resources, resource)
            && has(&self.api_groups, &asked.group)
            && match asked.namespace.as_str() {
                "" => self.cluster_scope,
                namespace => has(&self.namespaces, namespace),
            }
    }
}

impl PathRule {
    fn matches(&self, asked: &Attributes) -> bool {
        has(&self.verbs, &asked.verb)
            && self.urls.iter().any(|url| {
                let folder = url.strip_suffix('*').unwrap_or(url);
                url == "*"
                    || *url == asked.path
                    || asked
                        .path
                        .strip_prefix(folder)
                        .is_some_and(|rest| folder.ends_with('/') || rest.starts_with('/'))
            })
    }
}

/// Whether a list means something: by naming it, or everything.
fn has(list: &[String], what: &str) -> bool {
    matches!(list, [only] if only == "*") || list.iter().any(|x| x == what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use serde_json::json;

    #[track_caller]
    fn check(rule: serde_json::Value, user: &UserInfo, request: (&str, &str), expected: bool) {
        let spec: Spec = serde_json::from_value(json!({ "rules": [rule] })).expect("reads");
        let method = request.0.parse().expect("a method");
        let (path, query) = request.1.split_once('?').unwrap_or((request.1, ""));
        let asked = Attributes::parse(&method, path, &Query::parse(Some(query)));
        assert_eq!(spec.matches(user, &asked), expected, "{rule} {request:?}");
    }

    #[test]
    fn rules() {
        let ann = UserInfo::authenticated("ann", &["devs"]);
        let robot = UserInfo::authenticated("system:serviceaccount:a:robot", &[]);
        let user = |name: &str| json!([{ "kind": "User", "user": { "name": name } }]);
        let all = json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"] }]);
        let pods = ("GET", "/api/v1/namespaces/a/pods");
        check(json!({ "subjects": user("ann"), "resourceRules": all }), &ann, pods, true);
        check(json!({ "subjects": user("*"), "resourceRules": all }), &ann, pods, true);
        check(json!({ "subjects": user("bob"), "resourceRules": all }), &ann, pods, false);
        let group = json!([{ "kind": "Group", "group": { "name": "devs" } }]);
        check(json!({ "subjects": group, "resourceRules": all }), &ann, pods, true);
        check(json!({ "subjects": group, "resourceRules": all }), &ann, ("GET", "/version"), false);
        for (namespace, name, expected) in
            [("a", "*", true), ("a", "robot", true), ("a", "rob", false), ("b", "*", false)]
        {
            let account = json!([{ "kind": "ServiceAccount", "serviceAccount": { "namespace": namespace, "name": name } }]);
            check(json!({ "subjects": account, "resourceRules": all }), &robot, pods, expected);
        }
        let narrow = |scope: bool, resources: &[&str]| {
            json!({ "subjects": user("*"), "resourceRules": [{
            "verbs": ["get", "list"], "apiGroups": [""], "resources": resources, "clusterScope": scope, "namespaces": ["a"],
        }] })
        };
        check(narrow(false, &["pods"]), &ann, pods, true);
        check(narrow(false, &["pods"]), &ann, ("GET", "/api/v1/namespaces/b/pods"), false);
        check(narrow(false, &["pods"]), &ann, ("GET", "/api/v1/pods"), false);
        check(narrow(true, &["pods"]), &ann, ("GET", "/api/v1/pods"), true);
        check(narrow(true, &["pods"]), &ann, ("POST", "/api/v1/namespaces/a/pods"), false);
        check(narrow(false, &["pods"]), &ann, ("GET", "/api/v1/namespaces/a/pods/x/status"), false);
        check(
            narrow(false, &["pods/status"]),
            &ann,
            ("GET", "/api/v1/namespaces/a/pods/x/status"),
            true,
        );
        let paths = |urls: &[&str]| json!({ "subjects": user("*"), "nonResourceRules": [{ "verbs": ["get"], "nonResourceURLs": urls }] });
        check(paths(&["/healthz"]), &ann, ("GET", "/healthz"), true);
        check(paths(&["/healthz"]), &ann, ("GET", "/healthz/ping"), true);
        check(paths(&["/healthz"]), &ann, ("GET", "/healthzz"), false);
        check(paths(&["/openapi/*"]), &ann, ("GET", "/openapi/v3"), true);
        check(paths(&["*"]), &ann, ("GET", "/version"), true);
        check(paths(&["*"]), &ann, ("POST", "/version"), false);
    }
}
