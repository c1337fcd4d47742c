//! CertificateSigningRequest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use crate::check;
use crate::kind::Write;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, keep, member};
use crate::rules::{Field, Rules};

/// What a certificate may be asked for: the names of RFC 5280's usages as the API writes them.
pub const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const SECONDS_MIN: i64 = 600;

pub const CERTIFICATE_SIGNING_REQUEST: Rules = Rules {
    prepare_create: |object| object["status"] = json!({}),
    prepare_update,
    create: request,
    update: |new, _, e| request(new, e),
    update_sub: |sub, new, old, e| {
        request(new, e);
        decided(sub, new, old, e);
    },
    name: |_| Vec::new(),
    status: true,
    fields: &[("spec.signerName", Field::Text(&["spec", "signerName"]))],
    cells: print::node::certificate_signing_request,
    ..Rules::PLAIN
};

/// Only the decision is an approval's to change, only the rest a signer's.
fn prepare_update(write: Write<'_>, new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    if write == Write::Main {
        return keep(new, old, "status");
    }
    let approval = write == Write::Sub("approval");
    let sent = new.at("status").list("conditions").to_vec();
    let stored = old.at("status").list("conditions");
    let mut conditions: Vec<Value> = sent
        .iter()
        .filter(|c| is_decision(c) == approval)
        .chain(stored.iter().filter(|c| is_decision(c) != approval))
        .cloned()
        .collect();
    // In the order in which they were sent, as far as they were.
    let place = |c: &Value| sent.iter().position(|s| s.text("type") == c.text("type"));
    conditions.sort_by_key(|c| place(c).unwrap_or(usize::MAX));
    if approval {
        keep(new, old, "status");
    }
    if !new.at("status").is_object() {
        new["status"] = json!({});
    }
    if let Some(status) = member(new, "status") {
        status["conditions"] = conditions.into();
        if status.list("conditions").is_empty()
            && let Some(status) = status.as_object_mut()
        {
            status.remove("conditions");
        }
    }
}

fn is_decision(condition: &Value) -> bool {
    matches!(condition.text("type"), "Approved" | "Denied")
}

fn request(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    if let Err(why) = readable(spec.text("request")) {
        let bytes = STANDARD.decode(spec.text("request")).unwrap_or_default();
        let shown: Vec<String> = bytes.iter().map(|b| format!("{b:#x}")).collect();
        let error = format!("Invalid value: []byte{{{}}}: {why}", shown.join(", "));
        e.push(rimward_api::FieldError {
            field: path.field("request").to_string(),
            reason: rimward_api::CauseReason::FieldValueInvalid,
            message: error,
        });
    }
    let list = path.field("usages");
    if spec.list("usages").is_empty() {
        e.required(&list, "");
    }
    let mut seen = check::Seen::default();
    for (i, usage) in spec.list("usages").iter().filter_map(Value::as_str).enumerate() {
        if !USAGES.contains(&usage) {
            e.not_supported(&list.index(i), usage, &USAGES);
        }
        if seen.again(usage) {
            e.duplicate(&list.index(i), usage);
        }
    }
    signer_name(spec.text("signerName"), &path.field("signerName"), e);
    if spec.int("expirationSeconds").is_some_and(|s| s < SECONDS_MIN) {
        e.invalid(
            &path.field("expirationSeconds"),
            spec.at("expirationSeconds").clone(),
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    conditions(object, e);
}

/// Whether the bytes are a PKCS #10 request in PEM.
fn readable(request: &str) -> Result<(), String> {
    let not_pem = || "PEM block type must be CERTIFICATE REQUEST".to_owned();
    let text = STANDARD.decode(request).map_err(|_| not_pem())?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&text).map_err(|_| not_pem())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(not_pem());
    }
    match X509CertificationRequest::from_der(&block.contents) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("asn1: structure error: {e}")),
    }
}

/// `ValidateSignerName`: a domain and a path below it.
pub fn signer_name(name: &str, path: &Path<'_>, e: &mut Errors) {
    match name.split_once('/') {
        _ if name.is_empty() => e.required(path, ""),
        _ if name == LEGACY_SIGNER => {
            e.invalid(path, name, "the legacy signerName is not allowed via this API version")
        }
        Some((domain, rest)) if !rest.is_empty() => {
            e.invalid_each(path, name, rimward_api::names::dns1123_subdomain(domain));
        }
        _ => e.invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ),
    }
}

fn conditions(object: &Value, e: &mut Errors) {
    let status = Path::Root.field("status");
    let list = status.field("conditions");
    let mut seen = check::Seen::default();
    let mut decisions = Vec::new();
    for (i, condition) in object.at("status").list("conditions").iter().enumerate() {
        let (at, kind) = (list.index(i), condition.text("type"));
        if kind.is_empty() {
            e.required(&at.field("type"), "");
        }
        match (kind, condition.text("status")) {
            (_, "") => e.required(&at.field("status"), ""),
            ("Approved" | "Denied" | "Failed", other) if other != "True" => {
                e.not_supported(&at.field("status"), other, &["True"]);
            }
            (_, "True" | "False" | "Unknown") => {}
            (_, other) => {
                e.not_supported(&at.field("status"), other, &["False", "True", "Unknown"]);
            }
        }
        if is_decision(condition) && !decisions.contains(&kind) {
            decisions.push(kind);
            if decisions.len() > 1 {
                e.invalid(
                    &at.field("type"),
                    kind,
                    "Approved and Denied conditions are mutually exclusive",
                );
            }
        }
        if seen.again(kind) {
            e.duplicate(&at.field("type"), kind);
        }
    }
}

/// What was decided and what was signed stays.
fn decided(sub: &str, new: &Value, old: &Value, e: &mut Errors) {
    let path = Path::Root.field("status");
    let (after, before) = (new.at("status"), old.at("status"));
    let certificate = before.text("certificate");
    if !certificate.is_empty() && after.text("certificate") != certificate {
        e.forbidden(
            &path.field("certificate"),
            "updates may not modify existing certificate content",
        );
    }
    let has = |status: &Value, kind: &str| {
        status.list("conditions").iter().any(|c| c.text("type") == kind)
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if has(before, kind) && !has(after, kind) {
            let why = format!("updates may not remove a condition of type {kind:?}");
            e.forbidden(&path.field("conditions"), &why);
        }
        if sub == "status" && kind != "Failed" && has(after, kind) && !has(before, kind) {
            let why = format!("updates may not add a condition of type {kind:?}");
            e.forbidden(&path.field("conditions"), &why);
        }
    }
}
