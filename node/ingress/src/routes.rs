//! Which Service answers for a host and a path.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{Ingress, IngressBackend};
use rimward_api::ObjectKey;

/// The IngressClass that this node serves; an Ingress without a class is served too.
const CLASS: &str = "rimward";

/// A Service and one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub service: ObjectKey,
    pub port: Port,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    Name(String),
    Number(u16),
}

/// All rules of all Ingresses, ready to be asked.
#[derive(Default)]
pub struct Routes {
    exact_hosts: HashMap<String, Vec<Rule>>,
    /// By what follows `*`: `.example.com`.
    wildcard_hosts: HashMap<String, Vec<Rule>>,
    any_host: Vec<Rule>,
    default: Option<Target>,
}

#[derive(Clone, Debug)]
struct Rule {
    path: String,
    exact: bool,
    target: Target,
}

impl Routes {
    /// Compiles the rules. The oldest Ingress wins where two say the same (names decide between equals).
    pub fn new(ingresses: &[(ObjectKey, Arc<Ingress>)]) -> Self {
        let mut routes = Self::default();
        let mut ours: Vec<&(ObjectKey, Arc<Ingress>)> =
            ingresses.iter().filter(|(_, ingress)| is_ours(ingress)).collect();
        ours.sort_by_key(|(key, i)| {
            (i.metadata.creation_timestamp.as_ref().map(|t| t.0), key.clone())
        });
        for (key, ingress) in ours {
            let Some(spec) = &ingress.spec else { continue };
            if let (None, Some(backend)) = (&routes.default, &spec.default_backend) {
                routes.default = target(&key.namespace, backend);
            }
            for rule in spec.rules.iter().flatten() {
                let host = rule.host.as_deref().unwrap_or_default().to_lowercase();
                let paths = rule.http.iter().flat_map(|http| &http.paths);
                let rules = paths.filter_map(|p| {
                    Some(Rule {
                        path: p.path.clone().unwrap_or_else(|| "/".into()),
                        exact: p.path_type == "Exact",
                        target: target(&key.namespace, &p.backend)?,
                    })
                });
                routes.list(&host).extend(rules);
            }
        }
        let all = routes.exact_hosts.values_mut().chain(routes.wildcard_hosts.values_mut());
        for rules in all.chain([&mut routes.any_host]) {
            // Longest path first, Exact before Prefix; the sort is stable, so the oldest stays first.
            rules.sort_by_key(|rule| (std::cmp::Reverse(rule.path.len()), !rule.exact));
        }
        routes
    }

    fn list(&mut self, host: &str) -> &mut Vec<Rule> {
        match host.strip_prefix('*') {
            _ if host.is_empty() => &mut self.any_host,
            Some(suffix) => self.wildcard_hosts.entry(suffix.to_owned()).or_default(),
            None => self.exact_hosts.entry(host.to_owned()).or_default(),
        }
    }

    /// The Service for a request; None is a 404. `host` without a port, in lower case.
    pub fn find(&self, host: &str, path: &str) -> Option<&Target> {
        // `*.example.com` covers exactly one label.
        let suffix = host.find('.').map_or("", |dot| &host[dot..]);
        let lists =
            [self.exact_hosts.get(host), self.wildcard_hosts.get(suffix), Some(&self.any_host)];
        let found = lists.into_iter().flatten().find_map(|rules| {
            rules.iter().find(|rule| rule.matches(path)).map(|rule| &rule.target)
        });
        found.or(self.default.as_ref())
    }
}

impl Rule {
    /// Prefix matches whole path elements: `/foo` matches `/foo/bar`, not `/foobar`.
    fn matches(&self, path: &str) -> bool {
        if self.exact {
            return path == self.path;
        }
        let prefix = self.path.trim_end_matches('/');
        match path.strip_prefix(prefix) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

fn is_ours(ingress: &Ingress) -> bool {
    const LEGACY: &str = "kubernetes.io/ingress.class";
    let class = ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_deref());
    let legacy =
        ingress.metadata.annotations.as_ref().and_then(|a| a.get(LEGACY)).map(String::as_str);
    class.or(legacy).is_none_or(|class| class == CLASS)
}

fn target(namespace: &str, backend: &IngressBackend) -> Option<Target> {
    let service = backend.service.as_ref()?;
    let port = service.port.as_ref()?;
    let port = match (&port.name, port.number) {
        (Some(name), _) => Port::Name(name.clone()),
        (None, Some(number)) => Port::Number(u16::try_from(number).ok()?),
        (None, None) => return None,
    };
    Some(Target { service: ObjectKey::new(namespace, service.name.clone()), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingress(name: &str, spec: serde_json::Value) -> (ObjectKey, Arc<Ingress>) {
        let object = serde_json::json!({"metadata": {"name": name}, "spec": spec});
        (ObjectKey::new("a", name), Arc::new(serde_json::from_value(object).expect("an Ingress")))
    }

    fn path(path: &str, kind: &str, service: &str) -> serde_json::Value {
        serde_json::json!({"path": path, "pathType": kind,
            "backend": {"service": {"name": service, "port": {"number": 80}}}})
    }

    #[test]
    fn hosts_and_paths() {
        let routes = Routes::new(&[
            ingress(
                "one",
                serde_json::json!({"rules": [
                    {"host": "shop.test", "http": {"paths": [
                        path("/", "Prefix", "root"), path("/foo", "Prefix", "foo"),
                        path("/foo", "Exact", "exact"), path("/foo/bar/", "Prefix", "bar"),
                    ]}},
                    {"host": "*.wild.test", "http": {"paths": [path("/", "ImplementationSpecific", "wild")]}},
                    {"http": {"paths": [path("/any", "Prefix", "any")]}},
                ]}),
            ),
            ingress(
                "other",
                serde_json::json!({"ingressClassName": "nginx", "rules": [
                {"host": "alien.test", "http": {"paths": [path("/", "Prefix", "alien")]}}]}),
            ),
            ingress(
                "default",
                serde_json::json!({"ingressClassName": "rimward", "defaultBackend":
                {"service": {"name": "rest", "port": {"name": "http"}}}}),
            ),
        ]);
        #[track_caller]
        fn check(routes: &Routes, host: &str, path: &str, expected: &str) {
            let found = routes.find(host, path).map(|t| t.service.name.as_str());
            assert_eq!(found, Some(expected), "{host}{path}");
        }
        check(&routes, "shop.test", "/", "root");
        check(&routes, "shop.test", "/foo", "exact");
        check(&routes, "shop.test", "/foo/", "foo");
        check(&routes, "shop.test", "/foobar", "root");
        check(&routes, "shop.test", "/foo/bar", "bar");
        check(&routes, "shop.test", "/foo/bar/x", "bar");
        check(&routes, "a.wild.test", "/x", "wild");
        check(&routes, "a.b.wild.test", "/x", "rest");
        check(&routes, "wild.test", "/x", "rest");
        check(&routes, "elsewhere", "/any/x", "any");
        check(&routes, "alien.test", "/", "rest");
        assert_eq!(Routes::new(&[]).find("shop.test", "/"), None);
    }
}
