//! What parameterizes a policy for a request: objects of its `paramKind` that the binding refers to.
//! <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/#parameter-resources>

use std::sync::Arc;

use rimward_api::ObjectKey;
use rimward_control_store::ListRequest;
use serde_json::Value;

use super::Configured;
use super::policy::{Binding, ParamRef};
use crate::admission::Review;
use crate::served::Served;
use crate::server::Inner;
use crate::views::{Stored, to_served};

/// Objects that one binding may refer to; each is a round of evaluation.
const PARAMS_MAX: usize = 1000;

/// The parameters, each of which the policy is applied with: one null where there is no `paramKind`,
/// none at all where the binding lets a policy without parameters pass.
pub async fn collect(
    server: &Inner,
    review: &Review<'_>,
    kind: Option<&(String, String)>,
    binding: &Binding,
) -> Configured<Vec<Value>> {
    let (Some((api_version, kind)), Some(reference)) = (kind, &binding.param_ref) else {
        return Ok(vec![Value::Null]);
    };
    let Some(served) = server.served_kind(api_version, kind) else {
        return Err(format!(
            "failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'"
        ));
    };
    let namespace = namespace(review, &served, reference)?;
    let found = match reference.name.as_str() {
        "" => selected(server, &served, &namespace, reference).await?,
        name => named(server, &served, ObjectKey::new(&namespace, name)).await?,
    };
    if found.is_empty() && reference.denies_missing {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found)
}

/// Where the parameters are: where the binding says, else where the request is.
fn namespace(review: &Review<'_>, served: &Served, reference: &ParamRef) -> Configured<String> {
    if !served.kind.namespaced() {
        return match reference.namespace.as_str() {
            "" => Ok(String::new()),
            _ => {
                Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
                    .into())
            }
        };
    }
    if !reference.namespace.is_empty() {
        return Ok(reference.namespace.clone());
    }
    match review.key.namespace.as_str() {
        "" => Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into()),
        namespace => Ok(namespace.to_owned()),
    }
}

async fn value(server: &Inner, served: &Served, stored: Stored) -> Configured<Value> {
    let stored = server.present_one(served, stored).await.map_err(|e| e.message)?;
    let object = stored.stored_value(served).map_err(|e| e.message)?;
    let mut object = to_served(served, object);
    object["kind"] = served.kind.kind.as_str().into();
    object["apiVersion"] = served.kind.api_version().into();
    Ok(object)
}

async fn named(server: &Inner, served: &Arc<Served>, key: ObjectKey) -> Configured<Vec<Value>> {
    let entry = server.store.get(&served.key(&key), None).await.map_err(|e| e.to_string())?;
    let Some(entry) = entry else { return Ok(Vec::new()) };
    let stored = Stored::open(&entry).map_err(|e| e.message)?;
    Ok(vec![value(server, served, stored).await?])
}

async fn selected(
    server: &Inner,
    served: &Arc<Served>,
    namespace: &str,
    reference: &ParamRef,
) -> Configured<Vec<Value>> {
    let Some(selector) = &reference.selector else {
        return Err("one of paramRef.name or paramRef.selector must be set".into());
    };
    let request = ListRequest { prefix: served.prefix(namespace), ..ListRequest::default() };
    let page = server.store.list(request).await.map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    for entry in &page.entries {
        let stored = Stored::open(entry).map_err(|e| e.message)?;
        if !selector.matches_by(|label| stored.record.label(label)) {
            continue;
        }
        if found.len() == PARAMS_MAX {
            return Err(format!("the selector of paramRef selects more than {PARAMS_MAX} objects"));
        }
        found.push(value(server, served, stored).await?);
    }
    Ok(found)
}

impl Inner {
    /// The resource of an apiVersion and kind, if it is served.
    fn served_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Served>> {
        let registry = self.registry();
        let served = registry.all().iter();
        served
            .filter(|s| s.kind.kind == kind && s.kind.api_version() == api_version)
            .find(|s| !s.kind.resource.contains('/'))
            .cloned()
    }
}
