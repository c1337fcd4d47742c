//! What a request asks: its path, verb and query taken apart, before anything is looked up.

use http::{HeaderMap, Method};
use parking_lot::Mutex;
use rimward_api::{GroupResource, GroupVersionResource, UserInfo};

use crate::body::BoxBody;

/// Decoded query parameters.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: Option<&str>) -> Self {
        let pairs = url::form_urlencoded::parse(text.unwrap_or_default().as_bytes());
        Self(pairs.map(|(k, v)| (k.into_owned(), v.into_owned())).collect())
    }

    /// The first value of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// As a URL carries them.
    pub fn encoded(&self) -> String {
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }

    /// Kubernetes' reading of booleans: present and not `false` or `0`.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

/// A resource as the URL names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    pub group: String,
    pub version: String,
    /// Empty for cluster-wide requests.
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    /// Empty for requests on the collection.
    pub name: String,
    /// What follows the subresource (proxies).
    pub rest: String,
}

impl Resource {
    pub fn gvr(&self) -> GroupVersionResource {
        GroupVersionResource::new(&self.group, &self.version, &self.resource)
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group.clone(), self.resource.clone())
    }
}

/// What authorization looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// get, list, watch, create, update, patch, delete, deletecollection; for other paths the
    /// method in lower case.
    pub verb: String,
    pub path: String,
    /// None for paths that are not resources: `/version`, `/openapi/v3` …
    pub resource: Option<Resource>,
}

impl Attributes {
    /// As kube-apiserver's request info resolver reads them.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let plain = |resource| Self {
            verb: method.as_str().to_ascii_lowercase(),
            path: path.to_owned(),
            resource,
        };
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let (group, version, mut rest) = match segments.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return plain(None),
        };
        let mut deprecated_watch = false;
        if let ["watch", after @ ..] = rest
            && !after.is_empty()
        {
            deprecated_watch = true;
            rest = after;
        }
        let mut target =
            Resource { group: group.into(), version: version.into(), ..Resource::default() };
        if let ["namespaces", namespace, after @ ..] = rest {
            target.namespace = (*namespace).into();
            // A namespace's own subresources are the only ones without a resource between.
            if !after.is_empty() && !matches!(after, ["status" | "finalize"]) {
                rest = after;
            }
        }
        let mut words = rest.iter().copied();
        target.resource = words.next().unwrap_or_default().to_owned();
        target.name = decode(words.next().unwrap_or_default());
        target.subresource = words.next().unwrap_or_default().to_owned();
        target.rest = words.collect::<Vec<_>>().join("/");
        let named = !target.name.is_empty();
        let verb = match method.as_str() {
            "GET" | "HEAD" if deprecated_watch || query.flag("watch") == Some(true) => {
                if !named {
                    // A watch of one object by name is authorized for that name.
                    target.name = selected_name(query).unwrap_or_default();
                }
                "watch"
            }
            "GET" | "HEAD" if named => "get",
            "GET" | "HEAD" => "list",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" if named => "delete",
            "DELETE" => "deletecollection",
            other => return Self { verb: other.to_ascii_lowercase(), ..plain(Some(target)) },
        };
        Self { verb: verb.to_owned(), ..plain(Some(target)) }
    }

    pub fn is_read(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }

    /// Changes one object, of which those who watch are told.
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete")
    }

    /// Requests that last: they take no place among the requests in flight.
    pub fn is_long(&self) -> bool {
        let streams = |r: &Resource| {
            matches!(r.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
        };
        self.verb == "watch" || self.resource.as_ref().is_some_and(streams)
    }
}

/// The name that `fieldSelector=metadata.name=x` demands.
fn selected_name(query: &Query) -> Option<String> {
    let selector = rimward_api::selector::FieldSelector::parse(query.get("fieldSelector")?).ok()?;
    selector.required("metadata.name").map(str::to_owned)
}

/// Percent-decoding of one path segment.
fn decode(segment: &str) -> String {
    if !segment.contains('%') {
        return segment.to_owned();
    }
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = || bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex().and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One request on its way through the pipeline.
pub struct Call {
    pub method: Method,
    /// As it came; `attributes` and `query` are what it says.
    pub uri: http::Uri,
    pub headers: HeaderMap,
    /// Who is at the other end of the connection; None inside the process.
    pub source: Option<std::net::IpAddr>,
    pub query: Query,
    pub attributes: Attributes,
    pub user: UserInfo,
    /// When it has to be answered, unless it lasts.
    pub deadline: Option<tokio::time::Instant>,
    /// Taken when a handler wants it. The lock only makes the call shareable across threads.
    pub body: Mutex<BoxBody>,
    /// The connection itself, when the client asked that it become something else.
    pub upgrade: Mutex<Option<hyper::upgrade::OnUpgrade>>,
    /// Texts for Warning headers, in order.
    pub warnings: Vec<String>,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The part of the User-Agent that names the program.
    pub fn agent(&self) -> &str {
        self.header("user-agent").split('/').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        #[track_caller]
        fn check(method: Method, uri: &str, expected: &str) {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let a = Attributes::parse(&method, path, &Query::parse(Some(query)));
            let shown = match a.resource {
                None => format!("{} {}", a.verb, a.path),
                Some(r) => format!(
                    "{} {}|{}|{}|{}|{}|{}|{}",
                    a.verb,
                    r.group,
                    r.version,
                    r.namespace,
                    r.resource,
                    r.name,
                    r.subresource,
                    r.rest
                ),
            };
            assert_eq!(shown, expected, "{uri}");
        }
        check(Method::GET, "/version", "get /version");
        check(Method::GET, "/apis/apps/v1", "get /apis/apps/v1");
        check(Method::GET, "/api/v1/pods", "list |v1||pods|||");
        check(Method::GET, "/api/v1/namespaces/a/pods/b/log", "get |v1|a|pods|b|log|");
        check(Method::GET, "/api/v1/namespaces/a", "get |v1|a|namespaces|a||");
        check(Method::PUT, "/api/v1/namespaces/a/finalize", "update |v1|a|namespaces|a|finalize|");
        check(Method::GET, "/api/v1/pods?watch=true", "watch |v1||pods|||");
        check(
            Method::GET,
            "/api/v1/namespaces/a/pods?watch=1&fieldSelector=metadata.name%3Db",
            "watch |v1|a|pods|b||",
        );
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            "deletecollection apps|v1|a|deployments|||",
        );
        check(Method::GET, "/api/v1/nodes/n/proxy/a/b", "get |v1||nodes|n|proxy|a/b");
        check(
            Method::GET,
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            "get rbac.authorization.k8s.io|v1||clusterroles|system:node||",
        );
    }
}
