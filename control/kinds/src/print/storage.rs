//! Rows of volumes, claims, classes and drivers.

use jiff::Timestamp;
use serde_json::Value;

use super::{UNSET, age, deleted, name, text_or};
use crate::read::Read;

fn access_modes(modes: &[Value]) -> Value {
    let mut short: Vec<&str> = modes
        .iter()
        .filter_map(|m| match m.as_str()? {
            "ReadWriteOnce" => Some("RWO"),
            "ReadOnlyMany" => Some("ROX"),
            "ReadWriteMany" => Some("RWX"),
            "ReadWriteOncePod" => Some("RWOP"),
            _ => None,
        })
        .collect();
    let rank = |m: &&str| ["RWO", "ROX", "RWX", "RWOP"].iter().position(|x| x == m);
    short.sort_by_key(rank);
    short.dedup();
    short.join(",").into()
}

fn phase(object: &Value) -> Value {
    if deleted(object) { "Terminating" } else { object.at("status").text("phase") }.into()
}

/// The class, as the annotation of old or the field says.
fn class(object: &Value) -> Value {
    let annotation =
        object.deep(&["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]);
    match annotation.as_str() {
        Some(class) => class.into(),
        None => object.at("spec").text("storageClassName").into(),
    }
}

pub fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let claim = spec.at("claimRef");
    let bound = match claim.is_object() {
        true => format!("{}/{}", claim.text("namespace"), claim.text("name")),
        false => String::new(),
    };
    vec![
        name(object),
        spec.at("capacity").text("storage").into(),
        access_modes(spec.list("accessModes")),
        spec.text("persistentVolumeReclaimPolicy").into(),
        phase(object),
        bound.into(),
        class(object),
        text_or(spec.at("volumeAttributesClassName"), UNSET),
        object.at("status").text("reason").into(),
        age(object, now),
        text_or(spec.at("volumeMode"), UNSET),
    ]
}

pub fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let bound = !spec.text("volumeName").is_empty();
    let (capacity, modes) = match bound {
        true => (status.at("capacity").text("storage"), access_modes(status.list("accessModes"))),
        false => ("", "".into()),
    };
    vec![
        name(object),
        phase(object),
        spec.text("volumeName").into(),
        capacity.into(),
        modes,
        class(object),
        text_or(spec.at("volumeAttributesClassName"), UNSET),
        age(object, now),
        text_or(spec.at("volumeMode"), UNSET),
    ]
}

fn marked_default(object: &Value, annotation: &str) -> Value {
    let marked = object.deep(&["metadata", "annotations", annotation]).as_str() == Some("true");
    let name = object.at("metadata").text("name");
    if marked { format!("{name} (default)").into() } else { name.into() }
}

pub fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        marked_default(object, "storageclass.kubernetes.io/is-default-class"),
        object.text("provisioner").into(),
        text_or(object.at("reclaimPolicy"), "Delete"),
        text_or(object.at("volumeBindingMode"), "Immediate"),
        object.flag("allowVolumeExpansion").into(),
        age(object, now),
    ]
}

pub fn volume_attributes_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        marked_default(object, "volumeattributesclass.alpha.kubernetes.io/is-default-class"),
        object.text("driverName").into(),
        age(object, now),
    ]
}

pub fn volume_attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    vec![
        name(object),
        spec.text("attacher").into(),
        spec.at("source").text("persistentVolumeName").into(),
        spec.text("nodeName").into(),
        object.at("status").flag("attached").into(),
        age(object, now),
    ]
}

pub fn csi_node(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.at("spec").list("drivers").len().into(), age(object, now)]
}

pub fn csi_driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let joined = |texts: Vec<&str>| match texts.is_empty() {
        true => Value::from(UNSET),
        false => texts.join(",").into(),
    };
    let audiences = spec.list("tokenRequests").iter().map(|t| t.text("audience")).collect();
    let modes = spec.list("volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
    vec![
        name(object),
        spec.at("attachRequired").as_bool().unwrap_or(true).into(),
        spec.flag("podInfoOnMount").into(),
        spec.flag("storageCapacity").into(),
        joined(audiences),
        spec.flag("requiresRepublish").into(),
        joined(modes),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use crate::print::tests::check;
    use serde_json::json;

    #[test]
    fn rows() {
        check(
            "",
            "v1",
            "PersistentVolume",
            json!({ "metadata": { "name": "v" }, "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
                "claimRef": { "namespace": "n", "name": "c" }, "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "s" }, "status": { "phase": "Bound" } }),
            json!([
                "v",
                "1Gi",
                "RWO,RWX",
                "Retain",
                "Bound",
                "n/c",
                "s",
                "<unset>",
                "",
                "<unknown>",
                "<unset>"
            ]),
        );
        check(
            "",
            "v1",
            "PersistentVolumeClaim",
            json!({ "metadata": { "name": "v" }, "spec": { "volumeMode": "Block" }, "status": { "phase": "Pending", "capacity": { "storage": "1Gi" } } }),
            json!(["v", "Pending", "", "", "", "", "<unset>", "<unknown>", "Block"]),
        );
        check(
            "storage.k8s.io",
            "v1",
            "StorageClass",
            json!({ "metadata": { "name": "s", "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } }, "provisioner": "p" }),
            json!(["s (default)", "p", "Delete", "Immediate", false, "<unknown>"]),
        );
    }
}
