//! A container's environment, and `$(VAR)` in its command and arguments.
//! <https://kubernetes.io/docs/tasks/inject-data-application/define-environment-variable-container/>

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, FileKeySelector, Pod, Service};

use crate::downward::{self, Facts};
use crate::env_file::{self, Files};
use crate::sources::{Name, Sources};

/// The environment in order, each name once, Kubernetes' precedence. Err is Kubernetes' text for
/// what is missing.
pub(crate) fn resolve(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    files: &Files,
    services: BTreeMap<String, String>,
    facts: &Facts,
) -> Result<Vec<(String, String)>, String> {
    let mut services = services;
    let mut env = Env::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(r), _) => (Name::ConfigMap(r.name.clone()), r.optional),
            (None, Some(r)) => (Name::Secret(r.name.clone()), r.optional),
            (None, None) => continue,
        };
        let all = sources.all(&name, optional == Some(true)).map_err(|e| e.to_string())?;
        for (key, value) in all.into_iter().flatten() {
            let key = format!("{prefix}{key}");
            if is_variable_name(&key) {
                env.set(key, String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (value, None) => {
                let text = value.as_deref().unwrap_or_default();
                Some(expand(text, |name| env.get(name).or(services.get(name).map(String::as_str))))
            }
            (Some(text), Some(_)) if !text.is_empty() => {
                Some(expand(text, |name| env.get(name).or(services.get(name).map(String::as_str))))
            }
            (_, Some(from)) => value_from(pod, container, from, sources, files, facts)?,
        };
        // A declared variable hides a Service's, also from those declared after it.
        services.remove(&variable.name);
        if let Some(value) = value {
            env.set(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.set(name, value);
        }
    }
    Ok(env.list)
}

#[derive(Default)]
struct Env {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Env {
    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|i| self.list[*i].1.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(i) => self.list[*i].1 = value,
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
}

/// Any printable ASCII but `=`, as Kubernetes allows since 1.34.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=')
}

fn value_from(
    pod: &Pod,
    container: &Container,
    from: &EnvVarSource,
    sources: &Sources,
    files: &Files,
    facts: &Facts,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let keyed = |name: Name, kind: &str, key: &str, optional: Option<bool>| {
        let optional = optional == Some(true);
        let object = match &name {
            Name::ConfigMap(n) | Name::Secret(n) | Name::Claim(n) => n.clone(),
        };
        let Some(all) = sources.all(&name, optional).map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        match all.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {key} in {kind} {namespace}/{object}")),
        }
    };
    if let Some(r) = &from.field_ref {
        return downward::field(pod, &r.field_path, facts).map(Some);
    }
    if let Some(r) = &from.resource_field_ref {
        return downward::resource(pod, Some(container), r, facts.allocatable).map(Some);
    }
    if let Some(r) = &from.config_map_key_ref {
        return keyed(Name::ConfigMap(r.name.clone()), "ConfigMap", &r.key, r.optional);
    }
    if let Some(r) = &from.secret_key_ref {
        return keyed(Name::Secret(r.name.clone()), "Secret", &r.key, r.optional);
    }
    match &from.file_key_ref {
        Some(reference) => file_key(reference, files),
        None => Ok(None),
    }
}

fn file_key(reference: &FileKeySelector, files: &Files) -> Result<Option<String>, String> {
    let FileKeySelector { key, path, volume_name, optional } = reference;
    let content = files.get(&(volume_name.clone(), path.clone())).cloned().unwrap_or(Ok(None))?;
    let found = match &content {
        Some(text) => env_file::value(text, key).map_err(|e| format!("file {path:?}: {e}"))?,
        None if *optional == Some(true) => None,
        None => return Err(format!("file {path:?} not found in volume {volume_name:?}")),
    };
    match found {
        None if *optional != Some(true) => {
            Err(format!("environment variable key {key:?} not found in file {path:?}"))
        }
        found => Ok(found),
    }
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar; what is not known stays as it stands.
pub(crate) fn expand<'a>(text: &str, get: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        let after = &rest[at + 1..];
        rest = match after.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                &after[1..]
            }
            Some(b'(') => match after.find(')') {
                Some(end) => {
                    let name = &after[1..end];
                    match get(name) {
                        Some(value) => out += value,
                        None => out += &rest[at..at + 2 + end],
                    }
                    &after[end + 1..]
                }
                None => {
                    out += "$(";
                    &after[1..]
                }
            },
            _ => {
                out.push('$');
                after
            }
        };
    }
    out + rest
}

/// Kubernetes' variables for the Services of the pod's namespace, and always for
/// `default/kubernetes`.
pub(crate) fn service_variables(
    own: &[Arc<Service>],
    default: &[Arc<Service>],
    links: bool,
) -> BTreeMap<String, String> {
    let kubernetes = default.iter().filter(|s| s.metadata.name.as_deref() == Some("kubernetes"));
    let own = own.iter().filter(|_| links);
    kubernetes.chain(own).flat_map(|service| variables(service)).collect()
}

fn variables(service: &Service) -> Vec<(String, String)> {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &service.spec else { return Vec::new() };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first().filter(|_| !ip.is_empty() && ip != "None") else {
        return Vec::new();
    };
    let upper = |s: &str| s.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    // An IPv6 address in a URL stands in brackets.
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let protocol = |p: &Option<String>| p.clone().unwrap_or_else(|| "TCP".into());
    let url = |p: &Option<String>, port| format!("{}://{host}:{port}", protocol(p).to_lowercase());
    let mut list = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.to_owned()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
        (format!("{prefix}_PORT"), url(&first.protocol, first.port)),
    ];
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            list.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string()));
        }
        let protocol = protocol(&port.protocol);
        let prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        list.push((prefix.clone(), url(&port.protocol, port.port)));
        list.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        list.push((format!("{prefix}_PORT"), port.port.to_string()));
        list.push((format!("{prefix}_ADDR"), ip.to_owned()));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Allocatable;
    use serde_json::{Value, json};

    #[test]
    fn expansion() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            assert_eq!(expand(text, |n| (n == "A").then_some("1")), expected);
        }
        check("", "");
        check("x$(A)y$(A)", "x1y1");
        check("$(B)", "$(B)");
        check("$$(A)", "$(A)");
        check("$$$(A)", "$1");
        check("$(A", "$(A");
        check("$A $", "$A $");
        check("$()", "$()");
    }

    fn sources() -> Sources {
        let map = json!({"metadata": {"name": "m"}, "data": {"k": "v", "j": "w"}});
        let secret = json!({"metadata": {"name": "s"}, "data": {"p": "aHVudGVyMg=="}});
        Sources::of(
            vec![serde_json::from_value(map).unwrap()],
            vec![serde_json::from_value(secret).unwrap()],
        )
    }

    #[track_caller]
    fn check(container: Value, expected: Result<&[(&str, &str)], &str>) {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": []}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let container: Container = serde_json::from_value(container).unwrap();
        let facts = Facts {
            pod_ips: &[],
            host_ip: "192.0.2.1".parse().unwrap(),
            node_name: "n",
            allocatable: Allocatable::default(),
        };
        let services = BTreeMap::from([("SVC".to_owned(), "10.43.0.9".to_owned())]);
        let file = |text: Option<&str>| Ok(text.map(String::from));
        let files = Files::from([
            (("v".into(), "env".into()), file(Some("A='1'"))),
            (("v".into(), "none".into()), file(None)),
        ]);
        let env = resolve(&pod, &container, &sources(), &files, services, &facts);
        let env =
            env.map(|list| list.iter().filter(|(n, _)| n != "SVC").cloned().collect::<Vec<_>>());
        let expected = expected
            .map(|l| l.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect())
            .map_err(String::from);
        assert_eq!(env, expected);
    }

    #[test]
    fn sources_and_precedence() {
        check(
            json!({"name": "c", "env": [{"name": "A", "value": "$(SVC)"}, {"name": "B", "value": "$(A)/$(C)"}]}),
            Ok(&[("A", "10.43.0.9"), ("B", "10.43.0.9/$(C)")]),
        );
        check(
            json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}, {"prefix": "S_", "secretRef": {"name": "s"}}],
                "env": [{"name": "k", "value": "own"}]}),
            Ok(&[("j", "w"), ("k", "own"), ("S_p", "hunter2")]),
        );
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            Ok(&[("A", "v"), ("B", "hunter2"), ("C", "p")]),
        );
    }

    #[test]
    fn from_files() {
        let from = |path: &str, key: &str, optional: bool| {
            let reference =
                json!({"volumeName": "v", "path": path, "key": key, "optional": optional});
            json!({"name": "c", "env": [{"name": "X", "valueFrom": {"fileKeyRef": reference}}]})
        };
        check(from("env", "A", false), Ok(&[("X", "1")]));
        check(from("env", "B", true), Ok(&[]));
        check(from("none", "A", true), Ok(&[]));
        check(
            from("env", "B", false),
            Err("environment variable key \"B\" not found in file \"env\""),
        );
        check(from("none", "A", false), Err("file \"none\" not found in volume \"v\""));
    }

    #[test]
    fn what_is_missing() {
        let key = |source: Value| json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]});
        check(
            key(json!({"configMapKeyRef": {"name": "x", "key": "k"}})),
            Err("configmap \"x\" not found"),
        );
        check(
            key(json!({"secretKeyRef": {"name": "x", "key": "k"}})),
            Err("secret \"x\" not found"),
        );
        check(
            key(json!({"configMapKeyRef": {"name": "m", "key": "z"}})),
            Err("couldn't find key z in ConfigMap ns/m"),
        );
        check(
            key(json!({"secretKeyRef": {"name": "s", "key": "z"}})),
            Err("couldn't find key z in Secret ns/s"),
        );
        check(key(json!({"secretKeyRef": {"name": "x", "key": "k", "optional": true}})), Ok(&[]));
        check(
            json!({"name": "c", "envFrom": [{"configMapRef": {"name": "x"}}]}),
            Err("configmap \"x\" not found"),
        );
        check(
            json!({"name": "c", "envFrom": [{"configMapRef": {"name": "x", "optional": true}}]}),
            Ok(&[]),
        );
    }

    #[test]
    fn service_links() {
        let service = |name: &str, ip: &str| -> Arc<Service> {
            let ports = json!([{"name": "http", "port": 8765}]);
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": ports}}),
                )
                .unwrap(),
            )
        };
        let own = [service("foo-svc", "10.43.0.9"), service("headless", "None")];
        let default = [service("kubernetes", "10.43.0.1"), service("other", "10.43.0.2")];
        let with = service_variables(&own, &default, true);
        let expected = [
            ("FOO_SVC_PORT", "tcp://10.43.0.9:8765"),
            ("FOO_SVC_PORT_8765_TCP", "tcp://10.43.0.9:8765"),
            ("FOO_SVC_PORT_8765_TCP_ADDR", "10.43.0.9"),
            ("FOO_SVC_PORT_8765_TCP_PORT", "8765"),
            ("FOO_SVC_PORT_8765_TCP_PROTO", "tcp"),
            ("FOO_SVC_SERVICE_HOST", "10.43.0.9"),
            ("FOO_SVC_SERVICE_PORT", "8765"),
            ("FOO_SVC_SERVICE_PORT_HTTP", "8765"),
        ];
        let seen: Vec<(&str, &str)> = with
            .iter()
            .filter(|(k, _)| !k.starts_with("KUBERNETES"))
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(seen, expected);
        let without = service_variables(&own, &default, false);
        assert!(without.keys().all(|k| k.starts_with("KUBERNETES_")), "{without:?}");
        assert_eq!(without["KUBERNETES_SERVICE_HOST"], "10.43.0.1");
    }
}
