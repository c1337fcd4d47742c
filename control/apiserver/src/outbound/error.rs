//! Why a call failed, in the words of Kubernetes' client, which users search for.

use http::{HeaderMap, Method, Uri};
use rimward_api::Status;
use serde_json::Value;

/// Text of an error answer that is repeated, bytes.
const SHOWN_MAX: usize = 2048;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The destination is not one.
    #[error("{0}")]
    Config(String),
    /// Nothing was answered: `Post "https://…": why`.
    #[error("{method} \"{url}\": {why}")]
    Transport { method: &'static str, url: String, why: String },
    /// The answer is an error.
    #[error("{message}")]
    Answered { code: u16, message: String },
    /// The answer is not what was asked for.
    #[error("{0}")]
    Undecodable(String),
    #[error("the response is larger than {max} bytes")]
    TooLarge { max: usize },
}

/// A connection could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotConnected(pub String);

pub(super) fn method_word(method: &Method) -> &'static str {
    match *method {
        Method::POST => "Post",
        Method::PUT => "Put",
        Method::PATCH => "Patch",
        Method::DELETE => "Delete",
        Method::HEAD => "Head",
        _ => "Get",
    }
}

impl CallError {
    /// Whether the destination took too long.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Transport { why, .. } if why == DEADLINE)
    }

    pub(super) fn deadline(method: &'static str, uri: &Uri) -> Self {
        Self::Transport { method, url: uri.to_string(), why: DEADLINE.into() }
    }

    pub(super) fn transport(
        method: &'static str,
        uri: &Uri,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        Self::Transport { method, url: uri.to_string(), why: reason(error) }
    }

    pub(super) fn undecodable(bytes: &[u8], why: &str) -> Self {
        match bytes.iter().all(u8::is_ascii_whitespace) {
            true => Self::Undecodable(
                "0-length response with status code: 200 and content type: ".into(),
            ),
            false => {
                Self::Undecodable(format!("couldn't get version/kind; json parse error: {why}"))
            }
        }
    }

    pub(super) fn answered(code: u16, headers: &HeaderMap, bytes: &[u8]) -> Self {
        // A Status says why itself.
        if let Some(status) =
            serde_json::from_slice::<Value>(bytes).ok().as_ref().and_then(Status::from_value)
            && !status.message.is_empty()
        {
            return Self::Answered { code, message: status.message };
        }
        let kind = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let is_text = kind.is_none_or(|k| k.starts_with("text/"));
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_MAX)]);
        let said = if is_text { shown.trim() } else { "unknown" };
        Self::Answered { code, message: generic(code, said) }
    }
}

const DEADLINE: &str = "context deadline exceeded";

/// The deepest cause that a user can act on.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = Some(error);
    let mut last = String::new();
    while let Some(e) = at {
        if let Some(found) = e.downcast_ref::<NotConnected>() {
            return found.0.clone();
        }
        if e.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message) {
            return "EOF".into();
        }
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            match io.kind() {
                std::io::ErrorKind::UnexpectedEof => return "EOF".into(),
                std::io::ErrorKind::ConnectionReset => {
                    return "read: connection reset by peer".into();
                }
                _ => {}
            }
        }
        last = e.to_string();
        at = e.source();
    }
    last
}

fn generic(code: u16, said: &str) -> String {
    match code {
        400 => "the server rejected our request for an unknown reason".into(),
        401 => "the server has asked for the client to provide credentials".into(),
        403 => if said.is_empty() { "forbidden" } else { said }.into(),
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        409 => "the server reported a conflict".into(),
        410 => "the server indicates that the requested resource is gone".into(),
        422 => "the server rejected our request due to an error in our request".into(),
        429 => "the server has received too many requests and has asked us to try again later".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".into(),
        500.. => format!("an error on the server ({said:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {code} but did not return more information"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        #[track_caller]
        fn check(code: u16, body: &str, expected: &str) {
            let error = CallError::answered(code, &HeaderMap::new(), body.as_bytes());
            assert_eq!(error.to_string(), expected);
        }
        check(404, "", "the server could not find the requested resource");
        check(
            500,
            "boom\n",
            r#"an error on the server ("boom") has prevented the request from succeeding"#,
        );
        check(
            302,
            "",
            "the server responded with the status code 302 but did not return more information",
        );
        check(403, r#"{"kind":"Status","apiVersion":"v1","message":"no","code":403}"#, "no");
    }
}
