//! Environment variables, and references to fields, ConfigMaps and Secrets.

use rimward_api::names;
use serde_json::Value;

use crate::check::{resources, text};
use crate::path::{Errors, Path};
use crate::pod::volume::Volumes;
use crate::read::Read;

/// Fields that a variable can show.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that a file of a volume can show.
pub const VOLUME_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
/// Fields that have a value to show at all.
const KNOWN_FIELDS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub fn env(variables: &[Value], volumes: &Volumes<'_>, path: &Path<'_>, e: &mut Errors) {
    for (i, variable) in variables.iter().enumerate() {
        let at = path.index(i);
        match variable.text("name") {
            "" => e.required(&at.field("name"), ""),
            name => e.invalid_each(&at.field("name"), name, text::env_name(name)),
        }
        if variable.at("valueFrom").is_object() {
            value_from(variable, volumes, &at.field("valueFrom"), e);
        }
    }
}

fn value_from(variable: &Value, volumes: &Volumes<'_>, path: &Path<'_>, e: &mut Errors) {
    let from = variable.at("valueFrom");
    let mut sources = 0;
    if from.has("fieldRef") {
        sources += 1;
        field_ref(from.at("fieldRef"), &ENV_FIELDS, &path.field("fieldRef"), e);
    }
    if from.has("resourceFieldRef") {
        sources += 1;
        resource_field_ref(from.at("resourceFieldRef"), false, &path.field("resourceFieldRef"), e);
    }
    for name in ["configMapKeyRef", "secretKeyRef"] {
        if from.has(name) {
            sources += 1;
            key_ref(from.at(name), &path.field(name), e);
        }
    }
    if from.has("fileKeyRef") {
        sources += 1;
        file_key_ref(from.at("fileKeyRef"), volumes, &path.field("fileKeyRef"), e);
    }
    if sources == 0 {
        e.invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
    } else if !variable.text("value").is_empty() {
        e.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        e.invalid(path, "", "may not have more than one field specified at a time");
    }
}

/// Kubernetes takes the name of either for that of a Secret.
fn key_ref(reference: &Value, path: &Path<'_>, e: &mut Errors) {
    let name = reference.text("name");
    e.invalid_each(&path.field("name"), name, names::dns1123_subdomain(name));
    match reference.text("key") {
        "" => e.required(&path.field("key"), ""),
        key => e.invalid_each(&path.field("key"), key, text::config_key(key)),
    }
}

fn file_key_ref(reference: &Value, volumes: &Volumes<'_>, path: &Path<'_>, e: &mut Errors) {
    match reference.text("key") {
        "" => e.required(&path.field("key"), ""),
        key => e.invalid_each(&path.field("key"), key, text::env_name(key)),
    }
    match reference.text("volumeName") {
        "" => e.required(&path.field("volumeName"), ""),
        name => {
            e.invalid_each(&path.field("volumeName"), name, names::dns1123_label(name));
            match volumes.find(name) {
                None => e.not_found(&path.field("volumeName"), name),
                Some(volume) if volume.has("emptyDir") => {}
                Some(_) => e.invalid(
                    &path.field("volumeName"),
                    name,
                    "referenced volume must be of type emptyDir",
                ),
            }
        }
    }
    match reference.text("path") {
        "" => e.required(&path.field("path"), ""),
        file => e.invalid_each(&path.field("path"), file, text::descending_path(file)),
    }
}

/// A field of the pod itself, among those that `allowed` names.
pub fn field_ref(reference: &Value, allowed: &[&str], path: &Path<'_>, e: &mut Errors) {
    let (version, field) = (reference.text("apiVersion"), reference.text("fieldPath"));
    if version.is_empty() {
        return e.required(&path.field("apiVersion"), "");
    }
    let at = path.field("fieldPath");
    if field.is_empty() {
        return e.required(&at, "");
    }
    let (base, subscript) = match field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        Some((base, key)) => (base, Some(key)),
        None => (if field == "spec.host" { "spec.nodeName" } else { field }, None),
    };
    if version != "v1" {
        return e.invalid(
            &at,
            field,
            &format!("error converting fieldPath: unsupported pod version: {version}"),
        );
    }
    match subscript {
        Some(key) => match base {
            // What is wrong with a key is said of the reference.
            "metadata.annotations" => {
                let key = key.to_lowercase();
                e.invalid_each(path, &key, names::qualified_name(&key));
            }
            "metadata.labels" => e.invalid_each(path, key, names::qualified_name(key)),
            _ if KNOWN_FIELDS.contains(&base) => {
                e.invalid(path, base, "does not support subscript")
            }
            _ => e.invalid(
                &at,
                field,
                &format!(
                    "error converting fieldPath: field label does not support subscript: {field}"
                ),
            ),
        },
        None if !KNOWN_FIELDS.contains(&base) => {
            e.invalid(
                &at,
                field,
                &format!("error converting fieldPath: field label not supported: {field}"),
            );
        }
        None if !allowed.contains(&base) => e.not_supported(&at, base, allowed),
        None => {}
    }
}

/// A container's limit or request. In a volume, the container has to be named.
pub fn resource_field_ref(reference: &Value, in_volume: bool, path: &Path<'_>, e: &mut Errors) {
    let (resource, at) = (reference.text("resource"), path.field("resource"));
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.starts_with(p));
    if in_volume && reference.text("containerName").is_empty() {
        e.required(&path.field("containerName"), "");
    } else if resource.is_empty() {
        e.required(&at, "");
    } else if !RESOURCES.contains(&resource) && !huge {
        e.not_supported(&at, resource, &RESOURCES);
    }
    divisor(resource, reference.at("divisor"), &path.field("divisor"), e);
}

fn divisor(resource: &str, divisor: &Value, path: &Path<'_>, e: &mut Errors) {
    let Some(quantity) = resources::quantity(divisor) else { return };
    if quantity.is_zero() {
        return;
    }
    const SIZES: [&str; 13] =
        ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let kind = match resource {
        "limits.cpu" | "requests.cpu" => "cpu",
        "limits.memory" | "requests.memory" => "memory",
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => "local ephemeral storage",
        _ if resource.starts_with("limits.hugepages-")
            || resource.starts_with("requests.hugepages-") =>
        {
            "hugepages"
        }
        _ => return,
    };
    let (good, listed) = match kind {
        "cpu" => (&["1m", "1"][..], "1m and 1".to_owned()),
        _ => (&SIZES[..], SIZES.join(", ")),
    };
    if !good.contains(&quantity.to_string().as_str()) {
        let why = format!("only divisor's values {listed} are supported with the {kind} resource");
        e.invalid(path, resource, &why);
    }
}

pub fn env_from(sources: &[Value], path: &Path<'_>, e: &mut Errors) {
    for (i, source) in sources.iter().enumerate() {
        let at = path.index(i);
        let prefix = source.text("prefix");
        if !prefix.is_empty() {
            e.invalid_each(&at.field("prefix"), prefix, text::env_name(prefix));
        }
        let mut count = 0;
        for name in ["configMapRef", "secretRef"] {
            if !source.has(name) {
                continue;
            }
            count += 1;
            let (reference, at) = (source.at(name).text("name"), at.field(name));
            match reference {
                "" => e.required(&at.field("name"), ""),
                // As if it were a prefix: what ends in a dash is good.
                _ => e.invalid_each(
                    &at.field("name"),
                    reference,
                    names::dns1123_subdomain(&crate::rules::as_if_completed(reference)),
                ),
            }
        }
        // Which of them it is, Kubernetes does not say.
        match count {
            0 => e.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => e.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}
