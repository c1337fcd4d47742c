//! Volumes of a pod, and what its containers mount of them.

use std::collections::{HashMap, HashSet};

use rimward_api::names;
use serde_json::Value;

use super::volume_source;
use crate::check::{self, text};
use crate::path::{Errors, Path};
use crate::read::Read;

/// The volumes that are good enough to be mounted.
pub struct Volumes<'a>(HashMap<&'a str, &'a Value>);

impl<'a> Volumes<'a> {
    /// Checks all volumes. A volume with an error cannot be found by a mount, as in Kubernetes.
    pub fn checked(spec: &'a Value, pod_name: &str, path: &Path<'_>, e: &mut Errors) -> Self {
        let mut good: HashMap<&str, &Value> = HashMap::new();
        let volumes = spec.list("volumes");
        // The claims that will be made for the pod.
        let made: HashSet<String> = volumes
            .iter()
            .filter(|v| !pod_name.is_empty() && v.at("ephemeral").is_object())
            .map(|v| format!("{pod_name}-{}", v.text("name")))
            .collect();
        for (i, volume) in volumes.iter().enumerate() {
            let at = path.index(i);
            let name = volume.text("name");
            let wrong = e.count(|e| {
                volume_source::of_pod(volume, pod_name, &at, e);
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
            let claim = volume.at("persistentVolumeClaim").text("claimName");
            if made.contains(claim) {
                let why = "must not reference a PVC that gets created for an ephemeral volume";
                e.invalid(&at.field("persistentVolumeClaim").field("claimName"), claim, why);
            }
        }
        Self(good)
    }

    pub fn find(&self, name: &str) -> Option<&'a Value> {
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
            // Of what follows, Kubernetes does not say which mount it is.
            sub_path(mount, &list, &at, e);
            let (modes, named) =
                (["Bidirectional", "HostToContainer", "None"], list.field("mountPropagation"));
            check::one_of(mount.at("mountPropagation"), &modes, &named, e);
            if mount.text("mountPropagation") == "Bidirectional"
                && !container.at("securityContext").flag("privileged")
            {
                let why =
                    "Bidirectional mount propagation is available only to privileged containers";
                e.forbidden(&named, why);
            }
            recursive_read_only(mount, &list, e);
        }
        self.devices(mounts, devices, &path.field("volumeDevices"), e);
    }

    fn devices(&self, mounts: &[Value], devices: &[Value], path: &Path<'_>, e: &mut Errors) {
        let of_mounts = |field: &'static str| -> HashSet<&str> {
            mounts.iter().map(|m| m.text(field)).collect()
        };
        let (mounted, places) = (of_mounts("name"), of_mounts("mountPath"));
        let (mut seen_names, mut seen_paths) = (HashSet::new(), HashSet::new());
        for (i, device) in devices.iter().enumerate() {
            let at = path.index(i);
            let (named, placed) = (at.field("name"), at.field("devicePath"));
            let (name, place) = (device.text("name"), device.text("devicePath"));
            if name.is_empty() {
                e.required(&named, "");
            }
            if seen_names.contains(name) {
                e.invalid(&named, name, "must be unique");
            }
            match self.find(name) {
                None => e.not_found(&named, name),
                Some(v) if !v.has("persistentVolumeClaim") && !v.has("ephemeral") => {
                    e.invalid(&named, name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode");
                }
                Some(_) => {}
            }
            if place.is_empty() {
                e.required(&placed, "");
            }
            if seen_paths.contains(place) {
                e.invalid(&placed, place, "must be unique");
            }
            if text::no_backsteps(place).is_some() {
                e.invalid(&placed, place, "can not contain backsteps ('..')");
            } else {
                seen_paths.insert(place);
            }
            if mounted.contains(name) {
                e.invalid(&named, name, "must not already exist in volumeMounts");
            }
            if places.contains(place) {
                e.invalid(&placed, place, "must not already exist as a path in volumeMounts");
            }
            if !name.is_empty() {
                seen_names.insert(name);
            }
        }
    }
}

fn sub_path(mount: &Value, path: &Path<'_>, one: &Path<'_>, e: &mut Errors) {
    let (plain, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
    if !plain.is_empty() {
        e.invalid_each(&path.field("subPath"), plain, text::descending_path(plain));
    }
    if !expression.is_empty() {
        if !plain.is_empty() {
            e.invalid(
                &one.field("subPathExpr"),
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
