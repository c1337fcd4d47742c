//! What Kubernetes fills into a pod, a pod template and their volumes.

use serde_json::{Value, json};

use crate::read::{Read, fill, fill_text, is_empty, items_mut, member, remove};

/// The container lists of a pod spec.
pub const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// `SetDefaults_Pod` and what it calls.
pub fn pod(pod: &mut Value) {
    let Some(spec) = member(pod, "spec") else { return };
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
        }
    }
    requests_from_limits(spec);
    fill(spec, "enableServiceLinks", true);
    if spec.flag("hostNetwork") {
        ["containers", "initContainers"].iter().for_each(|list| host_ports(spec, list));
    }
    pod_spec(spec);
}

/// A pod template: metadata and spec.
pub fn template(owner: &mut Value) {
    if let Some(template) = member(owner, "template")
        && let Some(spec) = member(template, "spec")
    {
        pod_spec(spec);
    }
}

/// On the host's network a container's port is the host's.
fn host_ports(spec: &mut Value, list: &str) {
    for container in items_mut(spec, list) {
        for port in items_mut(container, "ports") {
            if port.int("hostPort").unwrap_or_default() == 0
                && let Some(number) = port.int("containerPort").filter(|n| *n != 0)
            {
                port["hostPort"] = number.into();
            }
        }
    }
}

/// Limits without a request ask for as much.
fn requests_from_limits(holder: &mut Value) {
    let Some(limits) = holder.deep(&["resources", "limits"]).as_object() else { return };
    if limits.is_empty() {
        return;
    }
    let limits = limits.clone();
    if let Some(resources) = holder.get_mut("resources")
        && let Some(requests) = member(resources, "requests")
    {
        limits.into_iter().for_each(|(name, limit)| fill(requests, &name, limit));
    }
}

pub fn pod_spec(spec: &mut Value) {
    fill_text(spec, "restartPolicy", "Always");
    fill_text(spec, "dnsPolicy", "ClusterFirst");
    fill_text(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    service_account(spec);
    items_mut(spec, "volumes").for_each(volume);
    for list in CONTAINER_LISTS {
        items_mut(spec, list).for_each(container);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`: they always show the same.
fn service_account(spec: &mut Value) {
    if spec.text("serviceAccountName").is_empty() && !spec.text("serviceAccount").is_empty() {
        spec["serviceAccountName"] = spec.at("serviceAccount").clone();
    }
    match spec.text("serviceAccountName").to_owned() {
        name if name.is_empty() => remove(spec, "serviceAccount"),
        name => spec["serviceAccount"] = name.into(),
    }
}

fn container(container: &mut Value) {
    if container.text("imagePullPolicy").is_empty() && container.is_object() {
        let policy = if tag_is_latest(container.text("image")) { "Always" } else { "IfNotPresent" };
        fill_text(container, "imagePullPolicy", policy);
    }
    fill_text(container, "terminationMessagePath", "/dev/termination-log");
    fill_text(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    items_mut(container, "ports").for_each(|port| fill_text(port, "protocol", "TCP"));
    for variable in items_mut(container, "env") {
        if let Some(from) = variable.get_mut("valueFrom") {
            downward(from);
            if let Some(file) = from.get_mut("fileKeyRef") {
                fill(file, "optional", false);
            }
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name) {
            self::probe(probe);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(name)) {
            http_get(hook);
        }
    }
}

/// No tag and no digest means latest. A port in the registry's name is no tag.
fn tag_is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe(probe: &mut Value) {
    for (field, default) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if probe.int(field).unwrap_or_default() == 0 {
            remove(probe, field);
            fill(probe, field, default);
        }
    }
    http_get(probe);
    if let Some(grpc) = probe.get_mut("grpc") {
        fill(grpc, "service", "");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        fill_text(get, "path", "/");
        fill_text(get, "scheme", "HTTP");
    }
}

/// References to fields of the pod, in a variable or a file.
fn downward(from: &mut Value) {
    if let Some(field) = from.get_mut("fieldRef") {
        fill_text(field, "apiVersion", "v1");
    }
    if let Some(resource) = from.get_mut("resourceFieldRef") {
        fill(resource, "divisor", "0");
    }
}

/// Everything in a volume beside its name says where it comes from.
fn volume(volume: &mut Value) {
    let Value::Object(map) = volume else { return };
    if map.iter().all(|(key, value)| key == "name" || value.is_null()) {
        map.insert("emptyDir".to_owned(), json!({}));
    }
    source(volume);
}

/// Defaults inside a volume source; a PersistentVolume's spec holds the same ones.
pub fn source(volume: &mut Value) {
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(name).filter(|s| s.is_object()) {
            fill(source, "defaultMode", 0o644);
        }
    }
    if let Some(files) = volume.get_mut("downwardAPI") {
        items_mut(files, "items").for_each(downward);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for part in items_mut(projected, "sources") {
            if let Some(files) = part.get_mut("downwardAPI") {
                items_mut(files, "items").for_each(downward);
            }
            if let Some(token) = part.get_mut("serviceAccountToken") {
                fill(token, "expirationSeconds", 3600);
            }
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        fill(path, "type", "");
    }
    if let Some(iscsi) = volume.get_mut("iscsi") {
        fill_text(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = volume.get_mut("rbd") {
        fill_text(rbd, "pool", "rbd");
        fill_text(rbd, "user", "admin");
        fill_text(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = volume.get_mut("azureDisk") {
        fill(disk, "cachingMode", "ReadWrite");
        fill(disk, "kind", "Shared");
        fill(disk, "fsType", "ext4");
        fill(disk, "readOnly", false);
    }
    if let Some(scale_io) = volume.get_mut("scaleIO") {
        fill_text(scale_io, "storageMode", "ThinProvisioned");
        fill_text(scale_io, "fsType", "xfs");
    }
    if let Some(template) =
        volume.get_mut("ephemeral").and_then(|e| e.get_mut("volumeClaimTemplate"))
    {
        fill(template, "metadata", json!({}));
        if let Some(spec) = member(template, "spec") {
            claim_spec(spec);
        }
    }
    if let Some(image) = volume.get_mut("image")
        && image.text("pullPolicy").is_empty()
    {
        let policy = if tag_is_latest(image.text("reference")) { "Always" } else { "IfNotPresent" };
        fill_text(image, "pullPolicy", policy);
    }
}

/// A PersistentVolumeClaim's spec, also inside templates.
pub fn claim_spec(spec: &mut Value) {
    fill(spec, "volumeMode", "Filesystem");
    fill(spec, "resources", json!({}));
    if is_empty(spec.at("dataSource")) {
        return;
    }
    // The old field and the new one follow each other within a namespace.
    let source = spec.at("dataSource").clone();
    fill(spec, "dataSourceRef", source);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for (image, latest) in [
            ("a", true),
            ("a:latest", true),
            ("a:1", false),
            ("host:5000/a", true),
            ("host:5000/a:1", false),
            ("a@sha256:0", false),
            ("a:latest@sha256:0", false),
        ] {
            assert_eq!(tag_is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn twice_is_once() {
        let mut once = json!({ "spec": { "containers": [{ "name": "c", "image": "i", "livenessProbe": { "grpc": { "port": 1 } },
            "resources": { "limits": { "cpu": "1" } } }], "volumes": [{ "name": "v" }], "hostNetwork": true } });
        pod(&mut once);
        let mut twice = once.clone();
        pod(&mut twice);
        assert_eq!(once, twice);
    }
}
