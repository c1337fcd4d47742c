//! What the control plane asks of this node: logs, sessions, and byte streams to its pods.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rimward_api::Block;
use rimward_node_pod::{LogError, LogRequest, connect_text};
use rimward_tunnel::call::{CallError, Incoming, Opened};
use rimward_tunnel::wire::{DialRequest, DialTarget, LogsRequest, Reply, Request};
use tokio::net::TcpStream;

use crate::sessions::{self, CONNECT_WAIT};
use crate::{Core, Parts, api};

pub(crate) async fn one(core: Arc<Core>, opened: Opened) {
    let (request, incoming) = match opened.request().await {
        Ok(request) => request,
        Err(CallError::Malformed(cause)) => {
            return tracing::warn!(%cause, "the control plane sent a malformed request");
        }
        Err(cause) => return tracing::debug!(%cause, "a request did not come through"),
    };
    let Some(parts) = core.parts.borrow().clone() else {
        return incoming
            .refuse(503, format!("node {:?} is still starting", core.config.name))
            .await;
    };
    match request {
        Request::LogsRequest(request) => logs(&parts, request, incoming).await,
        Request::DialRequest(request) => dial(&core, &parts, request, incoming).await,
        Request::SessionRequest(request) => sessions::session(&parts, request, incoming).await,
        Request::PortForwardRequest(request) => {
            sessions::port_forward(&parts, request, incoming).await;
        }
        _ => incoming.refuse(400, "a node does not serve that").await,
    }
}

async fn logs(parts: &Parts, request: LogsRequest, incoming: Incoming) {
    let wanted = match read(&request) {
        Ok(wanted) => wanted,
        Err(cause) => return incoming.refuse(400, cause).await,
    };
    let opened = parts.pods.logs(&request.namespace, &request.pod, &request.pod_uid, wanted).await;
    let mut lines = match opened {
        Ok(lines) => lines,
        Err(LogError::NotFound(cause)) => return incoming.refuse(404, cause).await,
        Err(LogError::BadRequest(cause)) => return incoming.refuse(400, cause).await,
        Err(LogError::Io(cause)) => return incoming.refuse(500, cause).await,
    };
    let Ok(mut stream) = incoming.begin(Reply { code: 200, ..Reply::default() }).await else {
        return;
    };
    loop {
        let next = tokio::select! {
            next = lines.next() => next,
            // The reader went: a log that is followed may be silent for ever.
            () = stream.unwanted() => return,
        };
        match next {
            Some(Ok(bytes)) => {
                if stream.send(bytes).await.is_err() {
                    return;
                }
            }
            Some(Err(cause)) => {
                tracing::warn!(pod = request.pod, namespace = request.namespace, %cause, "a log broke off");
                return stream.abort();
            }
            None => return stream.finish(),
        }
    }
}

fn read(request: &LogsRequest) -> Result<LogRequest, String> {
    let count = |name: &str, value: Option<i64>| match value {
        None => Ok(None),
        Some(value) => u64::try_from(value)
            .map(Some)
            .map_err(|_| format!("{name} must not be negative, it is {value}")),
    };
    let since_time = match request.since_time.as_str() {
        "" => None,
        text => {
            Some(text.parse().map_err(|_| format!("sinceTime {text:?} is not an RFC 3339 time"))?)
        }
    };
    Ok(LogRequest {
        container: request.container.clone(),
        follow: request.follow,
        previous: request.previous,
        timestamps: request.timestamps,
        since: count("sinceSeconds", request.since_seconds)?.map(Duration::from_secs),
        since_time,
        tail_lines: count("tailLines", request.tail_lines)?,
        limit_bytes: count("limitBytes", request.limit_bytes)?,
    })
}

/// Only to this node's pods: the tunnel is no way into what else listens on the machine.
async fn dial(core: &Core, parts: &Parts, request: DialRequest, incoming: Incoming) {
    let DialRequest { target, ip, port } = request;
    match DialTarget::from_number(target) {
        Some(DialTarget::Pod) => {}
        Some(DialTarget::Node) => return api::serve(core, parts, incoming).await,
        _ => return incoming.refuse(400, "a node connects to its pods only").await,
    }
    let Ok(ip) = ip.parse::<IpAddr>() else {
        return incoming.refuse(400, format!("{ip:?} is no address")).await;
    };
    if !is_ours(core, parts, ip) {
        return incoming
            .refuse(404, format!("{ip} is not the address of a pod on this node"))
            .await;
    }
    let address = parts.network.reach_port(ip, port);
    let connected = tokio::time::timeout(CONNECT_WAIT, TcpStream::connect(address)).await;
    match connected {
        Ok(Ok(far)) => sessions::splice(incoming, far).await,
        Ok(Err(cause)) => incoming.refuse(502, connect_text(&cause)).await,
        Err(_) => incoming.refuse(504, "i/o timeout").await,
    }
}

fn is_ours(core: &Core, parts: &Parts, ip: IpAddr) -> bool {
    let block = core.welcome.borrow().as_ref().and_then(|w| w.pod_cidr.parse::<Block>().ok());
    let in_block = |v4: Ipv4Addr| block.is_some_and(|block| block.contains(v4));
    // Pods on the host's network have the node's own address; then there must be one.
    let on_host = || ip == parts.network.host_ip() && core.desired.has_pod_on_host();
    matches!(ip, IpAddr::V4(v4) if in_block(v4)) || on_host()
}
