//! Drivers of volumes, what nodes have of them, and what they attach.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, resources, selector};
use crate::path::{Errors, Path};
use crate::pod::{claim, volume_source};
use crate::print;
use crate::read::{Read, fill, member, members, same};
use crate::rules::Rules;

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
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if !spec.has(field) {
            e.required(&path.field(field), "");
        }
    }
    let policies = ["ReadWriteOnceWithFSType", "File", "None"];
    check::one_of(spec.at("fsGroupPolicy"), &policies, &path.field("fsGroupPolicy"), e);
    token_requests(spec.list("tokenRequests"), &path.field("tokenRequests"), e);
    for mode in spec.list("volumeLifecycleModes") {
        check::one_of(mode, &["Persistent", "Ephemeral"], &path.field("volumeLifecycleModes"), e);
    }
    const PERIOD_MIN: i64 = 10;
    if let Some(period) = spec.int("nodeAllocatableUpdatePeriodSeconds")
        && period < PERIOD_MIN
    {
        let why = format!("must be greater than or equal to {PERIOD_MIN} seconds");
        e.invalid(&path.field("nodeAllocatableUpdatePeriodSeconds"), period, &why);
    }
}

/// Tokens that a driver wants of the pods that it serves.
fn token_requests(requests: &[Value], path: &Path<'_>, e: &mut Errors) {
    let mut audiences = check::Seen::default();
    for (i, request) in requests.iter().enumerate() {
        let at = path.index(i);
        if audiences.again(request.text("audience")) {
            e.duplicate(&at.field("audience"), request.text("audience"));
        }
        let Some(seconds) = request.int("expirationSeconds") else { continue };
        let at = at.field("expirationSeconds");
        if seconds < 600 {
            e.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > 1 << 32 {
            e.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

pub const CSI_NODE: Rules = Rules {
    create: |object, e| csi_node(object, e),
    update: |new, old, e| {
        csi_node(new, e);
        // What a driver said of itself stays until it is gone.
        let drivers = |node: &Value| node.at("spec").list("drivers").to_vec();
        for was in drivers(old) {
            let now = drivers(new).into_iter().find(|d| d.text("name") == was.text("name"));
            if let Some(now) = now
                && ["nodeID", "topologyKeys"].iter().any(|f| !same(now.at(f), was.at(f)))
            {
                e.invalid(&Path::Root.field("CSINode"), now, check::IMMUTABLE);
            }
        }
    },
    unconditional: false,
    cells: print::storage::csi_node,
    ..Rules::PLAIN
};

fn csi_node(object: &Value, e: &mut Errors) {
    const ID_MAX: usize = 256;
    let path = Path::Root.field("spec");
    // Which driver it is, Kubernetes does not say.
    let at = path.field("drivers");
    let mut seen = check::Seen::default();
    for driver in object.at("spec").list("drivers") {
        volume_source::driver_name(driver.text("name"), &at.field("name"), e);
        let id = driver.text("nodeID");
        if id.is_empty() {
            e.required(&at.field("nodeID"), "");
        } else if id.len() > ID_MAX {
            let why = format!("must be {ID_MAX} characters or less");
            e.invalid(&at.field("nodeID"), id, &why);
        }
        let allocatable = at.field("allocatable");
        check::not_negative(driver.at("allocatable").at("count"), &allocatable.field("count"), e);
        if seen.again(driver.text("name")) {
            e.duplicate(&at.field("name"), driver.text("name"));
        }
        let mut keys = check::Seen::default();
        for key in driver.list("topologyKeys").iter().filter_map(Value::as_str) {
            let named = at.field("topologyKeys");
            if key.is_empty() {
                e.required(&named, "");
            }
            if keys.again(key) {
                e.duplicate(&named, key);
            }
            e.invalid_each(&named, key, names::qualified_name(key));
        }
    }
}

pub const CSI_STORAGE_CAPACITY: Rules = Rules {
    create: |object, e| storage_capacity(object, e),
    update: |new, old, e| {
        storage_capacity(new, e);
        for field in ["nodeTopology", "storageClassName"] {
            check::immutable(new.at(field), old.at(field), &Path::Root.field(field), e);
        }
    },
    unconditional: false,
    cells: print::name_created,
    ..Rules::PLAIN
};

fn storage_capacity(object: &Value, e: &mut Errors) {
    let class = object.text("storageClassName");
    e.invalid_each(&Path::Root.field("storageClassName"), class, names::dns1123_subdomain(class));
    selector::label_selector(object.at("nodeTopology"), &Path::Root.field("nodeTopology"), e);
    for field in ["capacity", "maximumVolumeSize"] {
        if let Some(quantity) = resources::quantity(object.at(field))
            && quantity.is_negative()
        {
            e.invalid(&Path::Root.field(field), quantity.to_string(), check::NOT_NEGATIVE);
        }
    }
}

pub const VOLUME_ATTACHMENT: Rules = Rules {
    prepare_create: |object| object["status"] = json!({ "attached": false }),
    create: |object, e| volume_attachment(object, e),
    update: |new, old, e| {
        volume_attachment(new, e);
        check::immutable(new.at("spec"), old.at("spec"), &Path::Root.field("spec"), e);
    },
    update_sub: |_, new, _, e| volume_attachment(new, e),
    status: true,
    unconditional: false,
    cells: print::storage::volume_attachment,
    ..Rules::PLAIN
};

fn volume_attachment(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    volume_source::driver_name(spec.text("attacher"), &path.field("attacher"), e);
    attached(spec.at("source"), &path.field("source"), e);
    let node = spec.text("nodeName");
    e.invalid_each(&path.field("nodeName"), node, names::dns1123_subdomain(node));
    const METADATA_MAX_BYTES: usize = 256 * 1024;
    let status = Path::Root.field("status");
    let metadata = object.at("status").at("attachmentMetadata");
    let bytes: usize =
        members(metadata).map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if bytes > METADATA_MAX_BYTES {
        e.too_long(&status.field("attachmentMetadata"), METADATA_MAX_BYTES);
    }
    for field in ["attachError", "detachError"] {
        if object.at("status").at(field).text("message").len() > METADATA_MAX_BYTES {
            e.too_long(&status.field(field).field("message"), METADATA_MAX_BYTES);
        }
    }
}

/// What is attached: a PersistentVolume, or one that is written out.
fn attached(source: &Value, path: &Path<'_>, e: &mut Errors) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let (name, inline) = (source.at("persistentVolumeName"), source.at("inlineVolumeSpec"));
    match (name.as_str(), inline.is_object()) {
        (None, false) => e.required(path, ONE),
        (Some(_), true) => e.forbidden(path, ONE),
        (Some(""), false) => {
            let why = "must specify non empty persistentVolumeName";
            e.required(&path.field("persistentVolumeName"), why);
        }
        (Some(name), false) => {
            let at = path.field("persistentVolumeName");
            e.invalid_each(&at, name, names::dns1123_subdomain(name));
        }
        (None, true) => inline_volume(inline, &path.field("inlineVolumeSpec"), e),
    }
}

fn inline_volume(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    const FORBIDDEN: &str = "may not be specified in the context of inline volumes";
    for field in ["claimRef", "capacity"] {
        if !crate::read::is_empty(spec.at(field)) {
            e.forbidden(&path.field(field), FORBIDDEN);
        }
    }
    if !spec.at("csi").is_object() {
        e.required(&path.field("csi"), "has to be specified in the context of inline volumes");
    }
    claim::access_modes(spec, "", path, e);
    if !matches!(spec.text("persistentVolumeReclaimPolicy"), "" | "Retain") {
        e.forbidden(
            &path.field("persistentVolumeReclaimPolicy"),
            "may only be Retain in the context of inline volumes",
        );
    }
    if spec.has("nodeAffinity") {
        e.forbidden(&path.field("nodeAffinity"), FORBIDDEN);
    }
    super::shared_by_inline(spec, "", path, e);
    if !spec.text("storageClassName").is_empty() {
        e.forbidden(&path.field("storageClassName"), FORBIDDEN);
    }
    if !matches!(spec.text("volumeMode"), "" | "Filesystem") {
        e.forbidden(
            &path.field("volumeMode"),
            "may not specify volumeMode other than Filesystem in the context of inline volumes",
        );
    }
}
