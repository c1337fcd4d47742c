//! Which resource a request is about, typed or not, and its URL.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::{GroupVersion, ObjectKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A typed kind: every top-level type of k8s-openapi.
pub trait Object:
    k8s_openapi::Resource
    + k8s_openapi::Metadata<Ty = ObjectMeta>
    + Serialize
    + DeserializeOwned
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: k8s_openapi::Resource
        + k8s_openapi::Metadata<Ty = ObjectMeta>
        + Serialize
        + DeserializeOwned
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// What can be listed and watched into memory: every [`Object`], or a part of one.
pub trait Watched: DeserializeOwned + Send + Sync + 'static {
    fn key(&self) -> ObjectKey;
    fn resource_version(&self) -> &str;
    /// Drops what no reader in this process needs.
    fn strip(&mut self) {}
}

impl<K: Object> Watched for K {
    fn key(&self) -> ObjectKey {
        ObjectKey::of_meta(self.metadata())
    }

    fn resource_version(&self) -> &str {
        self.metadata().resource_version.as_deref().unwrap_or_default()
    }

    fn strip(&mut self) {
        self.metadata_mut().managed_fields = None;
        // Decoding leaves lists with up to four times the room that they need; a clone has none.
        *self = self.clone();
    }
}

/// A resourceVersion as a number, 0 where it is none. Versions of one resource are comparable.
pub fn revision(resource_version: &str) -> u64 {
    resource_version.parse().unwrap_or(0)
}

/// A resource by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group_version: GroupVersion,
    /// Plural, lower case: the URL segment.
    pub name: String,
}

impl Resource {
    pub fn new(group_version: GroupVersion, name: impl Into<String>) -> Self {
        Self { group_version, name: name.into() }
    }

    pub fn of<K: k8s_openapi::Resource>() -> Self {
        let group_version = GroupVersion { group: K::GROUP.into(), version: K::VERSION.into() };
        Self::new(group_version, K::URL_PATH_SEGMENT)
    }

    /// The URL path; empty parts are left out. An empty namespace means cluster scope, or all
    /// namespaces.
    pub fn path(&self, namespace: &str, name: &str, subresource: &str) -> String {
        let mut path = self.group_version.url_prefix();
        if !namespace.is_empty() {
            path.push_str("/namespaces/");
            percent_encode(namespace, &mut path);
        }
        path.push('/');
        path.push_str(&self.name);
        for part in [name, subresource] {
            if !part.is_empty() {
                path.push('/');
                percent_encode(part, &mut path);
            }
        }
        path
    }
}

/// Appends `text` with everything but RFC 3986's unreserved characters percent-encoded.
pub(crate) fn percent_encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte.into());
        } else {
            out.push('%');
            out.push(HEX[usize::from(byte >> 4)].into());
            out.push(HEX[usize::from(byte & 15)].into());
        }
    }
}

/// Appends `?a=b&c=d` for the parameters that have a value.
pub(crate) fn push_query(path: &mut String, parameters: &[(&str, &str)]) {
    let mut separator = if path.contains('?') { '&' } else { '?' };
    for (key, value) in parameters.iter().filter(|(_, v)| !v.is_empty()) {
        path.push(separator);
        path.push_str(key);
        path.push('=');
        percent_encode(value, path);
        separator = '&';
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn paths() {
        #[track_caller]
        fn check(resource: Resource, parts: [&str; 3], expected: &str) {
            assert_eq!(resource.path(parts[0], parts[1], parts[2]), expected);
        }
        check(Resource::of::<Pod>(), ["", "", ""], "/api/v1/pods");
        check(Resource::of::<Pod>(), ["a", "b", "binding"], "/api/v1/namespaces/a/pods/b/binding");
        check(
            Resource::of::<Deployment>(),
            ["a", "", ""],
            "/apis/apps/v1/namespaces/a/deployments",
        );
        check(
            Resource::of::<Pod>(),
            ["a", "x/../y:z", ""],
            "/api/v1/namespaces/a/pods/x%2F..%2Fy%3Az",
        );
    }

    #[test]
    fn queries() {
        let mut path = String::from("/p");
        push_query(&mut path, &[("a", ""), ("b", "x=y,z"), ("c", "1")]);
        assert_eq!(path, "/p?b=x%3Dy%2Cz&c=1");
    }
}
