//! What a node asks for, each on a stream of its own: tokens, objects, images, byte streams, its
//! next certificate.

use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{
    BoundObjectReference, TokenRequest as ApiToken, TokenRequestSpec,
};
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Secret, ServiceAccount,
};
use rimward_api::ObjectKey;
use rimward_control_apiserver::nodes::{NodeError, Nodes as _};
use rimward_tunnel::call::{self, CallError, Duplex, Incoming, Opened};
use rimward_tunnel::signer::Signer;
use rimward_tunnel::wire::{
    DialRequest, DialTarget, FetchRequest, ObjectKind, RegistryRequest, RenewRequest, Reply,
    Request, TokenRequest,
};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::session::Session;

/// Requests of one node under way at once; more wait on the node.
const AT_ONCE: usize = 256;
/// What a registry read may say beside its path.
const REGISTRY_HEADERS: [&str; 3] = ["accept", "range", "if-none-match"];

/// Serves the node's requests until the connection ends.
pub(crate) async fn serve(session: Arc<Session>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok(opened) = call::accept(&session.connection).await else { return };
        let session = session.clone();
        tokio::spawn(async move {
            let over = session.over.clone();
            over.run_until_cancelled(one(&session, opened)).await;
            drop(slot);
        });
    }
}

async fn one(session: &Arc<Session>, opened: Opened) {
    let (request, incoming) = match opened.request().await {
        Ok(request) => request,
        Err(CallError::Malformed(cause)) => return session.expel(&cause.to_string()),
        Err(cause) => {
            return tracing::debug!(node = session.node(), %cause, "a request did not come through");
        }
    };
    match request {
        Request::TokenRequest(request) => token(session, request, incoming).await,
        Request::FetchRequest(request) => fetch(session, request, incoming).await,
        Request::RegistryRequest(request) => registry(session, request, incoming).await,
        Request::DialRequest(request) => dial(session, request, incoming).await,
        Request::RenewRequest(request) => renew(session, request, incoming).await,
        Request::LogsRequest(_) | Request::SessionRequest(_) | Request::PortForwardRequest(_) => {
            session.expel("it asked the control plane for what only nodes serve");
        }
    }
}

/// A ServiceAccount token bound to one of the node's pods, as TokenRequest gives it.
async fn token(session: &Session, request: TokenRequest, incoming: Incoming) {
    let world = &session.inner().world;
    let TokenRequest { namespace, pod: name, pod_uid, .. } = &request;
    let pod = world.pods.get(namespace, name).filter(|p| p.metadata.uid.as_ref() == Some(pod_uid));
    let Some(pod) = pod else {
        return incoming.refuse(404, format!("pods {name:?} not found")).await;
    };
    if crate::world::node_of(&pod) != Some(session.node()) {
        return session.expel(&format!(
            "it asked for a token of pod {namespace}/{name}, which is not its own"
        ));
    }
    let account = pod
        .spec
        .as_ref()
        .and_then(|s| s.service_account_name.clone())
        .unwrap_or_else(|| "default".into());
    let body = ApiToken {
        spec: Some(TokenRequestSpec {
            audiences: Some(request.audiences.clone()),
            expiration_seconds: (request.expiration_seconds > 0)
                .then_some(request.expiration_seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(name.clone()),
                uid: Some(pod_uid.clone()),
            }),
        }),
        ..ApiToken::default()
    };
    let client = &session.inner().client;
    let answer = client
        .post_subresource::<ServiceAccount, ApiToken>(namespace, &account, "token", &body)
        .await;
    match answer.map(|token| serde_json::to_vec(&token.status)) {
        Ok(Ok(body)) => incoming.answer(Reply { code: 200, body, ..Reply::default() }).await,
        Ok(Err(cause)) => incoming.refuse(500, cause.to_string()).await,
        Err(cause) => incoming.refuse(code_of(&cause), cause.to_string()).await,
    }
}

/// An object that one of the node's pods references, or its own, read from the API, not the cache.
async fn fetch(session: &Session, request: FetchRequest, incoming: Incoming) {
    let FetchRequest { kind, namespace, name } = &request;
    let Some(kind) = ObjectKind::from_name(kind) else {
        return incoming.refuse(400, format!("objects of kind {kind:?} cannot be fetched")).await;
    };
    let inner = session.inner();
    if !inner.world.references(session.node(), kind, &ObjectKey::new(namespace, name)) {
        // The pod may have gone a moment ago, so this alone is no offence.
        return incoming
            .refuse(
                403,
                format!("no pod of this node references {} {namespace}/{name}", kind.name()),
            )
            .await;
    }
    let body = match kind {
        ObjectKind::ConfigMap => {
            inner.client.get::<ConfigMap>(namespace, name).await.map(|o| serde_json::to_vec(&o))
        }
        ObjectKind::Secret => {
            inner.client.get::<Secret>(namespace, name).await.map(|o| serde_json::to_vec(&o))
        }
        ObjectKind::PersistentVolumeClaim => {
            let found = inner.client.get::<PersistentVolumeClaim>(namespace, name).await;
            found.map(|o| serde_json::to_vec(&o))
        }
        ObjectKind::PersistentVolume => {
            inner.client.get::<PersistentVolume>("", name).await.map(|o| serde_json::to_vec(&o))
        }
        ObjectKind::Node => {
            let found = inner.client.get::<Node>("", name).await;
            found.map(|node| serde_json::to_vec(&crate::world::own_node::told(&node)))
        }
        other => {
            return incoming
                .refuse(400, format!("objects of kind {} cannot be fetched", other.name()))
                .await;
        }
    };
    match body {
        Ok(Ok(body)) => incoming.answer(Reply { code: 200, body, ..Reply::default() }).await,
        Ok(Err(cause)) => incoming.refuse(500, cause.to_string()).await,
        Err(cause) => incoming.refuse(code_of(&cause), cause.to_string()).await,
    }
}

fn code_of(error: &rimward_client::Error) -> u16 {
    error.status().map_or(503, |status| status.code)
}

async fn registry(session: &Session, request: RegistryRequest, incoming: Incoming) {
    let read = matches!(request.method.as_str(), "GET" | "HEAD");
    if !read || !request.path.starts_with("/v2/") {
        let text = format!("{} {} is not a read of the registry", request.method, request.path);
        return incoming.refuse(403, text).await;
    }
    let mut http = http::Request::builder().method(request.method.as_str()).uri(&request.path);
    for (name, value) in &request.headers {
        if REGISTRY_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
            http = http.header(name, value);
        }
    }
    let http = match http.body(bytes::Bytes::new()) {
        Ok(http) => http,
        Err(cause) => return incoming.refuse(400, cause.to_string()).await,
    };
    let response = match session.inner().registry.fetch(http).await {
        Ok(response) => response,
        Err(cause) => return incoming.refuse(503, cause).await,
    };
    let (head, mut body) = response.into_parts();
    let code = head.status.as_u16();
    if code >= 400 {
        return incoming
            .refuse(code, format!("the registry answers {code} to {}", request.path))
            .await;
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers =
        head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let Ok(mut stream) = incoming.begin(Reply { code, headers, ..Reply::default() }).await else {
        return;
    };
    while let Some(chunk) = body.next().await {
        let sent = match chunk {
            Ok(chunk) => stream.send(chunk).await.is_ok(),
            Err(cause) => {
                tracing::warn!(node = session.node(), path = request.path, %cause, "the registry broke off");
                false
            }
        };
        if !sent {
            return stream.abort();
        }
    }
    stream.finish();
}

/// A byte stream to the API server, or to a pod on whichever node it is.
async fn dial(session: &Arc<Session>, request: DialRequest, incoming: Incoming) {
    match DialTarget::from_number(request.target) {
        Some(DialTarget::Api) => match TcpStream::connect(session.inner().api_addr).await {
            Ok(stream) => splice(incoming, stream).await,
            Err(cause) => {
                incoming.refuse(502, format!("the API server does not answer: {cause}")).await
            }
        },
        Some(DialTarget::Pod) => {
            let Ok(ip) = request.ip.parse() else {
                return incoming.refuse(400, format!("{:?} is no address", request.ip)).await;
            };
            let Some(node) = session.inner().world.node_of_ip(&request.ip) else {
                return incoming.refuse(404, format!("no pod has the address {ip}")).await;
            };
            match session.hub.dial(&node, ip, request.port).await {
                Ok(stream) => splice(incoming, stream).await,
                Err(NodeError::NotConnected(node)) => {
                    incoming.refuse(503, format!("node {node:?} is not connected")).await;
                }
                Err(NodeError::Refused(code, cause)) => incoming.refuse(code, cause).await,
            }
        }
        Some(DialTarget::Node) | None => {
            incoming.refuse(400, format!("dial target {} is not for nodes", request.target)).await
        }
    }
}

async fn splice(
    incoming: Incoming,
    mut far: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
) {
    let Ok(mut near) = incoming.begin(Reply { code: 200, ..Reply::default() }).await else {
        return;
    };
    if tokio::io::copy_bidirectional(&mut near, &mut far).await.is_err() {
        Duplex::abort(&mut near);
    }
}

/// The node's next certificate. Its key stays the same: the name belongs to it.
async fn renew(session: &Session, request: RenewRequest, incoming: Incoming) {
    let csr = match Signer::read_request(&request.csr) {
        Ok(csr) => csr,
        Err(cause) => return incoming.refuse(400, cause.to_string()).await,
    };
    if csr.key_hash != session.holder.key_hash {
        return session.expel("it asked for a certificate for another key");
    }
    match session.inner().signer.sign_node(session.node(), &csr, Timestamp::now()) {
        Ok(certificate) => {
            tracing::info!(node = session.node(), "renewed a node's certificate");
            incoming
                .answer(Reply { code: 200, body: certificate.to_vec(), ..Reply::default() })
                .await;
        }
        Err(cause) => incoming.refuse(500, cause.to_string()).await,
    }
}
