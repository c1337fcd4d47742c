//! ConfigMap, Secret, ServiceAccount.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rimward_api::names;
use serde_json::{Map, Value, json};

use crate::check::{self, text};
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill_text, member, members, remove};
use crate::rules::{Field, Rules};

/// 1 MiB, of all keys' values together.
const MAX_BYTES: usize = 1024 * 1024;

pub const CONFIG_MAP: Rules =
    Rules { create: config_map, update: update_config_map, cells: print::config::config_map, ..Rules::PLAIN };

fn config_map(object: &Value, e: &mut Errors) {
    let mut bytes = 0;
    for field in ["data", "binaryData"] {
        let path = Path::Root.field(field);
        for (key, value) in members(object.at(field)) {
            let at = path.key(key);
            e.invalid_each(&at, key, text::config_key(key));
            if field == "data" && object.at("binaryData").get(key).is_some() {
                e.invalid(&at, key.as_str(), "duplicate of key present in binaryData");
            }
            let value = value.as_str().unwrap_or_default();
            bytes += if field == "data" { value.len() } else { decoded_len(value) };
        }
    }
    if bytes > MAX_BYTES {
        e.too_long(&Path::Root, MAX_BYTES);
    }
}

fn update_config_map(new: &Value, old: &Value, e: &mut Errors) {
    frozen(new, old, &["data", "binaryData"], e);
    config_map(new, e);
}

/// What `immutable: true` promised.
fn frozen(new: &Value, old: &Value, fields: &[&str], e: &mut Errors) {
    if !old.flag("immutable") {
        return;
    }
    if !new.flag("immutable") {
        e.forbidden(&Path::Root.field("immutable"), "field is immutable when `immutable` is set");
    }
    for field in fields {
        if !crate::read::same(new.at(field), old.at(field)) {
            e.forbidden(&Path::Root.field(field), "field is immutable when `immutable` is set");
        }
    }
}

fn decoded_len(base64: &str) -> usize {
    let padding = base64.bytes().rev().take_while(|b| *b == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

pub const SECRET: Rules = Rules {
    default: default_secret,
    create: secret,
    update: update_secret,
    fields: &[("type", Field::Text(&["type"]))],
    cells: print::config::secret,
    ..Rules::PLAIN
};

fn default_secret(object: &mut Value) {
    fill_text(object, "type", "Opaque");
    // What is written as text is stored as data, and wins over it.
    let Some(Value::Object(texts)) = object.get("stringData").cloned() else { return };
    remove(object, "stringData");
    if texts.is_empty() {
        return;
    }
    if let Some(Value::Object(data)) = member(object, "data") {
        for (key, text) in texts {
            data.insert(key, BASE64.encode(text.as_str().unwrap_or_default()).into());
        }
    }
}

fn secret(object: &Value, e: &mut Errors) {
    let data = Path::Root.field("data");
    let mut bytes = 0;
    for (key, value) in members(object.at("data")) {
        e.invalid_each(&data.key(key), key, text::config_key(key));
        bytes += decoded_len(value.as_str().unwrap_or_default());
    }
    if bytes > MAX_BYTES {
        e.too_long(&data, MAX_BYTES);
    }
    let has = |key: &str| object.at("data").get(key).is_some();
    match object.text("type") {
        "kubernetes.io/service-account-token" => {
            let name = "kubernetes.io/service-account.name";
            if object.deep(&["metadata", "annotations", name]).as_str().unwrap_or_default().is_empty() {
                e.required(&Path::Root.field("metadata").field("annotations").key(name), "");
            }
        }
        "kubernetes.io/dockercfg" => json_key(object, ".dockercfg", e),
        "kubernetes.io/dockerconfigjson" => json_key(object, ".dockerconfigjson", e),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            e.required(&data.key("username"), "");
            e.required(&data.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if object.at("data").text("ssh-privatekey").is_empty() => {
            e.required(&data.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !has(key) {
                    e.required(&data.key(key), "");
                }
            }
        }
        _ => {}
    }
}

fn json_key(object: &Value, key: &str, e: &mut Errors) {
    let at = Path::Root.field("data");
    let at = at.key(key);
    let Some(encoded) = object.at("data").get(key) else { return e.required(&at, "") };
    let decoded = BASE64.decode(encoded.as_str().unwrap_or_default()).unwrap_or_default();
    if let Err(why) = serde_json::from_slice::<Map<String, Value>>(&decoded) {
        e.invalid(&at, "<secret contents redacted>", &why.to_string());
    }
}

fn update_secret(new: &Value, old: &Value, e: &mut Errors) {
    check::immutable(new.at("type"), old.at("type"), &Path::Root.field("type"), e);
    frozen(new, old, &["data"], e);
    secret(new, e);
}

pub const SERVICE_ACCOUNT: Rules = Rules { cells: print::name_age, ..Rules::PLAIN };

pub const LIMIT_RANGE: Rules = Rules {
    default: default_limit_range,
    // A LimitRange needs no name of its own.
    prepare_create: |object| {
        let uid = object.deep(&["metadata", "uid"]).clone();
        if let Some(meta) = member(object, "metadata")
            && !uid.is_null()
        {
            fill_text(meta, "name", uid.as_str().unwrap_or_default());
        }
    },
    create: limit_range,
    update: |new, _, e| limit_range(new, e),
    cells: print::name_created,
    ..Rules::PLAIN
};

/// A container's default comes from its maximum, its default request from its default or minimum.
fn default_limit_range(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    for limit in crate::read::items_mut(spec, "limits") {
        if limit.text("type") != "Container" {
            continue;
        }
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let Some(source) = limit.get(from).and_then(Value::as_object).cloned() else { continue };
            if let Some(target) = member(limit, to) {
                source.into_iter().for_each(|(name, value)| crate::read::fill(target, &name, value));
            }
        }
    }
}

fn limit_range(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    let list = path.field("limits");
    let limits = object.at("spec").list("limits");
    for (i, limit) in limits.iter().enumerate() {
        let at = list.index(i);
        let kind = limit.text("type");
        if !matches!(kind, "Container" | "Pod" | "PersistentVolumeClaim") && !names::qualified_name(kind).is_empty() {
            e.invalid_each(&at.field("type"), kind, names::qualified_name(kind));
        }
        if limits[..i].iter().any(|l| l.text("type") == kind) {
            e.duplicate(&at.field("type"), kind);
        }
        limit_values(limit, kind, &at, e);
    }
}

fn limit_values(limit: &Value, kind: &str, path: &Path<'_>, e: &mut Errors) {
    use check::resources::quantity;
    const FIELDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    if kind == "Pod" {
        for field in ["default", "defaultRequest"] {
            if !crate::read::is_empty(limit.at(field)) {
                e.forbidden(&path.field(field), "may not be specified when `type` is 'Pod'");
            }
        }
    }
    if kind == "PersistentVolumeClaim" {
        let has = |field: &str| limit.at(field).get("storage").is_some();
        if !has("min") && !has("max") {
            e.required(&path, "either minimum or maximum storage value is required, but neither was provided");
        }
    }
    let mut resources: Vec<&String> = Vec::new();
    for field in FIELDS {
        for (name, _) in members(limit.at(field)) {
            resource_name(kind, name, &path.field(field).key(name), e);
            if !resources.contains(&name) {
                resources.push(name);
            }
        }
    }
    for name in resources {
        let value = |field: &str| limit.at(field).get(name).and_then(quantity);
        let [max, min, default, request, ratio] = FIELDS.map(value);
        let mut above = |field: &str, a: Option<rimward_api::Quantity>, other: &str, b: Option<rimward_api::Quantity>| {
            if let (Some(a), Some(b)) = (a, b)
                && a > b
            {
                e.invalid(&path.field(field).key(name), a.to_string(), &format!("{field} value {a} is greater than {other} value {b}"));
            }
        };
        let words = |field: &str| match field {
            "defaultRequest" => "default request".to_owned(),
            other => other.to_owned(),
        };
        let _ = words;
        above("min", min, "max", max);
        let under = |lower: Option<rimward_api::Quantity>, value: Option<rimward_api::Quantity>| {
            matches!((lower, value), (Some(l), Some(v)) if l > v)
        };
        if under(min, request) {
            let (m, r) = (min.unwrap_or(rimward_api::Quantity::ZERO), request.unwrap_or(rimward_api::Quantity::ZERO));
            e.invalid(&path.field("defaultRequest").key(name), r.to_string(), &format!("min value {m} is greater than default request value {r}"));
        }
        let mut over = |field: &str, a: Option<rimward_api::Quantity>, what: &str, other: &str, b: Option<rimward_api::Quantity>| {
            if let (Some(a), Some(b)) = (a, b)
                && a > b
            {
                e.invalid(&path.field(field).key(name), a.to_string(), &format!("{what} value {a} is greater than {other} value {b}"));
            }
        };
        over("defaultRequest", request, "default request", "max", max);
        over("defaultRequest", request, "default request", "default limit", default);
        if under(min, default) {
            let (m, d) = (min.unwrap_or(rimward_api::Quantity::ZERO), default.unwrap_or(rimward_api::Quantity::ZERO));
            e.invalid(&path.field("default").key(name), m.to_string(), &format!("min value {m} is greater than default value {d}"));
        }
        let mut over = |field: &str, a: Option<rimward_api::Quantity>, what: &str, other: &str, b: Option<rimward_api::Quantity>| {
            if let (Some(a), Some(b)) = (a, b)
                && a > b
            {
                e.invalid(&path.field(field).key(name), b.to_string(), &format!("{what} value {a} is greater than {other} value {b}"));
            }
        };
        over("default", default, "default", "max", max);
        if let Some(ratio) = ratio
            && ratio < rimward_api::Quantity::from_whole(1)
        {
            e.invalid(&path.field("maxLimitRequestRatio").key(name), ratio.to_string(), &format!("ratio {ratio} is less than 1"));
        }
        if !check::resources::may_overcommit(name) && default.is_some() && request != default {
            let shown = default.map(|d| d.to_string()).unwrap_or_default();
            e.invalid(&path.field("defaultRequest").key(name), shown, "default value must equal to defaultRequest value");
        }
    }
}

fn resource_name(kind: &str, name: &str, path: &Path<'_>, e: &mut Errors) {
    match kind {
        "Pod" | "Container" => check::resources::container_resource_name(name, path, e),
        _ => {
            let wrong = names::qualified_name(name);
            let good = wrong.is_empty();
            e.invalid_each(path, name, wrong);
            if good && !name.contains('/') && !is_standard_resource(name) {
                e.invalid(path, name, "must be a standard resource type or fully qualified");
            }
        }
    }
}

pub const RESOURCE_QUOTA: Rules = Rules {
    create: resource_quota,
    update: |new, old, e| {
        resource_quota(new, e);
        let path = Path::Root.field("spec");
        if !crate::read::same(new.at("spec").at("scopes"), old.at("spec").at("scopes")) {
            e.invalid(&path.field("scopes"), new.at("spec").at("scopes").clone(), check::IMMUTABLE);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    status: true,
    cells: print::config::resource_quota,
    ..Rules::PLAIN
};

fn resource_quota(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    let hard = path.field("hard");
    for (name, value) in members(object.at("spec").at("hard")) {
        let at = hard.key(name);
        let wrong = names::qualified_name(name);
        let good = wrong.is_empty();
        e.invalid_each(&at, name, wrong);
        if good && !name.contains('/') && !is_quota_resource(name) {
            e.invalid(&at, name.as_str(), "must be a standard resource for quota");
        }
        check::resources::resource_value(name, value, &at, e);
    }
    let scopes = ["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating", "VolumeAttributesClass"];
    let at = path.field("scopes");
    for scope in object.at("spec").list("scopes").iter().filter_map(Value::as_str) {
        if !scopes.contains(&scope) {
            e.invalid(&at, scope, "unsupported scope");
        }
    }
}

/// Resources that stand for themselves, without a domain.
fn is_standard_resource(name: &str) -> bool {
    is_quota_resource(name) || name.starts_with("hugepages-")
}

fn is_quota_resource(name: &str) -> bool {
    const PLAIN: [&str; 13] = [
        "cpu", "memory", "ephemeral-storage", "storage", "pods", "services", "resourcequotas", "replicationcontrollers",
        "secrets", "configmaps", "persistentvolumeclaims", "services.nodeports", "services.loadbalancers",
    ];
    let rest = |prefix: &str| name.strip_prefix(prefix);
    PLAIN.contains(&name)
        || rest("requests.").is_some_and(|r| matches!(r, "cpu" | "memory" | "storage" | "ephemeral-storage") || r.starts_with("hugepages-"))
        || rest("limits.").is_some_and(|r| matches!(r, "cpu" | "memory" | "ephemeral-storage"))
        || name.starts_with("count/")
        || name.starts_with("hugepages-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_data() {
        let mut secret = json!({ "stringData": { "k": "v" }, "data": { "k": "b2xk", "o": "" } });
        default_secret(&mut secret);
        assert_eq!(secret, json!({ "type": "Opaque", "data": { "k": "dg==", "o": "" } }));
    }
}
