//! `serviceaccounts/token`: a TokenRequest is answered with a token that is good for what it says.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/>

use std::sync::Arc;

use jiff::Timestamp;
use rimward_api::meta::str_at;
use rimward_api::{FieldError, GroupKind, GroupResource, ObjectKey, Status};
use serde_json::{Value, json};

use crate::authn::tokens::{Bound, Reference};
use crate::body::Response;
use crate::decode;
use crate::error;
use crate::meta;
use crate::negotiate::{self, Offer};
use crate::options::WriteOptions;
use crate::request::Call;
use crate::rest::{find, take_body};
use crate::server::Inner;
use crate::views::{self, Stored};

/// Tokens of this length, which admission puts into pods, live for a year in truth: programs that never
/// read a newer one go on for as long as their pod. Kubernetes' `--service-account-extend-token-expiration`.
const SECONDS_EXTENDED: i64 = 3607;
const EXTENDED_TO_SECONDS: i64 = 365 * 86_400;
const SECONDS_DEFAULT: i64 = 3600;
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;

pub async fn create(
    server: &Arc<Inner>,
    call: &mut Call,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let form = negotiate::form(&call.headers, Offer::OWN)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let kind = ("authentication.k8s.io", "v1", "TokenRequest");
    let request = match body.iter().all(u8::is_ascii_whitespace) {
        true => json!({ "spec": {} }),
        false => decode::spoken(&server.registry(), kind, call, &body, options.validation)?,
    };
    let accounts = server.registry().resource("", "serviceaccounts").expect("a built-in kind");
    let account = find(server, &accounts, key).await?;
    let spec = &request["spec"];
    let seconds = spec.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(SECONDS_DEFAULT);
    let mut errors = Vec::new();
    for (field, is, what) in
        [("name", &key.name, "name"), ("namespace", &key.namespace, "namespace")]
    {
        let sent = str_at(&request, &["metadata", field]).unwrap_or_default();
        if !sent.is_empty() && sent != is {
            let why = format!("must match the service account {what} if specified");
            let error = FieldError::invalid(format!("metadata.{field}"), &json!(sent), &why);
            let kind = GroupKind { group: kind.0.into(), kind: kind.2.into() };
            return Err(Status::invalid(&kind, &key.name, &[error]));
        }
    }
    if seconds < SECONDS_MIN {
        errors.push(FieldError::invalid(
            "spec.expirationSeconds",
            &json!(seconds),
            "may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > SECONDS_MAX {
        errors.push(FieldError::invalid(
            "spec.expirationSeconds",
            &json!(seconds),
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if !errors.is_empty() {
        let kind = GroupKind { group: kind.0.into(), kind: kind.2.into() };
        return Err(Status::invalid(&kind, "", &errors));
    }
    let listed = spec.get("audiences").and_then(Value::as_array).into_iter().flatten();
    let mut audiences: Vec<String> = listed.filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences.clone_from(&server.config.api_audiences);
    }
    let mut bound = Bound {
        namespace: key.namespace.clone(),
        serviceaccount: Reference { name: key.name.clone(), uid: account.record.uid().to_owned() },
        ..Bound::default()
    };
    if let Some(reference) = spec.get("boundObjectRef").filter(|r| r.is_object()) {
        bind(server, key, reference, &mut bound).await?;
    }
    let now = Timestamp::now();
    let own_audiences = audiences == server.config.api_audiences;
    let extends = seconds == SECONDS_EXTENDED && bound.pod.is_some() && own_audiences;
    let lives_seconds = if extends { EXTENDED_TO_SECONDS } else { seconds };
    bound.warnafter = extends.then(|| now.as_second() + seconds);
    let (token, ends) = server
        .tokens
        .issue(bound, audiences.clone(), lives_seconds, now)
        .map_err(|e| Status::internal(format!("failed to sign the token: {e}")))?;
    // Its holder is told when to ask for the next.
    let ends = match extends {
        true => Timestamp::from_second(now.as_second() + seconds).unwrap_or(ends),
        false => ends,
    };
    let mut answer = json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": { "name": key.name, "namespace": key.namespace, "creationTimestamp": meta::time(now) },
        "spec": { "audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": spec.get("boundObjectRef") },
        "status": { "token": token, "expirationTimestamp": meta::time(ends) },
    });
    if spec.get("boundObjectRef").is_none() {
        answer["spec"]["boundObjectRef"] = Value::Null;
    }
    Ok(views::encoded(call, 201, form, &answer))
}

/// Looks up what the token shall be bound to: it must exist, and be the one that is meant.
async fn bind(
    server: &Inner,
    key: &ObjectKey,
    reference: &Value,
    bound: &mut Bound,
) -> Result<(), Status> {
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    let (name, uid) = (text("name"), text("uid"));
    let resource = match (text("apiVersion"), text("kind")) {
        ("v1", "Pod") => "pods",
        ("v1", "Secret") => "secrets",
        ("v1", "Node") => "nodes",
        (version, kind) => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let served = server.registry().resource("", resource).expect("a built-in kind");
    let namespace = if served.kind.namespaced() { key.namespace.as_str() } else { "" };
    let stored = find(server, &served, &ObjectKey::new(namespace, name)).await?;
    let found = stored.record.uid().to_owned();
    let own = Reference { name: name.to_owned(), uid: found.clone() };
    match resource {
        "secrets" => bound.secret = Some(own),
        "nodes" => bound.node = Some(own),
        _ => {
            let runs_as = stored.record.field("spec.serviceAccountName").unwrap_or_default();
            if runs_as != key.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    key.name
                )));
            }
            bound.node = node_of(server, &stored).await?;
            bound.pod = Some(own);
        }
    }
    if !uid.is_empty() && uid != found {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        // Kubernetes names the kind where a resource would stand.
        return Err(Status::conflict(&GroupResource::new("", text("kind")), name, &why));
    }
    Ok(())
}

/// Where the pod runs, for the token to tell.
async fn node_of(server: &Inner, pod: &Stored) -> Result<Option<Reference>, Status> {
    let Some(name) = pod.record.field("spec.nodeName").filter(|n| !n.is_empty()) else {
        return Ok(None);
    };
    let key = format!("{}{name}", server.nodes_prefix);
    let entry = server.store.get(&key, None).await.map_err(error::store)?;
    let node = entry.as_ref().map(Stored::open).transpose()?;
    Ok(node.map(|n| Reference { name: name.to_owned(), uid: n.record.uid().to_owned() }))
}
