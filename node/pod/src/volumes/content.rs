//! What a volume is to contain, decided from the pod and the objects it refers to.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, Pod, PodSpec, Volume, VolumeProjection,
};

use super::claimed::Claimed;
use super::host::Medium;
use crate::container_spec::pod_limits;
use crate::downward::{self, Facts};
use crate::sources::{Name, Sources};

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Whose it is, if not this process's own.
    pub user: Option<u32>,
}

/// By path relative to the volume.
pub(crate) type Files = BTreeMap<String, File>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    EmptyDir(Medium),
    /// The path exists, and is what `kind` says.
    HostPath {
        kind: String,
    },
    Files(Files),
    /// The volume behind a claim.
    Claimed(Claimed),
    Nfs(Nfs),
}

/// An export of an NFS server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Nfs {
    pub server: String,
    pub path: String,
    pub read_only: bool,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    pub by_path: BTreeMap<String, String>,
    pub due: Option<jiff::Timestamp>,
}

const DEFAULT_MODE: i32 = 0o644;

/// Err is what the FailedMount Event says.
pub(crate) fn of(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    tokens: &Tokens,
    facts: &Facts,
) -> Result<Content, String> {
    if let Some(empty) = &volume.empty_dir {
        return medium(pod.spec.as_ref(), empty, facts).map(Content::EmptyDir);
    }
    if let Some(host) = &volume.host_path {
        return Ok(Content::HostPath { kind: host.type_.clone().unwrap_or_default() });
    }
    if let Some(nfs) = &volume.nfs {
        return Ok(Content::Nfs(Nfs {
            server: nfs.server.clone(),
            path: nfs.path.clone(),
            read_only: nfs.read_only == Some(true),
            options: Vec::new(),
        }));
    }
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = Name::ConfigMap(source.name.clone());
        keys(&mut files, sources, &name, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = Name::Secret(source.secret_name.clone().unwrap_or_default());
        keys(&mut files, sources, &name, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward_files(&mut files, pod, source.items.as_deref(), mode, facts)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            projection(&mut files, pod, source, mode, sources, tokens, facts)?;
        }
    } else {
        return Err(format!("this node does not support volumes of type {}", kind(volume)));
    }
    Ok(Content::Files(files))
}

/// In the kubelet's words.
fn medium(
    spec: Option<&PodSpec>,
    empty: &EmptyDirVolumeSource,
    facts: &Facts,
) -> Result<Medium, String> {
    let size_limit = empty.size_limit.as_ref().map(downward::parse).transpose()?;
    let size_limit = size_limit.map(|q| q.value().max(0) as u64).filter(|n| *n > 0);
    let name = empty.medium.as_deref().unwrap_or_default();
    match name.strip_prefix("HugePages") {
        _ if name.is_empty() => Ok(Medium::Disk),
        _ if name == "Memory" => memory_size(spec, size_limit, facts).map(Medium::Memory),
        Some("") => huge_pages(spec, name, None).map(Medium::HugePages),
        Some(size) if size.starts_with('-') => {
            let size = rimward_api::Quantity::parse(&size[1..]);
            let size = size.map_err(|e| format!("storage medium {name:?}: {e}"))?;
            huge_pages(spec, name, Some(size.value().max(0) as u64)).map(Medium::HugePages)
        }
        _ => Err(format!("unknown storage medium {name:?}")),
    }
}

/// The size of the huge pages that the pod's containers ask for: the only one, or the one of the medium.
fn huge_pages(spec: Option<&PodSpec>, medium: &str, wanted: Option<u64>) -> Result<u64, String> {
    let spec = spec.into_iter();
    let containers =
        spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let resources = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref());
    let sizes = resources.flat_map(|requests| requests.keys()).filter_map(|name| {
        let size = rimward_api::Quantity::parse(name.strip_prefix("hugepages-")?).ok()?;
        Some(size.value().max(0) as u64)
    });
    let sizes: BTreeSet<u64> = sizes.filter(|size| wanted.is_none_or(|w| w == *size)).collect();
    match sizes.len() {
        0 => Err(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )),
        1 => Ok(sizes.into_iter().next().expect("there is one")),
        _ => Err(format!(
            "medium: {medium} can't be used if container requests multiple huge page sizes"
        )),
    }
}

/// A file system in memory holds no more than the pod may have, nor than the node has for pods.
/// <https://kubernetes.io/docs/concepts/storage/volumes/#emptydir>
fn memory_size(
    spec: Option<&PodSpec>,
    size_limit: Option<u64>,
    facts: &Facts,
) -> Result<Option<u64>, String> {
    let pod = spec.map(pod_limits).transpose()?.and_then(|limits| limits.memory_limit_bytes);
    let node = Some(facts.allocatable.memory_bytes).filter(|n| *n > 0);
    Ok([size_limit, pod, node].into_iter().flatten().min())
}

/// The name of the volume's source as the manifest has it.
fn kind(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(k, _)| k.clone()).find(|k| k != "name").unwrap_or_else(|| "(none)".into())
}

fn projection(
    files: &mut Files,
    pod: &Pod,
    source: &VolumeProjection,
    mode: i32,
    sources: &Sources,
    tokens: &Tokens,
    facts: &Facts,
) -> Result<(), String> {
    if let Some(s) = &source.config_map {
        keys(
            files,
            sources,
            &Name::ConfigMap(s.name.clone()),
            s.items.as_deref(),
            s.optional,
            mode,
        )?;
    }
    if let Some(s) = &source.secret {
        keys(files, sources, &Name::Secret(s.name.clone()), s.items.as_deref(), s.optional, mode)?;
    }
    if let Some(s) = &source.downward_api {
        downward_files(files, pod, s.items.as_deref(), mode, facts)?;
    }
    if let Some(s) = &source.service_account_token {
        let token = tokens.by_path.get(&s.path).ok_or("failed to fetch token")?;
        // As the kubelet has it: a token is for the one user that reads it, where there is one.
        let user = only_user(pod);
        let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.fs_group);
        let mode = if user.is_some() || group.is_some() { 0o600 } else { mode };
        insert(files, &s.path, token.clone().into_bytes(), mode)?;
        if let Some(file) = files.get_mut(&s.path) {
            file.user = user;
        }
    }
    if source.cluster_trust_bundle.is_some() {
        return Err("this node does not support projections of type clusterTrustBundle".into());
    }
    if source.pod_certificate.is_some() {
        return Err("this node does not support projections of type podCertificate".into());
    }
    Ok(())
}

/// The user as whom all containers of a pod run, if there is one such.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let users = containers
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod))
        .collect::<Option<std::collections::BTreeSet<i64>>>()?;
    match (users.len(), users.first()) {
        (1, Some(user)) => u32::try_from(*user).ok(),
        _ => None,
    }
}

fn keys(
    files: &mut Files,
    sources: &Sources,
    name: &Name,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<(), String> {
    let optional = optional == Some(true);
    let all = sources.all(name, optional).map_err(|e| e.to_string())?.unwrap_or_default();
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return all.into_iter().try_for_each(|(key, data)| insert(files, key, data.to_vec(), mode));
    };
    for item in items {
        match all.get(item.key.as_str()) {
            Some(data) => insert(files, &item.path, data.to_vec(), item.mode.unwrap_or(mode))?,
            None if optional => {}
            None => {
                let what = match name {
                    Name::ConfigMap(_) => "configmap references non-existent config key",
                    _ => "references non-existent secret key",
                };
                return Err(format!("{what}: {}", item.key));
            }
        }
    }
    Ok(())
}

fn downward_files(
    files: &mut Files,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
    facts: &Facts,
) -> Result<(), String> {
    for item in items.into_iter().flatten() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(pod, &field.field_path, facts)?,
            (None, Some(resource)) => downward::resource(pod, None, resource, facts.allocatable)?,
            (None, None) => return Err(format!("file {} refers to no field", item.path)),
        };
        insert(files, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

/// The API refuses such paths too; a volume that leaves its directory would be worse than a refusal.
fn insert(files: &mut Files, path: &str, data: Vec<u8>, mode: i32) -> Result<(), String> {
    let bad = path.is_empty()
        || path.starts_with('/')
        || path.starts_with("..")
        || path.split('/').any(|part| matches!(part, "" | "." | ".."));
    if bad {
        return Err(format!(
            "invalid path {path:?}: it must be relative and stay inside the volume"
        ));
    }
    files.insert(path.to_owned(), File { data, mode: (mode & 0o777) as u32, user: None });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Allocatable;
    use serde_json::{Value, json};

    fn facts() -> Facts<'static> {
        Facts {
            pod_ips: &[],
            host_ip: "192.0.2.1".parse().unwrap(),
            node_name: "n",
            allocatable: Allocatable::default(),
        }
    }

    #[track_caller]
    fn check(volume: Value, expected: Result<&[(&str, &str, u32)], &str>) {
        let map = json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}, "binaryData": {"c": "AA=="}});
        let secret = json!({"metadata": {"name": "s"}, "data": {"p": "cQ=="}});
        let sources = Sources::of(
            vec![serde_json::from_value(map).unwrap()],
            vec![serde_json::from_value(secret).unwrap()],
        );
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"x": "y"}}, "spec": {"containers": []}});
        let pod = serde_json::from_value(pod).unwrap();
        let facts = facts();
        let tokens = Tokens { by_path: BTreeMap::from([("token".into(), "t".into())]), due: None };
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let seen = of(&pod, &volume, &sources, &tokens, &facts);
        let expected = expected.map_err(String::from).map(|files| {
            let file = |(path, data, mode): &(&str, &str, u32)| {
                (path.to_string(), File { data: data.as_bytes().to_vec(), mode: *mode, user: None })
            };
            Content::Files(files.iter().map(file).collect())
        });
        assert_eq!(seen, expected);
    }

    #[test]
    fn files() {
        check(
            json!({"name": "v", "configMap": {"name": "m"}}),
            Ok(&[("a", "1", 0o644), ("b", "2", 0o644), ("c", "\0", 0o644)]),
        );
        check(
            json!({"name": "v", "configMap": {"name": "m", "defaultMode": 0o400, "items": [{"key": "a", "path": "x/y"}, {"key": "b", "path": "z", "mode": 0o640}]}}),
            Ok(&[("x/y", "1", 0o400), ("z", "2", 0o640)]),
        );
        check(json!({"name": "v", "secret": {"secretName": "s"}}), Ok(&[("p", "q", 0o644)]));
        check(
            json!({"name": "v", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
            Ok(&[("labels", "x=\"y\"", 0o644)]),
        );
        check(
            json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
                {"configMap": {"name": "m", "items": [{"key": "a", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}),
            Ok(&[("ca.crt", "1", 0o644), ("namespace", "n", 0o644), ("token", "t", 0o644)]),
        );
        check(json!({"name": "v", "configMap": {"name": "x", "optional": true}}), Ok(&[]));
    }

    #[test]
    fn whose_a_token_is() {
        let check = |spec: Value, expected: Option<u32>| {
            let pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(only_user(&pod), expected);
        };
        let as_user = |user: Value| json!({"name": "c", "securityContext": {"runAsUser": user}});
        check(json!({"containers": [as_user(json!(7))]}), Some(7));
        check(json!({"containers": [as_user(json!(7)), as_user(json!(8))]}), None);
        check(json!({"containers": [as_user(json!(null))]}), None);
        let pods = json!({"runAsUser": 9});
        check(json!({"securityContext": pods, "containers": [as_user(json!(null))]}), Some(9));
        check(
            json!({"securityContext": pods, "containers": [as_user(json!(7))],
            "initContainers": [as_user(json!(null))]}),
            None,
        );
    }

    #[test]
    fn refusals() {
        check(json!({"name": "v", "configMap": {"name": "x"}}), Err("configmap \"x\" not found"));
        check(json!({"name": "v", "secret": {"secretName": "x"}}), Err("secret \"x\" not found"));
        check(
            json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "z", "path": "z"}]}}),
            Err("configmap references non-existent config key: z"),
        );
        check(
            json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "a", "path": "../../etc/x"}]}}),
            Err("invalid path \"../../etc/x\": it must be relative and stay inside the volume"),
        );
        check(
            json!({"name": "v", "csi": {"driver": "d"}}),
            Err("this node does not support volumes of type csi"),
        );
        check(
            json!({"name": "v", "emptyDir": {"medium": "Tape"}}),
            Err("unknown storage medium \"Tape\""),
        );
        check(
            json!({"name": "v", "emptyDir": {"medium": "HugePages-2Mi"}}),
            Err(
                "medium HugePages-2Mi: hugePages storage requested, but there is no resource request for huge pages",
            ),
        );
    }

    #[test]
    fn huge_pages_are_of_the_size_that_containers_ask_for() {
        let check = |sizes: &[&str], medium: &str, expected: Option<u64>| {
            let requests: serde_json::Map<String, Value> =
                sizes.iter().map(|size| (format!("hugepages-{size}"), json!("2Mi"))).collect();
            let spec = json!({"containers": [
                {"name": "a", "resources": {"requests": requests}}, {"name": "b"},
            ]});
            let spec = serde_json::from_value(spec).unwrap();
            let empty = EmptyDirVolumeSource { medium: Some(medium.into()), size_limit: None };
            let facts = facts();
            let found = super::medium(Some(&spec), &empty, &facts).ok();
            assert_eq!(found, expected.map(Medium::HugePages), "{sizes:?} {medium}");
        };
        check(&["2Mi"], "HugePages", Some(2 << 20));
        check(&["2Mi"], "HugePages-2Mi", Some(2 << 20));
        check(&["2Mi", "1Gi"], "HugePages-1Gi", Some(1 << 30));
        check(&["2Mi", "1Gi"], "HugePages", None);
        check(&["2Mi"], "HugePages-1Gi", None);
        check(&[], "HugePages", None);
        check(&["2Mi"], "HugePages2Mi", None);
    }
}
