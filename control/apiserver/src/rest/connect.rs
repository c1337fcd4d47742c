//! Subresources that connect a client with something: exec, attach, port-forward, proxies.

use std::sync::Arc;

use rimward_api::{ObjectKey, Status};

use crate::admission;
use crate::body::Response;
use crate::proxy;
use crate::request::{Attributes, Call};
use crate::rest::{find, on_node};
use crate::served::Served;
use crate::server::Inner;
use crate::streams::{port_forward, remote_command};

/// Admits the request and connects.
///
/// # Errors
/// Whatever stands between the client and what it asks for.
pub async fn serve(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    sub: &str,
    key: &ObjectKey,
) -> Result<Response, Status> {
    if call.query.get("dryRun").is_some() {
        return Err(Status::bad_request("dryRun is not supported"));
    }
    admission::connect::admit(server, call, served, sub, key).await?;
    if sub == "proxy" {
        return match served.kind.resource.as_str() {
            "pods" => proxy::pod(server, call, served, key).await,
            "services" => proxy::service(server, call, key).await,
            _ => proxy::node(server, call, served, key).await,
        };
    }
    may_create(server, call)?;
    let kind = match sub {
        "exec" => Some(remote_command::Kind::Exec),
        "attach" => Some(remote_command::Kind::Attach),
        _ => None,
    };
    let options = kind.map(|kind| remote_command::options(kind, &call.query)).transpose()?;
    let stored = find(server, served, key).await?;
    let pod = server.value(served, &stored)?;
    let (nodes, stop) = (on_node::nodes(server), server.stop.clone());
    let place = |pod| on_node::place(pod, stored.record.uid(), key);
    match kind.zip(options) {
        Some((kind, mut options)) => {
            options.container = on_node::container(&pod, &options.container, &key.name)?;
            remote_command::connect(nodes?, stop, call, kind, place(&pod)?, options).await
        }
        None => port_forward::connect(nodes?, stop, call, place(&pod)?).await,
    }
}

/// A WebSocket begins with a GET, but what it leads to is no reading: whoever may get must also be
/// allowed to create (Kubernetes' AuthorizePodWebsocketUpgradeCreatePermission).
fn may_create(server: &Inner, call: &Call) -> Result<(), Status> {
    if call.attributes.verb == "create" {
        return Ok(());
    }
    let asked = Attributes { verb: "create".into(), ..call.attributes.clone() };
    server.rbac.authorize(&call.user, &asked)
}
