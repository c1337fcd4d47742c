//! Namespace.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::meta;
use crate::kind::Write;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, keep, member};
use crate::rules::{Field, Rules};

pub const NAMESPACE: Rules = Rules {
    default,
    prepare_create,
    prepare_update,
    create: |object, e| finalizers(object, e),
    update: |object, _, e| finalizers(object, e),
    update_sub,
    name: names::dns1123_label,
    status: true,
    fields: &[("status.phase", Field::Text(&["status", "phase"]))],
    cells: print::node::namespace,
    ..Rules::PLAIN
};

/// Every namespace can be selected by its name.
fn default(object: &mut Value) {
    let name = object.at("metadata").text("name").to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = member(object, "metadata").and_then(|m| member(m, "labels")) {
        labels["kubernetes.io/metadata.name"] = name.into();
    }
}

/// The finalizer of Kubernetes keeps it until it is empty.
fn prepare_create(object: &mut Value) {
    object["status"] = json!({ "phase": "Active" });
    if let Some(spec) = member(object, "spec") {
        let mut finalizers = spec.list("finalizers").to_vec();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        spec["finalizers"] = finalizers.into();
    }
}

/// Only `finalize` changes the finalizers, and nothing but them.
fn prepare_update(write: Write<'_>, new: &mut Value, old: &Value) {
    match write {
        Write::Main => {
            let finalizers = old.at("spec").at("finalizers").clone();
            if let Some(spec) = member(new, "spec") {
                spec["finalizers"] = finalizers;
            }
        }
        Write::Sub("finalize") => keep(new, old, "status"),
        Write::Sub(_) => {}
    }
}

fn finalizers(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    let list = path.field("finalizers");
    for finalizer in object.at("spec").list("finalizers").iter().filter_map(Value::as_str) {
        meta::finalizer_name(finalizer, &list, e);
        if !finalizer.contains('/') && !meta::PLAIN_FINALIZERS.contains(&finalizer) {
            e.invalid(&list, finalizer, meta::NOT_STANDARD);
        }
    }
}

fn update_sub(sub: &str, new: &Value, _old: &Value, e: &mut Errors) {
    match sub {
        "finalize" => finalizers(new, e),
        "status" => {
            let phase = new.at("status").text("phase");
            let (path, leaving) =
                (Path::Root.field("status"), new.at("metadata").has("deletionTimestamp"));
            if leaving && phase != "Terminating" {
                e.invalid(
                    &path.field("Phase"),
                    phase,
                    "may only be 'Terminating' if `deletionTimestamp` is not empty",
                );
            }
            if !leaving && phase != "Active" {
                e.invalid(
                    &path.field("Phase"),
                    phase,
                    "may only be 'Active' if `deletionTimestamp` is empty",
                );
            }
        }
        _ => {}
    }
}
