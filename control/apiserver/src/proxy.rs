//! The proxy subresources of pods, Services and nodes: HTTP through the node's tunnel.
//! <https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/#manually-constructing-apiserver-proxy-urls>
//!
//! A request goes to the backend as it came, below the proxy's own path and without what is between
//! the client and this server. In its answer, what refers to the backend's root refers to the proxy
//! afterwards: redirects, and links in HTML. Bodies stream both ways; a connection that the backend
//! upgrades is joined with the client's.

mod html;
mod location;
mod rewrite;

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rimward_api::{ObjectKey, Status};
use serde_json::Value;

use crate::body::{self, BoxBody, Response};
use crate::forward;
use crate::nodes::Duplex;
use crate::outbound::{self, Missing};
use crate::request::Call;
use crate::rest::{find, on_node};
use crate::served::Served;
use crate::server::Inner;
use crate::streams::is_upgrade;
use location::{Id, Place};

/// The port that a node's own API has for clients that name one.
const NODE_PORT: &str = "10250";
/// What a backend may not say to browsers of this server.
const CORS: [header::HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// A backend that was dialled.
struct Backend {
    io: Box<dyn Duplex>,
    /// `address:port`, as it would stand in a URL.
    authority: String,
}

/// A pod: `name`, `name:port` or `scheme:name:port`.
pub async fn pod(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Served,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let id = Id::parse("pod", &key.name)?;
    let place = Place::of(call, true);
    if let Some(redirect) = to_root(call, &place) {
        return Ok(redirect);
    }
    let key = ObjectKey::new(key.namespace.clone(), id.name.to_owned());
    let stored = find(server, served, &key).await?;
    let pod = server.value(served, &stored)?;
    let port = match id.port {
        "" => first_port(&pod).unwrap_or(if id.https { 443 } else { 80 }),
        port => number(port)?,
    };
    let ip = pod.pointer("/status/podIPs/0/ip").and_then(Value::as_str).unwrap_or_default();
    let ip: IpAddr = ip.parse().ok().filter(is_global).ok_or_else(not_allowed)?;
    let node = on_node::place(&pod, stored.record.uid(), &key)?.node;
    let authority = std::net::SocketAddr::new(ip, port).to_string();
    let dialled = on_node::nodes(server)?.dial(&node, ip, port).await;
    let io = dialled.map_err(|cause| unreachable(&authority, &cause.to_string()))?;
    exchange(server, call, &place, secured(Backend { io, authority }, id.https).await?).await
}

/// A Service: `name`, `name:port` or `scheme:name:port`, the port by name or number.
pub async fn service(
    server: &Arc<Inner>,
    call: &mut Call,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let id = Id::parse("service", &key.name)?;
    let place = Place::of(call, true);
    if let Some(redirect) = to_root(call, &place) {
        return Ok(redirect);
    }
    let reach = server.outbound.reach();
    let endpoint = reach.pod_behind(&key.namespace, id.name, id.port).await;
    let (node, ip, port) = endpoint.map_err(|missing| match missing {
        Missing::Service => {
            let services = rimward_api::GroupResource::new("", "services");
            Status::not_found(&services, id.name)
        }
        Missing::Port => Status::unavailable(format!(
            "no service port {} found for service {:?}",
            id.port, id.name
        )),
        Missing::Endpoints(_) => {
            Status::unavailable(format!("no endpoints available for service {:?}", key.name))
        }
        Missing::Other(why) => Status::unavailable(why),
    })?;
    let authority = std::net::SocketAddr::new(ip, port).to_string();
    let dialled = on_node::nodes(server)?.dial(&node, ip, port).await;
    let io = dialled.map_err(|cause| unreachable(&authority, &cause.to_string()))?;
    exchange(server, call, &place, secured(Backend { io, authority }, id.https).await?).await
}

/// A node's own API.
pub async fn node(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Served,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let id = Id::parse("node", &key.name)?;
    if !matches!(id.port, "" | NODE_PORT) {
        return Err(Status::bad_request(format!(
            "node {:?} is reached through its tunnel, at port {NODE_PORT} only, not {:?}",
            id.name, id.port
        )));
    }
    let place = Place::of(call, false);
    if let Some(redirect) = to_root(call, &place) {
        return Ok(redirect);
    }
    find(server, served, &ObjectKey::new("", id.name.to_owned())).await?;
    let dialled = on_node::nodes(server)?.api(id.name).await;
    let io = dialled.map_err(on_node::node_status)?;
    exchange(server, call, &place, Backend { io, authority: format!("{}:{NODE_PORT}", id.name) })
        .await
}

fn first_port(pod: &Value) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array()?;
    let port = containers.iter().find_map(|c| c["ports"][0]["containerPort"].as_u64())?;
    u16::try_from(port).ok()
}

fn number(port: &str) -> Result<u16, Status> {
    let text =
        |port| format!("error trying to reach service: dial tcp: lookup tcp/{port}: unknown port");
    port.parse().ok().filter(|n| *n > 0).ok_or_else(|| Status::unavailable(text(port)))
}

fn is_global(ip: &IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

fn not_allowed() -> Status {
    Status::bad_request("address not allowed")
}

fn unreachable(authority: &str, cause: &str) -> Status {
    Status::unavailable(format!("error trying to reach service: dial tcp {authority}: {cause}"))
}

async fn secured(backend: Backend, https: bool) -> Result<Backend, Status> {
    if !https {
        return Ok(backend);
    }
    let Backend { io, authority } = backend;
    let secured = outbound::secured_by_anybody(io, &authority).await;
    let io = secured
        .map_err(|why| Status::unavailable(format!("error trying to reach service: {why}")))?;
    Ok(Backend { io, authority })
}

/// Browsers need the slash behind the proxy's own path, or relative links lead beside it.
fn to_root(call: &Call, place: &Place) -> Option<Response> {
    let reads = matches!(call.method, Method::GET | Method::HEAD);
    if !place.rest.is_empty() || !reads || is_upgrade(&call.headers) {
        return None;
    }
    let query = call.uri.query().map_or_else(String::new, |q| format!("?{q}"));
    let location = HeaderValue::try_from(format!("{}/{query}", place.prefix)).ok()?;
    let mut response = http::Response::new(body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Some(response)
}

async fn exchange(
    server: &Arc<Inner>,
    call: &mut Call,
    place: &Place,
    backend: Backend,
) -> Result<Response, Status> {
    let failed = |cause: hyper::Error| {
        Status::unavailable(format!("error trying to reach service: {cause}"))
    };
    let upgrade = call.upgrade.lock().take().filter(|_| is_upgrade(&call.headers));
    let request = request(call, place, upgrade.is_some())?;
    let host = call_host(call).to_owned();
    let Backend { io, authority } = backend;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .handshake::<_, BoxBody>(TokioIo::new(io))
        .await
        .map_err(failed)?;
    // It ends with the request and the answer's body.
    tokio::spawn(async move {
        if let Err(cause) = connection.with_upgrades().await {
            tracing::debug!(%cause, "a proxied connection broke off");
        }
    });
    let response = sender.send_request(request).await.map_err(failed)?;
    let links = rewrite::Links { prefix: place.prefix.clone(), backend: authority, host };
    Ok(answer(server, response, upgrade, links))
}

/// The host that the client asked for, as it wrote it.
fn call_host(call: &Call) -> &str {
    let header = call.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    header.or(call.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default()
}

fn request(call: &mut Call, place: &Place, upgrade: bool) -> Result<Request<BoxBody>, Status> {
    let query = call.uri.query().map_or_else(String::new, |q| format!("?{q}"));
    let path = if place.rest.is_empty() { "/" } else { &place.rest };
    let uri: Uri = format!("{path}{query}")
        .parse()
        .map_err(|e| Status::bad_request(format!("the proxied path {path:?}: {e}")))?;
    let mut request = Request::new(std::mem::replace(call.body.get_mut(), body::empty()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (name, value) in call.headers.iter().filter(|(name, _)| forward::is_forwarded(name)) {
        headers.append(name.clone(), value.clone());
    }
    if let Ok(host) = HeaderValue::from_str(call_host(call)) {
        headers.insert(header::HOST, host);
    }
    let forwarded = format!("{}{}", place.prefix, place.rest);
    if let Ok(uri) = HeaderValue::try_from(forwarded) {
        headers.insert("x-forwarded-uri", uri);
    }
    if let Some(source) = call.source {
        let before = headers.get("x-forwarded-for").and_then(|v| v.to_str().ok());
        let all = before.map_or_else(|| source.to_string(), |b| format!("{b}, {source}"));
        if let Ok(all) = HeaderValue::try_from(all) {
            headers.insert("x-forwarded-for", all);
        }
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = call.headers.get(header::UPGRADE) {
            headers.insert(header::UPGRADE, protocol.clone());
        }
    }
    Ok(request)
}

fn answer(
    server: &Arc<Inner>,
    response: http::Response<Incoming>,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
    links: rewrite::Links,
) -> Response {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match upgrade {
            Some(client) => forward::join(server, response, client),
            None => {
                crate::error::text(502, "the backend changed protocols without being asked to\n")
            }
        };
    }
    let (mut parts, incoming) = response.into_parts();
    CORS.iter().for_each(|name| drop(parts.headers.remove(name)));
    let location = parts.headers.get(header::LOCATION).and_then(|l| l.to_str().ok());
    let moved = location.map(|l| links.rewrite(l));
    let chunks = forward::chunks(server, incoming);
    let body = match (&moved, rewrite::encoding(&parts.headers)) {
        (None, Some(encoding)) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            body::stream(rewrite::body(chunks, encoding, links))
        }
        _ => body::stream(chunks),
    };
    if let Some(Ok(moved)) = moved.map(HeaderValue::try_from) {
        parts.headers.insert(header::LOCATION, moved);
    }
    let mut out = http::Response::new(body);
    *out.status_mut() = parts.status;
    for (name, value) in parts.headers.iter().filter(|(name, _)| forward::is_forwarded(name)) {
        out.headers_mut().append(name.clone(), value.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_proxied_to() {
        for (ip, allowed) in [
            ("10.42.0.5", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00::1", true),
        ] {
            assert_eq!(is_global(&ip.parse().unwrap()), allowed, "{ip}");
        }
    }

    #[test]
    fn the_first_port_of_a_pod() {
        let pod = serde_json::json!({ "spec": { "containers": [
            { "name": "a" }, { "ports": [{ "containerPort": 81 }, { "containerPort": 82 }] },
        ] } });
        assert_eq!(first_port(&pod), Some(81));
        assert_eq!(first_port(&serde_json::json!({ "spec": {} })), None);
        assert!(number("http").unwrap_err().message.contains("unknown port"));
    }
}
