//! Volumes that show what the API server knows: Secrets, ConfigMaps, the pod itself, tokens, and the
//! projected volume that puts them together.

use rimward_api::names;
use serde_json::Value;

use super::env;
use super::volume_source::required;
use crate::check::{self, selector, text};
use crate::path::{Errors, Path};
use crate::read::Read;

/// Secret and ConfigMap volumes.
pub fn keys(value: &Value, name: &str, path: &Path<'_>, e: &mut Errors) {
    required(value, &[name], path, e);
    check::file_mode(value.at("defaultMode"), &path.field("defaultMode"), e);
    items(value, &path.field("items"), e);
}

fn items(value: &Value, path: &Path<'_>, e: &mut Errors) {
    for (i, item) in value.list("items").iter().enumerate() {
        let at = path.index(i);
        required(item, &["key", "path"], &at, e);
        let file = item.text("path");
        e.invalid_each(&at.field("path"), file, text::volume_path(file));
        check::file_mode(item.at("mode"), &at.field("mode"), e);
    }
}

pub fn downward_api(value: &Value, path: &Path<'_>, e: &mut Errors) {
    check::file_mode(value.at("defaultMode"), &path.field("defaultMode"), e);
    for file in value.list("items") {
        // Kubernetes names the volume, not the item.
        downward_file(file, path, e);
    }
}

fn downward_file(file: &Value, path: &Path<'_>, e: &mut Errors) {
    required(file, &["path"], path, e);
    let place = file.text("path");
    e.invalid_each(&path.field("path"), place, text::volume_path(place));
    match (file.has("fieldRef"), file.has("resourceFieldRef")) {
        (true, both) => {
            env::field_ref(file.at("fieldRef"), &env::VOLUME_FIELDS, &path.field("fieldRef"), e);
            if both {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                e.invalid(path, "resource", why);
            }
        }
        (false, true) => {
            let at = path.field("resourceFieldRef");
            env::resource_field_ref(file.at("resourceFieldRef"), true, &at, e);
        }
        (false, false) => e.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    check::file_mode(file.at("mode"), &path.field("mode"), e);
}

/// The parts of a projected volume, in Kubernetes' order.
const PARTS: [&str; 6] = [
    "secret",
    "configMap",
    "downwardAPI",
    "serviceAccountToken",
    "clusterTrustBundle",
    "podCertificate",
];

pub fn projected(value: &Value, path: &Path<'_>, e: &mut Errors) {
    check::file_mode(value.at("defaultMode"), &path.field("defaultMode"), e);
    let list = path.field("sources");
    let mut files = check::Seen::default();
    for (i, source) in value.list("sources").iter().enumerate() {
        let at = list.index(i);
        let there = || PARTS.iter().filter(|name| source.at(name).is_object());
        for name in there() {
            part(name, source.at(name), path, &at, e);
            duplicates(name, source.at(name), &mut files, path, e);
        }
        if there().count() > 1 {
            e.forbidden(&at, "may not specify more than 1 volume type");
        }
    }
}

/// One part of a projected volume. Some refusals name the part, others the volume (`whole`).
fn part(name: &str, source: &Value, whole: &Path<'_>, at: &Path<'_>, e: &mut Errors) {
    match name {
        "secret" | "configMap" => {
            let at = at.field(name);
            required(source, &["name"], &at, e);
            items(source, &at.field("items"), e);
        }
        "downwardAPI" => {
            let at = at.field(name);
            source.list("items").iter().for_each(|file| downward_file(file, &at, e));
        }
        "serviceAccountToken" => token(source, whole, &at.field(name), e),
        "clusterTrustBundle" => trust_bundle(source, &at.field("clusterTrustBundlePEM"), e),
        _ => certificate(source, &at.field(name), e),
    }
}

fn token(source: &Value, whole: &Path<'_>, path: &Path<'_>, e: &mut Errors) {
    let seconds = source.int("expirationSeconds").unwrap_or_default();
    let at = path.field("expirationSeconds");
    if seconds < 10 * 60 {
        e.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        e.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    match source.text("path") {
        "" => e.required(&whole.field("path"), ""),
        place => e.invalid_each(&whole.field("path"), place, text::volume_path(place)),
    }
}

/// Trust anchors by name, or all of a signer that a selector chooses.
fn trust_bundle(source: &Value, path: &Path<'_>, e: &mut Errors) {
    let (name, signer) = (source.at("name").as_str(), source.at("signerName").as_str());
    let (chosen, at) = (source.at("labelSelector"), path.field("labelSelector"));
    match (name, signer) {
        (Some(_), Some(_)) => {
            e.invalid(path, source.clone(), "only one of name and signerName may be used");
        }
        (Some(name), None) => {
            let at = path.field("name");
            if name.is_empty() {
                e.required(&at, "must be a valid object name");
            }
            for why in trust_bundle_name(name) {
                e.invalid(&at, name, &format!("not a valid clustertrustbundlename: {why}"));
            }
            if chosen.is_object() {
                let why = "labelSelector must be unset if name is specified";
                e.invalid(&path.field("labelSelector"), chosen.clone(), why);
            }
        }
        (None, Some(signer)) => {
            let named = path.field("signerName");
            if signer.is_empty() {
                e.required(&named, "must be a valid signer name");
            }
            crate::certificates::signer_name(signer, &named, e);
            selector::label_selector(chosen, &at, e);
        }
        (None, None) => e.required(path, "either name or signerName must be specified"),
    }
    required(source, &["path"], path, e);
    let place = source.text("path");
    e.invalid_each(&path.field("path"), place, text::volume_path(place));
}

/// A bundle of a signer is called after it: `example.com:signer:name`.
fn trust_bundle_name(name: &str) -> Vec<String> {
    let rest = name.rsplit_once(':').map_or(name, |(_, rest)| rest);
    names::dns1123_subdomain(rest)
}

const KEY_TYPES: [&str; 6] =
    ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072", "RSA4096"];

/// A key and a certificate that the kubelet obtains for the pod.
fn certificate(source: &Value, path: &Path<'_>, e: &mut Errors) {
    crate::certificates::signer_name(source.text("signerName"), &path.field("signerName"), e);
    let kind = source.text("keyType");
    if !KEY_TYPES.contains(&kind) {
        e.not_supported(&path.field("keyType"), kind, &KEY_TYPES);
    }
    if let Some(seconds) = source.int("maxExpirationSeconds") {
        let at = path.field("maxExpirationSeconds");
        if seconds < 60 * 60 {
            e.invalid(&at, seconds, "if provided, maxExpirationSeconds must be >= 3600");
        }
        if seconds > 91 * 24 * 60 * 60 {
            e.invalid(&at, seconds, "if provided, maxExpirationSeconds must be <= 7862400");
        }
    }
    let mut count = 0;
    for field in CERTIFICATE_PATHS {
        let place = source.text(field);
        if !place.is_empty() {
            count += 1;
            e.invalid_each(&path.field(field), place, text::volume_path(place));
        }
    }
    if count == 0 {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        e.required(path, why);
    }
}

const CERTIFICATE_PATHS: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];

/// No two parts write the same file; tokens are not looked at.
fn duplicates<'a>(
    name: &str,
    source: &'a Value,
    files: &mut check::Seen<&'a str>,
    path: &Path<'_>,
    e: &mut Errors,
) {
    let listed = source.list("items").iter().map(|i| i.text("path"));
    let own: Vec<&str> = match name {
        "clusterTrustBundle" => vec![source.text("path")],
        "podCertificate" => CERTIFICATE_PATHS.iter().map(|field| source.text(field)).collect(),
        _ => Vec::new(),
    };
    for file in listed.chain(own).filter(|f| !f.is_empty()) {
        if files.again(file) {
            let shown = match name {
                "secret" | "configMap" => source.text("name"),
                _ => file,
            };
            e.invalid(path, shown, "conflicting duplicate paths");
        }
    }
}
