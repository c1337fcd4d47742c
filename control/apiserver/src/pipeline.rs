//! The one way of a request, whoever sends it.
//!
//! The steps stand in [`run`] in their order: authentication, audit, impersonation, flow control,
//! authorization, then (in [`crate::rest`]) admission and storage. In-process clients come the same
//! way; only their identity is given instead of proved.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Request};
use rimward_api::{Status, UserInfo};

use crate::audit;
use crate::authn::{self, Peer, impersonation};
use crate::body::{self, BoxBody, Response};
use crate::deadline;
use crate::error;
use crate::flow;
use crate::request::{Attributes, Call, Query};
use crate::rest;
use crate::server::Inner;

/// Answers a request.
pub async fn handle(server: &Arc<Inner>, request: Request<BoxBody>, peer: &Peer) -> Response {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query());
    let attributes = Attributes::parse(&parts.method, parts.uri.path(), &query);
    let mut call = Call {
        method: parts.method,
        headers: parts.headers,
        query,
        attributes,
        user: UserInfo::default(),
        deadline: None,
        body: parking_lot::Mutex::new(body),
        warnings: Vec::new(),
    };
    let _running = (!call.attributes.is_long()).then(|| server.metrics.running(&call.attributes));
    let (mut original, mut ids) = (None, None);
    let mut response = match run(server, &mut call, peer, &mut original, &mut ids).await {
        Ok(response) => response,
        Err(status) => error::respond_to(&call, &status),
    };
    if call.attributes.is_long() && response.status().is_success() {
        response = body::keep_until_sent(response, Some(server.metrics.lasting(&call.attributes)));
    }
    warn(&mut response, &call.warnings);
    if let Some(ids) = ids {
        ids.tell(&mut response);
    }
    let (code, took) = (response.status().as_u16(), began.elapsed());
    let known =
        call.attributes.resource.as_ref().is_some_and(|r| server.registry.get(&r.gvr()).is_some());
    server.metrics.answered(&call.attributes, known, code, took);
    tracing::debug!(
        user = %call.user.name, verb = %call.attributes.verb, path = %call.attributes.path, code, ?took, "answered"
    );
    if let Some(audit) = &server.config.audit {
        let acts_as = original.as_ref().map(|_| &call.user);
        audit.answered(&audit::Event {
            user: original.as_ref().unwrap_or(&call.user),
            acts_as,
            attributes: &call.attributes,
            user_agent: call.header("user-agent"),
            code,
            took,
        });
    }
    if call.method == http::Method::HEAD {
        *response.body_mut() = crate::body::empty();
    }
    response
}

async fn run(
    server: &Arc<Inner>,
    call: &mut Call,
    peer: &Peer,
    original: &mut Option<UserInfo>,
    ids: &mut Option<flow::Ids>,
) -> Result<Response, Status> {
    // How long: reads are given up at the deadline; of writes, the reading of their body, since what
    // is on its way into the store is not called back.
    if !call.attributes.is_long() {
        call.deadline = Some(deadline::of(&call.query, tokio::time::Instant::now())?);
    }
    // Authentication: who asks. (Audit hears of the outcome, in `handle`.)
    call.user = authn::authenticate(server, peer, &call.headers, false).await?;
    // Impersonation: as whom.
    if let Some(acts_as) = impersonation::impersonated(&server.rbac, &call.user, &call.headers)? {
        *original = Some(std::mem::replace(&mut call.user, acts_as));
    }
    // Flow control: when.
    let (told, seat) = server.flow.enter(&call.user, &call.attributes, &call.query).await;
    *ids = told;
    let seat = seat?;
    // Authorization: whether.
    if !always_allowed(&call.attributes) {
        server.rbac.authorize(&call.user, &call.attributes)?;
    }
    // Admission and storage.
    let response = match call.deadline.filter(|_| call.attributes.is_read()) {
        Some(deadline) => tokio::time::timeout_at(deadline, rest::serve(server, call))
            .await
            .unwrap_or_else(|_| Err(deadline::exceeded()))?,
        None => rest::serve(server, call).await?,
    };
    Ok(body::keep_until_sent(response, seat.filter(|_| !call.attributes.is_long())))
}

/// Probes must not depend on roles.
fn always_allowed(asked: &Attributes) -> bool {
    asked.resource.is_none() && matches!(asked.path.as_str(), "/livez" | "/readyz" | "/healthz")
}

/// `Warning: 299 - "text"`, as kubectl shows.
fn warn(response: &mut Response, warnings: &[String]) {
    for text in warnings {
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}
