//! Hands a request to an extension API server: the same path, the user in headers that it believes
//! because our client certificate says who speaks.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/#authentication-flow>

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use rimward_api::{Status, UserInfo};

use super::ApiService;
use crate::body::{self, Response};
use crate::error;
use crate::forward::{self, is_forwarded};
use crate::outbound::{CallError, Destination};
use crate::request::Call;
use crate::server::Inner;

/// How long an answer may take to begin, watches and the like aside.
const ANSWER_MAX: Duration = Duration::from_secs(60);
const REDIRECTED: &str = "the backend attempted to redirect this request, which is not permitted";

/// Answers with what the extension API server answers.
pub async fn forward(server: &Arc<Inner>, call: &mut Call, service: &ApiService) -> Response {
    let destination = match &service.destination {
        Some(Ok(destination)) if service.available => destination,
        _ => return error::text(503, "service unavailable\n"),
    };
    let upgrade = call.upgrade.lock().take();
    let request = match request(call, destination, upgrade.is_some()) {
        Ok(request) => request,
        Err(e) => return unreachable(&e),
    };
    let long = call.attributes.is_long() || upgrade.is_some();
    let sent = server.outbound.send(destination, request);
    let answered = match long {
        true => sent.await,
        false => match tokio::time::timeout(ANSWER_MAX, sent).await {
            Ok(answered) => answered,
            Err(_) => return error::respond(&timed_out()),
        },
    };
    match answered {
        Ok(response) => answer(server, response, upgrade),
        Err(e) => unreachable(&e),
    }
}

fn unreachable(why: &CallError) -> Response {
    tracing::debug!(error = %why, "an extension API server was not reached");
    let why = match why {
        CallError::Transport { why, .. } => why.clone(),
        other => other.to_string(),
    };
    error::text(503, format!("error trying to reach service: {why}\n"))
}

fn timed_out() -> Status {
    Status::new(
        504,
        rimward_api::Reason::Timeout,
        "Timeout: request did not complete within the allotted timeout",
    )
}

fn request(
    call: &mut Call,
    destination: &Destination,
    upgrade: bool,
) -> Result<Request<body::BoxBody>, CallError> {
    let query = call.query.encoded();
    let path = match query.as_str() {
        "" => call.attributes.path.clone(),
        query => format!("{}?{query}", call.attributes.path),
    };
    let mut request = Request::new(std::mem::replace(call.body.get_mut(), body::empty()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = destination.with_path(&path)?;
    let headers = request.headers_mut();
    for (name, value) in &call.headers {
        if is_forwarded(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = call.headers.get(header::UPGRADE) {
            headers.insert(header::UPGRADE, protocol.clone());
        }
    }
    identify(headers, &call.user);
    Ok(request)
}

/// Who asks, as the request-header authentication of API servers reads it.
fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let mut add = |name: &str, value: &str| {
        let pair = (HeaderName::try_from(name), HeaderValue::from_str(value));
        if let (Ok(name), Ok(value)) = pair {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        values.iter().for_each(|value| add(&name, value));
    }
}

/// A key as part of a header's name: what a name may not hold is percent-encoded.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        match plain {
            true => out.push(byte as char),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn answer(
    server: &Arc<Inner>,
    response: http::Response<Incoming>,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
) -> Response {
    let status = response.status();
    if status.is_redirection() && response.headers().contains_key(header::LOCATION) {
        return error::text(502, REDIRECTED);
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return match upgrade {
            Some(client) => forward::join(server, response, client),
            None => error::text(502, "the backend changed protocols without being asked to\n"),
        };
    }
    let (parts, incoming) = response.into_parts();
    let mut out = http::Response::new(body::stream(forward::chunks(server, incoming)));
    *out.status_mut() = status;
    for (name, value) in parts.headers.iter().filter(|(name, _)| is_forwarded(name)) {
        out.headers_mut().append(name.clone(), value.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks() {
        let mut user = UserInfo::authenticated("ann", &["g"]);
        user.extra.insert("example.com/Key x".into(), vec!["1".into(), "2".into()]);
        let mut headers = HeaderMap::new();
        identify(&mut headers, &user);
        let all = |name: &str| -> Vec<&str> {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect()
        };
        assert_eq!(all("x-remote-user"), ["ann"]);
        assert_eq!(all("x-remote-group"), ["g", "system:authenticated"]);
        assert_eq!(escaped("example.com/Key x"), "example.com%2FKey%20x");
    }
}
