//! ConfigMap, Secret, ServiceAccount.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

use crate::check::{self, text};
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill_text, member, members, remove};
use crate::rules::{Field, Rules};

/// 1 MiB, of all keys' values together.
const MAX_BYTES: usize = 1024 * 1024;

pub const CONFIG_MAP: Rules = Rules {
    create: config_map,
    update: update_config_map,
    cells: print::config::config_map,
    ..Rules::PLAIN
};

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
            bytes += if field == "data" { value.len() } else { text::base64_len(value) };
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
        bytes += text::base64_len(value.as_str().unwrap_or_default());
    }
    if bytes > MAX_BYTES {
        e.too_long(&data, MAX_BYTES);
    }
    let has = |key: &str| object.at("data").get(key).is_some();
    match object.text("type") {
        "kubernetes.io/service-account-token" => {
            let name = "kubernetes.io/service-account.name";
            if object
                .deep(&["metadata", "annotations", name])
                .as_str()
                .unwrap_or_default()
                .is_empty()
            {
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

pub const SERVICE_ACCOUNT: Rules =
    Rules { cells: print::name_age, warnings: crate::warnings::service_account, ..Rules::PLAIN };

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_become_data() {
        let mut secret = json!({ "stringData": { "k": "v" }, "data": { "k": "b2xk", "o": "" } });
        default_secret(&mut secret);
        assert_eq!(secret, json!({ "type": "Opaque", "data": { "k": "dg==", "o": "" } }));
    }
}
