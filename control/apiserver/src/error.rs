//! Where the store's errors become Statuses, and Statuses answers.

use rimward_api::{Reason, Status, status::Details};
use rimward_control_store::{CommitError, Error};

use crate::body::{self, Response};
use crate::negotiate::{self, Offer};
use crate::options::too_large;
use crate::request::Call;
use crate::views;

pub fn store(error: Error) -> Status {
    match error {
        Error::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        Error::Future { asked, newest } => too_large(asked, newest),
        Error::Closed => Status::unavailable("the server is shutting down"),
        other => {
            tracing::error!(error = %other, "the store failed");
            Status::internal(other)
        }
    }
}

/// A commit that failed for another reason than a conflict.
pub fn commit(error: CommitError) -> Status {
    match error {
        CommitError::Conflict { .. } => Status::internal("a conflict that no one expected"),
        CommitError::TooLarge { what } => {
            Status::new(413, Reason::RequestEntityTooLarge, format!("Request is too large: {what}"))
        }
        CommitError::Invalid { what } => Status::internal(what),
        CommitError::Store(e) => store(e),
    }
}

pub fn damaged(key: &str) -> impl FnOnce(crate::record::Damaged) -> Status {
    move |e| {
        tracing::error!(key, error = %e, "a stored record cannot be read");
        Status::internal(format!("{key}: {e}"))
    }
}

/// The path names no resource of a group that is served.
pub fn no_such_resource() -> Status {
    Status {
        code: 404,
        reason: Reason::NotFound,
        message: "the server could not find the requested resource".into(),
        details: Some(Box::new(Details::default())),
    }
}

pub fn method_not_allowed() -> Status {
    Status {
        code: 405,
        reason: Reason::MethodNotAllowed,
        message: "the server does not allow this method on the requested resource".into(),
        details: Some(Box::new(Details::default())),
    }
}

pub fn unsupported_media() -> Status {
    Status {
        code: 415,
        reason: Reason::UnsupportedMediaType,
        message: "415: Unsupported Media Type".into(),
        details: Some(Box::new(Details::default())),
    }
}

/// A patch of a kind that custom resources do not take.
pub fn no_strategic_merge() -> Status {
    let accepted =
        "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    );
    Status {
        code: 415,
        reason: Reason::UnsupportedMediaType,
        message,
        details: Some(Box::new(Details::default())),
    }
}

/// No more objects of a kind whose definition is going.
pub fn terminating(served: &crate::served::Served) -> Status {
    let resource = served.group_resource();
    let message = format!("create is not supported on resources of kind \"{resource}\"");
    let details = Details { group: resource.group, kind: resource.resource, ..Details::default() };
    Status {
        code: 405,
        reason: Reason::MethodNotAllowed,
        message,
        details: Some(Box::new(details)),
    }
}

/// The answer that carries a Status, as JSON.
pub fn respond(status: &Status) -> Response {
    with_retry(status, json(status.code, status.to_value().to_string()))
}

/// The answer that carries a Status, in the encoding that the client prefers.
pub fn respond_to(call: &Call, status: &Status) -> Response {
    match negotiate::form(&call.headers, Offer::OWN) {
        Ok(form) if form != negotiate::PLAIN => {
            with_retry(status, views::encoded(call, status.code, form, &status.to_value()))
        }
        _ => respond(status),
    }
}

fn with_retry(status: &Status, mut response: Response) -> Response {
    let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if seconds > 0 {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}

pub fn json(code: u16, text: impl Into<bytes::Bytes>) -> Response {
    typed(code, "application/json", text)
}

pub fn text(code: u16, text: impl Into<bytes::Bytes>) -> Response {
    typed(code, "text/plain; charset=utf-8", text)
}

pub fn typed(code: u16, content_type: &'static str, bytes: impl Into<bytes::Bytes>) -> Response {
    let mut response = http::Response::new(body::full(bytes));
    *response.status_mut() = http::StatusCode::from_u16(code).expect("our codes are HTTP codes");
    let value = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    response
}

/// What Kubernetes answers to a path that nothing serves.
pub fn page_not_found() -> Response {
    text(404, "404 page not found\n")
}
