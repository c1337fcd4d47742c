//! Where the files of a volume come from: the sources of a pod's volumes, and those of a
//! PersistentVolume, most of which are the same.
//!
//! Kubernetes' `validateVolumeSource` and `ValidatePersistentVolumeSpec` (pkg/apis/core/validation).

use std::sync::LazyLock;

use regex::Regex;
use rimward_api::names;
use serde_json::Value;

use super::{claim, projected};
use crate::check::{self, net, resources, text};
use crate::path::{Errors, Path};
use crate::read::{Read, members};

type Rule = fn(&Value, &Path<'_>, &mut Errors);

/// A source: its field, the field that Kubernetes names when it is one too many, the field under
/// which it names what is wrong inside, and the rule.
type Source = (&'static str, &'static str, &'static str, Rule);

const fn source(field: &'static str, rule: Rule) -> Source {
    (field, field, field, rule)
}

/// The sources of a pod's volume. The order decides which of two is one too many.
const OF_PODS: [Source; 28] = [
    source("emptyDir", empty_dir),
    source("hostPath", host_path),
    source("gitRepo", git_repo),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", |v, p, e| disk(v, "pdName", p, e)),
    source("awsElasticBlockStore", |v, p, e| disk(v, "volumeID", p, e)),
    source("secret", |v, p, e| projected::keys(v, "secretName", p, e)),
    source("nfs", nfs),
    source("iscsi", |v, p, e| iscsi(v, false, p, e)),
    source("glusterfs", |v, p, e| required(v, &["endpoints", "path"], p, e)),
    source("flocker", flocker),
    source("persistentVolumeClaim", |v, p, e| required(v, &["claimName"], p, e)),
    source("rbd", rbd),
    source("cinder", |v, p, e| cinder(v, false, p, e)),
    ("cephfs", "cephFS", "cephfs", |v, p, e| required_list(v, "monitors", p, e)),
    source("quobyte", quobyte),
    ("downwardAPI", "downwarAPI", "downwardAPI", projected::downward_api),
    source("fc", fibre_channel),
    source("flexVolume", flex),
    source("configMap", |v, p, e| projected::keys(v, "name", p, e)),
    source("azureFile", |v, p, e| required(v, &["secretName", "shareName"], p, e)),
    source("vsphereVolume", |v, p, e| required(v, &["volumePath"], p, e)),
    source("photonPersistentDisk", |v, p, e| required(v, &["pdID"], p, e)),
    source("portworxVolume", |v, p, e| required(v, &["volumeID"], p, e)),
    source("azureDisk", azure_disk),
    source("storageos", |v, p, e| storageos(v, false, p, e)),
    source("projected", projected::projected),
    source("scaleIO", |v, p, e| required(v, &["gateway", "system", "volumeName"], p, e)),
    source("csi", csi_of_pod),
];

/// The sources of a PersistentVolume.
const PERSISTENT: [Source; 22] = [
    source("hostPath", host_path),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", |v, p, e| disk(v, "pdName", p, e)),
    source("awsElasticBlockStore", |v, p, e| disk(v, "volumeID", p, e)),
    source("glusterfs", glusterfs_persistent),
    source("flocker", flocker),
    source("nfs", nfs),
    source("rbd", rbd),
    source("quobyte", quobyte),
    ("cephfs", "cephFS", "cephfs", |v, p, e| required_list(v, "monitors", p, e)),
    source("iscsi", |v, p, e| iscsi(v, true, p, e)),
    source("cinder", |v, p, e| cinder(v, true, p, e)),
    source("fc", fibre_channel),
    source("flexVolume", flex),
    source("azureFile", azure_file_persistent),
    source("vsphereVolume", |v, p, e| required(v, &["volumePath"], p, e)),
    source("photonPersistentDisk", |v, p, e| required(v, &["pdID"], p, e)),
    source("portworxVolume", |v, p, e| required(v, &["volumeID"], p, e)),
    source("azureDisk", azure_disk),
    source("scaleIO", |v, p, e| required(v, &["gateway", "system", "volumeName"], p, e)),
    source("local", local),
    source("storageos", |v, p, e| storageos(v, true, p, e)),
    source("csi", csi_persistent),
];

const ONE_TOO_MANY: &str = "may not specify more than 1 volume type";

/// Exactly one source. Answers with how many there are.
fn exactly_one(holder: &Value, sources: &[Source], path: &Path<'_>, e: &mut Errors) -> usize {
    let mut count = 0;
    for (field, surplus, own, rule) in sources {
        let value = holder.at(field);
        if !value.is_object() {
            continue;
        }
        count += 1;
        if count > 1 {
            e.forbidden(&path.field(surplus), ONE_TOO_MANY);
        } else {
            rule(value, &path.field(own), e);
        }
    }
    count
}

/// The source of a pod's volume. `pod_name` is empty in a template.
pub fn of_pod(volume: &Value, pod_name: &str, path: &Path<'_>, e: &mut Errors) {
    let mut count = exactly_one(volume, &OF_PODS, path, e);
    let name = volume.text("name");
    let iscsi = volume.at("iscsi");
    if iscsi.has("initiatorName") && name.len() + 1 + iscsi.text("targetPortal").len() > 64 {
        e.invalid(&path.field("name"), name, ISCSI_TOO_LONG);
    }
    for (field, rule) in [
        ("ephemeral", claim::ephemeral as fn(&Value, &Path<'_>, &mut Errors)),
        ("image", if pod_name.is_empty() { image_of_template } else { image }),
    ] {
        let value = volume.at(field);
        if !value.is_object() {
            continue;
        }
        count += 1;
        if count > 1 {
            e.forbidden(&path.field(field), ONE_TOO_MANY);
            continue;
        }
        rule(value, &path.field(field), e);
        // The claim of such a volume is named after the pod and the volume.
        if field == "ephemeral" && !pod_name.is_empty() && !name.is_empty() {
            let claim = format!("{pod_name}-{name}");
            for why in names::dns1123_subdomain(&claim) {
                e.invalid(&path.field("name"), name, &format!("PVC name {claim:?}: {why}"));
            }
        }
    }
    if count == 0 {
        e.required(path, "must specify a volume type");
    }
}

/// The source of a PersistentVolume. Answers with its field.
pub fn persistent(spec: &Value, name: &str, path: &Path<'_>, e: &mut Errors) {
    if exactly_one(spec, &PERSISTENT, path, e) == 0 {
        e.required(path, "must specify a volume type");
    }
    let iscsi = spec.at("iscsi");
    if iscsi.has("initiatorName") && name.len() + 1 + iscsi.text("targetPortal").len() > 64 {
        let at = path.field("iscsi");
        e.invalid(&at.field("targetportal"), iscsi.text("targetPortal"), ISCSI_TOO_LONG);
    }
}

/// The fields of a PersistentVolume that say where it is: none of them changes.
pub fn persistent_fields() -> impl Iterator<Item = &'static str> {
    PERSISTENT.iter().map(|(field, ..)| *field)
}

const ISCSI_TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// Texts that must be there.
pub fn required(value: &Value, fields: &[&str], path: &Path<'_>, e: &mut Errors) {
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

/// A reference to a Secret, of the same namespace or (persistent) with one.
fn secret_reference(holder: &Value, persistent: bool, path: &Path<'_>, e: &mut Errors) {
    let reference = holder.at("secretRef");
    if reference.is_object() {
        let fields: &[&str] = if persistent { &["name", "namespace"] } else { &["name"] };
        required(reference, fields, &path.field("secretRef"), e);
    }
}

fn in_range(value: &Value, max: i64, path: &Path<'_>, why: &str, e: &mut Errors) {
    if let Some(number) = value.as_i64()
        && !(0..=max).contains(&number)
    {
        e.invalid(path, number, why);
    }
}

fn empty_dir(value: &Value, path: &Path<'_>, e: &mut Errors) {
    if resources::quantity(value.at("sizeLimit")).is_some_and(|q| q.is_negative()) {
        e.forbidden(&path.field("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
}

fn host_path(value: &Value, path: &Path<'_>, e: &mut Errors) {
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

fn local(value: &Value, path: &Path<'_>, e: &mut Errors) {
    match value.text("path") {
        "" => e.required(&path.field("path"), ""),
        place => {
            if let Some(why) = text::no_backsteps(place) {
                e.invalid(&path.field("path"), place, &why);
            }
        }
    }
}

fn git_repo(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["repository"], path, e);
    let directory = value.text("directory");
    e.invalid_each(&path.field("directory"), directory, text::descending_path(directory));
}

/// GCE and AWS disks: an identity, and a partition that may be 0.
fn disk(value: &Value, id: &str, path: &Path<'_>, e: &mut Errors) {
    required(value, &[id], path, e);
    let why = "must be between 1 and 255, inclusive";
    in_range(value.at("partition"), 255, &path.field("partition"), why, e);
}

fn nfs(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["server", "path"], path, e);
    let place = value.text("path");
    if !place.starts_with('/') {
        e.invalid(&path.field("path"), place, "must be an absolute path");
    }
}

static IQN: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^iqn\.\d{4}-\d{2}\.([[:alnum:]\-.]+)(:[^,;*&$|\s]+)$"));
static EUI: LazyLock<Regex> = LazyLock::new(|| regex("^eui.[[:alnum:]]{16}$"));
static NAA: LazyLock<Regex> = LazyLock::new(|| regex("^naa.[[:alnum:]]{32}$"));

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant")
}

/// What is wrong with an initiator's or a target's name; `other` is said of one of no known kind.
fn iscsi_name(name: &str, other: &'static str) -> Option<&'static str> {
    let form = match name.get(..3) {
        Some("iqn") => &*IQN,
        Some("eui") => &*EUI,
        Some("naa") => &*NAA,
        _ => return Some(other),
    };
    (!form.is_match(name)).then_some("must be valid format")
}

fn iscsi(value: &Value, persistent: bool, path: &Path<'_>, e: &mut Errors) {
    const VALID: &str = "must be valid format";
    let other =
        if persistent { VALID } else { "must be valid format starting with iqn, eui, or naa" };
    required(value, &["targetPortal"], path, e);
    match value.text("iqn") {
        "" => e.required(&path.field("iqn"), ""),
        name => {
            if let Some(why) = iscsi_name(name, other) {
                e.invalid(&path.field("iqn"), name, why);
            }
        }
    }
    let why = "must be between 0 and 255, inclusive";
    in_range(value.at("lun"), 255, &path.field("lun"), why, e);
    let asks = value.flag("chapAuthDiscovery") || value.flag("chapAuthSession");
    if asks && !value.at("secretRef").is_object() {
        e.required(&path.field("secretRef"), "");
    }
    if persistent {
        secret_reference(value, false, path, e);
    }
    if let Some(name) = value.at("initiatorName").as_str()
        && let Some(why) = iscsi_name(name, other)
    {
        e.invalid(&path.field("initiatorname"), name, why);
    }
}

fn flocker(value: &Value, path: &Path<'_>, e: &mut Errors) {
    let (name, uuid) = (value.text("datasetName"), value.text("datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        e.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        let why = "datasetName and datasetUUID can not be specified simultaneously";
        e.invalid(path, "resource", why);
    }
    if name.contains('/') {
        e.invalid(&path.field("datasetName"), name, "must not contain '/'");
    }
}

fn rbd(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required_list(value, "monitors", path, e);
    required(value, &["image"], path, e);
}

fn cinder(value: &Value, persistent: bool, path: &Path<'_>, e: &mut Errors) {
    required(value, &["volumeID"], path, e);
    secret_reference(value, persistent, path, e);
}

fn glusterfs_persistent(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["endpoints", "path"], path, e);
    if let Some(namespace) = value.at("endpointsNamespace").as_str() {
        let at = path.field("endpointsNamespace");
        match namespace {
            "" => e.invalid(
                &at,
                "",
                "if the endpointnamespace is set, it must be a valid namespace name",
            ),
            _ => e.invalid_each(&at, namespace, names::dns1123_label(namespace)),
        }
    }
}

fn quobyte(value: &Value, path: &Path<'_>, e: &mut Errors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = value.text("registry");
    if registry.is_empty() {
        e.required(&path.field("registry"), PAIRS);
    } else if value.text("tenant").len() >= 65 {
        let why = "must be a UUID and may not exceed a length of 64 characters";
        e.required(&path.field("tenant"), why);
    } else {
        for _ in registry.split(',').filter(|pair| !net::is_host_and_port(pair)) {
            e.invalid(&path.field("registry"), registry, PAIRS);
        }
    }
    required(value, &["volume"], path, e);
}

fn fibre_channel(value: &Value, path: &Path<'_>, e: &mut Errors) {
    let (targets, ids) = (value.list("targetWWNs"), value.list("wwids"));
    let at = path.field("targetWWNs");
    match (targets.is_empty(), ids.is_empty()) {
        (true, true) => e.required(&at, "must specify either targetWWNs or wwids, but not both"),
        (false, false) => e.invalid(
            &at,
            targets.to_vec(),
            "targetWWNs and wwids can not be specified simultaneously",
        ),
        _ => {}
    }
    if !targets.is_empty() {
        let lun = path.field("lun");
        if !value.has("lun") {
            e.required(&lun, "lun is required if targetWWNs is specified");
        }
        in_range(value.at("lun"), 255, &lun, "must be between 0 and 255, inclusive", e);
    }
}

fn flex(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["driver"], path, e);
    let options = path.field("options");
    for (key, _) in members(value.at("options")) {
        let namespace = key.split_once('/').map_or(key.as_str(), |(namespace, _)| namespace);
        let domain = format!(".{}", namespace.to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            e.invalid(&options.key(key), key.as_str(), why);
        }
    }
}

fn azure_file_persistent(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["secretName", "shareName"], path, e);
    if value.at("secretNamespace") == "" {
        e.required(&path.field("secretNamespace"), "");
    }
}

fn azure_disk(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["diskName", "diskURI"], path, e);
    let modes = ["None", "ReadOnly", "ReadWrite"];
    check::one_of(value.at("cachingMode"), &modes, &path.field("cachingMode"), e);
    let kinds = ["Dedicated", "Managed", "Shared"];
    check::one_of(value.at("kind"), &kinds, &path.field("kind"), e);
    let (place, at) = (value.text("diskURI"), path.field("diskURI"));
    match value.at("kind").as_str() {
        Some("Managed") if !place.starts_with("/subscriptions/") => e.not_supported(&at, place, &["/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"]),
        Some(kind) if kind != "Managed" && !place.starts_with("https://") => e.not_supported(&at, place, &["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"]),
        _ => {}
    }
}

fn storageos(value: &Value, persistent: bool, path: &Path<'_>, e: &mut Errors) {
    required(value, &["volumeName"], path, e);
    for field in ["volumeName", "volumeNamespace"] {
        let name = value.text(field);
        if !name.is_empty() {
            e.invalid_each(&path.field(field), name, names::dns1123_label(name));
        }
    }
    secret_reference(value, persistent, path, e);
}

/// `ValidateCSIDriverName`: the name of a driver, in any case.
pub fn driver_name(name: &str, path: &Path<'_>, e: &mut Errors) {
    if name.is_empty() {
        e.required(path, "");
    }
    if name.len() > 63 {
        e.too_long(path, 63);
    }
    e.invalid_each(path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

fn csi_of_pod(value: &Value, path: &Path<'_>, e: &mut Errors) {
    driver_name(value.text("driver"), &path.field("driver"), e);
    let reference = value.at("nodePublishSecretRef");
    if !reference.is_object() {
        return;
    }
    match reference.text("name") {
        "" => e.required(&path.field("nodePublishSecretRef").field("name"), ""),
        // Kubernetes leaves the reference out of this path.
        name => e.invalid_each(&path.field("name"), name, names::dns1123_subdomain(name)),
    }
}

fn csi_persistent(value: &Value, path: &Path<'_>, e: &mut Errors) {
    driver_name(value.text("driver"), &path.field("driver"), e);
    required(value, &["volumeHandle"], path, e);
    for field in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let (reference, at) = (value.at(field), path.field(field));
        if !reference.is_object() {
            continue;
        }
        required(reference, &["name"], &at, e);
        let (name, namespace) = (reference.text("name"), reference.text("namespace"));
        if !name.is_empty() {
            e.invalid_each(&at.field("name"), name, names::dns1123_subdomain(name));
        }
        required(reference, &["namespace"], &at, e);
        if !namespace.is_empty() {
            e.invalid_each(&at.field("namespace"), namespace, names::dns1123_label(namespace));
        }
    }
}

fn image(value: &Value, path: &Path<'_>, e: &mut Errors) {
    required(value, &["reference"], path, e);
    image_of_template(value, path, e);
}

/// A template may leave the image to whoever makes pods of it.
fn image_of_template(value: &Value, path: &Path<'_>, e: &mut Errors) {
    check::required_one_of(
        value.at("pullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        &path.field("pullPolicy"),
        e,
    );
}
