//! The AdmissionReview: what is sent, and what is believed of the answer.

use base64::Engine as _;
use rimward_api::{Reason, Status, UserInfo};
use serde_json::{Value, json};

use crate::admission::{Options, Review, form};
use crate::options::{DeleteOptions, Propagation, WriteOptions};
use crate::served::Served;

pub const V1: &str = "admission.k8s.io/v1";
pub const V1BETA1: &str = "admission.k8s.io/v1beta1";

/// Texts of warnings that one answer may bring, and bytes of each.
const WARNINGS_MAX: usize = 100;
const WARNING_BYTES_MAX: usize = 4096;
const ANNOTATION_CHARS_MAX: usize = 10 * 1024;

/// What an allowing webhook says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// A JSON patch.
    pub patch: Option<Vec<u8>>,
    pub warnings: Vec<String>,
}

/// `auditAnnotations` of an answer, under the name of its webhook.
pub fn annotations(name: &str, answer: &Value) -> Vec<(String, String)> {
    let given = answer.pointer("/response/auditAnnotations").and_then(Value::as_object);
    let texts = given.into_iter().flatten().filter_map(|(k, v)| Some((k, v.as_str()?)));
    texts
        .take(WARNINGS_MAX)
        .map(|(k, v)| (format!("{name}/{k}"), v.chars().take(ANNOTATION_CHARS_MAX).collect()))
        .collect()
}

/// Why a webhook did not allow.
#[derive(Debug)]
pub enum Failure {
    /// It said no.
    Denied { status: Status, warnings: Vec<String> },
    /// It must not be asked this.
    Unfit(Status),
    /// It could not be asked, or what it answered is no answer.
    Call(String),
}

impl Failure {
    pub fn warnings(&self) -> Vec<String> {
        match self {
            Self::Denied { warnings, .. } => warnings.clone(),
            _ => Vec::new(),
        }
    }
}

/// The `request` of a body without the objects: what policies see of it.
pub fn unversioned(review: &Review<'_>, served: &Served) -> Value {
    let mut body = request(V1, "", review, served, &Value::Null, &Value::Null);
    body["request"].take()
}

/// The body that a webhook is sent.
pub fn request(
    version: &str,
    uid: &str,
    review: &Review<'_>,
    served: &Served,
    object: &Value,
    old: &Value,
) -> Value {
    let asked = review.served;
    let mut request = json!({
        "uid": uid,
        "kind": kind(form::kind(review, served)),
        "resource": resource(served),
        "requestKind": kind(form::kind(review, asked)),
        "requestResource": resource(asked),
        "operation": review.operation.word(),
        "userInfo": user(review.user),
        "object": object,
        "oldObject": old,
        "dryRun": review.options.dry_run(),
        "options": options(review.options),
    });
    for (field, text) in [
        ("subResource", review.subresource),
        ("requestSubResource", review.subresource),
        ("name", review.key.name.as_str()),
        ("namespace", review.namespace()),
    ] {
        if !text.is_empty() {
            request[field] = text.into();
        }
    }
    json!({ "kind": "AdmissionReview", "apiVersion": version, "request": request })
}

fn kind((group, version, kind): (String, String, String)) -> Value {
    json!({ "group": group, "version": version, "kind": kind })
}

fn resource(served: &Served) -> Value {
    let kind = &served.kind;
    json!({ "group": kind.group, "version": kind.version, "resource": kind.resource })
}

fn user(user: &UserInfo) -> Value {
    let mut shown = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        shown["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        shown["extra"] = json!(user.extra);
    }
    shown
}

fn options(options: Options<'_>) -> Value {
    match options {
        Options::Create(o) => write_options("CreateOptions", o),
        Options::Update(o) => write_options("UpdateOptions", o),
        Options::Delete(o) => delete_options(o),
        Options::None => Value::Null,
    }
}

fn write_options(kind: &str, options: &WriteOptions) -> Value {
    let mut shown = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
    let (manager, validation) = &options.sent;
    for (field, sent) in [("fieldManager", manager), ("fieldValidation", validation)] {
        if !sent.is_empty() {
            shown[field] = sent.as_str().into();
        }
    }
    if options.dry_run {
        shown["dryRun"] = json!(["All"]);
    }
    shown
}

fn delete_options(options: &DeleteOptions) -> Value {
    let mut shown = json!({ "kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1" });
    if let Some(seconds) = options.grace_seconds {
        shown["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(policy) = options.propagation {
        shown["propagationPolicy"] = match policy {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        }
        .into();
    }
    if let Some(uid) = &options.uid {
        shown["preconditions"]["uid"] = uid.as_str().into();
    }
    if let Some(revision) = &options.revision {
        shown["preconditions"]["resourceVersion"] = revision.as_str().into();
    }
    if options.dry_run {
        shown["dryRun"] = json!(["All"]);
    }
    shown
}

/// Reads an answer to the request with that uid.
pub fn read(
    version: &str,
    uid: &str,
    name: &str,
    answer: &Value,
    mutating: bool,
) -> Result<Answer, Failure> {
    let invalid = |why: String| Failure::Call(format!("received invalid webhook response: {why}"));
    let response = answer.get("response").filter(|r| r.is_object());
    let response = response.ok_or_else(|| invalid("webhook response was absent".into()))?;
    let text = |field: &str| response.get(field).and_then(Value::as_str);
    if version == V1 {
        let theirs = text("uid").unwrap_or_default();
        if theirs != uid {
            return Err(invalid(format!("expected response.uid={uid:?}, got {theirs:?}")));
        }
        let (theirs, ours) = (type_of(answer), format!("{V1}, Kind=AdmissionReview"));
        if theirs != ours {
            return Err(invalid(format!("expected webhook response of {ours}, got {theirs}")));
        }
    }
    let warnings = warnings(response);
    let patch = patch(version, response, mutating).map_err(invalid)?;
    if response.get("allowed").and_then(Value::as_bool) != Some(true) {
        return Err(Failure::Denied { status: denied(name, response.get("status")), warnings });
    }
    if let Some((kind, _)) = patch.as_ref().filter(|(kind, _)| kind != "JSONPatch") {
        return Err(Failure::Call(format!("unsupported patch type {kind:?}")));
    }
    let patch = patch.map(|(_, bytes)| bytes);
    if let Some(bytes) = &patch
        && !serde_json::from_slice::<Value>(bytes).is_ok_and(|p| p.is_array())
    {
        return Err(Failure::Call(
            "received undecodable patch in webhook response: it is not a JSON patch".into(),
        ));
    }
    Ok(Answer { patch, warnings })
}

/// `group/version, Kind=kind`
fn type_of(answer: &Value) -> String {
    let text = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default();
    match text("apiVersion") {
        "" => format!("/, Kind={}", text("kind")),
        version => format!("{version}, Kind={}", text("kind")),
    }
}

fn warnings(response: &Value) -> Vec<String> {
    let list = response.get("warnings").and_then(Value::as_array).into_iter().flatten();
    let cut = |text: &str| text.chars().take(WARNING_BYTES_MAX).collect();
    list.filter_map(Value::as_str).take(WARNINGS_MAX).map(cut).collect()
}

/// Type and bytes of the patch; the two come together or not at all.
fn patch(
    version: &str,
    response: &Value,
    mutating: bool,
) -> Result<Option<(String, Vec<u8>)>, String> {
    let given = |field: &str| response.get(field).and_then(Value::as_str).map(str::to_owned);
    let (bytes, kind) = (given("patch").filter(|p| !p.is_empty()), given("patchType"));
    if !mutating {
        return match (version, bytes, kind) {
            (V1, Some(_), _) => Err("validating webhook may not return response.patch".into()),
            (V1, _, Some(_)) => Err("validating webhook may not return response.patchType".into()),
            _ => Ok(None),
        };
    }
    let kind = match (version, &bytes, kind) {
        (V1, Some(_), None) => {
            return Err("webhook returned response.patch but not response.patchType".into());
        }
        (V1, None, Some(_)) => {
            return Err("webhook returned response.patchType but not response.patch".into());
        }
        (_, _, kind) => kind.unwrap_or_else(|| "JSONPatch".into()),
    };
    if kind.is_empty() {
        return Err("webhook returned invalid response.patchType of \"\"".into());
    }
    let Some(text) = bytes else { return Ok(None) };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|e| format!("response.patch: {e}"))?;
    Ok(Some((kind, bytes)))
}

/// The Status of a refusal: the webhook's own, and by whom.
fn denied(name: &str, given: Option<&Value>) -> Status {
    let text =
        |field: &str| given.and_then(|g| g.get(field)).and_then(Value::as_str).unwrap_or_default();
    let by = format!("admission webhook {name:?} denied the request");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = given.and_then(|g| g.get("code")).and_then(Value::as_u64).unwrap_or(0);
    // A refusal is never a success, whatever its code says.
    let code = if (400..600).contains(&code) { code as u16 } else { 400 };
    let details = given.and_then(|g| g.get("details")).cloned();
    let mut status = Status::new(code, Reason::Unknown, message);
    status.details = details.and_then(|d| serde_json::from_value(d).ok());
    status.set_reason(text("reason"));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Value {
        json!({ "kind": "AdmissionReview", "apiVersion": V1, "response": response })
    }

    #[test]
    fn answers() {
        #[track_caller]
        fn check(answer: Value, mutating: bool, expected: &str) {
            let shown = match read(V1, "u", "h.example.com", &answer, mutating) {
                Ok(answer) => {
                    format!("{:?}", answer.patch.map(|p| String::from_utf8(p).expect("text")))
                }
                Err(Failure::Denied { status, .. }) => {
                    format!("{} {}", status.code, status.message)
                }
                Err(Failure::Unfit(status)) => status.message,
                Err(Failure::Call(why)) => why,
            };
            assert_eq!(shown, expected, "{answer}");
        }
        check(answer(json!({ "uid": "u", "allowed": true })), false, "None");
        check(json!({}), false, "received invalid webhook response: webhook response was absent");
        check(
            answer(json!({ "uid": "x", "allowed": true })),
            false,
            "received invalid webhook response: expected response.uid=\"u\", got \"x\"",
        );
        check(
            json!({ "response": { "uid": "u" } }),
            false,
            "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=",
        );
        check(
            answer(json!({ "uid": "u", "allowed": false })),
            false,
            "400 admission webhook \"h.example.com\" denied the request without explanation",
        );
        check(
            answer(json!({ "uid": "u", "status": { "code": 200, "message": "no" } })),
            false,
            "400 admission webhook \"h.example.com\" denied the request: no",
        );
        check(
            answer(json!({ "uid": "u", "status": { "code": 403, "reason": "Forbidden" } })),
            true,
            "403 admission webhook \"h.example.com\" denied the request: Forbidden",
        );
        // `[]`
        check(
            answer(
                json!({ "uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch" }),
            ),
            true,
            "Some(\"[]\")",
        );
        check(
            answer(json!({ "uid": "u", "allowed": true, "patch": "W10=" })),
            true,
            "received invalid webhook response: webhook returned response.patch but not response.patchType",
        );
        check(
            answer(
                json!({ "uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch" }),
            ),
            false,
            "received invalid webhook response: validating webhook may not return response.patch",
        );
        check(
            answer(
                json!({ "uid": "u", "allowed": true, "patch": "e30=", "patchType": "JSONPatch" }),
            ),
            true,
            "received undecodable patch in webhook response: it is not a JSON patch",
        );
        check(
            answer(json!({ "uid": "u", "allowed": true, "patch": "W10=", "patchType": "Merge" })),
            true,
            "unsupported patch type \"Merge\"",
        );
    }
}
