//! A claim that names no class gets the default one; it may grow only where its class lets it.
//! <https://kubernetes.io/docs/concepts/storage/storage-classes/#default-storageclass>

use rimward_api::{Quantity, Status};
use rimward_control_kinds::check::resources::quantity;
use rimward_control_kinds::read::Read;
use rimward_control_store::ListRequest;
use serde_json::Value;

use crate::admission::Review;
use crate::error;
use crate::server::Inner;
use crate::views::Stored;

const IS_DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The class that a claim asks for; None when it leaves that open.
fn class_of(claim: &Value) -> Option<&str> {
    let legacy = claim.deep(&["metadata", "annotations", BETA_CLASS]).as_str();
    legacy.or_else(|| claim.deep(&["spec", "storageClassName"]).as_str())
}

pub async fn fill_in(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    if class_of(review.object).is_some() {
        return Ok(());
    }
    let served =
        server.registry().resource("storage.k8s.io", "storageclasses").expect("a built-in kind");
    let request = ListRequest { prefix: served.kind.storage.clone(), ..ListRequest::default() };
    let mut classes = Vec::new();
    for entry in server.store.list(request).await.map_err(error::store)?.entries {
        classes.push(Stored::open(&entry)?.stored_value(&served)?);
    }
    if let Some(name) = default_of(&classes) {
        review.object["spec"]["storageClassName"] = name.into();
    }
    Ok(())
}

/// Of several defaults the newest counts, of equally new ones the first by name. Pure.
fn default_of(classes: &[Value]) -> Option<&str> {
    let is_default = |class: &&Value| {
        let annotations = class.deep(&["metadata", "annotations"]);
        IS_DEFAULT.iter().any(|key| annotations.text(key) == "true")
    };
    let mut defaults: Vec<(&str, &str)> = classes
        .iter()
        .filter(is_default)
        .map(|c| (c.at("metadata").text("creationTimestamp"), c.at("metadata").text("name")))
        .collect();
    defaults.sort_by(|a, b| b.0.cmp(a.0).then(a.1.cmp(b.1)));
    defaults.first().map(|(_, name)| *name)
}

/// Refuses growth that nobody would carry out.
pub async fn check_growth(server: &Inner, review: &Review<'_>) -> Result<(), Status> {
    let Some(old) = review.old else { return Ok(()) };
    let size = |claim: &Value| {
        quantity(claim.deep(&["spec", "resources", "requests", "storage"]))
            .unwrap_or(Quantity::ZERO)
    };
    if size(review.object) <= size(old) {
        return Ok(());
    }
    if old.at("status").text("phase") != "Bound" {
        return Err(review.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let (class, before) = (class_of(review.object), class_of(old));
    if let Some(name) = class.filter(|c| !c.is_empty() && class == before) {
        let served = server
            .registry()
            .resource("storage.k8s.io", "storageclasses")
            .expect("a built-in kind");
        let key = format!("{}{name}", served.kind.storage);
        if let Some(entry) = server.store.get(&key, None).await.map_err(error::store)?
            && Stored::open(&entry)?.stored_value(&served)?.flag("allowVolumeExpansion")
        {
            return Ok(());
        }
    }
    Err(review.forbidden(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_counts() {
        let class = |name: &str, created: &str, default: &str| json!({ "metadata": { "name": name, "creationTimestamp": created, "annotations": { IS_DEFAULT[0]: default } } });
        let (old, new, twin, other) = (
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("new", "2026-01-02T00:00:00Z", "true"),
            class("also-new", "2026-01-02T00:00:00Z", "true"),
            class("other", "2026-01-03T00:00:00Z", "false"),
        );
        assert_eq!(default_of(&[old.clone(), new.clone(), other.clone()]), Some("new"));
        assert_eq!(default_of(&[old, new, twin]), Some("also-new"));
        assert_eq!(default_of(&[other]), None);
    }
}
