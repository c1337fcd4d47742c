//! Volumes, claims, classes and drivers.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, selector};
use crate::path::{Errors, Path};
use crate::pod::{defaults, volume};
use crate::print;
use crate::read::{Read, fill, fill_text, member};
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
    create: |object, e| volume::claim_spec(object.at("spec"), &Path::Root.field("spec"), e),
    update: update_claim,
    status: true,
    cells: print::storage::claim,
    warnings: crate::warnings::persistent_volume_claim,
    ..Rules::PLAIN
};

fn update_claim(new: &Value, old: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    volume::claim_spec(new.at("spec"), &path, e);
    let mut after = new.at("spec").clone();
    let bound = old.at("status").text("phase") == "Bound";
    // A bound claim may grow, and a volume's attributes may change; an unbound one may be bound.
    if bound
        && let (Some(resources), wanted) =
            (member(&mut after, "resources"), old.deep(&["spec", "resources"]))
    {
        crate::read::keep(resources, wanted, "requests");
    }
    if old.at("spec").text("volumeName").is_empty() {
        crate::read::keep(&mut after, old.at("spec"), "volumeName");
    }
    crate::read::keep(&mut after, old.at("spec"), "volumeAttributesClassName");
    let size = |v: &Value| {
        check::resources::quantity(v.deep(&["spec", "resources", "requests", "storage"]))
    };
    if size(new).unwrap_or(rimward_api::Quantity::ZERO)
        < size(old).unwrap_or(rimward_api::Quantity::ZERO)
    {
        let at = path.field("resources");
        let at = at.field("requests");
        e.forbidden(&at.field("storage"), "field can not be less than status.capacity");
    }
    if !crate::read::same(&after, old.at("spec")) {
        e.forbidden(&path, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
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

const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "scaleIO",
    "local",
    "csi",
];

fn persistent_volume(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    volume::access_modes(spec, &path, e);
    let (capacity, at) = (spec.at("capacity"), path.field("capacity"));
    if crate::read::is_empty(capacity) {
        e.required(&at, "");
    }
    if capacity.get("storage").is_none() || capacity.as_object().is_some_and(|c| c.len() > 1) {
        e.not_supported(&at, &capacity.to_string(), &["storage"]);
    }
    volume::capacity(capacity, &at, e);
    let policies = ["Delete", "Recycle", "Retain"];
    check::one_of(
        spec.at("persistentVolumeReclaimPolicy"),
        &policies,
        &path.field("persistentVolumeReclaimPolicy"),
        e,
    );
    if spec.has("nodeAffinity") {
        let at = path.field("nodeAffinity");
        match spec.at("nodeAffinity").at("required") {
            Value::Null => {
                e.required(&at.field("required"), "must specify required node constraints")
            }
            required => selector::node_selector(required, &at.field("required"), e),
        }
    }
    let mut sources = SOURCES.iter().filter(|s| spec.at(s).is_object());
    match sources.next() {
        None => e.required(&path, "must specify a volume type"),
        Some(&"hostPath") => {
            volume::host_path(spec.at("hostPath"), &path.field("hostPath"), e);
            if spec.at("hostPath").text("path") == "/"
                && spec.text("persistentVolumeReclaimPolicy") == "Recycle"
            {
                e.forbidden(
                    &path.field("persistentVolumeReclaimPolicy"),
                    "may not be 'recycle' for a hostPath mount of '/'",
                );
            }
        }
        Some(&"nfs") => volume::nfs(spec.at("nfs"), &path.field("nfs"), e),
        Some(_) => {}
    }
    for more in sources {
        e.forbidden(&path.field(more), "may not specify more than 1 volume type");
    }
    let class = spec.text("storageClassName");
    if !class.is_empty() {
        e.invalid_each(&path.field("storageClassName"), class, names::dns1123_subdomain(class));
    }
    check::one_of(spec.at("volumeMode"), &["Block", "Filesystem"], &path.field("volumeMode"), e);
}

fn update_volume(new: &Value, old: &Value, e: &mut Errors) {
    persistent_volume(new, e);
    let path = Path::Root.field("spec");
    let source = |v: &Value| {
        SOURCES.iter().filter_map(|s| Some((*s, v.at("spec").get(s)?.clone()))).collect::<Vec<_>>()
    };
    if source(new) != source(old) {
        e.forbidden(
            &path.field("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    check::immutable(
        new.at("spec").at("volumeMode"),
        old.at("spec").at("volumeMode"),
        &Path::Root.field("volumeMode"),
        e,
    );
}

pub const STORAGE_CLASS: Rules = Rules {
    default: |object| {
        fill(object, "reclaimPolicy", "Delete");
        fill(object, "volumeBindingMode", "Immediate");
    },
    create: |object, e| storage_class(object, e),
    update: |new, old, e| {
        storage_class(new, e);
        for (field, why) in [("parameters", "updates to parameters are forbidden.")] {
            if !crate::read::same(new.at(field), old.at(field)) {
                e.forbidden(&Path::Root.field(field), why);
            }
        }
        for field in ["provisioner", "reclaimPolicy", "volumeBindingMode"] {
            check::immutable(new.at(field), old.at(field), &Path::Root.field(field), e);
        }
    },
    cells: print::storage::storage_class,
    ..Rules::PLAIN
};

fn storage_class(object: &Value, e: &mut Errors) {
    let (provisioner, at) = (object.text("provisioner"), Path::Root.field("provisioner"));
    if provisioner.is_empty() {
        e.required(&at, "");
    } else {
        e.invalid_each(&at, provisioner, names::qualified_name(&provisioner.to_lowercase()));
    }
    if !object.text("reclaimPolicy").is_empty() {
        check::one_of(
            object.at("reclaimPolicy"),
            &["Delete", "Retain"],
            &Path::Root.field("reclaimPolicy"),
            e,
        );
    }
    let modes = ["Immediate", "WaitForFirstConsumer"];
    check::one_of(
        object.at("volumeBindingMode"),
        &modes,
        &Path::Root.field("volumeBindingMode"),
        e,
    );
}

pub const CSI_DRIVER: Rules = Rules {
    default: |object| {
        let Some(spec) = member(object, "spec") else { return };
        fill(spec, "attachRequired", true);
        for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            fill(spec, field, false);
        }
        fill(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if spec.list("volumeLifecycleModes").is_empty() {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    },
    create: |object, e| csi_driver(object, e),
    update: |new, old, e| {
        csi_driver(new, e);
        let path = Path::Root.field("spec");
        for field in ["attachRequired", "volumeLifecycleModes"] {
            check::immutable(
                new.at("spec").at(field),
                old.at("spec").at(field),
                &path.field(field),
                e,
            );
        }
    },
    unconditional: false,
    cells: print::storage::csi_driver,
    ..Rules::PLAIN
};

fn csi_driver(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let policies = ["ReadWriteOnceWithFSType", "File", "None"];
    check::one_of(spec.at("fsGroupPolicy"), &policies, &path.field("fsGroupPolicy"), e);
    for mode in spec.list("volumeLifecycleModes") {
        check::one_of(mode, &["Persistent", "Ephemeral"], &path.field("volumeLifecycleModes"), e);
    }
}

pub const CSI_NODE: Rules =
    Rules { unconditional: false, cells: print::storage::csi_node, ..Rules::PLAIN };
pub const CSI_STORAGE_CAPACITY: Rules =
    Rules { unconditional: false, cells: print::name_created, ..Rules::PLAIN };
pub const VOLUME_ATTACHMENT: Rules = Rules {
    prepare_create: |object| object["status"] = json!({ "attached": false }),
    update: |new, old, e| {
        check::immutable(new.at("spec"), old.at("spec"), &Path::Root.field("spec"), e)
    },
    status: true,
    unconditional: false,
    cells: print::storage::volume_attachment,
    ..Rules::PLAIN
};
pub const VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    update: |new, old, e| {
        for field in ["driverName", "parameters"] {
            if !crate::read::same(new.at(field), old.at(field)) {
                e.forbidden(
                    &Path::Root.field(field),
                    &format!("updates to {field} are forbidden."),
                );
            }
        }
    },
    cells: print::storage::volume_attributes_class,
    ..Rules::PLAIN
};
