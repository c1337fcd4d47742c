//! Acting as somebody else, for those who may.
//! <https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/>

use http::HeaderMap;
use rimward_api::{Status, UserInfo};

use crate::rbac::Rbac;
use crate::request::{Attributes, Resource};

const ANY: &str = "impersonate-";
const EXTRA: &str = "impersonate-extra-";

/// The user to act as; None when the request asks for nobody else.
pub fn impersonated(
    rbac: &Rbac,
    user: &UserInfo,
    headers: &HeaderMap,
) -> Result<Option<UserInfo>, Status> {
    if !headers.keys().any(|name| name.as_str().starts_with(ANY)) {
        return Ok(None);
    }
    let all = |name: &str| {
        let values = headers.get_all(name).iter();
        values.filter_map(|v| v.to_str().ok()).map(str::to_owned).collect::<Vec<_>>()
    };
    let name = all("impersonate-user").into_iter().next().unwrap_or_default();
    let (groups, uid) = (all("impersonate-group"), all("impersonate-uid").into_iter().next());
    let extras: Vec<&str> =
        headers.keys().map(|k| k.as_str()).filter(|k| k.starts_with(EXTRA)).collect();
    if name.is_empty() {
        return match groups.is_empty() && uid.is_none() && extras.is_empty() {
            true => Ok(None),
            false => Err(Status::bad_request(
                "requested groups, uid or extra to impersonate without impersonating a user",
            )),
        };
    }
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let asked = Attributes {
            verb: "impersonate".into(),
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
        };
        rbac.authorize(user, &asked)
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let mut acts_as = match account {
        Some((namespace, account)) => {
            may("", "serviceaccounts", "", namespace, account)?;
            UserInfo::service_account(namespace, account)
        }
        None => {
            may("", "users", "", "", &name)?;
            match name.as_str() {
                "system:anonymous" => UserInfo::anonymous(),
                name => UserInfo::authenticated(name, &[]),
            }
        }
    };
    if !groups.is_empty() {
        acts_as.groups = with_system_group(&name, groups.clone());
    }
    for group in groups {
        may("", "groups", "", "", &group)?;
    }
    if let Some(uid) = uid {
        may("authentication.k8s.io", "uids", "", "", &uid)?;
        acts_as.uid = uid;
    }
    for key in extras {
        let extra = &unescaped(&key[EXTRA.len()..]);
        let values = all(key);
        for value in &values {
            may("authentication.k8s.io", "userextras", extra, "", value)?;
        }
        acts_as.extra.insert(extra.to_owned(), values);
    }
    Ok(Some(acts_as))
}

/// Groups that were asked for are all of them, but for the one that everybody is in.
fn with_system_group(name: &str, mut groups: Vec<String>) -> Vec<String> {
    const AUTHENTICATED: &str = "system:authenticated";
    const UNAUTHENTICATED: &str = "system:unauthenticated";
    let said = groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED);
    match (name, said) {
        (_, true) => {}
        ("system:anonymous", _) => groups.push(UNAUTHENTICATED.into()),
        _ => groups.push(AUTHENTICATED.into()),
    }
    groups
}

/// Header names cannot carry every key: clients percent-encode it.
fn unescaped(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match code.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_keys() {
        assert_eq!(unescaped("example.com%2fscopes"), "example.com/scopes");
        assert_eq!(unescaped("100%"), "100%");
        assert_eq!(unescaped("%ff"), "%ff");
    }
}
