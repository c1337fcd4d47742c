//! What a PersistentVolumeClaim asks for: as an object, in a StatefulSet, and in a pod's volume.

use rimward_api::names;
use serde_json::Value;

use super::volume_source::required;
use crate::check::{self, meta, resources, selector};
use crate::path::{Errors, Path};
use crate::read::Read;

/// An ephemeral volume: a claim that is made with the pod.
pub fn ephemeral(volume: &Value, path: &Path<'_>, e: &mut Errors) {
    let template = volume.at("volumeClaimTemplate");
    let at = path.field("volumeClaimTemplate");
    if !template.is_object() {
        return e.required(&at, "");
    }
    meta::template(template.at("metadata"), &at.field("metadata"), e);
    spec(template.at("spec"), &at.field("spec"), e);
}

const ACCESS_MODES: [&str; 4] =
    ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// `missing` is what is said when there are none.
pub fn access_modes(spec: &Value, missing: &str, path: &Path<'_>, e: &mut Errors) {
    let at = path.field("accessModes");
    let modes = spec.list("accessModes");
    if modes.is_empty() {
        e.required(&at, missing);
    }
    for mode in modes {
        check::one_of(mode, &ACCESS_MODES, &at, e);
    }
    let other = |m: &&Value| ACCESS_MODES[..3].iter().any(|known| *m == known);
    if modes.iter().any(|m| m == "ReadWriteOncePod") && modes.iter().any(|m| other(&m)) {
        e.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

/// `ValidatePersistentVolumeClaimSpec`.
pub fn spec(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    access_modes(spec, "at least 1 access mode is required", path, e);
    selector::label_selector(spec.at("selector"), &path.field("selector"), e);
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
    data_sources(spec, path, e);
    if let Some(class) = spec.at("volumeAttributesClassName").as_str().filter(|c| !c.is_empty()) {
        let at = path.field("volumeAttributesClassName");
        e.invalid_each(&at, class, names::dns1123_subdomain(class));
    }
}

/// What a volume starts with, in the old field and in the new one.
fn data_sources(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let [old, new] = ["dataSource", "dataSourceRef"].map(|field| spec.at(field));
    for (source, field) in [(old, "dataSource"), (new, "dataSourceRef")] {
        if source.is_object() {
            data_source(source, &path.field(field), e);
        }
    }
    let shown = || path.field("dataSource").to_string();
    if !new.text("namespace").is_empty() {
        if old.is_object() {
            let why = "may not be specified when dataSourceRef.namespace is specified";
            e.invalid(path, shown(), why);
        }
    } else if old.is_object()
        && new.is_object()
        && ["apiGroup", "kind", "name"].iter().any(|field| old.text(field) != new.text(field))
    {
        e.invalid(path, shown(), "must match dataSourceRef");
    }
}

fn data_source(source: &Value, path: &Path<'_>, e: &mut Errors) {
    required(source, &["name", "kind"], path, e);
    let (group, kind) = (source.text("apiGroup"), source.text("kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        e.invalid(path, kind, why);
    }
    if !group.is_empty() {
        e.invalid_each(&path.field("apiGroup"), group, names::dns1123_subdomain(group));
    }
    let namespace = source.text("namespace");
    if !namespace.is_empty() {
        e.invalid_each(&path.field("namespace"), namespace, names::dns1123_label(namespace));
    }
}
