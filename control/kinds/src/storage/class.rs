//! StorageClass and VolumeAttributesClass: what volumes are made like.

use rimward_api::names;
use serde_json::Value;

use crate::check;
use crate::path::{Errors, Path};
use crate::pod::volume_source;
use crate::print;
use crate::read::{Read, fill, members, same};
use crate::rules::Rules;

pub const STORAGE_CLASS: Rules = Rules {
    default: |object| {
        fill(object, "reclaimPolicy", "Delete");
        fill(object, "volumeBindingMode", "Immediate");
    },
    create: |object, e| storage_class(object, e),
    update: |new, old, e| {
        storage_class(new, e);
        for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if !same(new.at(field), old.at(field)) {
                e.invalid(&Path::Root.field(field), new.at(field).clone(), check::IMMUTABLE);
            }
        }
    },
    cells: print::storage::storage_class,
    ..Rules::PLAIN
};

fn storage_class(object: &Value, e: &mut Errors) {
    provisioner(object.text("provisioner"), &Path::Root.field("provisioner"), e);
    parameters(object.at("parameters"), &Path::Root.field("parameters"), e);
    if !object.text("reclaimPolicy").is_empty() {
        check::one_of(
            object.at("reclaimPolicy"),
            &["Delete", "Retain"],
            &Path::Root.field("reclaimPolicy"),
            e,
        );
    }
    let (mode, at) = (object.at("volumeBindingMode"), Path::Root.field("volumeBindingMode"));
    if mode.is_null() {
        e.required(&at, "");
    }
    check::one_of(mode, &["Immediate", "WaitForFirstConsumer"], &at, e);
    topologies(object.list("allowedTopologies"), &Path::Root.field("allowedTopologies"), e);
}

fn provisioner(name: &str, path: &Path<'_>, e: &mut Errors) {
    match name {
        "" => e.required(path, ""),
        _ => e.invalid_each(path, name, names::qualified_name(&name.to_lowercase())),
    }
}

const PARAMETERS_MAX: usize = 512;
const PARAMETERS_MAX_BYTES: usize = 256 * 1024;

fn parameters(parameters: &Value, path: &Path<'_>, e: &mut Errors) {
    if parameters.as_object().is_some_and(|p| p.len() > PARAMETERS_MAX) {
        return e.too_long(path, PARAMETERS_MAX);
    }
    let mut bytes = 0;
    for (key, value) in members(parameters) {
        if key.is_empty() {
            e.invalid(path, "", "field can not be empty.");
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > PARAMETERS_MAX_BYTES {
        e.too_long(path, PARAMETERS_MAX_BYTES);
    }
}

/// Where volumes of a class may be. What is wrong inside a term, Kubernetes says of the list.
fn topologies(terms: &[Value], path: &Path<'_>, e: &mut Errors) {
    let mut seen = check::Seen::default();
    let list = path.field("matchLabelExpressions");
    for (i, term) in terms.iter().enumerate() {
        let mut keys = check::Seen::default();
        let mut asked = std::collections::BTreeMap::new();
        for (j, requirement) in term.list("matchLabelExpressions").iter().enumerate() {
            let at = list.index(j);
            let (key, values) = (requirement.text("key"), requirement.list("values"));
            let at_values = at.field("values");
            if values.is_empty() {
                e.required(&at_values, "");
            }
            let mut once = std::collections::BTreeSet::new();
            for (k, value) in values.iter().filter_map(Value::as_str).enumerate() {
                if !once.insert(value) {
                    e.duplicate(&at_values.index(k), value);
                }
            }
            e.invalid_each(&at.field("key"), key, names::qualified_name(key));
            if keys.again(key) {
                e.duplicate(&at.field("key"), key);
            }
            asked.insert(key, once);
        }
        if seen.again(asked) {
            e.duplicate(&path.index(i).field("matchLabelExpressions"), "");
        }
    }
}

pub const VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    create: |object, e| {
        let driver = object.text("driverName");
        volume_source::driver_name(driver, &Path::Root.field("driverName"), e);
        let at = Path::Root.field("parameters");
        parameters(object.at("parameters"), &at, e);
        if crate::read::is_empty(object.at("parameters")) {
            e.required(&at, "must contain at least one key/value pair");
        }
    },
    update: |new, old, e| {
        for field in ["driverName", "parameters"] {
            if !same(new.at(field), old.at(field)) {
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
