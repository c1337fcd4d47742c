//! A token becomes a node's certificate, and a node's name belongs to a key.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_tunnel::BootstrapToken;
use rimward_tunnel::CloseCode;
use rimward_tunnel::accept::JoinRequest;
use rimward_tunnel::signer::Signer;
use rimward_tunnel::token::is_token_id;

use crate::{Inner, token};

/// The SHA-256 of the public key that a node joined with. A name belongs to that key until the Node
/// is deleted.
pub const KEY_ANNOTATION: &str = "rimward.dev/node-key";

/// A refusal: what the node is told, and what the control plane's log says.
struct Refusal {
    code: CloseCode,
    told: String,
    logged: String,
}

impl Refusal {
    fn denied(told: impl Into<String>) -> Self {
        let told = told.into();
        Self { code: CloseCode::Denied, logged: told.clone(), told }
    }

    /// Nothing is wrong with the node.
    fn unavailable(cause: impl std::fmt::Display) -> Self {
        let told = "the control plane cannot answer now".to_owned();
        Self { code: CloseCode::Unavailable, logged: cause.to_string(), told }
    }
}

pub(crate) async fn serve(inner: &Inner, request: JoinRequest) {
    let (from, name) = (request.from, request.join.name.clone());
    match admit(inner, &request).await {
        Ok(certificate) => {
            tracing::info!(%from, node = name, "a node joined");
            request.admit(&certificate, inner.signer.ca()).await;
        }
        Err(Refusal { code, told, logged }) => {
            tracing::warn!(%from, node = name, cause = logged, "refused a node that wants to join");
            request.refuse(code, &told);
        }
    }
}

async fn admit(inner: &Inner, request: &JoinRequest) -> Result<Vec<u8>, Refusal> {
    let join = &request.join;
    let bad_name = rimward_api::names::dns1123_subdomain(&join.name);
    if let Some(rule) = bad_name.first() {
        return Err(Refusal::denied(format!("{:?} is no name for a node: {rule}", join.name)));
    }
    check_token(inner, &join.token_id, &join.token_secret).await?;
    let csr = Signer::read_request(&join.csr).map_err(|e| Refusal::denied(e.to_string()))?;
    claim(inner, &join.name, &csr.key_hash).await?;
    let signed = inner.signer.sign_node(&join.name, &csr, Timestamp::now());
    Ok(signed.map_err(Refusal::unavailable)?.to_vec())
}

async fn check_token(inner: &Inner, id: &str, shown: &str) -> Result<(), Refusal> {
    let invalid = |logged: String| Refusal {
        code: CloseCode::Denied,
        told: "the token is not valid (any more); `rimward token create` makes a new one".into(),
        logged,
    };
    if !is_token_id(id) {
        return Err(invalid("the token's id is malformed".into()));
    }
    let name = BootstrapToken::secret_name(id);
    // Asked, not looked up in a cache: a token works as soon as it is printed, and no longer than it
    // is stored.
    let stored = match inner.client.get::<Secret>(token::NAMESPACE, &name).await {
        Ok(stored) => stored,
        Err(e) if e.is_not_found() => {
            return Err(invalid(format!("there is no token with id {id:?}")));
        }
        Err(e) => return Err(Refusal::unavailable(e)),
    };
    let checked = token::check(&stored, id, shown, Timestamp::now());
    checked.map_err(|cause| invalid(format!("token {id:?} is not valid: {cause}")))
}

/// Makes the name the key's, or finds that it is. Creating the Node decides between two that come at
/// once.
async fn claim(inner: &Inner, name: &str, key_hash: &str) -> Result<(), Refusal> {
    let annotations = BTreeMap::from([(KEY_ANNOTATION.to_owned(), key_hash.to_owned())]);
    let node = Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        ..Node::default()
    };
    match inner.client.create(&node).await {
        Ok(_) => return Ok(()),
        Err(e) if e.is_already_exists() => {}
        Err(e) => return Err(Refusal::unavailable(e)),
    }
    let existing: Node = match inner.client.get("", name).await {
        Ok(existing) => existing,
        Err(e) => return Err(Refusal::unavailable(e)),
    };
    if key_of(&existing) == Some(key_hash) {
        return Ok(());
    }
    Err(Refusal::denied(format!(
        "there is a node named {name:?} with another key; choose another name, or delete that Node first"
    )))
}

/// The key that a Node's name belongs to.
pub(crate) fn key_of(node: &Node) -> Option<&str> {
    node.metadata.annotations.as_ref()?.get(KEY_ANNOTATION).map(String::as_str)
}
