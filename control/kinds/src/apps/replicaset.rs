//! ReplicaSet, and the ReplicationController before it.

use serde_json::{Value, json};

use super::{always_restarting, selector_and_template};
use crate::check;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, is_empty, member};
use crate::rules::{Field, Rules, Updates};

const REPLICAS: &[crate::rules::Selectable] =
    &[("status.replicas", Field::Number(&["status", "replicas"]))];

pub const REPLICASET: Rules = Rules {
    default: |object| {
        if let Some(spec) = member(object, "spec") {
            fill(spec, "replicas", 1);
            crate::pod::defaults::template(spec);
        }
    },
    prepare_create: no_replicas,
    create: |object, e| replicaset(object, e),
    update: |new, old, e| {
        replicaset(new, e);
        let (after, before) = (new.deep(&["spec", "selector"]), old.deep(&["spec", "selector"]));
        if !crate::read::same(after, before) {
            e.invalid(&Path::Root.field("spec").field("selector"), after.clone(), check::IMMUTABLE);
        }
    },
    update_sub: status,
    status: true,
    generation: true,
    fields: REPLICAS,
    cells: print::workload::replicaset,
    warnings: crate::warnings::workload,
    warns_of_updates: Updates::OfSpec,
    ..Rules::PLAIN
};

fn no_replicas(object: &mut Value) {
    object["status"] = json!({ "replicas": 0 });
}

fn replicaset(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    for field in ["replicas", "minReadySeconds"] {
        check::not_negative(spec.at(field), &path.field(field), e);
    }
    selector_and_template(spec, "deployment", &path, e);
    always_restarting(spec.at("template"), "ReplicaSet", &path.field("template"), e);
}

fn status(sub: &str, new: &Value, _old: &Value, e: &mut Errors) {
    if sub != "status" {
        return;
    }
    let (status, path) = (new.at("status"), Path::Root.field("status"));
    for field in [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "observedGeneration",
    ] {
        check::not_negative(status.at(field), &path.field(field), e);
    }
    let number = |field: &str| status.int(field).unwrap_or_default();
    for field in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if number(field) > number("replicas") {
            e.invalid(&path.field(field), number(field), "cannot be greater than status.replicas");
        }
    }
    if number("availableReplicas") > number("readyReplicas") {
        e.invalid(
            &path.field("availableReplicas"),
            number("availableReplicas"),
            "cannot be greater than readyReplicas",
        );
    }
}

pub const REPLICATION_CONTROLLER: Rules = Rules {
    default: default_controller,
    prepare_create: no_replicas,
    create: |object, e| controller(object, e),
    update: |new, _, e| controller(new, e),
    update_sub: status,
    status: true,
    generation: true,
    fields: REPLICAS,
    cells: print::workload::replication_controller,
    warnings: crate::warnings::workload,
    warns_of_updates: Updates::OfSpec,
    ..Rules::PLAIN
};

/// Selector and labels are those of the template unless they are given.
fn default_controller(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    fill(spec, "replicas", 1);
    let labels = spec.deep(&["template", "metadata", "labels"]).clone();
    if !is_empty(&labels) {
        if is_empty(spec.at("selector")) {
            spec["selector"] = labels.clone();
        }
        if spec.has("template") {
            crate::pod::defaults::template(spec);
        }
        if let Some(meta) = member(object, "metadata")
            && is_empty(meta.at("labels"))
        {
            meta["labels"] = labels;
        }
    } else if spec.has("template") {
        crate::pod::defaults::template(spec);
    }
}

fn controller(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    for field in ["minReadySeconds", "replicas"] {
        check::not_negative(spec.at(field), &path.field(field), e);
    }
    let selector = spec.at("selector");
    if is_empty(selector) {
        e.required(&path.field("selector"), "");
    }
    let at = path.field("template");
    if !spec.has("template") {
        return e.required(&at, "");
    }
    let labels = spec.deep(&["template", "metadata", "labels"]);
    let matches = crate::read::members(selector).all(|(k, v)| labels.get(k) == Some(v));
    if !is_empty(selector) && !matches {
        e.invalid(
            &at.field("metadata").field("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
    always_restarting(spec.at("template"), "ReplicationController", &at, e);
}
