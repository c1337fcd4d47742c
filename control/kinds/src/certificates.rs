//! CertificateSigningRequest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, Pem, X509Certificate, X509CertificationRequest};

use crate::check;
use crate::kind::Write;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, items_mut, keep, member, remove};
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

const DECISIONS: [&str; 2] = ["Approved", "Denied"];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const SECONDS_MIN: i64 = 600;

pub const CERTIFICATE_SIGNING_REQUEST: Rules = Rules {
    prepare_create: |object| object["status"] = json!({}),
    prepare_update,
    create: |new, e| request(new, &Value::Null, e),
    update: |new, old, e| changed("", new, old, e),
    update_sub: changed,
    name: |_| Vec::new(),
    status: true,
    fields: &[("spec.signerName", Field::Text(&["spec", "signerName"]))],
    cells: print::node::certificate_signing_request,
    ..Rules::PLAIN
};

/// A request stays as it was made. An approval changes the conditions and nothing else of the status; a
/// signer leaves the decisions as they are.
fn prepare_update(write: Write<'_>, new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    match write {
        Write::Sub("approval") => {
            let conditions = new.at("status").at("conditions").clone();
            keep(new, old, "status");
            if let Some(status) = member(new, "status") {
                match conditions.is_null() {
                    true => remove(status, "conditions"),
                    false => status["conditions"] = conditions,
                }
            }
        }
        Write::Sub("status") => {
            if let Some(status) = member(new, "status") {
                for kind in DECISIONS {
                    keep_instances(status, old.at("status"), kind);
                }
            }
        }
        _ => keep(new, old, "status"),
    }
}

/// What was decided stands as it was said, unless instances were added or removed: that is refused.
fn keep_instances(new: &mut Value, old: &Value, kind: &str) {
    let of_kind = |c: &&Value| c.text("type") == kind;
    let before: Vec<Value> = old.list("conditions").iter().filter(of_kind).cloned().collect();
    if new.list("conditions").iter().filter(of_kind).count() != before.len() {
        return;
    }
    let places = items_mut(new, "conditions").filter(|c| c.text("type") == kind);
    for (place, condition) in places.zip(before) {
        *place = condition;
    }
}

/// What is asked of every request; `old` is what of it is stored, whose faults are suffered.
fn request(object: &Value, old: &Value, e: &mut Errors) {
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
    let certificate = |csr: &Value| csr.at("status").text("certificate").to_owned();
    let (now, before) = (certificate(object), certificate(old));
    if now != before
        && certificates(&before).is_ok()
        && let Err(why) = certificates(&now)
    {
        let path = Path::Root.field("status");
        e.invalid(&path.field("certificate"), "<certificate data>", &why);
    }
}

/// Whether the bytes are certificates in PEM, or none at all.
fn certificates(encoded: &str) -> Result<(), String> {
    if encoded.is_empty() {
        return Ok(());
    }
    let none = || "must contain at least one CERTIFICATE PEM block".to_owned();
    let text = STANDARD.decode(encoded).map_err(|_| none())?;
    let mut blocks = 0;
    // What is between blocks, and what follows them, is not looked at.
    for block in Pem::iter_from_buffer(&text).map_while(Result::ok) {
        if block.label != "CERTIFICATE" {
            return Err(format!(
                "only CERTIFICATE PEM blocks are allowed, found {:?}",
                block.label
            ));
        }
        blocks += 1;
        let (rest, _) = X509Certificate::from_der(&block.contents)
            .map_err(|e| format!("x509: malformed certificate: {e}"))?;
        if !rest.is_empty() {
            return Err("x509: trailing data".to_owned());
        }
    }
    if blocks == 0 { Err(none()) } else { Ok(()) }
}

/// Whether the bytes are a PKCS #10 request in PEM.
fn readable(request: &str) -> Result<(), String> {
    let not_pem = || "PEM block type must be CERTIFICATE REQUEST".to_owned();
    let text = STANDARD.decode(request).map_err(|_| not_pem())?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&text).map_err(|_| not_pem())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(not_pem());
    }
    let (_, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|e| format!("asn1: structure error: {e}"))?;
    // Whoever asks holds the key that is asked for.
    request
        .verify_signature()
        .map_err(|_| "x509: the request is not signed by the key that it is for".to_owned())
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
        if DECISIONS.contains(&kind) && !decisions.contains(&kind) {
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

/// What was decided and what was signed stays; only an approval decides, only a signer signs.
fn changed(sub: &str, new: &Value, old: &Value, e: &mut Errors) {
    request(new, old, e);
    let path = Path::Root.field("status");
    let (after, before) = (new.at("status"), old.at("status"));
    let of = |status: &Value, kind: &str| -> Vec<Value> {
        let conditions = status.list("conditions").iter();
        conditions.filter(|c| c.text("type") == kind).cloned().collect()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if of(after, kind).len() < of(before, kind).len() {
            let why = format!("updates may not remove a condition of type {kind:?}");
            e.forbidden(&path.field("conditions"), &why);
        }
    }
    for kind in DECISIONS.iter().filter(|_| sub != "approval") {
        let (now, then) = (of(after, kind), of(before, kind));
        if now.len() > then.len() {
            let why = format!("updates may not add a condition of type {kind:?}");
            e.forbidden(&path.field("conditions"), &why);
        } else if now.len() == then.len() && now != then {
            let why = format!("updates may not modify a condition of type {kind:?}");
            e.forbidden(&path.field("conditions"), &why);
        }
    }
    let certificate = before.text("certificate");
    if after.text("certificate") != certificate {
        let why = match (sub, certificate) {
            ("status", "") => return,
            ("status", _) => "updates may not modify existing certificate content",
            _ => "updates may not set certificate content",
        };
        e.forbidden(&path.field("certificate"), why);
    }
}
