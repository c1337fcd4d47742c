//! `metav1.Status`, the one form in which the API says no, and the field errors inside it.
//!
//! Texts follow apimachinery's `api/errors` and `util/validation/field`, because kubectl prints them
//! and clients match on them.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::resource::{GroupKind, GroupResource};

/// `metav1.StatusReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    #[serde(rename = "")]
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

/// `metav1.CauseType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CauseReason {
    FieldValueNotFound,
    FieldValueRequired,
    FieldValueDuplicate,
    FieldValueInvalid,
    FieldValueNotSupported,
    FieldValueForbidden,
    FieldValueTooLong,
    FieldValueTooMany,
    FieldValueTypeInvalid,
    InternalError,
    UnexpectedServerResponse,
    FieldManagerConflict,
    ResourceVersionTooLarge,
    NamespaceTerminating,
    DisruptionBudget,
}

/// One entry of `status.details.causes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub reason: CauseReason,
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// A refusal that names a field; `field.Error` of apimachinery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Dotted path, list items by index and map items by key: `spec.containers[0].name`.
    pub field: String,
    pub reason: CauseReason,
    /// Without the field: `Invalid value: "x": must be …`.
    pub message: String,
}

impl FieldError {
    fn new(field: impl Into<String>, reason: CauseReason, message: String) -> Self {
        Self { field: field.into(), reason, message }
    }

    /// `Required value` or `Required value: <detail>`.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, CauseReason::FieldValueRequired, with_detail("Required value", detail))
    }

    /// `Invalid value: <value as Go prints it>: <detail>`.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let head = format!("Invalid value: {}", go_value(value));
        Self::new(field, CauseReason::FieldValueInvalid, with_detail(&head, detail))
    }

    /// `Unsupported value: "x": supported values: "a", "b"`; the supported ones sorted by the caller
    /// as Kubernetes shows them.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let mut message = format!("Unsupported value: {}", go_value(value));
        if !supported.is_empty() {
            let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
            message += &format!(": supported values: {}", list.join(", "));
        }
        Self::new(field, CauseReason::FieldValueNotSupported, message)
    }

    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        let message = format!("Duplicate value: {}", go_value(value));
        Self::new(field, CauseReason::FieldValueDuplicate, message)
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, CauseReason::FieldValueForbidden, with_detail("Forbidden", detail))
    }

    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        let message = format!("Not found: {}", go_value(value));
        Self::new(field, CauseReason::FieldValueNotFound, message)
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: impl Into<String>, max_bytes: usize) -> Self {
        let message = format!("Too long: may not be more than {max_bytes} bytes");
        Self::new(field, CauseReason::FieldValueTooLong, message)
    }

    /// `Too many: <actual>: must have at most N items`.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let message = format!("Too many: {actual}: must have at most {max} items");
        Self::new(field, CauseReason::FieldValueTooMany, message)
    }

    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let head = format!("Invalid value: {}", go_value(value));
        Self::new(field, CauseReason::FieldValueTypeInvalid, with_detail(&head, detail))
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") }
}

/// A value as `field.Error` prints it: strings quoted, numbers and bools bare, the rest as JSON.
pub fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

/// `metav1.Status` with `status: Failure`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    pub reason: Reason,
    pub message: String,
    pub details: Option<Box<Details>>,
}

/// `metav1.StatusDetails`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
    /// `metadata.continue` of the Status: where an expired list can go on, inconsistently.
    #[serde(skip)]
    pub list_continue: String,
    /// A reason that Kubernetes has no word for, while `reason` is Unknown: webhooks and extension API
    /// servers may make up their own. It goes on the wire in the place of the reason.
    #[serde(skip)]
    pub own_reason: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Status {
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, resource: &GroupResource, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: resource.group.clone(),
            kind: resource.resource.clone(),
            ..Details::default()
        }));
        self
    }

    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        self.details.get_or_insert_default().causes = causes;
        self
    }

    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::new(404, Reason::NotFound, format!("{resource} {name:?} not found"))
            .about(resource, name)
    }

    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Self::new(409, Reason::AlreadyExists, format!("{resource} {name:?} already exists"))
            .about(resource, name)
    }

    pub fn conflict(resource: &GroupResource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::new(409, Reason::Conflict, message).about(resource, name)
    }

    pub fn forbidden(resource: &GroupResource, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {name:?} is forbidden: {why}")
        };
        Self::new(403, Reason::Forbidden, message).about(resource, name)
    }

    /// `Pod "x" is invalid: …`, one cause a field error.
    pub fn invalid(kind: &GroupKind, name: &str, errors: &[FieldError]) -> Self {
        let shown: Vec<String> = errors.iter().map(FieldError::to_string).collect();
        let list = match shown.as_slice() {
            [one] => one.clone(),
            // Kubernetes shows equal errors once.
            many => {
                let mut seen = Vec::new();
                many.iter().for_each(|e| {
                    if !seen.contains(e) {
                        seen.push(e.clone());
                    }
                });
                if seen.len() == 1 { seen.remove(0) } else { format!("[{}]", seen.join(", ")) }
            }
        };
        let causes = errors
            .iter()
            .map(|e| Cause { reason: e.reason, message: e.message.clone(), field: e.field.clone() })
            .collect();
        let mut status =
            Self::new(422, Reason::Invalid, format!("{kind} {name:?} is invalid: {list}"));
        status.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: kind.group.clone(),
            kind: kind.kind.clone(),
            causes,
            ..Details::default()
        }));
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, Reason::BadRequest, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized")
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self::new(500, Reason::InternalError, format!("Internal error occurred: {message}"))
            .with_causes(vec![Cause {
                reason: CauseReason::InternalError,
                message,
                field: String::new(),
            }])
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Expired, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, Reason::ServiceUnavailable, message)
    }

    /// Gives the reason by its word, also one that only the other end knows.
    pub fn set_reason(&mut self, word: &str) {
        match serde_json::from_value(json!(word)) {
            Ok(reason) => self.reason = reason,
            Err(_) => {
                self.reason = Reason::Unknown;
                self.details.get_or_insert_default().own_reason = word.to_owned();
            }
        }
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }

    /// The JSON object that goes on the wire.
    pub fn to_value(&self) -> Value {
        let mut object = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if self.reason != Reason::Unknown {
            object["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            if !details.list_continue.is_empty() {
                object["metadata"]["continue"] = details.list_continue.as_str().into();
            }
            if !details.own_reason.is_empty() {
                object["reason"] = details.own_reason.as_str().into();
            }
            if **details
                != (Details { list_continue: details.list_continue.clone(), ..Details::default() })
                || details.list_continue.is_empty()
            {
                object["details"] = json!(details);
            }
        }
        object
    }

    /// Reads what [`Status::to_value`] wrote, or any other server's Status.
    pub fn from_value(value: &Value) -> Option<Self> {
        if value.get("kind")?.as_str()? != "Status" {
            return None;
        }
        let field = |name: &str| value.get(name).cloned().unwrap_or(Value::Null);
        let mut status = Self {
            code: field("code").as_u64().unwrap_or(500) as u16,
            reason: Reason::Unknown,
            message: field("message").as_str().unwrap_or_default().to_owned(),
            details: serde_json::from_value(field("details")).ok().or_else(|| {
                let token = value.pointer("/metadata/continue")?.as_str()?.to_owned();
                Some(Box::new(Details { list_continue: token, ..Details::default() }))
            }),
        };
        if let Some(reason) = field("reason").as_str() {
            status.set_reason(reason);
        }
        Some(status)
    }
}
