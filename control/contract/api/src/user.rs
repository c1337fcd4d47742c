//! Who asks.

use std::collections::BTreeMap;

/// The outcome of authentication.
/// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/>
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user known to the system, with `system:authenticated` added to its groups.
    pub fn authenticated(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// A ServiceAccount as RBAC sees it.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::authenticated(
            format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
        )
    }

    /// A node, as the hub acts for it.
    pub fn node(name: &str) -> Self {
        Self::authenticated(format!("system:node:{name}"), &["system:nodes"])
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}
