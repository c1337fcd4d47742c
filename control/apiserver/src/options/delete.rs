//! `metav1.DeleteOptions`, of a body or of the query.

use rimward_api::{FieldError, Status};
use serde_json::{Value, json};

use super::{bad_number, dry_run, invalid};
use crate::request::Query;

/// `propagationPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub revision: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Of a body, or of the query where there is none: with a body, Kubernetes does not look at the
    /// query at all.
    pub fn parse(query: &Query, body: &[u8]) -> Result<Self, Status> {
        let none = Query::default();
        let (sent, query): (Value, &Query) = match body.iter().all(u8::is_ascii_whitespace) {
            true => (Value::Null, query),
            false => {
                let sent = serde_json::from_slice(body).map_err(|e| {
                    Status::bad_request(format!("the body is not DeleteOptions: {e}"))
                })?;
                (sent, &none)
            }
        };
        if let Some(kind) = sent.get("kind").and_then(Value::as_str)
            && kind != "DeleteOptions"
        {
            return Err(Status::bad_request(format!(
                "decoded object cannot be converted to DeleteOptions: it is a {kind}"
            )));
        }
        let mut errors = Vec::new();
        let text = |name: &str| match sent.get(name).and_then(Value::as_str) {
            Some(text) => Some(text.to_owned()),
            None => query.get(name).filter(|t| !t.is_empty()).map(str::to_owned),
        };
        let grace_seconds = match sent.get("gracePeriodSeconds").filter(|v| !v.is_null()) {
            Some(value) => Some(value.as_i64().ok_or_else(|| {
                Status::bad_request(format!(
                    "gracePeriodSeconds is not a number of seconds: {value}"
                ))
            })?),
            None => match query.get("gracePeriodSeconds").unwrap_or_default() {
                "" => None,
                text => Some(text.parse().map_err(|_| bad_number("gracePeriodSeconds", text))?),
            },
        };
        let orphan = sent
            .get("orphanDependents")
            .and_then(Value::as_bool)
            .or_else(|| query.flag("orphanDependents"));
        let policy = text("propagationPolicy");
        if orphan.is_some() && policy.is_some() {
            errors.push(FieldError::invalid(
                "propagationPolicy",
                &json!(policy),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        let propagation = match (policy.as_deref(), orphan) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some(other), _) => {
                errors.push(FieldError::not_supported(
                    "propagationPolicy",
                    &json!(other),
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
            (None, None) => None,
        };
        let listed = sent.get("dryRun").and_then(Value::as_array).into_iter().flatten();
        let values = listed.filter_map(Value::as_str).chain(query.all("dryRun"));
        let dry_run = dry_run(values, &mut errors);
        if !errors.is_empty() {
            return Err(invalid("DeleteOptions", &errors));
        }
        let precondition = |name: &str| {
            sent.pointer(&format!("/preconditions/{name}"))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        Ok(Self {
            grace_seconds: grace_seconds.map(|s| if s < 0 { 1 } else { s }),
            propagation,
            uid: precondition("uid"),
            revision: precondition("resourceVersion"),
            dry_run,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_options() {
        #[track_caller]
        fn check(query: &str, body: &str, expected: (Option<i64>, Option<Propagation>, bool)) {
            let o =
                DeleteOptions::parse(&Query::parse(Some(query)), body.as_bytes()).expect("reads");
            assert_eq!((o.grace_seconds, o.propagation, o.dry_run), expected, "{query} {body}");
        }
        check("", "", (None, None, false));
        check(
            "gracePeriodSeconds=0&propagationPolicy=Foreground",
            "",
            (Some(0), Some(Propagation::Foreground), false),
        );
        check(
            "",
            r#"{"gracePeriodSeconds":5,"dryRun":["All"],"orphanDependents":true}"#,
            (Some(5), Some(Propagation::Orphan), true),
        );
        check("dryRun=All&gracePeriodSeconds=7", "{}", (None, None, false));
        assert!(DeleteOptions::parse(&Query::parse(Some("propagationPolicy=x")), b"").is_err());
        assert!(DeleteOptions::parse(&Query::default(), b"[").is_err());
    }
}
