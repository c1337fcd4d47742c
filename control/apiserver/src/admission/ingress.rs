//! An Ingress that names no class gets the default one.

use rimward_api::Status;
use rimward_control_store::ListRequest;
use serde_json::Value;

use super::Review;
use crate::error;
use crate::server::Inner;
use crate::views::Stored;

const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
const LEGACY_CLASS: &str = "kubernetes.io/ingress.class";

pub async fn admit(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let named = review.object.pointer("/spec/ingressClassName").is_some_and(|c| !c.is_null());
    let legacy = review
        .object
        .pointer("/metadata/annotations")
        .is_some_and(|a| a.get(LEGACY_CLASS).is_some());
    if named || legacy {
        return Ok(());
    }
    let served =
        server.registry().resource("networking.k8s.io", "ingressclasses").expect("a built-in kind");
    let request = ListRequest { prefix: served.kind.storage.clone(), ..ListRequest::default() };
    let mut newest: Option<(String, String)> = None;
    for entry in server.store.list(request).await.map_err(error::store)?.entries {
        let stored = Stored::open(&entry)?;
        let class: Value = stored.stored_value(&served)?;
        let default = class.pointer("/metadata/annotations").and_then(|a| a.get(IS_DEFAULT));
        if default.and_then(Value::as_str) != Some("true") {
            continue;
        }
        // Of several defaults the newest counts, of equally new ones the first by name.
        let created =
            class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        if newest.as_ref().is_none_or(|(c, _)| created > *c) {
            newest = Some((created, stored.name().to_owned()));
        }
    }
    if let Some((_, name)) = newest {
        review.object["spec"]["ingressClassName"] = name.into();
    }
    Ok(())
}
