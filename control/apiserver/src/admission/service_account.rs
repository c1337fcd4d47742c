//! A pod runs as a ServiceAccount that exists, and finds its token, the cluster's CA and its
//! namespace as files.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/>

use std::time::Duration;

use rimward_api::Status;
use rimward_api::meta::str_at;
use serde_json::{Value, json};

use super::Review;
use crate::error;
use crate::meta;
use crate::server::Inner;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// A token of an hour, and the seven seconds by which Kubernetes tells such volumes apart.
const EXPIRATION_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How long a pod of a fresh namespace waits for its default ServiceAccount to be made.
const DEFAULT_ACCOUNT_WAIT: Duration = Duration::from_secs(2);

pub async fn admit(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let mirrors_a_static_pod =
        review.object["metadata"].get("annotations").is_some_and(|a| a.get(MIRROR).is_some());
    if mirrors_a_static_pod {
        return Ok(());
    }
    let namespace = review.text("namespace").to_owned();
    let name = match str_at(review.object, &["spec", "serviceAccountName"]).unwrap_or_default() {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let Some(account) = find(server, &namespace, &name).await? else {
        return Err(review.forbidden(&format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        )));
    };
    let spec = &mut review.object["spec"];
    spec["serviceAccountName"] = name.as_str().into();
    spec["serviceAccount"] = name.as_str().into();
    let wants = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    if wants.or(account.automount).unwrap_or(true) {
        mount_token(spec);
    }
    if !account.pull_secrets.is_empty()
        && spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
    {
        spec["imagePullSecrets"] = account.pull_secrets.into();
    }
    Ok(())
}

/// What of a ServiceAccount its pods are given.
#[derive(serde::Deserialize)]
struct Account {
    #[serde(default, rename = "automountServiceAccountToken")]
    automount: Option<bool>,
    #[serde(default, rename = "imagePullSecrets")]
    pull_secrets: Vec<Value>,
}

async fn find(server: &Inner, namespace: &str, name: &str) -> Result<Option<Account>, Status> {
    let key = format!("{}{namespace}/{name}", server.service_accounts_prefix);
    let mut entry = server.store.get(&key, None).await.map_err(error::store)?;
    if entry.is_none() && name == "default" {
        // The controller makes it as soon as it sees the namespace; who creates both in a row need
        // not know that.
        let mut feed = server.store.watch(&key, server.store.revision()).map_err(error::store)?;
        entry = server.store.get(&key, None).await.map_err(error::store)?;
        let made = async {
            while entry.is_none() {
                feed.next().await.map_err(error::store)?;
                entry = server.store.get(&key, None).await.map_err(error::store)?;
            }
            Ok::<(), Status>(())
        };
        if let Ok(done) = tokio::time::timeout(DEFAULT_ACCOUNT_WAIT, made).await {
            done?;
        }
    }
    let Some(entry) = entry else { return Ok(None) };
    let stored = crate::views::Stored::open(&entry)?;
    let account = serde_json::from_slice(stored.record.body())
        .map_err(|e| Status::internal(format!("{key}: {e}")))?;
    Ok(Some(account))
}

fn mount_token(spec: &mut Value) {
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let present =
        volumes.filter_map(|v| v.get("name")?.as_str()).find(|n| n.starts_with(VOLUME_PREFIX));
    let made = present.is_none();
    let volume =
        present.map_or_else(|| format!("{VOLUME_PREFIX}{}", meta::random_suffix()), str::to_owned);
    let mut used = false;
    for field in ["initContainers", "containers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            let path = |m: &Value| m.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH);
            if !mounts.iter().any(path) {
                mounts.push(json!({ "name": volume, "readOnly": true, "mountPath": MOUNT_PATH }));
                used = true;
            }
        }
    }
    if made && used {
        let volumes = spec.as_object_mut().map(|s| s.entry("volumes").or_insert_with(|| json!([])));
        if let Some(volumes) = volumes.and_then(Value::as_array_mut) {
            volumes.push(token_volume(&volume));
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "sources": [
                { "serviceAccountToken": { "expirationSeconds": EXPIRATION_SECONDS, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } },
            ],
            "defaultMode": 420,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_gets_the_mount_once() {
        let own = json!({ "name": "own", "mountPath": MOUNT_PATH });
        let mut spec = json!({ "containers": [{ "name": "a" }, { "name": "b", "volumeMounts": [own] }], "initContainers": [{ "name": "i" }] });
        mount_token(&mut spec);
        let name = spec["volumes"][0]["name"].as_str().expect("a volume").to_owned();
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(spec["initContainers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().expect("a list").len(), 1);
        let again = spec.clone();
        mount_token(&mut spec);
        assert_eq!(spec, again, "a second pass adds nothing");
    }
}
