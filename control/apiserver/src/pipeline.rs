//! The one way of a request, whoever sends it.
//!
//! The steps stand in [`run`] in their order: authentication, audit, impersonation, flow control,
//! authorization, then (in [`crate::rest`]) admission and storage. In-process clients come the same
//! way; only their identity is given instead of proved.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use jiff::Timestamp;
use rimward_api::{Status, UserInfo};

use crate::audit::{self, Arrival, Trail};
use crate::authn::{self, Peer, impersonation};
use crate::body::{self, BoxBody, Response};
use crate::deadline;
use crate::error;
use crate::flow;
use crate::pretty;
use crate::request::{Attributes, Call, Query};
use crate::rest;
use crate::server::Inner;

/// Answers a request.
pub async fn handle(server: &Arc<Inner>, request: Request<BoxBody>, peer: &Peer) -> Response {
    let began = Instant::now();
    let mut request = request;
    let upgrade = request
        .headers()
        .contains_key(http::header::UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query());
    let attributes = Attributes::parse(&parts.method, parts.uri.path(), &query);
    let source = parts.extensions.get::<audit::Source>().map(|s| s.0);
    let audit_id = audit_id(&parts.headers);
    let arrival = server.config.audit.is_some().then(|| Arrival {
        id: audit_id.to_str().unwrap_or_default().to_owned(),
        uri: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        source,
        received: Timestamp::now(),
    });
    let mut call = Call {
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        source,
        query,
        attributes,
        user: UserInfo::default(),
        deadline: None,
        served: None,
        // Only from within this process: nothing that comes over a socket has extensions of its own.
        lean: parts.extensions.get::<rimward_client::OmitManagedFields>().is_some(),
        body: parking_lot::Mutex::new(body),
        upgrade: parking_lot::Mutex::new(upgrade),
        warnings: Vec::new(),
    };
    let _running = (!call.attributes.is_long()).then(|| server.metrics.running(&call.attributes));
    let (mut trail, mut ids) = (None, None);
    let mut response =
        match run(server, &mut call, peer, arrival.as_ref(), &mut trail, &mut ids).await {
            Ok(response) => response,
            Err(status) => error::respond_to(&call, &status),
        };
    if call.attributes.is_long() && response.status().is_success() {
        response = body::keep_until_sent(response, Some(server.metrics.lasting(&call)), None);
    }
    warn(&mut response, &call.warnings);
    if let Some(ids) = ids {
        ids.tell(&mut response);
    }
    let (code, took) = (response.status().as_u16(), began.elapsed());
    if call.served.is_none()
        && let Some(resource) = &call.attributes.resource
    {
        call.served = server.registry().get(&resource.gvr()).cloned();
    }
    let bytes = http_body::Body::size_hint(response.body()).exact();
    server.metrics.answered(&call, code, took, bytes);
    tracing::debug!(
        user = %call.user.name, verb = %call.attributes.verb, path = %call.attributes.path, code, ?took, "answered"
    );
    if !call.attributes.is_long() && pretty::wanted(&call) {
        response = pretty::pretty(response).await;
    }
    if let Some(trail) = trail {
        response = trail.answered(response, call.attributes.is_long()).await;
    }
    if call.method == http::Method::HEAD {
        *response.body_mut() = crate::body::empty();
    }
    let headers = response.headers_mut();
    headers.insert(AUDIT_ID, audit_id);
    // What is there is the answer of a path that may be kept.
    headers.entry(http::header::CACHE_CONTROL).or_insert(NOT_KEPT);
    response
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const NOT_KEPT: HeaderValue = HeaderValue::from_static("no-cache, private");

/// By which a request is found again: in the answer, and in the audit log. A client may bring its own.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    if let Some(given) = headers.get(AUDIT_ID).filter(|id| !id.is_empty() && id.to_str().is_ok()) {
        return given.clone();
    }
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string();
    HeaderValue::try_from(id).expect("hexadecimal digits and dashes")
}

async fn run(
    server: &Arc<Inner>,
    call: &mut Call,
    peer: &Peer,
    arrival: Option<&Arrival>,
    trail: &mut Option<Trail>,
    ids: &mut Option<flow::Ids>,
) -> Result<Response, Status> {
    // How long: reads are given up at the deadline; of writes, the reading of their body, since what
    // is on its way into the store is not called back.
    if !call.attributes.is_long() {
        call.deadline = Some(deadline::of(&call.query, tokio::time::Instant::now())?);
    }
    // Authentication: who asks.
    let path = &call.attributes.path;
    let authenticated = authn::authenticate(server, peer, &call.headers, path, false).await;
    let authenticated = authenticated.map(|user| call.user = user);
    // Audit: what is told of it; also of those who could not say who they are.
    if let (Some(auditor), Some(arrival)) = (&server.config.audit, arrival) {
        *trail = auditor.begin(arrival, &call.user, &call.attributes, &call.headers);
        if let Some(trail) = trail.as_mut().filter(|t| t.wants_request()) {
            let body = rest::take_body(call).await?;
            trail.request(&body);
            *call.body.get_mut() = crate::body::full(body);
        }
    }
    authenticated?;
    // Impersonation: as whom.
    let (asker, asked) = (&call.user, &call.attributes);
    if let Some(acting) = impersonation::impersonated(&server.rbac, asker, asked, &call.headers)? {
        if let Some(trail) = trail {
            trail.acts_as(&acting.user, acting.constraint.as_deref());
        }
        call.user = acting.user;
    }
    // Flow control: when.
    let (told, seat) = server.flow.enter(&call.user, &call.attributes, &call.query).await;
    *ids = told;
    let seat = seat?;
    // Authorization: whether.
    if let Some(trail) = trail {
        tell_decision(server, call, trail);
    }
    if !always_allowed(&call.attributes) {
        server.rbac.authorize(&call.user, &call.attributes)?;
    }
    // Admission and storage.
    let deadline = call.deadline;
    let response = match (deadline.filter(|_| call.attributes.is_read()), trail) {
        (Some(deadline), _) => tokio::time::timeout_at(deadline, rest::serve(server, call))
            .await
            .unwrap_or_else(|_| Err(deadline::exceeded()))?,
        (None, Some(trail)) => trail.noting(rest::serve(server, call)).await?,
        (None, None) => rest::serve(server, call).await?,
    };
    // A list keeps its seat while it is sent, but a client that does not read it only for so long.
    let seat = seat.filter(|_| !call.attributes.is_long());
    Ok(body::keep_until_sent(response, seat, deadline))
}

fn tell_decision(server: &Inner, call: &Call, trail: &mut Trail) {
    let (decision, reason) = match server.rbac.reason(&call.user, &call.attributes) {
        Some(reason) => ("allow", reason),
        None if always_allowed(&call.attributes) => ("allow", String::new()),
        None => ("forbid", String::new()),
    };
    trail.annotate("authorization.k8s.io/decision", decision);
    trail.annotate("authorization.k8s.io/reason", reason);
}

/// Probes must not depend on roles.
fn always_allowed(asked: &Attributes) -> bool {
    asked.resource.is_none() && matches!(asked.path.as_str(), "/livez" | "/readyz" | "/healthz")
}

/// Characters of all warnings beyond which each is cut, and to how many.
const WARNINGS_CHARS_MAX: usize = 4096;
const WARNING_CHARS_MAX: usize = 256;

/// What of the warnings is told: each once, and when they are many, of each the beginning, as long as
/// there is room.
fn told(warnings: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let clean = |text: &String| -> String { text.chars().filter(|c| !c.is_control()).collect() };
    let mut all: Vec<String> = warnings.iter().map(clean).collect();
    all.retain(|text| !text.is_empty() && seen.insert(text.clone()));
    let length = |text: &String| text.chars().count();
    if all.iter().map(length).sum::<usize>() <= WARNINGS_CHARS_MAX {
        return all;
    }
    let cut = |text: String| text.chars().take(WARNING_CHARS_MAX).collect::<String>();
    let mut room = WARNINGS_CHARS_MAX;
    let fits = |text: &String| {
        let rest = room.checked_sub(length(text));
        room = rest.unwrap_or(room);
        rest.is_some()
    };
    all.into_iter().map(cut).filter(fits).collect()
}

/// `Warning: 299 - "text"`, as kubectl shows.
fn warn(response: &mut Response, warnings: &[String]) {
    for clean in told(warnings) {
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_have_room() {
        let texts = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(told(&texts(&["a", "b\n", "a", ""])), ["a", "b"]);
        let long = |c: char| c.to_string().repeat(3000);
        assert_eq!(told(&[long('a')]), [long('a')]);
        let cut: Vec<usize> = told(&[long('a'), long('b')]).iter().map(String::len).collect();
        assert_eq!(cut, [256, 256]);
        let many: Vec<String> = (0..1000).map(|i| format!("{i}{}", long('x'))).collect();
        assert_eq!(told(&many).len(), 16);
    }
}
