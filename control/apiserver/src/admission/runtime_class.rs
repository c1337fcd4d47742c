//! A pod's RuntimeClass exists, and adds its overhead and its nodes.

use rimward_api::Status;
use rimward_api::meta::str_at;
use serde_json::{Value, json};

use super::Review;
use crate::error;
use crate::server::Inner;
use crate::views::Stored;

pub async fn admit(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let Some(name) = str_at(review.object, &["spec", "runtimeClassName"]).filter(|n| !n.is_empty())
    else {
        return Ok(());
    };
    let name = name.to_owned();
    let served =
        server.registry().resource("node.k8s.io", "runtimeclasses").expect("a built-in kind");
    let key = format!("{}{name}", served.kind.storage);
    let Some(entry) = server.store.get(&key, None).await.map_err(error::store)? else {
        return Err(review.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    let class = Stored::open(&entry)?.stored_value(&served)?;
    let spec = &mut review.object["spec"];
    if let Some(overhead) = class.pointer("/overhead/podFixed") {
        spec["overhead"] = overhead.clone();
    }
    let selector = class.pointer("/scheduling/nodeSelector").and_then(Value::as_object);
    for (label, value) in selector.into_iter().flatten() {
        let given = spec.get("nodeSelector").and_then(|s| s.get(label)).cloned();
        if given.is_some_and(|g| g != *value) {
            return Err(review.forbidden(&format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{label}] = {}; pod.spec.nodeSelector[{label}] is another",
                value.as_str().unwrap_or_default()
            )));
        }
        spec["nodeSelector"][label] = value.clone();
    }
    let tolerations = class.pointer("/scheduling/tolerations").and_then(Value::as_array);
    for toleration in tolerations.into_iter().flatten() {
        if !spec["tolerations"].is_array() {
            spec["tolerations"] = json!([]);
        }
        let list = spec["tolerations"].as_array_mut().expect("was just made one");
        if !list.contains(toleration) {
            list.push(toleration.clone());
        }
    }
    Ok(())
}
