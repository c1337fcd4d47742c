//! From the bytes of a file to the pod that they mean: pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use rimward_api::names::{dns1123_label, dns1123_subdomain};
use rimward_api::static_pods;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// More than any object in the API has.
pub(super) const BYTES_MAX: u64 = 1 << 20;

/// The pod as this node runs it: YAML or JSON, of one Pod.
///
/// # Errors
/// What is wrong with it, for a person.
pub(super) fn pod(bytes: &[u8], node: &str, now: Timestamp) -> Result<Pod, String> {
    let value: Value = serde_saphyr::from_slice(bytes).map_err(|e| first_line(&e.to_string()))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&value["apiVersion"]), text(&value["kind"]));
    if (version.as_str(), kind.as_str()) != ("v1", "Pod") {
        return Err(format!("it is {kind:?} of {version:?}; a file has one Pod of v1"));
    }
    if let Some(path) = static_pods::reference(&value["spec"]) {
        return Err(format!(
            "spec.{path} refers to another object of the API, which a static pod cannot: it runs without the API"
        ));
    }
    let pod: Pod = serde_json::from_value(value).map_err(|e| e.to_string())?;
    check(&pod)?;
    Ok(complete(pod, node, now))
}

/// An error's place with a piece of the text around it fills a log.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// What a node could not do without; the rest the API server says of the mirror.
fn check(pod: &Pod) -> Result<(), String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    for (field, why) in [
        ("metadata.name", dns1123_subdomain(name)),
        ("metadata.namespace", dns1123_label(namespace)),
    ] {
        if let Some(why) = why.first() {
            return Err(format!("{field}: {why}"));
        }
    }
    let spec = pod.spec.as_ref().ok_or("spec: Required value")?;
    if spec.containers.is_empty() {
        return Err("spec.containers: Required value".into());
    }
    let mut names = Vec::new();
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let name = &container.name;
        if let Some(why) = dns1123_label(name).first() {
            return Err(format!("the name of container {name:?}: {why}"));
        }
        if container.image.as_deref().is_none_or(str::is_empty) {
            return Err(format!("container {name:?} has no image"));
        }
        if names.contains(name) {
            return Err(format!("two containers are called {name:?}"));
        }
        names.push(name.clone());
    }
    Ok(())
}

/// As the kubelet has it: the pod is of this node by its name too, and stays whatever the node is tainted with.
fn complete(mut pod: Pod, node: &str, now: Timestamp) -> Pod {
    pod.status = None;
    let meta = &mut pod.metadata;
    let name = meta.name.take().unwrap_or_default();
    meta.name = Some(format!("{name}-{node}"));
    meta.namespace.get_or_insert_with(|| "default".into());
    (meta.uid, meta.resource_version, meta.deletion_timestamp) = (None, None, None);
    meta.owner_references = None;
    let notes = meta.annotations.get_or_insert_with(BTreeMap::new);
    for name in [static_pods::SOURCE, static_pods::HASH, static_pods::SEEN, static_pods::MIRROR] {
        notes.remove(name);
    }
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node.to_owned());
        let stays = Toleration {
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            ..Toleration::default()
        };
        let tolerations = spec.tolerations.get_or_insert_with(Vec::new);
        if !tolerations.contains(&stays) {
            tolerations.push(stays);
        }
    }
    // Of what it means, not how it is written: a comment restarts nothing.
    let hash = Sha256::digest(serde_json::to_vec(&pod).expect("a Pod has only string keys"));
    let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let notes = pod.metadata.annotations.get_or_insert_with(BTreeMap::new);
    notes.insert(static_pods::SOURCE.into(), "file".into());
    notes.insert(static_pods::HASH.into(), hash.clone());
    notes.insert(static_pods::SEEN.into(), now.to_string());
    pod.metadata.uid = Some(hash);
    pod
}

/// What the API is to show of it.
pub(super) fn mirror(pod: &Pod) -> Pod {
    let mut mirror = pod.clone();
    let hash = mirror.metadata.uid.take().unwrap_or_default();
    let notes = mirror.metadata.annotations.get_or_insert_with(BTreeMap::new);
    notes.insert(static_pods::MIRROR.into(), hash);
    mirror
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Pod, String> {
        pod(text.as_bytes(), "edge-1", Timestamp::UNIX_EPOCH)
    }

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    a: b\nspec:\n  \
        hostNetwork: true\n  containers:\n  - name: main\n    image: busybox\n";

    #[test]
    fn yaml_and_json_mean_the_same() {
        let yaml = read(WEB).unwrap();
        let json = read(
            r#"{"kind": "Pod", "apiVersion": "v1", "metadata": {"annotations": {"a": "b"}, "name": "web"},
                "spec": {"containers": [{"image": "busybox", "name": "main"}], "hostNetwork": true}}"#,
        );
        assert_eq!(yaml, json.unwrap());
        let meta = &yaml.metadata;
        assert_eq!(meta.name.as_deref(), Some("web-edge-1"));
        assert_eq!(meta.namespace.as_deref(), Some("default"));
        let note = |name| static_pods::annotation(meta, name);
        assert_eq!(note(static_pods::SOURCE), Some("file"));
        assert_eq!(note(static_pods::HASH), meta.uid.as_deref());
        assert_eq!((note("a"), note(static_pods::MIRROR)), (Some("b"), None));
        assert_eq!(yaml.spec.as_ref().unwrap().node_name.as_deref(), Some("edge-1"));
        let mirror = mirror(&yaml);
        assert_eq!(
            static_pods::annotation(&mirror.metadata, static_pods::MIRROR),
            meta.uid.as_deref()
        );
        assert_eq!(mirror.metadata.uid, None);
        // A comment is nothing, another image is another pod, as is another node's.
        assert_eq!(read(&format!("# why\n{WEB}")).unwrap().metadata.uid, meta.uid);
        assert_ne!(read(&WEB.replace("busybox", "nginx")).unwrap().metadata.uid, meta.uid);
        let elsewhere = pod(WEB.as_bytes(), "edge-2", Timestamp::UNIX_EPOCH).unwrap();
        assert_ne!(elsewhere.metadata.uid, meta.uid);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let broken = |from: &str, to: &str| read(&WEB.replace(from, to)).unwrap_err();
        for (from, to, why) in [
            ("kind: Pod", "kind: Deployment", "it is \"Deployment\" of \"v1\""),
            ("name: web", "name: Web_1", "metadata.name: "),
            ("name: web", "namespace: a.b\n  name: web", "metadata.namespace: "),
            ("image: busybox", "image: ''", "container \"main\" has no image"),
            ("containers:", "other:", "spec.containers: Required value"),
            ("hostNetwork: true", "hostNetwork: perhaps", "invalid type"),
            ("hostNetwork: true", "serviceAccountName: admin", "spec.serviceAccountName refers to"),
            ("spec:", "spec: [", ""),
        ] {
            let error = broken(from, to);
            assert!(error.contains(why), "{to}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        assert!(read("").is_err());
        assert!(pod(b"\xff\xfe\x00", "edge-1", Timestamp::UNIX_EPOCH).is_err());
        let twice = "  - name: main\n    image: x\n";
        assert!(read(&format!("{WEB}{twice}")).unwrap_err().contains("two containers"));
    }
}
