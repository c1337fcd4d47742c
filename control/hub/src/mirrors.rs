//! Mirror pods: what the API shows of the pods that a node has from files of its own.
//!
//! The node says which it has, whole, when it connects, when they change, and when a mirror was deleted; the hub
//! makes what is missing and deletes what is too much. It looks at the world and remembers nothing: a mirror that
//! somebody else deletes is the node's to miss.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::Mutex;
use rimward_api::{ObjectKey, static_pods};
use rimward_client::{DeleteOptions, Error};
use rimward_control_lean as lean;
use rimward_tunnel::backoff;
use rimward_tunnel::wire::StaticPods;
use serde_json::Value;
use tokio::sync::Notify;

use crate::session::Session;

/// A pod more than that on a node is none that a person wrote.
const PODS_MAX: usize = 1024;
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What the node said last.
#[derive(Default)]
pub(crate) struct Mirrors {
    wanted: Mutex<Option<BTreeMap<ObjectKey, Pod>>>,
    said: Notify,
}

impl Mirrors {
    /// Takes what the session's node says. An error is a reason to end the connection.
    pub fn take(&self, node: &str, said: StaticPods) -> Result<(), String> {
        if said.pods.len() > PODS_MAX {
            return Err(format!("it has {} static pods; {PODS_MAX} are the most", said.pods.len()));
        }
        let pods = said.pods.iter().map(|json| mirror(node, json));
        let wanted = pods.map(|pod| pod.map(|pod| (ObjectKey::of_meta(&pod.metadata), pod)));
        *self.wanted.lock() = Some(wanted.collect::<Result<_, _>>()?);
        self.said.notify_one();
        Ok(())
    }
}

/// A mirror as the node may have it made: bound to itself, and leading to no other object.
fn mirror(node: &str, json: &[u8]) -> Result<Pod, String> {
    let wrong = |why: String| format!("a mirror pod of it cannot be: {why}");
    let value: Value = serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
    if let Some(path) = static_pods::reference(&value["spec"]) {
        return Err(wrong(format!("spec.{path} refers to another object")));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
    let meta = &mut pod.metadata;
    if static_pods::annotation(meta, static_pods::MIRROR).is_none_or(str::is_empty) {
        return Err(wrong(format!("it has no annotation {}", static_pods::MIRROR)));
    }
    if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(node) {
        return Err(wrong("its spec.nodeName is another node".into()));
    }
    (meta.uid, meta.resource_version, meta.owner_references, meta.finalizers) =
        (None, None, None, None);
    pod.status = None;
    Ok(pod)
}

/// Keeps the node's mirrors as it says, while it is connected.
pub(crate) async fn keep(session: &Session, node: &Node) {
    let mut failures = 0;
    loop {
        session.mirrors.said.notified().await;
        while !settle(session, node).await {
            failures += 1;
            let wait = backoff::wait(failures, rand::random()).min(WAIT_MAX);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = session.mirrors.said.notified() => {}
            }
        }
        failures = 0;
    }
}

/// One look at what there is; false when something failed that may go well later.
async fn settle(session: &Session, node: &Node) -> bool {
    let inner = session.inner();
    let wanted = session.mirrors.wanted.lock().clone().unwrap_or_default();
    let Plan { make, delete } = plan(wanted, &inner.world.mirrors_of(session.node()));
    let mut done = true;
    for (key, uid) in delete {
        let options = DeleteOptions::uid(&uid).grace(0);
        match inner.client.delete::<lean::Pod>(&key.namespace, &key.name, &options).await {
            Err(e) if e.is_not_found() || e.is_conflict() => {}
            Err(cause) => {
                done = false;
                tracing::warn!(node = session.node(), %key, %cause, "cannot delete a mirror pod");
            }
            // What takes its place is made when it is gone.
            Ok(()) => done = false,
        }
    }
    for mut pod in make {
        pod.metadata.owner_references = Some(vec![owner(node)]);
        let key = ObjectKey::of_meta(&pod.metadata);
        match inner.client.create(&pod).await {
            Ok(_) => tracing::info!(node = session.node(), %key, "made a mirror pod"),
            Err(cause) => {
                done &= is_for_good(&cause);
                tracing::warn!(node = session.node(), %key, %cause, "cannot make a mirror pod");
            }
        }
    }
    done
}

fn is_for_good(cause: &Error) -> bool {
    cause.status().is_some_and(|status| matches!(status.code, 400 | 403 | 422))
}

fn owner(node: &Node) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

#[derive(Debug, Default, PartialEq)]
struct Plan {
    make: Vec<Pod>,
    /// Each with the UID of what is to go.
    delete: Vec<(ObjectKey, String)>,
}

/// `there` are the mirrors of this node in the API. One whose static pod is another by now goes first.
fn plan(mut wanted: BTreeMap<ObjectKey, Pod>, there: &[std::sync::Arc<lean::Pod>]) -> Plan {
    let mut plan = Plan::default();
    for pod in there {
        let meta = &pod.metadata;
        let key = ObjectKey::of_meta(meta);
        let hash = |meta| static_pods::annotation(meta, static_pods::MIRROR);
        let fits = wanted.get(&key).is_some_and(|w| hash(&w.metadata) == hash(meta));
        if !fits {
            plan.delete.push((key.clone(), meta.uid.clone().unwrap_or_default()));
        }
        wanted.remove(&key);
    }
    plan.make = wanted.into_values().collect();
    plan
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn json_of(name: &str, hash: &str, spec: Value) -> Vec<u8> {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c", "image": "i"}]);
        json!({"metadata": {"name": name, "namespace": "n", "uid": "u", "annotations": {static_pods::MIRROR: hash}},
            "spec": spec, "status": {"phase": "Running"}})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn a_node_has_mirrors_of_its_own_alone() {
        let check = |spec: Value| mirror("here", &json_of("p", "h", spec));
        let good = check(json!({"nodeName": "here"})).unwrap();
        assert_eq!((good.metadata.uid, good.status), (None, None));
        for (spec, why) in [
            (json!({"nodeName": "there"}), "another node"),
            (json!({}), "another node"),
            (json!({"nodeName": "here", "serviceAccountName": "admin"}), "spec.serviceAccountName"),
            (
                json!({"nodeName": "here", "volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
                "spec.volumes.[0].secret",
            ),
        ] {
            let error = check(spec).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(mirror("here", b"{}").unwrap_err().contains(static_pods::MIRROR));
        assert!(mirror("here", b"nonsense").is_err());
    }

    #[test]
    fn what_is_made_and_what_goes() {
        let there = |name: &str, hash: &str| {
            let pod = json_of(name, hash, json!({"nodeName": "here"}));
            Arc::new(serde_json::from_slice::<lean::Pod>(&pod).unwrap())
        };
        let names = ["new", "same", "changed"];
        let wanted = names.map(|name| {
            let pod = mirror("here", &json_of(name, "h2", json!({"nodeName": "here"}))).unwrap();
            (ObjectKey::of_meta(&pod.metadata), pod)
        });
        let there = [there("same", "h2"), there("changed", "h1"), there("old", "h1")];
        let plan = plan(wanted.into(), &there);
        let made: Vec<_> = plan.make.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        assert_eq!(made, ["new"], "what is changed is made once the old one is gone");
        let gone: Vec<_> =
            plan.delete.iter().map(|(key, uid)| (key.name.as_str(), uid.as_str())).collect();
        assert_eq!(gone, [("changed", "u"), ("old", "u")]);
    }
}
