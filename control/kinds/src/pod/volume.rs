//! Volumes of a pod, and what its containers mount of them.

use std::collections::{HashMap, HashSet};

use rimward_api::names;
use serde_json::Value;

use super::env;
use crate::check::{self, resources, selector, text};
use crate::path::{Errors, Path};
use crate::read::{Read, members};

/// The volumes that are good enough to be mounted.
pub struct Volumes<'a>(HashMap<&'a str, &'a Value>);

impl<'a> Volumes<'a> {
    /// Checks all volumes. A volume with an error cannot be found by a mount, as in Kubernetes.
    pub fn checked(spec: &'a Value, pod_name: &str, path: &Path<'_>, e: &mut Errors) -> Self {
        let mut good: HashMap<&str, &Value> = HashMap::new();
        for (i, volume) in spec.list("volumes").iter().enumerate() {
            let at = path.index(i);
            let name = volume.text("name");
            let wrong = e.count(|e| {
                source(volume, pod_name, &at, e);
                match name {
                    "" => e.required(&at.field("name"), ""),
                    _ => e.invalid_each(&at.field("name"), name, names::dns1123_label(name)),
                }
                if good.contains_key(name) {
                    e.duplicate(&at.field("name"), name);
                }
            });
            if wrong == 0 {
                good.insert(name, volume);
            }
        }
        Self(good)
    }

    fn find(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).copied()
    }

    /// A container's mounts and devices.
    pub fn mounts(&self, container: &Value, path: &Path<'_>, e: &mut Errors) {
        let (mounts, devices) = (container.list("volumeMounts"), container.list("volumeDevices"));
        let list = path.field("volumeMounts");
        let of_devices = |field: &'static str| -> HashSet<&str> {
            devices.iter().map(|d| d.text(field)).collect()
        };
        let (device_names, device_paths) = (of_devices("name"), of_devices("devicePath"));
        let mut seen = check::Seen::default();
        for (i, mount) in mounts.iter().enumerate() {
            let at = list.index(i);
            let name = mount.text("name");
            if name.is_empty() {
                e.required(&at.field("name"), "");
            }
            if self.find(name).is_none() {
                e.not_found(&at.field("name"), name);
            }
            let place = mount.text("mountPath");
            if place.is_empty() {
                e.required(&at.field("mountPath"), "");
            }
            if seen.again(place) {
                e.invalid(&at.field("mountPath"), place, "must be unique");
            }
            if device_names.contains(name) {
                e.invalid(&at.field("name"), name, "must not already exist in volumeDevices");
            }
            if device_paths.contains(place) {
                e.invalid(
                    &at.field("mountPath"),
                    place,
                    "must not already exist as a path in volumeDevices",
                );
            }
            sub_path(mount, &at, e);
            let modes = ["Bidirectional", "HostToContainer", "None"];
            check::one_of(mount.at("mountPropagation"), &modes, &at.field("mountPropagation"), e);
            if mount.text("mountPropagation") == "Bidirectional"
                && !container.deep(&["securityContext"]).flag("privileged")
            {
                e.forbidden(
                    &at.field("mountPropagation"),
                    "Bidirectional mount propagation is available only to privileged containers",
                );
            }
            recursive_read_only(mount, &at, e);
        }
        self.devices(mounts, devices, &path.field("volumeDevices"), e);
    }

    fn devices(&self, mounts: &[Value], devices: &[Value], path: &Path<'_>, e: &mut Errors) {
        let mounted: HashSet<&str> = mounts.iter().map(|m| m.text("name")).collect();
        let (mut seen_names, mut seen_paths) = (check::Seen::default(), check::Seen::default());
        for (i, device) in devices.iter().enumerate() {
            let at = path.index(i);
            let (name, place) = (device.text("name"), device.text("devicePath"));
            if name.is_empty() {
                e.required(&at.field("name"), "");
            }
            if seen_names.again(name) {
                e.invalid(&at.field("name"), name, "must be unique");
            }
            match self.find(name) {
                None => e.not_found(&at.field("name"), name),
                Some(v) if !v.has("persistentVolumeClaim") && !v.has("ephemeral") => {
                    e.invalid(&at.field("name"), name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode");
                }
                Some(_) => {}
            }
            if place.is_empty() {
                e.required(&at.field("devicePath"), "");
            } else if let Some(why) = text::no_backsteps(place) {
                e.invalid(&at.field("devicePath"), place, &why);
            }
            if seen_paths.again(place) {
                e.invalid(&at.field("devicePath"), place, "must be unique");
            }
            if mounted.contains(name) {
                e.invalid(&at.field("name"), name, "must not already exist in volumeMounts");
            }
        }
    }
}

fn sub_path(mount: &Value, path: &Path<'_>, e: &mut Errors) {
    let (plain, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
    if !plain.is_empty() {
        e.invalid_each(&path.field("subPath"), plain, text::descending_path(plain));
    }
    if !expression.is_empty() {
        if !plain.is_empty() {
            e.invalid(
                &path.field("subPathExpr"),
                expression,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        e.invalid_each(&path.field("subPathExpr"), expression, text::descending_path(expression));
    }
}

fn recursive_read_only(mount: &Value, path: &Path<'_>, e: &mut Errors) {
    let Some(mode) = mount.at("recursiveReadOnly").as_str() else { return };
    let at = path.field("recursiveReadOnly");
    match mode {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.flag("readOnly") {
                e.forbidden(&at, "may only be specified when readOnly is true");
            }
            if !matches!(mount.text("mountPropagation"), "" | "None") {
                e.forbidden(
                    &at,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        other => e.not_supported(&at, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// Exactly one source. In Kubernetes' order, which decides which of two is one too many.
fn source(volume: &Value, pod_name: &str, path: &Path<'_>, e: &mut Errors) {
    type Rule = fn(&Value, &Path<'_>, &mut Errors);
    const RULES: [(&str, Rule); 29] = [
        ("emptyDir", empty_dir),
        ("hostPath", host_path),
        ("gitRepo", |v, p, e| required(v, &["repository"], p, e)),
        ("gcePersistentDisk", |v, p, e| required(v, &["pdName"], p, e)),
        ("awsElasticBlockStore", |v, p, e| required(v, &["volumeID"], p, e)),
        ("secret", |v, p, e| keys(v, "secretName", p, e)),
        ("nfs", nfs),
        ("iscsi", |v, p, e| required(v, &["targetPortal", "iqn"], p, e)),
        ("glusterfs", |v, p, e| required(v, &["endpoints", "path"], p, e)),
        ("flocker", |_, _, _| {}),
        ("persistentVolumeClaim", |v, p, e| required(v, &["claimName"], p, e)),
        ("rbd", rbd),
        ("cinder", |v, p, e| required(v, &["volumeID"], p, e)),
        ("cephfs", |v, p, e| required_list(v, "monitors", p, e)),
        ("quobyte", |v, p, e| required(v, &["registry", "volume"], p, e)),
        ("downwardAPI", downward_api),
        ("fc", |_, _, _| {}),
        ("flexVolume", |v, p, e| required(v, &["driver"], p, e)),
        ("configMap", |v, p, e| keys(v, "name", p, e)),
        ("azureFile", |v, p, e| required(v, &["secretName", "shareName"], p, e)),
        ("vsphereVolume", |v, p, e| required(v, &["volumePath"], p, e)),
        ("photonPersistentDisk", |v, p, e| required(v, &["pdID"], p, e)),
        ("portworxVolume", |v, p, e| required(v, &["volumeID"], p, e)),
        ("azureDisk", |v, p, e| required(v, &["diskName", "diskURI"], p, e)),
        ("storageos", |_, _, _| {}),
        ("projected", projected),
        ("scaleIO", |v, p, e| required(v, &["gateway", "system", "volumeName"], p, e)),
        ("csi", |v, p, e| required(v, &["driver"], p, e)),
        ("image", image),
    ];
    let mut count = 0;
    for (name, rule) in RULES {
        let value = volume.at(name);
        if !value.is_object() {
            continue;
        }
        count += 1;
        if count > 1 {
            e.forbidden(&path.field(name), "may not specify more than 1 volume type");
        } else {
            rule(value, &path.field(name), e);
        }
    }
    let ephemeral = volume.at("ephemeral");
    if ephemeral.is_object() {
        count += 1;
        if count > 1 {
            e.forbidden(&path.field("ephemeral"), "may not specify more than 1 volume type");
        } else {
            claim_template(ephemeral, &path.field("ephemeral"), e);
            let name = volume.text("name");
            if !pod_name.is_empty() && !name.is_empty() {
                let claim = format!("{pod_name}-{name}");
                for why in names::dns1123_subdomain(&claim) {
                    e.invalid(&path.field("name"), name, &format!("PVC name {claim:?}: {why}"));
                }
            }
        }
    }
    if count == 0 {
        e.required(path, "must specify a volume type");
    }
}

fn required(value: &Value, fields: &[&str], path: &Path<'_>, e: &mut Errors) {
    for field in fields {
        if value.text(field).is_empty() {
            e.required(&path.field(field), "");
        }
    }
}

fn required_list(value: &Value, field: &str, path: &Path<'_>, e: &mut Errors) {
    if value.list(field).is_empty() {
        e.required(&path.field(field), "");
    }
}

fn rbd(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required_list(value, "monitors", path, e);
    required(value, &["image"], path, e);
}

fn empty_dir(value: &Value, path: &Path<'_>, e: &mut Errors) {
    if resources::quantity(value.at("sizeLimit")).is_some_and(|q| q.is_negative()) {
        e.forbidden(&path.field("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
}

/// Also of a PersistentVolume.
pub fn host_path(value: &Value, path: &Path<'_>, e: &mut Errors) {
    let place = value.text("path");
    if place.is_empty() {
        return e.required(&path.field("path"), "");
    }
    if let Some(why) = text::no_backsteps(place) {
        e.invalid(&path.field("path"), place, &why);
    }
    let kinds = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    check::one_of(value.at("type"), &kinds, &path.field("type"), e);
}

/// Also of a PersistentVolume.
pub fn nfs(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["server", "path"], path, e);
    let place = value.text("path");
    if !place.is_empty() && !place.starts_with('/') {
        e.invalid(&path.field("path"), place, "must be an absolute path");
    }
}

fn image(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["reference"], path, e);
    check::one_of(
        value.at("pullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        &path.field("pullPolicy"),
        e,
    );
}

/// Secret and ConfigMap volumes.
fn keys(value: &Value, name: &str, path: &Path<'_>, e: &mut Errors) {
    required(value, &[name], path, e);
    check::file_mode(value.at("defaultMode"), &path.field("defaultMode"), e);
    items(value, &path.field("items"), e);
}

fn items(value: &Value, path: &Path<'_>, e: &mut Errors) {
    for (i, item) in value.list("items").iter().enumerate() {
        let at = path.index(i);
        if item.text("key").is_empty() {
            e.required(&at.field("key"), "");
        }
        match item.text("path") {
            "" => e.required(&at.field("path"), ""),
            file => e.invalid_each(&at.field("path"), file, text::volume_path(file)),
        }
        check::file_mode(item.at("mode"), &at.field("mode"), e);
    }
}

fn downward_api(value: &Value, path: &Path<'_>, e: &mut Errors) {
    check::file_mode(value.at("defaultMode"), &path.field("defaultMode"), e);
    for file in value.list("items") {
        // Kubernetes names the volume, not the item.
        downward_file(file, path, e);
    }
}

fn downward_file(file: &Value, path: &Path<'_>, e: &mut Errors) {
    match file.text("path") {
        "" => e.required(&path.field("path"), ""),
        place => e.invalid_each(&path.field("path"), place, text::volume_path(place)),
    }
    match (file.has("fieldRef"), file.has("resourceFieldRef")) {
        (true, both) => {
            env::field_ref(file.at("fieldRef"), &env::VOLUME_FIELDS, &path.field("fieldRef"), e);
            if both {
                e.invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        }
        (false, true) => {
            env::resource_field_ref(
                file.at("resourceFieldRef"),
                true,
                &path.field("resourceFieldRef"),
                e,
            );
        }
        (false, false) => e.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    check::file_mode(file.at("mode"), &path.field("mode"), e);
}

fn projected(value: &Value, path: &Path<'_>, e: &mut Errors) {
    check::file_mode(value.at("defaultMode"), &path.field("defaultMode"), e);
    let list = path.field("sources");
    let mut files = check::Seen::default();
    for (i, part) in value.list("sources").iter().enumerate() {
        let at = list.index(i);
        let mut count = 0;
        for name in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            let source = part.at(name);
            if !source.is_object() {
                continue;
            }
            count += 1;
            if count > 1 {
                e.forbidden(&at.field(name), "may not specify more than 1 volume type per source");
                continue;
            }
            projection(name, source, path, &at.field(name), e);
            if name != "serviceAccountToken" {
                duplicates(name, source, &mut files, path, e);
            }
        }
    }
}

/// One part of a projected volume. Some refusals name the part, others the volume (`whole`).
fn projection(name: &str, source: &Value, whole: &Path<'_>, part: &Path<'_>, e: &mut Errors) {
    match name {
        "secret" | "configMap" => {
            required(source, &["name"], part, e);
            items(source, &part.field("items"), e);
        }
        "downwardAPI" => {
            for file in source.list("items") {
                downward_file(file, part, e);
            }
        }
        "serviceAccountToken" => {
            let seconds = source.int("expirationSeconds").unwrap_or_default();
            if seconds < 10 * 60 {
                e.invalid(
                    &part.field("expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            } else if seconds > 1 << 32 {
                e.invalid(
                    &part.field("expirationSeconds"),
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
            match source.text("path") {
                "" => e.required(&whole.field("path"), ""),
                place => e.invalid_each(&whole.field("path"), place, text::volume_path(place)),
            }
        }
        _ => required(source, &["path"], part, e),
    }
}

/// No two parts write the same file.
fn duplicates<'a>(
    name: &str,
    source: &'a Value,
    files: &mut check::Seen<&'a str>,
    path: &Path<'_>,
    e: &mut Errors,
) {
    let own = [source.text("path")];
    let listed = source.list("items").iter().map(|i| i.text("path"));
    for file in listed.chain(own).filter(|f| !f.is_empty()) {
        if files.again(file) {
            let shown = match name {
                "secret" | "configMap" => source.text("name"),
                _ => file,
            };
            e.invalid(path, shown, &format!("conflicting duplicate paths: {file}"));
        }
    }
}

fn claim_template(ephemeral: &Value, path: &Path<'_>, e: &mut Errors) {
    let template = ephemeral.at("volumeClaimTemplate");
    let at = path.field("volumeClaimTemplate");
    if !template.is_object() {
        return e.required(&at, "");
    }
    check::meta::labels(
        template.deep(&["metadata", "labels"]),
        &at.field("metadata").field("labels"),
        e,
    );
    check::meta::annotations(
        template.deep(&["metadata", "annotations"]),
        &at.field("metadata").field("annotations"),
        e,
    );
    claim_spec(template.at("spec"), &at.field("spec"), e);
}

const ACCESS_MODES: [&str; 4] =
    ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub fn access_modes(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let at = path.field("accessModes");
    let modes = spec.list("accessModes");
    if modes.is_empty() {
        e.required(&at, "at least 1 access mode is required");
    }
    for mode in modes {
        check::one_of(mode, &ACCESS_MODES, &at, e);
    }
    if modes.len() > 1
        && modes.iter().any(|m| m == "ReadWriteOncePod")
        && modes.iter().any(|m| m != "ReadWriteOncePod")
    {
        e.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

/// A PersistentVolumeClaim's spec, here and as an object.
pub fn claim_spec(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    selector::label_selector(spec.at("selector"), &path.field("selector"), e);
    access_modes(spec, path, e);
    let storage = path.field("resources");
    let storage = storage.key("storage");
    match spec.deep(&["resources", "requests", "storage"]) {
        Value::Null => e.required(&storage, ""),
        value => {
            resources::resource_value("storage", value, &storage, e);
            resources::positive(value, &storage, e);
        }
    }
    let class = spec.text("storageClassName");
    if !class.is_empty() {
        e.invalid_each(&path.field("storageClassName"), class, names::dns1123_subdomain(class));
    }
    check::one_of(spec.at("volumeMode"), &["Block", "Filesystem"], &path.field("volumeMode"), e);
    data_source(spec, "dataSource", path, e);
    data_source(spec, "dataSourceRef", path, e);
    if let Some(class) = spec.at("volumeAttributesClassName").as_str().filter(|c| !c.is_empty()) {
        e.invalid_each(
            &path.field("volumeAttributesClassName"),
            class,
            names::dns1123_subdomain(class),
        );
    }
}

fn data_source(spec: &Value, field: &str, path: &Path<'_>, e: &mut Errors) {
    let source = spec.at(field);
    if !source.is_object() {
        return;
    }
    let at = path.field(field);
    required(source, &["name", "kind"], &at, e);
    if source.text("apiGroup").is_empty() && source.text("kind") != "PersistentVolumeClaim" {
        e.invalid(
            &at,
            source.text("kind"),
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        );
    }
}

/// Quantities of a map, each not negative.
pub fn capacity(map: &Value, path: &Path<'_>, e: &mut Errors) {
    for (name, value) in members(map) {
        resources::resource_value(name, value, &path.key(name), e);
        resources::positive(value, &path.key(name), e);
    }
}
