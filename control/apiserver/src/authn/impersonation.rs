//! Acting as somebody else, for those who may.
//! <https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/>
//!
//! Who may `impersonate` somebody may do all that they may. Constrained impersonation asks two things
//! instead: that one may `impersonate:MODE` this user, and `impersonate-on:MODE:VERB` what is asked for.
//! The constrained modes are tried first, in the order of [`MODES`]; what the first of them that is for
//! such a user says is what a refused client reads.
//! <https://kubernetes.io/docs/reference/access-authn-authz/constrained-impersonation/>

mod headers;

use std::collections::BTreeMap;

use http::HeaderMap;
use rimward_api::{Status, UserInfo, names};

use crate::rbac::{self, Rbac};
use crate::request::{Attributes, Resource};

const ANONYMOUS: &str = "system:anonymous";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const NODES: &str = "system:nodes";
const MASTERS: &str = "system:masters";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// From so many groups or extras on, the right to all of them is asked for first.
const MANY: usize = 4;

/// What a request's headers ask to be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// As whom a request goes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Acting {
    pub user: UserInfo,
    /// The constrained verb that allowed it, as the audit log tells; None where plain `impersonate` did.
    pub constraint: Option<String>,
}

/// The user to act as; None when the request asks for nobody else.
pub fn impersonated(
    rbac: &Rbac,
    user: &UserInfo,
    asked: &Attributes,
    headers: &HeaderMap,
) -> Result<Option<Acting>, Status> {
    let Some(wanted) = Wanted::of(headers)? else { return Ok(None) };
    let mut refusal = None;
    for mode in MODES.iter().filter(|mode| mode.is_for(&wanted, user)) {
        match mode.act(rbac, user, asked, &wanted) {
            Ok(acting) => return Ok(Some(acting)),
            Err(status) => _ = refusal.get_or_insert(status),
        }
    }
    Err(refusal.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A ServiceAccount in a pod acts as the node that it runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Whoever is neither a node nor a ServiceAccount.
    UserInfo,
    /// Unconstrained, for anybody.
    Plain,
}

const MODES: [Mode; 5] =
    [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Plain];

impl Mode {
    /// What the verbs of a constrained mode end in.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::AssociatedNode => Some("associated-node"),
            Self::ArbitraryNode => Some("arbitrary-node"),
            Self::ServiceAccount => Some("serviceaccount"),
            Self::UserInfo => Some("user-info"),
            Self::Plain => None,
        }
    }

    fn is_for(self, wanted: &Wanted, user: &UserInfo) -> bool {
        let (node, account) = (node_name(&wanted.name), account_name(&wanted.name));
        match self {
            Self::AssociatedNode => {
                let runs_on = match user.extra.get(NODE_NAME).map(Vec::as_slice) {
                    Some([one]) => Some(one.as_str()),
                    _ => None,
                };
                wanted.is_only_a_name()
                    && node.is_some_and(|node| runs_on == Some(node))
                    && account_name(&user.name).is_some()
            }
            Self::ArbitraryNode => wanted.is_only_a_name() && node.is_some(),
            Self::ServiceAccount => wanted.is_only_a_name() && account.is_some(),
            Self::UserInfo => node.is_none() && account.is_none(),
            Self::Plain => true,
        }
    }

    fn act(
        self,
        rbac: &Rbac,
        user: &UserInfo,
        asked: &Attributes,
        wanted: &Wanted,
    ) -> Result<Acting, Status> {
        let asker = &self.asker(user);
        let ask = Ask { rbac, user: asker, verb: self.verb(), constrained: self != Self::Plain };
        if let Some(word) = self.word() {
            let on = format!("impersonate-on:{word}:{}", asked.verb);
            rbac.authorize(asker, &Attributes { verb: on, ..asked.clone() })?;
        }
        let fixed_groups = self.name(&ask, &wanted.name)?;
        ask.uid(&wanted.uid)?;
        ask.groups(&wanted.groups)?;
        ask.extra(&wanted.extra)?;
        let mut acts_as = UserInfo {
            name: wanted.name.clone(),
            uid: wanted.uid.clone(),
            groups: wanted.groups.clone(),
            extra: wanted.extra.clone(),
        };
        if acts_as.groups.is_empty() {
            acts_as.groups = fixed_groups;
        }
        add_system_group(&mut acts_as);
        let constraint = self.word().map(|_| self.verb());
        Ok(Acting { user: acts_as, constraint })
    }

    fn verb(self) -> String {
        self.word().map_or_else(|| "impersonate".to_owned(), |word| format!("impersonate:{word}"))
    }

    /// Asks for the name; answers the groups that such a user is always in.
    fn name(self, ask: &Ask<'_>, name: &str) -> Result<Vec<String>, Status> {
        let group = ask.group();
        if let Some(node) = node_name(name).filter(|_| ask.constrained) {
            // Where it may act as its own node, it may as any that it comes to run on.
            let shown = if self == Self::AssociatedNode { "*" } else { node };
            ask.may(group, "nodes", "", "", shown)?;
            return Ok(vec![NODES.to_owned()]);
        }
        if let Some((namespace, account)) = account_name(name) {
            ask.may(group, "serviceaccounts", "", namespace, account)?;
            let mut groups = UserInfo::service_account(namespace, account).groups;
            groups.retain(|g| g != AUTHENTICATED);
            return Ok(groups);
        }
        ask.may(group, "users", "", "", name)?;
        Ok(Vec::new())
    }

    /// The asking user as authorization sees it: what depends on the node is left out where the right is
    /// one to whatever node it is.
    fn asker(self, user: &UserInfo) -> UserInfo {
        let mut asker = user.clone();
        if self == Self::AssociatedNode {
            let keys = std::mem::take(&mut asker.extra).into_keys().collect();
            let key = "authentication.kubernetes.io/associated-node-keys".to_owned();
            asker.extra.insert(key, keys);
        }
        asker
    }
}

/// The questions of one mode.
struct Ask<'a> {
    rbac: &'a Rbac,
    user: &'a UserInfo,
    verb: String,
    constrained: bool,
}

impl Ask<'_> {
    /// The API group of users, groups and ServiceAccounts: plain impersonation has them in the core.
    fn group(&self) -> &'static str {
        if self.constrained { AUTHENTICATION } else { "" }
    }

    fn attributes(
        &self,
        group: &str,
        resource: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Attributes {
        Attributes {
            verb: self.verb.clone(),
            path: String::new(),
            resource: Some(Resource {
                group: group.into(),
                version: "v1".into(),
                namespace: namespace.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                name: name.into(),
                rest: String::new(),
            }),
        }
    }

    fn may(
        &self,
        group: &str,
        resource: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let asked = self.attributes(group, resource, subresource, namespace, name);
        self.rbac.authorize(self.user, &asked)
    }

    fn refused(&self, resource: &str, group: &str, name: &str, why: &str) -> Status {
        rbac::refusal(self.user, &self.attributes(group, resource, "", "", name), why)
    }

    fn uid(&self, uid: &str) -> Result<(), Status> {
        match uid {
            "" => Ok(()),
            uid => self.may(AUTHENTICATION, "uids", "", "", uid),
        }
    }

    fn groups(&self, groups: &[String]) -> Result<(), Status> {
        let of = self.group();
        if self.constrained {
            if groups.iter().any(String::is_empty) {
                let why = "impersonating the empty string group is not allowed";
                return Err(self.refused("groups", of, "", why));
            }
            if groups.iter().any(|g| g == MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(self.refused("groups", of, MASTERS, why));
            }
            if groups.len() >= MANY && self.may(of, "groups", "", "", "*").is_ok() {
                return Ok(());
            }
        }
        groups.iter().try_for_each(|group| self.may(of, "groups", "", "", group))
    }

    fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> Result<(), Status> {
        if self.constrained {
            if let Some(why) = extra.iter().find_map(|(key, values)| wrong_extra(key, values)) {
                return Err(self.refused("userextras", AUTHENTICATION, "", &why));
            }
            let many = extra.len() >= MANY || extra.values().map(Vec::len).sum::<usize>() >= MANY;
            if many && self.may(AUTHENTICATION, "userextras", "*", "", "*").is_ok() {
                return Ok(());
            }
        }
        let mut all = extra.iter().flat_map(|(key, values)| values.iter().map(move |v| (key, v)));
        all.try_for_each(|(key, value)| self.may(AUTHENTICATION, "userextras", key, "", value))
    }
}

/// Constrained impersonation is stricter than plain about what an extra may be.
fn wrong_extra(key: &str, values: &[String]) -> Option<String> {
    let prefixed = |key: &str| {
        key.split_once('/').is_some_and(|(domain, path)| {
            names::dns1123_subdomain(domain).is_empty()
                && !path.is_empty()
                && path
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b))
        })
    };
    Some(match key {
        "" => "impersonating the empty string key in extra is not allowed".to_owned(),
        key if !prefixed(key) => format!(
            "impersonating an invalid key in extra is not allowed: {key:?} must be a domain-prefixed path (such as \"acme.io/foo\")"
        ),
        _ if values.is_empty() => "impersonating empty values in extra is not allowed".to_owned(),
        _ if values.iter().any(String::is_empty) => {
            "impersonating the empty string value in extra is not allowed".to_owned()
        }
        _ => return None,
    })
}

/// Groups that were asked for are all of them, but for the one that everybody is in.
fn add_system_group(user: &mut UserInfo) {
    let group = match user.name.as_str() {
        ANONYMOUS => UNAUTHENTICATED,
        _ if user.in_group(UNAUTHENTICATED) => return,
        _ => AUTHENTICATED,
    };
    if !user.in_group(group) {
        user.groups.push(group.to_owned());
    }
}

fn node_name(user: &str) -> Option<&str> {
    let name = user.strip_prefix("system:node:")?;
    names::dns1123_subdomain(name).is_empty().then_some(name)
}

/// Namespace and name of a ServiceAccount.
fn account_name(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let good =
        names::dns1123_label(namespace).is_empty() && names::dns1123_subdomain(name).is_empty();
    good.then_some((namespace, name))
}

impl Wanted {
    fn is_only_a_name(&self) -> bool {
        self.uid.is_empty() && self.groups.is_empty() && self.extra.is_empty()
    }
}
