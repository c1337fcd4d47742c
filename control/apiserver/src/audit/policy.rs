//! The audit policy: what is told of which request. The first rule that matches decides.
//! <https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/#audit-k8s-io-v1-Policy>

use rimward_api::UserInfo;
use serde::{Deserialize, Serialize};

use crate::request::{Attributes, Resource};

/// How much is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// When it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Stage {
    RequestReceived,
    /// Of requests that go on after their answer began: watches, streams.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    /// Policies carry names, which nothing reads.
    #[serde(default, rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What is told of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    pub omitted: Vec<Stage>,
    pub omit_managed_fields: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("the audit policy is not understood: {0}")]
    Unreadable(#[from] serde_saphyr::Error),
    #[error(
        "the audit policy must be a Policy of audit.k8s.io/v1, this is a {kind:?} of {version:?}"
    )]
    OtherKind { kind: String, version: String },
    #[error(
        "rule {0} of the audit policy names paths and resources: it can be about one of them only"
    )]
    Both(usize),
    #[error("the audit policy has no rules")]
    NoRules,
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// Says what is wrong with it: a policy that is half understood would tell too little.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = serde_saphyr::from_str(text)?;
        if policy.kind != "Policy" || policy.api_version != "audit.k8s.io/v1" {
            return Err(PolicyError::OtherKind { kind: policy.kind, version: policy.api_version });
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::NoRules);
        }
        let both =
            |r: &Rule| !r.urls.is_empty() && (!r.resources.is_empty() || !r.namespaces.is_empty());
        match policy.rules.iter().position(both) {
            Some(i) => Err(PolicyError::Both(i)),
            None => Ok(policy),
        }
    }

    pub fn verdict(&self, user: &UserInfo, asked: &Attributes) -> Verdict {
        let Some(rule) = self.rules.iter().find(|r| r.matches(user, asked)) else {
            return Verdict::default();
        };
        let mut omitted = self.omit_stages.clone();
        omitted.extend(rule.omit_stages.iter().filter(|s| !self.omit_stages.contains(s)));
        Verdict {
            level: rule.level,
            omitted,
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn matches(&self, user: &UserInfo, asked: &Attributes) -> bool {
        let among = |list: &[String], one: &str| list.is_empty() || list.iter().any(|v| v == one);
        let in_group =
            self.user_groups.is_empty() || self.user_groups.iter().any(|g| user.groups.contains(g));
        if !among(&self.users, &user.name) || !in_group || !among(&self.verbs, &asked.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return asked.resource.as_ref().is_some_and(|r| self.matches_resource(r));
        }
        if self.urls.is_empty() {
            return true;
        }
        asked.resource.is_none() && self.urls.iter().any(|u| covers(u, &asked.path))
    }

    fn matches_resource(&self, asked: &Resource) -> bool {
        if !self.namespaces.is_empty() && !self.namespaces.contains(&asked.namespace) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|r| r.matches(asked))
    }
}

impl Resources {
    fn matches(&self, asked: &Resource) -> bool {
        if self.group != asked.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty() || self.resource_names.contains(&asked.name);
        let full = match asked.subresource.as_str() {
            "" => asked.resource.clone(),
            sub => format!("{}/{sub}", asked.resource),
        };
        let is = |pattern: &String| {
            pattern == "*"
                || *pattern == full
                || (!asked.subresource.is_empty()
                    && pattern.strip_prefix("*/") == Some(asked.subresource.as_str()))
                || pattern.strip_suffix("/*") == Some(asked.resource.as_str())
        };
        named && self.resources.iter().any(is)
    }
}

fn covers(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: [watch]
- level: None
  nonResourceURLs: ["/healthz*", "/version"]
- level: Metadata
  resources:
  - group: ""
    resources: [secrets, configmaps, "pods/log"]
  omitStages: [ResponseStarted]
- level: RequestResponse
  resources:
  - group: ""
    resources: [pods]
    resourceNames: [loud]
- level: Request
  namespaces: [kube-system]
- level: Metadata
  userGroups: ["system:authenticated"]
"#;

    #[test]
    fn levels() {
        let policy = Policy::parse(POLICY).expect("a policy");
        let check = |user: &UserInfo, method: &str, uri: &str, level: Level| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let method = method.parse().expect("a method");
            let asked = Attributes::parse(&method, path, &Query::parse(Some(query)));
            assert_eq!(policy.verdict(user, &asked).level, level, "{method} {uri}");
        };
        let (ann, nobody) = (UserInfo::authenticated("ann", &[]), UserInfo::anonymous());
        let proxy = UserInfo::authenticated("system:kube-proxy", &[]);
        check(&proxy, "GET", "/api/v1/services?watch=1", Level::None);
        check(&proxy, "GET", "/api/v1/services", Level::Metadata);
        check(&ann, "GET", "/healthz/ping", Level::None);
        check(&ann, "GET", "/metrics", Level::Metadata);
        check(&ann, "GET", "/api/v1/namespaces/kube-system/secrets/x", Level::Metadata);
        check(&ann, "GET", "/api/v1/namespaces/a/pods/p/log", Level::Metadata);
        check(&ann, "GET", "/api/v1/namespaces/a/pods/loud", Level::RequestResponse);
        check(&ann, "GET", "/api/v1/namespaces/kube-system/pods/p", Level::Request);
        check(&nobody, "GET", "/api/v1/namespaces/a/pods/p", Level::None);
        let secrets = Attributes::parse(&http::Method::GET, "/api/v1/secrets", &Query::default());
        let omitted = policy.verdict(&ann, &secrets).omitted;
        assert_eq!(omitted, [Stage::RequestReceived, Stage::ResponseStarted]);
    }

    #[test]
    fn what_is_no_policy() {
        for wrong in [
            "",
            "rules: []",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, user: [x]}]",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, namespaces: [a], nonResourceURLs: [/x]}]",
        ] {
            assert!(Policy::parse(wrong).is_err(), "{wrong}");
        }
    }
}
