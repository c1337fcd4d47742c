//! Volumes and claims to them.

pub mod class;
pub mod driver;

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, resources, selector};
use crate::path::{Errors, Path};
use crate::pod::{claim, defaults, volume_source};
use crate::print;
use crate::read::{Read, fill, fill_text, keep, member, members, same};
use crate::rules::Rules;

pub const PERSISTENT_VOLUME_CLAIM: Rules = Rules {
    default: |object| {
        if let Some(spec) = member(object, "spec") {
            defaults::claim_spec(spec);
        }
        if let Some(status) = member(object, "status") {
            fill_text(status, "phase", "Pending");
        }
    },
    prepare_create: |object| object["status"] = json!({ "phase": "Pending" }),
    create: |object, e| claim::spec(object.at("spec"), &Path::Root.field("spec"), e),
    update: update_claim,
    update_sub: |sub, new, _, e| {
        if sub == "status" {
            claim_status(new.at("status"), e);
        }
    },
    status: true,
    cells: print::storage::claim,
    warnings: crate::warnings::persistent_volume_claim,
    ..Rules::PLAIN
};

/// The old way to name a class.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

fn update_claim(new: &Value, old: &Value, e: &mut Errors) {
    let (spec, before, path) = (new.at("spec"), old.at("spec"), Path::Root.field("spec"));
    claim::spec(spec, &path, e);
    let mut after = spec.clone();
    // A bound claim may grow, and a volume's attributes may change; an unbound one may be bound.
    if old.at("status").text("phase") == "Bound"
        && let Some(resources) = member(&mut after, "resources")
    {
        keep(resources, before.at("resources"), "requests");
    }
    if before.text("volumeName").is_empty() {
        keep(&mut after, before, "volumeName");
    }
    // A class may be given to a claim that has none, or has it by annotation.
    let class = old.deep(&["metadata", "annotations", CLASS_ANNOTATION]).as_str();
    if let Some(given) = spec.at("storageClassName").as_str()
        && !before.has("storageClassName")
        && class.is_none_or(|class| class == given)
    {
        keep(&mut after, before, "storageClassName");
    }
    keep(&mut after, before, "volumeAttributesClassName");
    if !same(&after, before) {
        e.forbidden(&path, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
    }
    let size = |holder: &Value, place: &[&str]| {
        resources::quantity(holder.deep(place)).unwrap_or(rimward_api::Quantity::ZERO)
    };
    let asked = size(spec, &["resources", "requests", "storage"]);
    if asked < size(before, &["resources", "requests", "storage"])
        && asked <= size(old, &["status", "capacity", "storage"])
    {
        let at = path.field("resources");
        let at = at.field("requests");
        e.forbidden(&at.field("storage"), "field can not be less than status.capacity");
    }
    // Kubernetes leaves `spec` out of this path.
    let mode = Path::Root.field("volumeMode");
    check::immutable(spec.at("volumeMode"), before.at("volumeMode"), &mode, e);
    let at = path.field("volumeAttributesClassName");
    match (spec.at("volumeAttributesClassName"), before.at("volumeAttributesClassName")) {
        (_, Value::Null) => {}
        (Value::Null, _) => e.forbidden(&at, "update from non-nil value to nil is forbidden"),
        (now, was) if now == "" && was != "" => {
            e.forbidden(&at, "update from non-nil value to an empty string is forbidden");
        }
        _ => {}
    }
}

fn claim_status(status: &Value, e: &mut Errors) {
    let path = Path::Root.field("status");
    for field in ["capacity", "allocatedResources"] {
        let at = path.field(field);
        for (name, value) in members(status.at(field)) {
            if resources::quantity(value).is_some_and(|q| q.is_negative()) {
                e.invalid(&at.key(name), value.clone(), "must be a valid resource quantity");
            }
        }
    }
}

pub const PERSISTENT_VOLUME: Rules = Rules {
    default: |object| {
        if let Some(spec) = member(object, "spec") {
            fill_text(spec, "persistentVolumeReclaimPolicy", "Retain");
            fill(spec, "volumeMode", "Filesystem");
            defaults::source(spec);
        }
        if let Some(status) = member(object, "status") {
            fill_text(status, "phase", "Pending");
        }
    },
    prepare_create: |object| {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        object["status"] = json!({ "phase": "Pending", "lastPhaseTransitionTime": now });
    },
    create: |object, e| persistent_volume(object, e),
    update: update_volume,
    status: true,
    cells: print::storage::volume,
    warnings: crate::warnings::persistent_volume,
    ..Rules::PLAIN
};

fn persistent_volume(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    persistent_spec(object.at("spec"), object.at("metadata").text("name"), &path, e);
}

/// `ValidatePersistentVolumeSpec`, of an object.
fn persistent_spec(spec: &Value, name: &str, path: &Path<'_>, e: &mut Errors) {
    claim::access_modes(spec, "", path, e);
    let (capacity, at) = (spec.at("capacity"), path.field("capacity"));
    if crate::read::is_empty(capacity) {
        e.required(&at, "");
    }
    if capacity.get("storage").is_none() || capacity.as_object().is_some_and(|c| c.len() > 1) {
        e.not_supported(&at, &capacity.to_string(), &["storage"]);
    }
    for (name, value) in members(capacity) {
        if resources::quantity(value).is_some_and(|q| q.is_negative()) {
            e.invalid(&at.key(name), value.clone(), "must be a valid resource quantity");
        }
        resources::positive(value, &at.key(name), e);
    }
    let policy = spec.text("persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        check::one_of(
            &policy.into(),
            &["Delete", "Recycle", "Retain"],
            &path.field("persistentVolumeReclaimPolicy"),
            e,
        );
    }
    node_affinity(spec, path, e);
    shared_by_inline(spec, name, path, e);
    let class = spec.text("storageClassName");
    if !class.is_empty() {
        e.invalid_each(&path.field("storageClassName"), class, names::dns1123_subdomain(class));
    }
    check::one_of(spec.at("volumeMode"), &["Block", "Filesystem"], &path.field("volumeMode"), e);
    if let Some(class) = spec.at("volumeAttributesClassName").as_str() {
        let at = path.field("volumeAttributesClassName");
        match class {
            "" => e.required(&at, "an empty string is disallowed"),
            _ => e.invalid_each(&at, class, names::dns1123_subdomain(class)),
        }
        if !spec.at("csi").is_object() {
            let why = "has to be specified when using volumeAttributesClassName";
            e.required(&path.field("csi"), why);
        }
    }
}

fn node_affinity(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let (affinity, at) = (spec.at("nodeAffinity"), path.field("nodeAffinity"));
    if affinity.is_object() {
        match affinity.at("required") {
            Value::Null => {
                e.required(&at.field("required"), "must specify required node constraints");
            }
            required => selector::node_selector(required, &at.field("required"), e),
        }
    } else if spec.at("local").is_object() {
        e.required(&at, "Local volume requires node affinity");
    }
}

/// What is asked of a volume's source, wherever the volume is.
fn shared_by_inline(spec: &Value, name: &str, path: &Path<'_>, e: &mut Errors) {
    volume_source::persistent(spec, name, path, e);
    let place = spec.at("hostPath").text("path");
    let root = !place.is_empty() && place.split('/').all(|part| matches!(part, "" | "."));
    if root && spec.text("persistentVolumeReclaimPolicy") == "Recycle" {
        e.forbidden(
            &path.field("persistentVolumeReclaimPolicy"),
            "may not be 'recycle' for a hostPath mount of '/'",
        );
    }
}

fn update_volume(new: &Value, old: &Value, e: &mut Errors) {
    persistent_volume(new, e);
    let (mut spec, before, path) =
        (new.at("spec").clone(), old.at("spec"), Path::Root.field("spec"));
    // The secret for growing a volume may be added later.
    let secret = "controllerExpandSecretRef";
    if before.at("csi").is_object()
        && !before.at("csi").has(secret)
        && let Some(csi) = spec.get_mut("csi")
    {
        crate::read::remove(csi, secret);
    }
    if volume_source::persistent_fields().any(|field| !same(spec.at(field), before.at(field))) {
        e.forbidden(
            &path.field("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    // Kubernetes leaves `spec` out of these two paths.
    let mode = Path::Root.field("volumeMode");
    check::immutable(spec.at("volumeMode"), before.at("volumeMode"), &mode, e);
    let affinity = |spec: &Value| spec.at("nodeAffinity").clone();
    if before.has("nodeAffinity") && !same(&affinity(&spec), before.at("nodeAffinity")) {
        let why = "field is immutable, except for updating from beta label to GA";
        e.invalid(&Path::Root.field("nodeAffinity"), affinity(&spec), why);
    }
    if before.has("volumeAttributesClassName") && !spec.has("volumeAttributesClassName") {
        let why = "update from non-nil value to nil is forbidden";
        e.forbidden(&path.field("volumeAttributesClassName"), why);
    }
}
