//! The options of requests: ListOptions, CreateOptions and so on, read and checked as Kubernetes does.

use std::time::Duration;

use rimward_api::selector::{FieldSelector, LabelSelector};
use rimward_api::{Cause, CauseReason, FieldError, GroupKind, Reason, Status};
use rimward_control_kinds::Kind;
use rimward_control_schema::FieldValidation;
use rimward_control_store::Revision;
use serde_json::{Value, json};

use crate::record::Record;
use crate::request::Query;

mod delete;

pub use delete::{DeleteOptions, Propagation};

/// How `resourceVersion` of a list is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest state.
    Newest,
    /// Any state not older; a single server has the newest, so only the future matters.
    NotOlderThan(Revision),
    Exact(Revision),
}

/// `metav1.ListOptions`.
#[derive(Clone, Debug)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    pub at: At,
    /// The resourceVersion as a watch reads it: None is unset.
    pub since: Option<Revision>,
    /// 0 is no limit.
    pub limit: usize,
    pub after: Option<String>,
    pub timeout: Option<Duration>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

fn invalid(kind: &str, errors: &[FieldError]) -> Status {
    Status::invalid(&GroupKind { group: "meta.k8s.io".into(), kind: kind.into() }, "", errors)
}

impl ListOptions {
    pub fn parse(query: &Query, kind: &Kind, watch: bool) -> Result<Self, Status> {
        let labels = match query.get("labelSelector") {
            Some(text) => {
                LabelSelector::parse(text).map_err(|e| Status::bad_request(e.to_string()))?
            }
            None => LabelSelector::default(),
        };
        let mut fields = match query.get("fieldSelector") {
            Some(text) => {
                FieldSelector::parse(text).map_err(|e| Status::bad_request(e.to_string()))?
            }
            None => FieldSelector::default(),
        };
        for (field, _, _) in &fields.terms {
            let common = match field.as_str() {
                "metadata.name" => true,
                // What is of the cluster and built in has an empty one.
                "metadata.namespace" => kind.namespaced() || !kind.is_custom(),
                _ => false,
            };
            if !common && !kind.selectable_fields.contains(field) {
                let none = kind.selectable_fields.is_empty() && !kind.is_custom();
                return Err(Status::bad_request(match none {
                    true => format!(
                        "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    ),
                    false => format!("field label not supported: {field}"),
                }));
            }
        }
        // Records hold the fields of the form that they are kept in.
        if let Some(conversion) = &kind.conversion {
            for (field, ..) in &mut fields.terms {
                *field = conversion.stored_field(field);
            }
        }
        let version = query.get("resourceVersion").unwrap_or_default();
        let mode = query.get("resourceVersionMatch").unwrap_or_default();
        let token = query.get("continue").unwrap_or_default();
        let initial = query.flag("sendInitialEvents");
        check_match(version, mode, token, initial, watch)?;
        let since = match version {
            "" => None,
            text => Some(parse_revision(text)?),
        };
        let limit = match query.get("limit").unwrap_or_default() {
            "" => 0,
            // A limit below zero asks for everything, as kube-apiserver reads it.
            text => text.parse::<i64>().map_err(|_| bad_number("limit", text))?.max(0) as usize,
        };
        // Any state will do: kube-apiserver answers from its watch cache, which knows no pages. Events
        // are not in it.
        let cached = kind.resource != "events";
        let limit = if since == Some(0) && token.is_empty() && cached { 0 } else { limit };
        let mut at = match (since, mode) {
            (Some(r), "Exact") => At::Exact(r),
            // The legacy meaning of a version with a limit and without a match is the exact one.
            (Some(r), "") if r > 0 && limit > 0 => At::Exact(r),
            (Some(r), _) if r > 0 => At::NotOlderThan(r),
            _ => At::Newest,
        };
        let mut after = None;
        if !token.is_empty() && !watch {
            if since.is_some_and(|r| r > 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (revision, key) = decode_continue(token)?;
            at = revision.map_or(At::Newest, At::Exact);
            after = Some(key);
        }
        let timeout = match query.get("timeoutSeconds").unwrap_or_default() {
            "" => None,
            text => {
                let seconds: i64 = text.parse().map_err(|_| bad_number("timeoutSeconds", text))?;
                (seconds > 0).then(|| Duration::from_secs(seconds as u64))
            }
        };
        Ok(Self {
            labels,
            fields,
            at,
            since,
            limit,
            after,
            timeout,
            bookmarks: query.flag("allowWatchBookmarks") == Some(true),
            send_initial_events: initial,
        })
    }

    pub fn selects(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// Whether a record is selected; `key` is its store key behind the kind's prefix.
    pub fn matches(&self, record: &Record, key: &str) -> bool {
        if !self.labels.matches_by(|label| record.label(label)) {
            return false;
        }
        self.fields.matches(|field| match field {
            "metadata.name" => Some(key.rsplit('/').next().unwrap_or_default()),
            "metadata.namespace" => Some(key.rsplit_once('/').map_or("", |(ns, _)| ns)),
            other => record.field(other),
        })
    }
}

fn check_match(
    version: &str,
    mode: &str,
    token: &str,
    initial: Option<bool>,
    watch: bool,
) -> Result<(), Status> {
    let mut errors = Vec::new();
    let mut forbid = |field: &str, text: &str| errors.push(FieldError::forbidden(field, text));
    let known = matches!(mode, "Exact" | "NotOlderThan");
    if watch {
        if initial.is_some() && mode != "NotOlderThan" {
            forbid(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        if !mode.is_empty() && initial.is_none() {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if !mode.is_empty() && mode != "NotOlderThan" {
            errors.push(FieldError::not_supported(
                "resourceVersionMatch",
                &json!(mode),
                &["NotOlderThan"],
            ));
        }
        if !mode.is_empty() && !token.is_empty() {
            errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
    } else {
        if !mode.is_empty() && version.is_empty() {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        }
        if !mode.is_empty() && !token.is_empty() {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            );
        }
        if initial.is_some() {
            forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        if mode == "Exact" && version == "0" {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }
        if !mode.is_empty() && !known {
            errors.push(FieldError::not_supported(
                "resourceVersionMatch",
                &json!(mode),
                &["Exact", "NotOlderThan", ""],
            ));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(invalid("ListOptions", &errors)) }
}

fn bad_number(field: &str, text: &str) -> Status {
    Status::bad_request(format!(
        "strconv.ParseInt: parsing {text:?}: invalid syntax (query parameter {field})"
    ))
}

/// A resourceVersion that a client sent.
pub fn parse_revision(text: &str) -> Result<Revision, Status> {
    text.parse().map_err(|_| {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// The token that continues a list: the revision it reads at, and the last key that it gave.
pub fn encode_continue(revision: Revision, key: &str) -> String {
    use base64::Engine as _;
    let token = json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": format!("{key}\0") });
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token.to_string())
}

/// The token that goes on behind the same key, at the newest state.
pub fn inconsistent_continue(key: &str) -> String {
    use base64::Engine as _;
    let token = json!({ "v": "meta.k8s.io/v1", "rv": -1, "start": format!("{key}\0") });
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token.to_string())
}

fn decode_continue(token: &str) -> Result<(Option<Revision>, String), Status> {
    use base64::Engine as _;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let wrong = |why: String| {
        Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
    };
    // Go's decoder does not mind bits behind the last byte.
    let lenient = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone);
    let bytes = GeneralPurpose::new(&base64::alphabet::URL_SAFE, lenient).decode(token).map_err(
        |e| match e {
            base64::DecodeError::InvalidByte(at, _) => {
                wrong(format!("illegal base64 data at input byte {at}"))
            }
            _ => wrong("illegal base64 data".into()),
        },
    )?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| wrong(go_json_error(&bytes, &e)))?;
    if value["v"] != "meta.k8s.io/v1" {
        return Err(wrong("server does not recognize this encoded version".into()));
    }
    let start = value["start"].as_str().unwrap_or_default();
    if start.is_empty() {
        return Err(wrong("encoded start key empty (version meta.k8s.io/v1)".into()));
    }
    let revision = match value["rv"].as_i64() {
        // -1 continues at the newest state, an inconsistent list that a client may settle for.
        Some(-1) => None,
        Some(r) if r > 0 => Some(r as Revision),
        _ => {
            return Err(wrong(
                "incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into(),
            ));
        }
    };
    Ok((revision, start.trim_end_matches('\0').to_owned()))
}

/// How Go's scanner words the first thing that is not JSON.
fn go_json_error(bytes: &[u8], error: &serde_json::Error) -> String {
    let first = bytes.iter().copied().find(|b| !b.is_ascii_whitespace());
    match first {
        None => "unexpected end of JSON input".into(),
        Some(b) if !matches!(b, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
            let shown = match b {
                0x20..=0x7e => (b as char).to_string(),
                _ => format!("\\u{b:04x}"),
            };
            format!("invalid character '{shown}' looking for beginning of value")
        }
        Some(_) => error.to_string(),
    }
}

/// What create, update and patch share.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub manager: String,
    /// `fieldManager` and `fieldValidation` as they were sent: what admission is shown.
    pub sent: (String, String),
    pub validation: FieldValidation,
    pub force: bool,
}

impl WriteOptions {
    /// `kind` is the options' own: CreateOptions, UpdateOptions, PatchOptions.
    pub fn parse(query: &Query, kind: &str, agent: &str, apply: bool) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let manager = query.get("fieldManager").unwrap_or_default();
        if apply && manager.is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        if manager.len() > 128 {
            errors.push(FieldError::too_long("fieldManager", 128));
        }
        if manager.chars().any(char::is_control) {
            errors.push(FieldError::invalid(
                "fieldManager",
                &json!(manager),
                "should only contain printable characters",
            ));
        }
        let force = query.flag("force");
        if force.is_some() && !apply && kind == "PatchOptions" {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        let text = query.get("fieldValidation").unwrap_or_default();
        let validation = FieldValidation::parse(text).unwrap_or_else(|| {
            errors.push(FieldError::not_supported(
                "fieldValidation",
                &json!(text),
                &["Ignore", "Strict", "Warn", ""],
            ));
            FieldValidation::Warn
        });
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        if !errors.is_empty() {
            return Err(invalid(kind, &errors));
        }
        let sent = (manager.to_owned(), text.to_owned());
        let manager = if manager.is_empty() { agent } else { manager };
        let manager = if manager.is_empty() { "unknown" } else { manager };
        Ok(Self {
            dry_run,
            manager: manager.to_owned(),
            sent,
            validation,
            force: force == Some(true),
        })
    }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<FieldError>) -> bool {
    let mut all = false;
    for value in values.filter(|v| !v.is_empty()) {
        match value {
            "All" => all = true,
            other => errors.push(FieldError::not_supported("dryRun", &json!(other), &["All"])),
        }
    }
    all
}

/// A revision that has not happened yet.
pub fn too_large(asked: Revision, newest: Revision) -> Status {
    let mut status = Status::new(
        504,
        Reason::Timeout,
        format!("Timeout: Too large resource version: {asked}, current: {newest}"),
    )
    .with_causes(vec![Cause {
        reason: CauseReason::ResourceVersionTooLarge,
        message: "Too large resource version".into(),
        field: String::new(),
    }]);
    status.details.get_or_insert_default().retry_after_seconds = 1;
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens() {
        let token = encode_continue(7, "default/x");
        assert_eq!(decode_continue(&token).expect("reads"), (Some(7), "default/x".into()));
        #[track_caller]
        fn check(token: &str, expected: &str) {
            let message = decode_continue(token).expect_err("is refused").message;
            assert_eq!(
                message,
                format!("invalid continue token: continue key is not valid: {expected}")
            );
        }
        check("garbage", "invalid character '\\u0081' looking for beginning of value");
        check("a b", "illegal base64 data at input byte 1");
        check("e30", "server does not recognize this encoded version");
    }
}
